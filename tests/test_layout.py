"""The rooms of the house: who may import whom, and what must never be renamed because it is written into saved
files."""

import ast
import sys
from pathlib import Path

import diffusers.pipelines

PACKAGE = Path(__file__).parents[1] / "ddpm_hf"

GROUND = {"portable", "seeds", "files", "flags", "progress", "cores", "pixels"}
BELOW_PIPELINES = {"kept", "data", "diffusion", "codecs", "conditions", "models", "steps"}
BELOW_JUDGEMENT = BELOW_PIPELINES | {"pipelines", "sampling", "statistics"}
# Room -> rooms of ours that it may import beside the ground, which imports none.
ALLOWED = {
    "kept": set(),
    "data": {"kept"},
    "diffusion": set(),
    "codecs": {"kept", "diffusion"},  # the decoder of the bound belongs to both
    "conditions": {"kept"},
    "models": set(),
    "statistics": set(),
    "steps": {"data", "diffusion", "codecs", "conditions"},
    "pipelines": BELOW_PIPELINES,
    "sampling": BELOW_PIPELINES | {"pipelines"},
    "judges": BELOW_JUDGEMENT,
    "evaluation": BELOW_JUDGEMENT | {"judges"},
    "hub": BELOW_JUDGEMENT | {"evaluation"},
    "settings": {"data", "diffusion", "models", "steps", "pipelines", "evaluation"},
    "systems": BELOW_JUDGEMENT | {"evaluation", "hub", "settings"},
    "outputs": {"evaluation", "hub", "pipelines", "settings"},
    "training": BELOW_JUDGEMENT | {"evaluation", "hub", "settings", "systems", "outputs"},
    "cli": BELOW_JUDGEMENT | {"evaluation", "hub", "settings", "systems", "outputs", "training"},
    "__init__": {"diffusion", "models", "pipelines", "hub"},
}


def imported_rooms(file: Path) -> set[str]:
    """Rooms of ours that a file imports, anywhere in it."""
    rooms = set()
    depth = len(file.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            path = list(file.relative_to(PACKAGE).parts[: depth - node.level])
            path += node.module.split(".") if node.module else [alias.name for alias in node.names]
            rooms.add(path[0])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddpm_hf."):
            rooms.add(node.module.split(".")[1])
    return rooms


def test_imports_flow_one_way():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 15
    for file in files:
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        allowed = set() if room in GROUND else ALLOWED[room] | GROUND
        wrong = imported_rooms(file) - allowed - {room}
        assert not wrong, f"{file.relative_to(PACKAGE)} imports {wrong}"


def test_the_check_sees_both_forms_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "a.py"
    file.write_text("from ..training.loop import Trainer\nfrom ddpm_hf.models.unet import DDPMUNet2D\nfrom . import b")
    assert imported_rooms(file) == {"training", "models", "data"}


def test_no_folder_has_the_name_of_a_pipeline_of_diffusers():
    """A class in such a folder would be saved under that name and could not be loaded: hub notes in portable.py."""
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders and not [name for name in folders if hasattr(diffusers.pipelines, name)]


def test_only_command_lines_end_a_process():
    for file in sorted(PACKAGE.rglob("*.py")):
        names = {ast.unparse(node) for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))}
        ends = {"sys.exit", "os._exit", "SystemExit"} & names
        assert not ends or file.parent.name == "cli", f"{file.relative_to(PACKAGE)} uses {ends}"


def test_the_trainer_has_all_its_attributes_from_the_start():
    module = ast.parse((PACKAGE / "training" / "loop.py").read_text(encoding="utf-8"))
    trainer = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Trainer")
    set_in = {
        method.name: {
            node.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        }
        for method in trainer.body
        if isinstance(method, ast.FunctionDef)
    }
    assert {"step", "model"} <= set_in["__init__"]
    assert not set().union(*set_in.values()) - set_in["__init__"] - {"found_inf"}, "found_inf is the optimizer's"


def test_rooms_and_files_stay_small():
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in PACKAGE.rglob("*.py")}
    assert not {file: length for file, length in lengths.items() if length > 350}
    rooms = {file.parent for file in lengths}
    totals = {room: sum(length for file, length in lengths.items() if file.parent == room) for room in rooms}
    assert not {room: total for room, total in totals.items() if total > 2500}
