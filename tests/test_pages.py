"What tools/pages.py calls stale: other words, numbers or counts of pictures; no rounding."

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from pages import alternative, differing, near, stale  # noqa: E402


def text(said: str, kind: str = "text/plain") -> list:
    return [dict(output_type="execute_result", data={kind: said}, metadata={})]


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("8", "8", True),
        ("8", "9", False),  # counts are exact
        ("0.412", "0.414", True),  # two units of the last place
        ("0.412", "0.452", False),
        ("31.20", "32.10", True),  # five per cent
        ("1e-4", "2e-4", False),
        ("-0.01", "0.01", True),
    ],
)
def test_numbers(old, new, same):
    assert near(old, new) is same


def test_texts():
    assert not differing("| a | 0.41 |\n| b | 2 |", "|  a | 0.42 |\n\n| b | 2 |")
    assert "is now" in differing("31 options", "26 options")
    assert "'nets.small'" in differing("'networks'", "'nets.small'")
    assert differing("one\ntwo", "one") and differing("128 px", "128 points")
    assert differing("v1 of x2", "v1 of x3")  # digits of a name are no number


def test_outputs():
    picture = dict(output_type="display_data", data={"image/png": "x", "text/plain": "<Figure>"})
    noise = dict(output_type="stream", name="stderr", text="warning")
    assert not stale(text("<A at 0x7f00>"), [noise, *text("<A>")])
    assert not stale([picture], [picture | dict(data={"image/jpeg": "y"})])
    assert "1 pictures are now 2" in stale([picture], [picture] * 2)
    assert stale([], text("3")) and stale(text("3"), [])
    assert not stale(text("<b>x</b> 1.0", "text/html"), text("<i>x</i> 1.01", "text/html"))


def test_alternative_texts():
    "Compared as other texts are: another word, another number, none any more."

    def picture(*alt) -> list:
        words = {"image/jpeg": {"alt": alt[0]}} if alt else {}
        return [dict(output_type="display_data", data={"image/jpeg": "x"}, metadata=words)]

    assert not stale(picture("a seam of 1.50"), picture("a seam of 1.51"))
    assert "alternative text 'a seam'" in stale(picture("a seam"), picture("no seam"))
    assert stale(picture("a seam of 1.50"), picture("a seam of 2.50"))
    assert stale(picture("a seam"), picture()) and stale(picture(), picture("a seam"))
    two = picture("one") + picture("two")
    assert not stale(two, two) and stale(two, two[::-1])


@pytest.mark.parametrize("folder", ["nbs", "worlds/nbs"])
def test_committed_pictures_have_words(folder):
    "`show`, `show_plot` and IPython's `Image` take `alt`."
    bare, seen = [], 0
    for path in sorted((ROOT / folder).rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                if any(kind.startswith("image/") for kind in output.get("data", {})):
                    seen += 1
                    if not alternative(output).strip():
                        bare.append(f"{path.relative_to(ROOT)}, cell {cell['id']}")
    assert seen and not bare, bare


def page(folder: Path, *cells: tuple) -> Path:
    "A project of one page; a cell is its source and its committed outputs."
    (folder / "nbs").mkdir()
    ini = (ROOT / "settings.ini").read_text(encoding="utf-8")
    (folder / "settings.ini").write_text(ini, encoding="utf-8")
    made = [
        dict(cell_type="code", id=f"c{i}", execution_count=None, metadata={}, source=s, outputs=o)
        for i, (s, o) in enumerate(cells)
    ]
    meta = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    file = folder / "nbs" / "a.ipynb"
    file.write_text(json.dumps(dict(cells=made, metadata=meta, nbformat=4, nbformat_minor=5)))
    return file


def test_a_page(tmp_path):
    "One that lies is named with its cell, and is put right; flagged cells stay as they are."
    gone = text("measured elsewhere")
    file = page(
        tmp_path,
        ("x = 2\nx", text("2")),
        ("x + 1", text("4")),
        ("x + 2;  # not shown", []),
        ("#| mobile\nno_such_name", gone),
        ("#| eval: false\nno_such_name", gone),
    )
    command = [sys.executable, str(ROOT / "tools" / "pages.py"), "--workers", "1", str(file)]

    def run(*options):
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, encoding="utf-8"
        )
        return done.returncode, done.stdout

    code, said = run()
    assert code == 1 and "stale" in said and "cell 1: '4' is now '3'" in said
    assert run("--write")[0] == 0 and run()[0] == 0
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    assert ["".join(c["outputs"][0]["data"]["text/plain"]) for c in cells[:2]] == ["2", "3"]
    assert cells[3]["outputs"] == cells[4]["outputs"] != []
    file.write_text(file.read_text(encoding="utf-8").replace("x + 1", "x + y"))
    code, said = run()
    assert code == 1 and "FAILED" in said
