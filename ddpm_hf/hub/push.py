"""Push a model page in one commit and verify what arrived."""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HTTPError
from safetensors import safe_open

from ..evaluation.record import read_report
from ..pipelines.loading import NETWORK_CONFIG, config_file
from .access import Page
from .card import CONFIG_HEADER, public_metrics, public_settings
from .folder import (
    CARD_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    EVALUATION_PICTURES,
    INDEX_FILE,
    OLDER_VERSION,
    RUN_FILES,
    SAMPLE_FILES,
    ModelFolder,
    written_components,
)
from .retry import one_line, persistently

# Configs, weights and tokenizers: never pickles or code.
_COMPONENT_FILES = ("*config.json", "*.safetensors", "*.safetensors.index*.json", "tokenizer.json", "*.model")
_COMPONENT_FILES += ("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt")


class PushFailed(Exception):
    """The push failed or arrived incomplete; the local folder is unchanged."""


def push(folder: str | Path, page: Page, message: str, say: Callable[[str], None] = print) -> str:
    """Push a model folder to its page in one commit and verify it.

    Args:
        folder: a pipeline with its card, see `write_card`.
        page: from `open_page`.
        message: of the commit.
        say: as for `persistently`.

    Returns:
        The address of the page.

    Raises:
        ValueError: the folder holds no pipeline of a known class.
        PushFailed: the Hub refuses, cannot be reached, or does not have the folder's content afterwards.
    """
    files = page_files(ModelFolder.read(folder))
    api = HfApi(token=page.token)
    try:
        commit = persistently(lambda: _commit(api, page.repo_id, files, message), say)
        persistently(lambda: _check(api, page.repo_id, commit.oid, files), say)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise PushFailed(one_line(error)) from error
    return page.url


def page_files(model: ModelFolder) -> dict[str, Path | bytes]:
    """The files of a model page: path on the Hub -> local file or content.

    Local paths are removed from settings and metrics.

    Raises:
        ValueError: the folder has no card, or a network without safetensors weights.
    """
    if not model.has(CARD_FILE):
        raise ValueError(f"{model.path} has no card ({CARD_FILE})")
    others = {CONFIG_FILE, EVALUATION_FILE, *(SAMPLE_FILES if model.draws_on_data else ())}
    names = [file.name for file in RUN_FILES if file.on_page and file.name not in others]
    files: dict[str, Path | bytes] = {name: model.path / name for name in names if model.has(name)}
    if model.settings:
        text = yaml.safe_dump(public_settings(model.settings), sort_keys=False, allow_unicode=True)
        files[CONFIG_FILE] = (CONFIG_HEADER + text).encode()
    if model.metrics:
        report = read_report(model.path / EVALUATION_FILE) | {"metrics": public_metrics(model.metrics)}
        files[EVALUATION_FILE] = (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()
        files |= {name: model.path / name for name in model.evaluation_pictures}
    for component in model.configs:
        config = config_file(model.path, component)
        found = [path for pattern in _COMPONENT_FILES for path in sorted(config.parent.glob(pattern))]
        if config.name == NETWORK_CONFIG and not any(path.suffix == ".safetensors" for path in found):
            raise ValueError(
                f"{model.path} has no safetensors weights of its {component}; load the pipeline and save it again"
            )
        files |= {path.relative_to(model.path).as_posix(): path for path in found}
    for stage in filter(None, (model.upsampler, model.inpainting)):
        files |= {f"{stage.path.name}/{name}": content for name, content in page_files(stage).items()}
    return files


def _commit(api: HfApi, repo_id: str, files: dict[str, Path | bytes], message: str):
    """Commit the files, deleting those an earlier model left on the page."""
    there = api.list_repo_files(repo_id)
    patterns = [file.pattern for file in RUN_FILES if file.on_page or file.writer == OLDER_VERSION]
    with tempfile.TemporaryDirectory() as page:
        if INDEX_FILE in there:
            api.hf_hub_download(repo_id, INDEX_FILE, local_dir=page)
        for folder in (page, files[INDEX_FILE].parent):
            patterns += map(re.escape, written_components(Path(folder)))
    ours = re.compile(rf"({'|'.join(patterns)})(/.*)?|" + "|".join(map(re.escape, EVALUATION_PICTURES)))
    left_over = [path for path in there if ours.fullmatch(path) and path not in files]
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    operations += [CommitOperationDelete(path, is_folder=False) for path in left_over]
    # upload_folder may split a folder into several commits.
    return api.create_commit(repo_id, operations, commit_message=message)


def _check(api: HfApi, repo_id: str, revision: str, files: dict[str, Path | bytes]) -> None:
    """Read the page back; ValueError if a file, the index, the card or the shapes of the weights differ."""
    there = {entry.path: entry for entry in api.get_paths_info(repo_id, list(files), revision=revision)}
    differing = [name for name, content in files.items() if name not in there or not _same(there[name], content)]
    if differing:
        raise ValueError(f"{repo_id} has files that differ from those sent: {', '.join(differing)}")
    with tempfile.TemporaryDirectory() as download:
        place = {"revision": revision, "cache_dir": download}
        read = {name: api.hf_hub_download(repo_id, name, **place) for name in (INDEX_FILE, CARD_FILE)}
        for name, path in read.items():
            if Path(path).read_bytes() != files[name].read_bytes():
                raise ValueError(f"{repo_id} serves a {name} that differs from the one sent")
        ModelCard.load(read[CARD_FILE])  # raises if the metadata is invalid
    for name, content in files.items():
        if name.endswith(".safetensors"):
            shapes = api.parse_safetensors_file_metadata(repo_id, name, revision=revision).tensors
            if {key: tuple(tensor.shape) for key, tensor in shapes.items()} != _shapes(content):
                raise ValueError(f"{repo_id} serves a {name} with different tensor shapes from those sent")


def _same(entry, content: Path | bytes) -> bool:
    if entry.lfs is not None and isinstance(content, Path):
        with content.open("rb") as file:
            return entry.lfs.sha256 == hashlib.file_digest(file, "sha256").hexdigest()
    data = content if isinstance(content, bytes) else content.read_bytes()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(file, framework="pt") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}
