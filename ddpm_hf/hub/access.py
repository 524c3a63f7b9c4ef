"""Open a model page on the Hub: check token, name, write access and privacy before training starts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from .retry import PATIENCE, is_transient, one_line, persistently

Result = TypeVar("Result")

TOKEN_ADVICE = "set HF_TOKEN, run `hf auth login`, or name a file with --hub_token_file"


@dataclass(frozen=True)
class Page:
    """A model page on the Hub with write access.

    Attributes:
        repo_id: "user/name".
        url: its address.
        license: one of the Hub's license identifiers, or None.
        token: never printed.
    """

    repo_id: str
    url: str
    license: str | None
    token: str = field(repr=False)


def find_token(token_file: str | None) -> str:
    """The token in `token_file`, else that of `HF_TOKEN` or the stored login.

    Raises:
        ValueError: there is no token. The message does not repeat the file name, which might be the token itself.
    """
    if token_file is None:
        token = get_token()
        if token is None:
            raise ValueError(f"no token for the Hub found: {TOKEN_ADVICE}")
        return token
    try:
        words = Path(token_file).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "not a text file"
        raise ValueError(f"--hub_token_file cannot be read: {reason}") from None
    if len(words) != 1:
        raise ValueError(f"--hub_token_file must contain only the token, got {len(words)} words")
    return words[0]


def open_page(
    repo_id: str, *, private: bool, license: str | None, token_file: str | None, say: Callable[[str], None] = print
) -> Page:
    """Check write access to a page, creating the repository if it does not exist.

    Args:
        repo_id: "user/name", or just a name for the token's own user.
        private: whether the repository must be private.
        license: one of the Hub's license identifiers.
        token_file: as for `find_token`.
        say: as for `persistently`.

    Raises:
        ValueError: the token is missing or refused, the name or license is invalid, there is no write access, the
            repository is public but should be private, or the Hub cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as problem:
        raise ValueError(f"--hub_model_id must be a valid repository name, got {repo_id!r}: {problem}") from None
    api = HfApi(token=find_token(token_file))
    user = _answer(api.whoami, f"the Hub does not accept the token; {TOKEN_ADVICE}", say)["name"]
    repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    refusal = f"--hub_model_id {repo_id}: the token of {user} has no write access"
    url = _answer(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True), refusal, say)
    # create_repo succeeds for an existing repository even without write access.
    _answer(lambda: api.auth_check(repo_id, write=True), refusal, say)
    found = _answer(lambda: api.repo_info(repo_id, timeout=PATIENCE), refusal, say)
    if private and not found.private:
        raise ValueError(
            f"--hub_private_repo: {repo_id} is public; make it private on its settings page, or choose another "
            "--hub_model_id"
        )
    if license is not None:
        card = ModelCard(f"---\n{ModelCardData(license=license)}\n---\n")
        try:
            _answer(card.validate, "the Hub cannot validate the card", say)
        except ValueError as problem:
            raise ValueError(f"--hub_license {license!r}: {one_line(problem)}") from None
    return Page(repo_id=repo_id, url=str(url), license=license, token=api.token)


def _answer(request: Callable[[], Result], refusal: str, say: Callable[[str], None]) -> Result:
    """The Hub's answer. ValueError with `refusal` if it refuses, or with advice if it cannot be reached."""
    try:
        return persistently(request, say)
    except (HTTPError, ConnectionError) as error:
        if is_transient(error) or isinstance(error, OfflineModeIsEnabled):
            raise ValueError(
                f"cannot reach the Hub ({one_line(error)}); try again later, or train without --push_to_hub and push "
                "the result with push.py afterwards"
            ) from None
        raise ValueError(f"{refusal} ({one_line(error)})") from None
