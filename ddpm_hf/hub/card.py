"""The model card, written from the files of the model folder; its sentences are in `model_card.md`."""

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.record import MARKS, data_of
from ..portable import AUTOENCODER_FOLDER, CLIP_FOLDER, PRIOR_FOLDER
from .folder import (
    ANIMATION_FILE,
    CARD_FILE,
    CHAIN_FILE,
    CURVE_FILE,
    RECORDED,
    SAMPLES_FILE,
    ModelFolder,
)
from .tasks import TASKS

TEMPLATE_FILE = "model_card.md"
MARKER = "Written by ddpm_hf, which overwrites this file; delete this line to keep changes of your own."

# Component -> the folder in which it may have been trained, and the flag that names another.
_PARTS = {
    "vae": (AUTOENCODER_FOLDER, "vae"),
    "prior_image_encoder": (CLIP_FOLDER, "clip_model"),
    "prior_prior": (PRIOR_FOLDER, "init_from"),
}

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# Settings of no use on other machines.
_PRIVATE_SETTINGS = frozenset("output_dir cache_dir logging_dir resume_from_checkpoint".split())
_PATH_SETTINGS = tuple(
    "dataset_name train_data_dir init_from model_config_name_or_path vae text_encoder clip_model "
    "eval_clip_model".split()
)
CONFIG_HEADER = "# The settings of the run, for `train.py --config`; of local paths only the last part is kept.\n"


def write_card(folder: str | Path, repo_id: str | None = None, license: str | None = None) -> Path:
    """Write the card of a model folder.

    A card without `MARKER` belongs to its author and is left alone.

    Args:
        folder: a saved pipeline with the files a run wrote beside it.
        repo_id: "user/name" for the code examples; without it they load the current folder.
        license: an identifier from the Hub's list; None keeps that of an earlier card, if any.

    Returns:
        The card's file.

    Raises:
        ValueError: if the folder holds no pipeline of a known class, or one of its files is malformed.
    """
    model = ModelFolder.read(folder)
    file = model.path / CARD_FILE
    before = ModelCard.load(file) if file.is_file() else None
    if before is None or is_generated(file):
        render_card(model, repo_id, license or (before and before.data.license)).save(file)
    return file


def is_generated(card: Path) -> bool:
    """Whether a card has the mark of `write_card`, which authors remove to keep the card as theirs."""
    return MARKER.partition(",")[0] in card.read_text(encoding="utf-8")


def render_card(model: ModelFolder, repo_id: str | None = None, license: str | None = None) -> ModelCard:
    """The card of a model folder, as in `write_card`."""
    name = repo_id.rpartition("/")[2] if repo_id else model.path.resolve().name
    task, values_of = TASKS[model.index["_class_name"]]
    values = values_of(model)
    return ModelCard.from_template(
        card_data(model, name, license, values.pop("task", task), values.pop("tags")),
        template_str=template(),
        name=name,
        place=repo_id or ".",
        marker=MARKER,
        pipeline=model.index["_class_name"],
        **values,
        **_what_it_is(model),
        **_what_the_run_says(model),
    )


def template() -> str:
    """The text of `model_card.md`, from the installed package or the top level of the checkout."""
    packaged = files("ddpm_hf") / TEMPLATE_FILE
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / TEMPLATE_FILE).read_text(encoding="utf-8")


def card_data(model: ModelFolder, name: str, license: str | None, task: str, tags: list[str]) -> ModelCardData:
    """The card's metadata; `model-index` holds every metric of the evaluation report."""
    dataset = model.settings.get("dataset_name")
    start = model.settings.get("init_from")
    results = [
        EvalResult(
            task_type=task,
            dataset_type=public_name(metric.get("dataset") or "unknown"),
            dataset_name=public_name(metric.get("dataset") or "unknown"),
            dataset_split=metric.get("split"),
            metric_type=metric["name"],
            metric_name=metric["name"].replace("_", " "),
            metric_value=metric["value"],
            metric_args={key: value for key, value in _conditions(metric).items() if value is not None} or None,
        )
        for metric in model.metrics
    ]
    return ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag=task,
        tags=tags,
        datasets=[dataset] if dataset and _is_hub_name(dataset) else None,
        base_model=start if start and _is_hub_name(start) else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run for publication: of local paths only the last part is kept."""
    public = {name: value for name, value in settings.items() if name not in _PRIVATE_SETTINGS}
    for name in _PATH_SETTINGS:
        if public.get(name):
            public[name] = public_name(public[name])
    if ":" in (public.get("eval_extractor") or ""):  # such as inception:FILE
        kind, _, place = public["eval_extractor"].partition(":")
        public["eval_extractor"] = f"{kind}:{public_name(place)}"
    if public.get(RECORDED, {}).get("dataset"):
        public[RECORDED] = {**public[RECORDED], "dataset": public_name(public[RECORDED]["dataset"])}
    return public


def public_metrics(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of a report for publication."""
    return [m | {"dataset": public_name(m["dataset"])} if m.get("dataset") else m for m in metrics]


def public_name(name: str) -> str:
    """A Hub name unchanged; of a local path only the last part."""
    return name if _is_hub_name(name) else Path(name).name or name


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not os.path.exists(name)


# Values for the template


def _what_it_is(model: ModelFolder) -> dict[str, Any]:
    summary, encoder, data = model.summary, model.settings.get("text_encoder"), None
    if "dataset" in summary:
        count = summary.get("training_images")
        data = (f"{count:,} images of " if count else "a stream of ") + f"`{public_name(summary['dataset'])}`"
        if model.settings.get("init_from"):
            data += f", starting from the weights of `{public_name(model.settings['init_from'])}`"
    return {
        "data": data,
        "encoder": None if encoder in (None, "train") else public_name(encoder),
        "unfinished": summary if summary.get("status") == "running" and "step" in summary else None,
        "training_images": None if model.settings.get("init_from") else summary.get("training_images"),
        "limits": [_left_out(summary["unreadable"])] if summary.get("unreadable") else [],
        "not_done": [sentence for name, sentence in summary.get("left_out", {}).items() if name != "bits_per_dim"],
    }


def _left_out(unreadable: list[str], named: int = 100) -> str:
    """Which images were left out, by row and file name; from lines "row 17 (path): reason"."""
    names = []
    for line in unreadable[:named]:
        row, path = re.match(r"(row \d+)(?: \((.*?)\))?: ", line, re.DOTALL).groups()
        file = "" if path is None else f" `{' '.join(Path(path).name.replace('`', ' ').split())}`"
        names.append(row + file)
    more = f" and {len(unreadable) - named:,} more" if len(unreadable) > named else ""
    return f"{len(unreadable):,} images could not be read and were left out of training: {', '.join(names)}{more}."


def _what_the_run_says(model: ModelFolder) -> dict[str, Any]:
    """Pictures, figures and settings; empty for a folder that was not written by a run."""
    summary, settings = model.summary, public_settings(model.settings)
    settings.pop(RECORDED, None)
    shown = {} if model.draws_on_data else summary
    return {
        "samples": shown.get("samples") if model.has(SAMPLES_FILE) else None,
        "chain": shown.get("chain") if model.has(CHAIN_FILE) and model.has(ANIMATION_FILE) else None,
        "final_loss": summary.get("final_loss") if model.has(CURVE_FILE) else None,
        "files": {"samples": SAMPLES_FILE, "chain": CHAIN_FILE, "animation": ANIMATION_FILE, "curve": CURVE_FILE},
        "metrics": _measured(model.metrics) if model.metrics else None,
        "unmeasured": summary.get("left_out", {}).get("bits_per_dim"),
        "evaluation_pictures": model.evaluation_pictures,
        "parts": _parts_of(model),
        "training": summary if model.settings and "step" in summary else None,
        "settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).strip(),
        "cost": _cost(summary),
    }


def _parts_of(model: ModelFolder) -> dict[str, str]:
    """What was measured of the parts that were trained for it, by their folders."""
    measured = {}
    for component, (folder, flag) in _PARTS.items():
        given = any(model.settings.get(name) for name in (flag, "init_from"))
        trained = None if given or component not in model.configs else model.stage(folder)
        if trained is not None and trained.metrics:
            measured[folder] = _measured(trained.metrics)
    return measured


def _cost(summary: dict[str, Any]) -> str | None:
    if "training_seconds" not in summary or "hardware" not in summary:
        return None
    memory = summary["peak_memory_bytes"]
    cells = {
        "training": duration(summary["training_seconds"]),
        "hardware": ", later ".join(summary["hardware"]),
        "precision": {"no": "float32"}.get(summary["precision"], summary["precision"]),
        "images per second": f"{summary['images_per_second']:,.1f}",
        "peak memory": "not measured" if memory is None else f"{memory / 1e9:.2f} GB per process",
    }
    return _table([cells])


def duration(seconds: float) -> str:
    """Seconds for people: "2 h 03 min", "4 min 05 s", "0.7 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _conditions(metric: dict[str, Any]) -> dict[str, Any]:
    """How a metric was measured: everything but its name, value and data."""
    return {key: value for key, value in metric.items() if key not in ("name", "value", "dataset", "split")}


# Columns of the table of metrics; other conditions are listed below it.
_COLUMNS = ("standard_error", *MARKS, "n", "seed", "sampler", "steps")
_MEANING = {
    "floor": "The floor is the score of the same number of real training images, the best one can expect.",
    "ceiling": "The ceiling is what the program that judges the samples says of real pictures, and chance is what "
    "samples get that are shuffled among the captions.",
}
_OF_PRIOR = (
    "`prior_cosine` is that of an embedding drawn for a caption with the mean of the other pictures of that caption, "
    "and `prior_recall_at_1` the share of those that are nearer to it than to the mean of any other caption. The "
    "ceiling is what the embedding of a single picture gets, the floor what that of the caption itself gets, and "
    "chance what those of random pictures get."
)
_INTERVAL = ("interval_low", "interval_high")


def _measured(metrics: list[dict[str, Any]]) -> str:
    """A table of metrics, followed by all other conditions, grouped by metrics that share them."""
    shared: dict[str, list[str]] = {}
    for metric in metrics:
        rest = {key: value for key, value in _conditions(metric).items() if key not in (*_COLUMNS, *_INTERVAL)}
        known = {key.replace("_", " "): value for key, value in rest.items() if value is not None}
        words = ", ".join(f"{key} {_cell(value)}" for key, value in known.items())
        shared.setdefault(words, []).append(metric["name"])
    lines = [f"- {', '.join(dict.fromkeys(names))}: {words}." for words, names in shared.items() if words]
    of_others = [metric for metric in metrics if not metric["name"].startswith("prior_")]
    meanings = [words for mark, words in _MEANING.items() if any(each.get(mark) is not None for each in of_others)]
    meanings += [_OF_PRIOR] * (len(of_others) < len(metrics))
    return "\n\n".join(part for part in (_table(list(map(_row, metrics))), *meanings, "\n".join(lines)) if part)


def _row(metric: dict[str, Any]) -> dict[str, Any]:
    data = data_of(metric, public_name(metric["dataset"]) if metric.get("dataset") else "")
    low, high = (metric.get(name) for name in _INTERVAL)
    interval = {} if low is None else {"95 % interval": f"{low:.4g} … {high:.4g}"}
    columns = {name.replace("_", " "): metric[name] for name in _COLUMNS if name in metric}
    return {"metric": metric["name"], "value": metric["value"], "data": data} | columns | interval


def _table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with a column for every key in the rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
