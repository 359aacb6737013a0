"The file of claims: every published number is in it, agrees with what was measured, and is measured again where this machine can."

import json
import re
import subprocess
from pathlib import Path

import pytest

from stitch_nb.commands import reproduce as commands
from stitch_nb.commands.reproduce import (
    chosen,
    demo,
    number_at,
    page_html,
    read_claims,
    reproduce,
    stitch_reproduce,
    summary_line,
    unclaimed,
)
from stitch_nb.core import StitchError

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "nbs" / "claims.toml"
CLAIMS = read_claims(FILE)


def markdown_of(path: Path) -> str:
    "A page's prose and the tables that its cells show."
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append("".join(cell["source"]))
        parts += [
            "".join(o.get("data", {}).get("text/markdown", "")) for o in cell.get("outputs", [])
        ]
    return "\n\n".join(parts)


def page(name: str) -> str:
    if name == "results":
        return markdown_of(ROOT / "nbs" / "results.ipynb")
    card = ROOT / "stitch_nb" / "bundles" / "mobile" / "MODEL_CARD.md"
    return (ROOT / "README.md" if name == "README" else card).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README", "results", "mobile card"])
def test_every_number_of_a_page_is_claimed(name):
    said = [c.said for c in CLAIMS.claims if name in c.pages] + CLAIMS.names[name]
    text = page(name)
    assert unclaimed(text, said) == [], "add a claim to nbs/claims.toml"
    assert not [s for s in said if s not in text and s in (c.said for c in CLAIMS.claims)]


def test_a_number_without_a_claim_is_found():
    said = [c.said for c in CLAIMS.claims if "README" in c.pages] + CLAIMS.names["README"]
    assert len(unclaimed(page("README") + "\nThe seam is 0.12 here.\n", said)) == 1


def test_published_values_are_the_recorded_ones():
    "A value is its record, rounded to the digits that are published."
    records, wrong = {}, []
    for c in CLAIMS.claims:
        file = CLAIMS.measures[c.measure].record
        if not file or c.key == "card":
            continue
        path = CLAIMS.folder / file
        record = records.setdefault(file, json.loads(path.read_text(encoding="utf-8")))
        digits = re.search(r"\.(\d+)", c.said)
        near = 0.51 * 10 ** -(len(digits[1]) if digits else 0)
        if c.text.endswith("as the judges measured it"):
            continue  # another run, recorded in judges.json
        if abs(c.scale * number_at(record, c.key) - c.value) > near:
            wrong.append(f"{c.text}: {c.said}, recorded {c.scale * number_at(record, c.key):g}")
    assert len(records) >= 6 and not wrong


@pytest.fixture(scope="module")
def weighed():
    "The cheap measurement, run for real."
    return reproduce(CLAIMS, minutes=1, only=("package",))


def test_a_cheap_claim_is_measured(weighed):
    own = [v for v in weighed if v.claim.measure == "package"]
    assert len(own) >= 4 and {v.verdict for v in own} == {"holds"}
    others = {v.verdict for v in weighed if v.claim.measure != "package"}
    assert others == {"not measured"}
    assert f"{len(own)} of {len(own)} measured claims hold" in summary_line(weighed)


def falsified(tmp_path) -> Path:
    "The file of claims with one value changed by hand."
    text, count = re.subn(
        r'(key = "people.directions"\nsaid = ")16("\nvalue = )16',
        r"\g<1>17\g<2>17",
        FILE.read_text(),
    )
    assert count == 1
    (tmp_path / "claims.toml").write_text(text)
    return tmp_path / "claims.toml"


def test_a_falsified_claim_is_reported(tmp_path, capsys):
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit) as stopped:
        stitch_reproduce(minutes=1, only="package", claims=str(falsified(tmp_path)), out=str(out))
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert "does not hold: people: directions: published 17, measured 16" in said
    assert out.read_text().count('class="not"') == 1


def test_the_demo_is_told_what_to_run(monkeypatch, tmp_path):
    "The command reads its line: a function that does not would edit another clip elsewhere."
    run, seen = subprocess.run, []

    def asked(words, **options):
        seen.append(run([*words, "--no_such_option"], cwd=tmp_path, timeout=120, **options))
        return seen[0]

    monkeypatch.setattr(commands.subprocess, "run", asked)
    with pytest.raises(StitchError):
        demo("people")
    assert "unrecognized arguments: --no_such_option" in seen[0].stderr
    assert not list(tmp_path.iterdir())


def test_what_this_machine_lacks_is_not_counted():
    lacking = [name for name, m in CLAIMS.measures.items() if m.how or "worlds" in m.needs]
    run, left_out = chosen(CLAIMS, minutes=1e6)
    assert lacking and not set(lacking) & set(run) and set(lacking) <= set(left_out)
    cheap, _ = chosen(CLAIMS, minutes=0.3)
    assert cheap == ["package"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("[measures.a]\nminutes = 1\n", "give one of command, how, and function"),
        ("[measures.a]\nminutes = 1\nfunction = 'rm'\n", "give one of command"),
        ("[measures.a]\nminutes = 1\nhow = 'x'\nneeds = ['luck']\n", "unknown need 'luck'"),
        ("[[claims]]\ntext = 't'\nmeasure = 'b'\nkey = 'k'\nvalue = 1\n", "no measure 'b'"),
        ("[[claims]]\ntext = 't'\nvalues = 1\n", "unknown field 'values'"),
        ("[[claims", "is not TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, said):
    (tmp_path / "claims.toml").write_text(text)
    with pytest.raises(StitchError, match=re.escape(said)):
        read_claims(tmp_path / "claims.toml")


def test_the_page_escapes_what_it_shows(weighed):
    assert "<script" not in page_html(CLAIMS, weighed) and "&#34;" in page_html(CLAIMS, weighed)
