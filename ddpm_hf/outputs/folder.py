"""The output folder of a run: who may write into it, its tables and its curves."""

import csv
import json
import os
import platform
import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from tqdm.auto import tqdm

from ..evaluation.plots import panels
from ..files import remove, write_json, write_text
from ..hub.card import is_generated
from ..hub.folder import CARD_FILE, CONFIG_FILE, RECORDED, RUN_FILES, SUMMARY_FILE, written_components
from ..settings.config import HUB_FLAGS, NOT_PART_OF_THE_RESULT, Config

LOSS_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "images_per_second", "seconds")
# The folders that tensorboard (named after the project) and wandb create in `--logging_dir`.
TRACKER_PROJECT = "ddpm_hf"
_TRACKER_FOLDERS = (TRACKER_PROJECT, "wandb")


class OutputFolder:
    """The folder of a stage, which need not exist yet: that given as `--output_dir`, or one in it.

    Attributes:
        path: of the folder.
        whole: the folder of all stages.
    """

    def __init__(self, path: str | Path, stage_folder: str = "."):
        self.path = Path(path)
        self.whole = self.path.parents[len(Path(stage_folder).parts) - 1] if stage_folder != "." else self.path
        self._lock: FileLock | None = None
        self._failing: set[str] = set()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def check_is_ours(self, overwrite: bool, known: Collection[str] = ()) -> None:
        """Refuse a folder that is not empty and holds no run; quick enough to do before reading data.

        Args:
            overwrite: other files may stay.
            known: names that do not count, those of other stages.

        Raises:
            ValueError: for a file, or a folder with other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--output_dir {self.path} must be a folder, but is a file")
        if overwrite or not self.path.is_dir() or (self / CONFIG_FILE).is_file():
            return
        visible = (entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        names = sorted(set(visible).difference(known))
        if names:
            raise ValueError(
                f"--output_dir {self.path} has other files in it ({', '.join(names[:3])}{', …' * (len(names) > 3)}); "
                "choose a new or empty folder, or add --overwrite_output_dir to write beside them"
            )

    def open(self, config: Config, facts: dict[str, Any], overwrite: bool) -> dict[str, Any]:
        """Start a run in the folder, or continue the one it holds.

        Args:
            config: with every value filled in.
            facts: about data and model, e.g. the number of training images; they must not change during a run.
            overwrite: remove the run that the folder holds, and those of later stages in it.

        Returns:
            The summary so far; `status` is "running" or "finished".

        Raises:
            ValueError: if the folder holds a run with other settings, listing the differences, or if one to be removed
                is in use.
        """
        summary = self.read_summary()
        if overwrite:
            self._clear()
        elif summary is not None:
            self._check_same_run(config, facts, summary)
            return summary
        self.path.mkdir(parents=True, exist_ok=True)
        unrecorded = {"overwrite_output_dir", *HUB_FLAGS}
        flags = {name: value for name, value in config.flags().items() if name not in unrecorded}
        content = {**flags, RECORDED: facts}
        write_text(self / CONFIG_FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        summary = {"status": "running", "tracker_run": uuid.uuid4().hex[:12], **facts}
        self.write_summary(summary)
        return summary

    def lock(self) -> None:
        """Keep other runs out until `unlock` or the end of this process.

        Raises:
            ValueError: if another process uses the folder, naming it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        owner = self / ".owner.json"
        self._lock = FileLock(self / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            other = json.loads(owner.read_text(encoding="utf-8"))
            raise ValueError(
                f"--output_dir {self.path} is in use by process {other['pid']} on {other['host']}; wait for it, or "
                "choose another folder"
            ) from None
        write_json(owner, {"pid": os.getpid(), "host": platform.node()})

    def unlock(self) -> None:
        """Let other runs in again."""
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def sparing_the_run(self, what: str) -> Iterator[None]:
        """Around a write that the run can do without: a failure, such as a full disk, is reported once per `what`."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            if what not in self._failing:
                tqdm.write(f"cannot write {what}: {error}; the run continues")
            self._failing.add(what)
        else:
            self._failing.discard(what)

    def read_summary(self) -> dict[str, Any] | None:
        """`training_summary.json` as a dictionary, or None before the first run."""
        file = self / SUMMARY_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace `training_summary.json`."""
        write_json(self / SUMMARY_FILE, summary)

    def _check_same_run(self, config: Config, facts: dict[str, Any], summary: dict[str, Any]) -> None:
        saved = yaml.safe_load((self / CONFIG_FILE).read_text(encoding="utf-8"))
        flags = config.flags()
        changed = [
            f"{name}: {saved.get(name)} there, {flags[name]} now"
            for name in flags
            if name not in NOT_PART_OF_THE_RESULT and saved.get(name) != flags[name]
        ]
        facts = json.loads(json.dumps(facts))  # like the saved ones: JSON has no tuples
        if not changed:  # only then do other facts mean changed data or processes
            differing = [name for name in facts if summary.get(name) != facts[name]]
            changed = [f"{name}: {summary.get(name)} there, {facts[name]} now" for name in differing]
        if changed:
            raise ValueError(
                f"--output_dir {self.path} holds a run with other settings ({'; '.join(changed)}); choose another "
                "folder, or add --overwrite_output_dir to start over"
            )

    def left_by_run(self) -> list[Path]:
        """What a run wrote here, complete or not, without a card that its author took over; nothing if there is none.

        That is what `--overwrite_output_dir` deletes.
        """
        if not ((self / SUMMARY_FILE).is_file() or (self / CONFIG_FILE).is_file()):
            return []
        names = "|".join([*(file.pattern for file in RUN_FILES), *map(re.escape, written_components(self.path))])
        own = re.compile(rf"{names}|\.({names})(\.\d+)?\.partial")  # the second form is that of `replacing`
        left = [path for path in sorted(self.path.iterdir()) if own.fullmatch(path.name)]
        left = [path for path in left if path.name != CARD_FILE or is_generated(path)]
        trackers = (place / name for place in self._logging_dirs() for name in _TRACKER_FOLDERS)
        return left + [path for path in trackers if path.is_dir()]

    def _logging_dirs(self) -> list[Path]:
        """The folders in this one that its runs gave to trackers; other runs may share those outside of it."""
        names = {*(self.read_summary() or {}).get("logging_dirs", ())}
        settings = self / CONFIG_FILE
        if settings.is_file():  # older versions recorded the folder of their trackers only there
            with suppress(yaml.YAMLError, AttributeError):  # a broken file is a reason to start over
                names.add(yaml.safe_load(settings.read_text(encoding="utf-8")).get("logging_dir", "logs"))
        places = (Path(f"{self.path}/{name}") for name in sorted(names))
        return [place for place in places if place.resolve().is_relative_to(self.path.resolve())]

    def _clear(self) -> None:
        left, root = self.left_by_run(), self.path.resolve()
        logging_dirs = [place.resolve() for place in self._logging_dirs()]
        later = [OutputFolder(path) for path in left if (path / CONFIG_FILE).is_file()]
        for run in later:
            run.lock()
        for path in left:
            remove(path)
        for run in later:
            run.unlock()
        for place in logging_dirs:
            while place != root and place.is_dir() and not any(place.iterdir()):
                place.rmdir()
                place = place.parent


class StepTable:
    """A CSV file of numbers, one line per step; a resumed run drops the lines after its checkpoint.

    Args:
        file: need not exist yet.
        resumed_step: the last step to keep.
        columns: "step" and others, in addition to those already in the file.
    """

    def __init__(self, file: Path, resumed_step: int, columns: Sequence[str]):
        self.file, self.columns = file, list(columns)
        self.rows: list[dict[str, float]] = []
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1].splitlines()  # a full disk may have cut the last line
            lines = csv.DictReader(whole)
            rows = [{name: float(value) for name, value in row.items() if value} for row in lines]
            self.rows = [row for row in rows if row["step"] <= resumed_step]
            self.columns = list(dict.fromkeys([*(lines.fieldnames or ()), *columns]))
        self._is_whole = False

    def append(self, **row: float) -> None:
        """Add a line, by column. One that could not be written is written with the next."""
        self.rows.append(row)
        was_whole, self._is_whole = self._is_whole, False
        if was_whole:
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(self._line(row))
        else:
            write_text(self.file, ",".join(self.columns) + "\n" + "".join(map(self._line, self.rows)))
        self._is_whole = True

    def plot(self, file: Path, *panel_columns: Sequence[str], **options: Any) -> None:
        """Plot columns over the steps: a panel named after the first of each group, the others dashed and dotted."""
        with panels(file, [first for first, *_ in panel_columns], xlabel="optimizer step", **options) as drawn:
            for axes, columns in zip(drawn, panel_columns, strict=True):
                for column, style in zip(columns, ("-", "k--", "k:"), strict=False):
                    if points := [(row["step"], row[column]) for row in self.rows if column in row]:
                        marker = "o" if len(points) < 50 else None  # one point has no line
                        axes.plot(*zip(*points, strict=True), style, marker=marker, ms=3, linewidth=1, label=column)
                axes.legend(fontsize="small")

    def _line(self, row: dict[str, float]) -> str:
        cells = ("" if name not in row else f"{row[name]:.6g}" for name in self.columns[1:])
        return ",".join([f"{row['step']:.0f}", *cells]) + "\n"
