"""What the scripts load before they know their arguments, counted in modules and not in seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

# Every script is asked for help and told nonsense, all in one process; then come the names of all modules.
PROGRAM = """
import contextlib, importlib.util, io, json, sys
from pathlib import Path

for name in ("train.py", "sample.py", "evaluate.py", "push.py"):
    specification = importlib.util.spec_from_file_location(name[:-3], Path(sys.argv[1]) / name)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    for arguments, status in ((["--help"], 0), (["model", "--no_such_flag"], 2), (["--seed", "one"], 2)):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                module.main(arguments)
            except SystemExit as stop:
                assert stop.code == status, (name, arguments, stop.code)
            else:
                raise AssertionError((name, arguments))
print(json.dumps(sorted(sys.modules)))
"""


def packages_after(*command: str) -> set[str]:
    """Third-party packages that a process has loaded, which prints its modules as JSON."""
    run = subprocess.run([sys.executable, "-c", *command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    names = {name.partition(".")[0] for name in json.loads(run.stdout)}
    return names - set(sys.stdlib_module_names)


@pytest.mark.processes
def test_help_and_errors_load_no_data_tracker_or_plot_and_little_beyond_the_stock_pipeline():
    ours = packages_after(PROGRAM, str(SCRIPTS))
    assert "ddpm_hf" in ours
    assert not ours & {"datasets", "pyarrow", "pandas", "matplotlib", "wandb", "trackio", "tensorboard"}
    stock = packages_after(
        "import json, sys; from diffusers import DDPMPipeline; print(json.dumps(list(sys.modules)))"
    )
    assert ours - stock <= {"ddpm_hf"}
