"Where things lie: notebooks' folders and packages are one tree, and layers are kept."

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, NOTEBOOKS = ROOT / "stitch_nb", ROOT / "nbs"


def name_of(part: str) -> str:
    "A notebook's name without the number that orders its folder's pages."
    return re.sub(r"^\d+_", "", part)


def exporting() -> dict:
    "Every notebook that makes a module, to the module's name below stitch_nb."
    found = {}
    for path in sorted(NOTEBOOKS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts or path.name.startswith("_"):
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        cells = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        said = re.findall(r"^#\|\s*default_exp\s+(\S+)", "\n".join(cells), re.M)
        assert len(said) <= 1, f"{path.name} exports to {said}"
        if said:
            found[path.relative_to(NOTEBOOKS)] = said[0]
    return found


def modules() -> list:
    "Every module that nbdev wrote, relative to stitch_nb."
    return sorted(
        p.relative_to(PACKAGE)
        for p in PACKAGE.rglob("*.py")
        if p.name not in ("__init__.py", "_modidx.py")
    )


def test_notebooks_and_modules_are_one_tree():
    found = exporting()
    for path, module in found.items():
        parts = (*path.parent.parts, name_of(path.stem))
        assert ".".join(parts) == module, f"{path} exports to {module}"
    assert sorted(Path(*m.split(".")).with_suffix(".py") for m in found.values()) == modules()
    packages = {p.parent for p in modules()} - {Path(".")}
    assert all((PACKAGE / p / "__init__.py").is_file() for p in packages)
    folders = {p.parent for p in found} - {Path(".")}
    assert folders == packages


def test_numbers_order_a_folder():
    "Two pages of one folder never share a number; a module's name has none."
    for folder in {p.parent for p in exporting()}:
        numbers = [re.match(r"\d+", p.name) for p in (NOTEBOOKS / folder).glob("[0-9]*.ipynb")]
        taken = [n.group() for n in numbers]
        assert len(set(taken)) == len(taken), f"{folder}: {sorted(taken)}"
    assert not [m for m in modules() if re.match(r"\d", m.stem)]


def test_layers_are_kept(tmp_path):
    "The contracts of pyproject.toml, by import-linter."
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    code = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    kept, broken = map(int, re.search(r"(\d+) kept, (\d+) broken", done.stdout).groups())
    assert kept >= 6 and broken == 0
