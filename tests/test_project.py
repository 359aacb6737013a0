"What holds for the project as a whole: modules stand alone, settings say what the code needs (test_safety: nothing executable is loaded)."

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from configparser import ConfigParser
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from stitch_nb.script import anno_parser

import stitch_nb

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "stitch_nb"
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py")
NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)


@pytest.fixture(scope="session")
def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@cache
def tree_of(path: Path):
    "A module, parsed once for all tests."
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def cells_of(path: Path) -> list:
    "A notebook's cells; each notebook is read once for all tests."
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_nothing_is_written_twice():
    "No two stages define one name; no two functions of some length have one body."
    names, bodies = defaultdict(list), defaultdict(list)
    for path in SOURCES:
        tree = tree_of(path)
        for node in tree.body:
            if isinstance(
                node, (ast.FunctionDef, ast.ClassDef)
            ) and not node.name.startswith("_"):
                names[node.name].append(path.stem)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = [
                    b
                    for b in node.body
                    if not (isinstance(b, ast.Expr) and isinstance(b.value, ast.Constant))
                ]
                if len(ast.unparse(body)) > 150:
                    bodies[ast.dump(ast.Module(body, []))].append(f"{path.stem}.{node.name}")
    assert not {n: where for n, where in names.items() if len(where) > 1}
    assert not [where for where in bodies.values() if len(where) > 1]


def test_every_module_imports_alone():
    "Each in a process of its own, in which nothing of the package was imported before (forked, so that what others wrote is loaded once)."
    modules = [
        ".".join(("stitch_nb", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for p in SOURCES
    ]
    script = f"""
import os, sys, traceback
import av, cv2, ipywidgets, matplotlib.pyplot, nbformat, psutil, scipy.ndimage, scipy.optimize
import scipy.spatial.transform, torch, torchvision, tqdm.auto
failed = []
for name in {modules!r}:
    child = os.fork()
    if child == 0:
        try: __import__(name)
        except BaseException: traceback.print_exc(); os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]: failed.append(name)
sys.exit(' '.join(failed) or 0)"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_versions_agree(settings):
    assert settings["version"] == stitch_nb.__version__


def test_console_scripts_exist(settings):
    for line in settings["console_scripts"].split("\n"):
        name, _, target = line.strip().partition("=")
        module, _, function = target.partition(":")
        program = getattr(import_module(module), function)
        module, _, command = program.target.partition(":")
        assert name == function == command and callable(getattr(import_module(module), command))


NAMES = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "skimage": "scikit-image",
    "c2pa": "c2pa-python",
    "dlib": "dlib-bin",
    "IPython": "ipython",
}
BROUGHT = {"ipython": "ipywidgets", "traitlets": "ipywidgets"}  # comes with what is required


def test_requirements_cover_the_imports(settings):
    "Whatever the package imports is in settings.ini; what it imports at the top of a module is in the plain requirements."
    clean = lambda text: {
        re.split(r"[<>=!~]", r)[0].lower().replace("_", "-") for r in text.split()
    }
    plain = clean(settings["requirements"])
    every = plain.union(*(clean(settings[k]) for k in settings if k.endswith("_requirements")))
    lacking = []
    for path in SOURCES:
        tree = tree_of(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                continue
            modules = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in (
                NAMES.get(m.split(".")[0], m.split(".")[0]).lower().replace("_", "-")
                for m in modules
            ):
                if (
                    name in sys.stdlib_module_names
                    or name == "stitch-nb"
                    or name in map(str.lower, sys.stdlib_module_names)
                ):
                    continue
                name = BROUGHT.get(name, name)
                needed = plain if node in tree.body else every
                if name not in needed:
                    lacking.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not lacking


def test_readme_is_the_index():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        assert import_module("readme").differing() == []
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_readme_has_the_two_commands(settings):
    "Each on a line of its own, after the clone line and Python's version."
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = lines.index("pip install -e . && stitch_demo")
    assert lines[first + 1] == "pip install -e '.[dev]' && nbdev_test && pytest tests"
    before = "\n".join(lines[:first])
    assert "git clone " in before and f"Python {settings['min_python']}" in before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook(path):
    "Small, without warnings and error outputs, and without what differs between two machines."
    limit = (
        600_000
        if "figures" in path.parts
        or path.stem in ("walkthrough", "index", "40_mobile")  # pages of pictures
        else 280_000  # 200 KB, and the stage on a photograph
    )
    assert path.stat().st_size < limit
    for cell in cells_of(path):
        left = re.search(r"@[A-Z][A-Z0-9_]*@|\b(TODO|FIXME|XXX)\b", "".join(cell["source"]))
        assert not left, f"{left[0]!r} stands where a measured value should"
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", "".join(cell["source"])[:200]
            assert output.get("name") != "stderr", "".join(cell["source"])[:200]
            text = "".join(output.get("text", "")) + "".join(
                output.get("data", {}).get("text/plain", "")
            )
            found = re.search(r"/tmp/|/home/|/root/|/work/| at 0x[0-9a-f]{6,}|\d+it/s|s/it\b", text)
            assert not found, f"{found[0]!r} in an output of: {''.join(cell['source'])[:200]}"


def test_links_between_notebooks_lead_somewhere():
    broken = []
    for path in NOTEBOOKS:
        for cell in cells_of(path):
            if cell["cell_type"] != "markdown":
                continue
            for target in re.findall(
                r"\]\((?!https?://|#|mailto:|attachment:)([^)#\s]+)", "".join(cell["source"])
            ):
                if not (path.parent / target).exists():
                    broken.append(f"{path.name}: {target}")
    assert not broken


def commands_said():
    "Every `stitch_...` command line in the README and in the notebooks' prose."
    texts = [(ROOT / "README.md").read_text(encoding="utf-8")]
    texts += [
        "".join(c["source"])
        for path in NOTEBOOKS
        for c in cells_of(path)
        if c["cell_type"] == "markdown"
    ]
    lines = {
        m
        for text in texts
        for m in re.findall(r"`(stitch_[a-z]+ [^`\n]+)`", text)
        + re.findall(r"^(stitch_[a-z]+ .+)$", text, re.M)
    }
    return sorted(line.split("  #")[0].strip() for line in lines)


@pytest.mark.parametrize("line", commands_said())
def test_commands_are_understood(line, settings):
    "A command that a page shows is one that the program takes."
    name, *words = shlex.split(line)
    places = dict(re.findall(r"(\w+)=(stitch_nb\.[\w.]+:\w+)", settings["console_scripts"]))
    module, _, function = places[name].partition(":")
    module, _, function = getattr(import_module(module), function).target.partition(":")
    if name == "stitch_weights":
        parser = import_module(module).weights_parser()
    else:
        parser = anno_parser(getattr(import_module(module), function).__wrapped__, name)
    parser.parse_args(words)  # exits where it does not understand


def test_commands_were_found():
    said = " ".join(commands_said())
    assert all(
        f"{name} " in said
        for name in (
            "stitch_edit",
            "stitch_figure",
            "stitch_report",
            "stitch_weights",
            "stitch_app",
            "stitch_reproduce",
        )
    )
