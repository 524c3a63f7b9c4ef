"""A Hub on loopback, and processes that use it with the real client and an empty cache."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from loopback_hub import READ_TOKEN, TOKEN, Account, LoopbackHub

ROOT = Path(__file__).parents[2]

WITHOUT_PACKAGE = """
import sys
sys.modules["ddpm_hf"] = None  # importing it raises ImportError
"""


@pytest.fixture(scope="module")
def hub():
    """A Hub with the user alice, who has a token to write with and one to read with."""
    hub = LoopbackHub()
    hub.accounts = {TOKEN: Account("alice"), READ_TOKEN: Account("alice", role="read")}
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory):
    """Makes the environment of a process that knows no Hub but this one and has nothing in its caches."""

    def make(**more: str) -> dict[str, str]:
        home = tmp_path_factory.mktemp("home")
        unwanted = ("HF_", "HUGGING")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        own = {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HOME": str(home)}
        return {**clean, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}

    return make


@pytest.fixture(scope="module")
def run_commands(environment, tmp_path_factory):
    """Runs scripts of ours in one process of their own; gives what each of them ended with and printed."""

    def run(*tasks: dict) -> list[dict]:
        folder = tmp_path_factory.mktemp("commands")
        (folder / "tasks.json").write_text(json.dumps(tasks, default=vars))
        script = Path(__file__).with_name("hub_commands.py")
        command = [sys.executable, script, folder / "tasks.json", folder / "results.json"]
        subprocess.run(command, check=True, env=environment(), cwd=folder, timeout=1800)
        return json.loads((folder / "results.json").read_text())

    return run


@pytest.fixture(scope="module")
def run_python(environment, tmp_path_factory):
    """Runs code in a fresh process, with or without our package; the code fills the dictionary `results`."""

    def run(code: str, package: bool = True, **more: str) -> dict:
        folder = tmp_path_factory.mktemp("python")
        start = "" if package else WITHOUT_PACKAGE
        end = '\nimport json\njson.dump(results, open("results.json", "w"))\n'
        code = start + "results = {}\n" + textwrap.dedent(code) + end
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=environment(**more), cwd=folder, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "results.json").read_text())

    return run
