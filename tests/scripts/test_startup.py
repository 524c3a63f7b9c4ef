"""What the package and the scripts load before they know their arguments, counted in modules and not in seconds."""

import json
import subprocess
import sys

import pytest
from running import SCRIPTS

# In one process: diffusers' pipeline, our package, then every script, which is asked for help and told nonsense.
# Prints the names of the modules that each of the three has added.
PROGRAM = """
import contextlib, importlib.util, io, json, sys
from pathlib import Path

added, before = [], set(sys.modules)

def count():
    added.append(sorted(set(sys.modules) - before))
    before.update(sys.modules)

from diffusers import DDPMPipeline
count()
import ddpm_hf
count()
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
count()
print(json.dumps(added))
"""


@pytest.mark.processes
def test_import_help_and_errors_load_little_beyond_the_stock_pipeline():
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(SCRIPTS)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    stock, package, scripts = (
        {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) for names in json.loads(run.stdout)
    )
    # No third-party module that diffusers does not load itself, and for the scripts no package.
    assert package == {"ddpm_hf"}
    assert scripts - stock <= {"ddpm_hf"}
    assert not stock & {"datasets", "pyarrow", "pandas", "matplotlib", "wandb", "trackio", "tensorboard"}
