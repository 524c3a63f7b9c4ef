"""The way to a page that may be written to: token, name, rights and privacy, all checked before there is a model."""

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
    """A model page on the Hub that this process may write to.

    Attributes:
        repo_id: "user/name".
        url: where people find it.
        license: an identifier of the Hub's list, or None.
        token: never shown.
    """

    repo_id: str
    url: str
    license: str | None
    token: str = field(repr=False)


def find_token(token_file: str | None) -> str:
    """The token in the file named, else that of `HF_TOKEN` or the stored login.

    Raises:
        ValueError: if there is none. What was given is not repeated: it might be the token itself.
    """
    if token_file is None:
        token = get_token()
        if token is None:
            raise ValueError(f"there is no token for the Hub: {TOKEN_ADVICE}")
        return token
    try:
        words = Path(token_file).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "not a text file"
        raise ValueError(f"--hub_token_file cannot be read: {reason}") from None
    if len(words) != 1:
        raise ValueError(f"--hub_token_file must hold the token and nothing else; the file has {len(words)} words")
    return words[0]


def open_page(
    repo_id: str,
    *,
    private: bool,
    license: str | None,
    token_file: str | None,
    report: Callable[[str], None] = print,
) -> Page:
    """Make sure of a page that can be written to; creates the repository if there is none.

    Args:
        repo_id: "user/name", or a name alone for the token's own user.
        private: whether nobody else may see it.
        license: an identifier of the Hub's list, or None to leave it open.
        token_file: a file that holds the token; None for `HF_TOKEN` or the stored login.
        report: told of failed attempts.

    Raises:
        ValueError: for a missing or refused token, a bad name or licence, no right to write, a public repository where
            a private one was asked for, or a Hub that cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as problem:
        raise ValueError(f"--hub_model_id {repo_id!r} is no name for a repository: {problem}") from None
    api = HfApi(token=find_token(token_file))
    user = _answer(api.whoami, f"the Hub does not accept the token; {TOKEN_ADVICE}", report)["name"]
    repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    refusal = f"--hub_model_id {repo_id}: the token of {user} may not write there"
    url = _answer(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True), refusal, report)
    # An existing repository is reported as created, whatever the token may do there.
    _answer(lambda: api.auth_check(repo_id, write=True), refusal, report)
    found = _answer(lambda: api.repo_info(repo_id, timeout=PATIENCE), refusal, report)
    if private and not found.private:
        raise ValueError(
            f"--hub_private_repo: {repo_id} exists and is public; make it private on its settings page, or choose "
            "another --hub_model_id"
        )
    if license is not None:
        card = ModelCard(f"---\n{ModelCardData(license=license)}\n---\n")
        try:
            _answer(card.validate, "the Hub does not validate cards", report)
        except ValueError as problem:
            raise ValueError(f"--hub_license {license!r}: {one_line(problem)}") from None
    return Page(repo_id=repo_id, url=str(url), license=license, token=api.token)


def _answer(request: Callable[[], Result], refusal: str, report: Callable[[str], None]) -> Result:
    """What the Hub answers, or a ValueError: that it refuses, and what; or that it is away, and what then."""
    try:
        return persistently(request, report)
    except (HTTPError, ConnectionError) as error:
        if is_transient(error) or isinstance(error, OfflineModeIsEnabled):
            raise ValueError(
                f"the Hub cannot be reached ({one_line(error)}). Try again later; or train without --push_to_hub, and "
                "push the result with push.py when the Hub is back"
            ) from None
        raise ValueError(f"{refusal} ({one_line(error)})") from None
