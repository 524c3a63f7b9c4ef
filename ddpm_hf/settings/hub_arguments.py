"""The flags of a model page on the Hub."""

from dataclasses import dataclass
from typing import Literal

from ..flags import flag


@dataclass(frozen=True, kw_only=True)
class PageArguments:
    """The model page on the Hub; shared with `scripts/push.py`."""

    _argument_group_name = "hub"

    hub_model_id: str | None = flag(help="user/name, or just name for your own account; by default the folder's name.")
    hub_private_repo: bool = flag(False, help="Make the page private.")
    hub_license: str | None = flag(help="Licence on the card, as the Hub spells it, e.g. apache-2.0; by default none.")
    hub_token_file: str | None = flag(
        help="A file with the access token. By default HF_TOKEN or the stored login. There is no --hub_token, since "
        "other users of the machine can read command lines."
    )


@dataclass(frozen=True, kw_only=True)
class HubArguments(PageArguments):
    """Whether and when to push to the Hub."""

    push_to_hub: bool = flag(False, help="Push the pipeline, its card and pictures to the Hub.")
    hub_strategy: Literal["end", "checkpoint"] = flag(
        "end", help="Push at the end only, or also at every checkpoint, in the background."
    )
