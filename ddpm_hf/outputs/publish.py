"""The card of a run, and its page on the Hub if asked for. No failure here can lose the results."""

import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.utils import disable_progress_bars

from ..files import write_json
from ..hub.access import Page, open_page
from ..hub.card import write_card
from ..hub.folder import CONFIG_FILE, CURVE_FILE, INDEX_FILE, LOSS_FILE, SAMPLES_FILE, STAGING_FOLDER, SUMMARY_FILE
from ..hub.push import push
from ..hub.retry import one_line
from ..pipelines.ddpm import DDPMPipeline
from ..settings.config import Config
from ..settings.hub_arguments import PageArguments
from .folder import OutputFolder


def page_for(hub: PageArguments, folder: Path, say: Callable[[str], None] = print) -> Page:
    """The page given by the flags, by default named after the folder; ValueError if it cannot be written to."""
    return open_page(
        hub.hub_model_id or folder.resolve().name,
        private=hub.hub_private_repo,
        license=hub.hub_license,
        token_file=hub.hub_token_file,
        say=say,
    )


def push_command(hub: PageArguments, folder: Path, repo_id: str) -> str:
    """The command that pushes a folder with these flags."""
    words = [sys.executable, "-m", "ddpm_hf.cli.push", str(folder), "--hub_model_id", repo_id]
    words += ["--hub_private_repo"] if hub.hub_private_repo else []
    for name in ("hub_license", "hub_token_file"):
        if getattr(hub, name) is not None:
            words += [f"--{name}", getattr(hub, name)]
    return shlex.join(words)


class Publisher:
    """Writes the card and pushes the model; in the main process only.

    Args:
        page: where to push, if anywhere.
        say: prints a line without disturbing a progress bar.
    """

    def __init__(self, config: Config, output: OutputFolder, page: Page | None, say: Callable[[str], None]):
        self.hub, self.output, self.page, self.say = config.hub, output, page, say
        self.staging = output / STAGING_FOLDER
        self.upload: threading.Thread | None = None
        if page is not None:
            disable_progress_bars()  # they would draw over ours

    def checkpoint(self, pipeline: Callable[[], DDPMPipeline], summary: dict[str, Any], picture: Path | None) -> None:
        """Push the state at a checkpoint in the background, if asked for.

        A checkpoint that comes while the previous upload is running is not pushed, nor that of a part of a model.

        Args:
            pipeline: makes the one that would be saved now.
            summary: of the run at this step.
            picture: samples to show, if there are any yet.
        """
        if self.page is None or self.hub.hub_strategy != "checkpoint" or self.output.whole != self.output.path:
            return
        if self.upload is not None and self.upload.is_alive():
            self.say(f"the previous upload is still running; step {summary['step']} is not pushed")
            return
        with self._sparing_the_run(f"step {summary['step']} was not pushed"):
            self._stage(pipeline(), summary, picture)
            self.upload = threading.Thread(target=self._push_staged, args=(summary["step"],), daemon=True)
            self.upload.start()

    def _stage(self, pipeline: DDPMPipeline, summary: dict[str, Any], picture: Path | None) -> None:
        """Copy what to push, because the run keeps writing into its folder."""
        shutil.rmtree(self.staging, ignore_errors=True)
        pipeline.save_pretrained(self.staging)
        for name in (CONFIG_FILE, LOSS_FILE, CURVE_FILE):
            if (self.output / name).is_file():
                shutil.copyfile(self.output / name, self.staging / name)
        if picture is not None:
            shutil.copyfile(picture, self.staging / SAMPLES_FILE)
        write_json(self.staging / SUMMARY_FILE, summary)
        write_card(self.staging, self.page.repo_id, self.page.license)

    def _push_staged(self, step: int) -> None:
        with self._sparing_the_run(f"step {step} was not pushed"):
            push(self.staging, self.page, f"Training, step {step}", self.say)

    @contextmanager
    def _sparing_the_run(self, failure: str, advice: str = "the run continues") -> Iterator[None]:
        """Turn any failure into a printed line: of the Hub, the disk, or in the Hub's answer."""
        try:
            yield
        except Exception as error:
            self.say(f"{failure}: {one_line(error)}; {advice}")

    def finish(self) -> None:
        """Write the card and push the folder; after a failed push, print the command to push it later."""
        if self.upload is not None:
            self.upload.join()
        shutil.rmtree(self.staging, ignore_errors=True)
        folder, page = self.output.path, self.page
        whole = self.output.whole if (self.output.whole / INDEX_FILE).is_file() else folder
        with self._sparing_the_run("the card was not written", f"all other results are in {folder}"):
            for described in dict.fromkeys((folder, whole)):
                write_card(described, page and page.repo_id, self.hub.hub_license)
        if page is None:
            return
        command = push_command(self.hub, whole, page.repo_id)
        advice = f"all results are in {folder}. To push them later:\n    {command}"
        with self._sparing_the_run("the model was not pushed", advice):
            self.say(f"model page: {push(whole, page, 'End of training', self.say)}")
