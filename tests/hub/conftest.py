"""A Hub on loopback, and processes that use it with the real client and an empty cache."""

import json
import os
import textwrap
from pathlib import Path

import pytest
from loopback_hub import READ_TOKEN, TOKEN, Account, LoopbackHub
from running import Command

START = """
import json, shutil, sys
import huggingface_hub
sys.modules["ddpm_hf"] = None  # importing it raises ImportError

def end_piece(results):
    with open("results.jsonl", "a") as file:
        print(json.dumps(results), file=file)
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
    sys.modules.pop("ddpm_hf", None)
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
        return {**clean, **own, "OMP_NUM_THREADS": "1", **more}

    return make


@pytest.fixture(scope="module")
def run_commands(environment, tmp_path_factory):
    """Runs scripts of ours in one process of their own; gives what each of them ended with and printed."""

    def run(*tasks: dict) -> list[dict]:
        folder = tmp_path_factory.mktemp("commands")
        (folder / "tasks.json").write_text(json.dumps(tasks, default=vars))
        script = Path(__file__).with_name("hub_commands.py")
        places = (folder / "tasks.json", folder / "results.json")
        process = Command(folder, script, *places, variables=environment(), bare=True)
        assert process.wait(1800) == 0, process.err
        return json.loads((folder / "results.json").read_text())

    return run


@pytest.fixture(scope="module")
def run_python(environment, tmp_path_factory):
    """Runs pieces of code in one fresh process, each with an empty cache and the first without our package; each fills
    the dictionary `results`."""

    def run(*pieces: str, **more: str) -> list[dict]:
        folder = tmp_path_factory.mktemp("python")
        code = [START, *(f"results = {{}}{textwrap.dedent(piece)}end_piece(results)" for piece in pieces)]
        (folder / "code.py").write_text("\n".join(code))
        process = Command(folder, folder / "code.py", variables=environment(**more), bare=True)
        assert process.wait(1800) == 0, process.err
        return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]

    return run
