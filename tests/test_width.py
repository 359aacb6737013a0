"Exported code has lines of at most 100 columns, and docstrings that are whole."

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "stitch_nb"
WIDTH = 100  # columns of a line


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


def idle_texts(path: Path) -> list:
    "Lines with a text that does nothing: the second half of a docstring in two pieces."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    bodies = [n.body[1:] for n in ast.walk(tree) if isinstance(n, kinds)]
    values = [(s.lineno, s.value) for body in bodies for s in body if isinstance(s, ast.Expr)]
    return [n for n, v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]


@pytest.mark.parametrize("module", [str(m) for m in modules()])
def test_lines_are_short(module):
    wide = [i for i, line in code_lines(PACKAGE / module) if len(line) > WIDTH]
    assert not wide, f"{module}: lines {wide} are longer than {WIDTH} columns"
    assert not idle_texts(PACKAGE / module), f"{module}: a docstring is in two pieces"


def test_the_measures_see_what_they_should(tmp_path):
    "A module with a wide line and a docstring in two pieces is found out."
    file = tmp_path / "bad.py"
    rows = ["__all__ = ['f',", " " * 130 + "'g']", "def f():", "    x = 1", "#" * 101]
    file.write_text("\n".join(rows), encoding="utf-8")
    assert [i for i, line in code_lines(file) if len(line) > WIDTH] == [len(rows)]
    file.write_text("def f():\n    'one'\n    'two'\n", encoding="utf-8")
    assert idle_texts(file) == [3]
