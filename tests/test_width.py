"Exported code is short: lines within 100 columns, functions within 60 lines; docstrings are whole."

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "stitch_nb"
WIDTH, LENGTH = 100, 60  # columns of a line, lines of a function
CELL = 40  # lines of a cell; a class or a table that is longer has a cell to itself


def modules() -> list:
    "Every module that nbdev wrote, relative to stitch_nb."
    return sorted(
        p.relative_to(PACKAGE)
        for p in PACKAGE.rglob("*.py")
        if p.name not in ("__init__.py", "_modidx.py")
    )


def code_lines(path: Path) -> list:
    "Numbered lines of a module, without the list `__all__`, which nbdev wraps its own way."
    text = path.read_text(encoding="utf-8")
    lists = [
        range(n.lineno, n.end_lineno + 1)
        for n in ast.parse(text).body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
    ]
    return [
        (i, line)
        for i, line in enumerate(text.splitlines(), 1)
        if not any(i in span for span in lists)
    ]


def functions_of(path: Path) -> list:
    "(name, lines) of every function of a module, those in classes and functions too."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [n for n in ast.walk(tree) if isinstance(n, kinds)]
    return [(n.name, n.end_lineno - n.lineno + 1) for n in found]


def idle_texts(path: Path) -> list:
    "Lines with a text that does nothing: the second half of a docstring in two pieces."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    bodies = [n.body[1:] for n in ast.walk(tree) if isinstance(n, kinds)]
    values = [(s.lineno, s.value) for body in bodies for s in body if isinstance(s, ast.Expr)]
    return [n for n, v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]


def crowded_cells(path: Path) -> list:
    "(first line, lines) of cells that are long and could be divided."
    cells = path.read_text(encoding="utf-8").split("\n# %% ")[2:]  # before them: the list of names
    bodies = [cell.partition("\n")[2].strip() for cell in cells]
    long = [body for body in bodies if body.count("\n") >= CELL]
    return [(b[:60], b.count("\n") + 1) for b in long if len(ast.parse(b).body) > 1]


@pytest.mark.parametrize("module", [str(m) for m in modules()])
def test_lines_and_functions_are_short(module):
    "Exported code: lines within 100 columns, functions within 60 lines."
    wide = [i for i, line in code_lines(PACKAGE / module) if len(line) > WIDTH]
    assert not wide, f"{module}: lines {wide} are longer than {WIDTH} columns"
    long = [row for row in functions_of(PACKAGE / module) if row[1] > LENGTH]
    assert not long, f"{module}: functions longer than {LENGTH} lines: {long}"
    assert not idle_texts(PACKAGE / module), f"{module}: a docstring is in two pieces"
    crowded = crowded_cells(PACKAGE / module)
    assert not crowded, f"{module}: cells of more than {CELL} lines: {crowded}"


def test_the_measures_see_what_they_should(tmp_path):
    "A module with a wide line and a long function is found out."
    file = tmp_path / "bad.py"
    rows = ["__all__ = ['f',", " " * 130 + "'g']", "def f():", *["    x = 1"] * 70, "#" * 101]
    file.write_text("\n".join(rows), encoding="utf-8")
    assert [i for i, line in code_lines(file) if len(line) > WIDTH] == [len(rows)]
    assert functions_of(file) == [("f", 71)]
    cell = "def f():\n" + "    x = 1\n" * 38
    marks = "# %% auto #0", "# %% nb #a", cell, "# %% nb #b", cell + "y = 1\nz = 2"
    file.write_text("\n" + "\n".join(marks), encoding="utf-8")
    assert [n for _, n in crowded_cells(file)] == [41]
    file.write_text("def f():\n    'one'\n    'two'\n", encoding="utf-8")
    assert idle_texts(file) == [3]
