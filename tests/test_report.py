"The report: one file, whole, readable by everybody, also where the run lacks something."

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

import tiny
from stitch_nb.commands.figure import stitch_report
from stitch_nb.figures import report
from stitch_nb.core import StitchError
from stitch_nb.models import load_models
from stitch_nb.pipeline import RunConfig, edit_clip
from stitch_nb.pti import PTIConfig
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip

CONFIG = RunConfig(
    mask="hull",
    pti=PTIConfig(passes=1, dtype="float32"),
    stitch=StitchConfig(steps=1, dtype="float32", workers=1),
)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    "Tags that match, pictures with words, and whatever a browser would fetch."

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.fetched, self.headings, self.scripts = [], [], [], [], 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.scripts += tag == "script"
        self.fetched += [
            v for k, v in attrs.items() if k in ("src", "href") and not v.startswith("data:")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_disc(patch)
        clip, models = (
            read_clip(tiny.face_clip(folder / "a <clip>.mp4", T=5)),
            load_models(tiny.tiny_bundle(folder / "bundle")),
        )
        plain = edit_clip(
            clip, "smile=1", folder / "full", models, CONFIG, stages=folder / "stages"
        )
        other = edit_clip(
            clip,
            "smile=1",
            folder / "no_stitching",
            models,
            RunConfig(**{**CONFIG.__dict__, "stitching": False}),
            stages=folder / "stages",
            truth=clip,
        )
    return folder, plain, other


def check(page):
    found = Page(page)
    assert (
        not found.fetched and not found.scripts and "http" not in re.sub(r"base64,[^\"]*", "", page)
    )
    assert (
        found.headings[0] == 1
        and found.headings.count(1) == 1
        and all(b - a <= 1 for a, b in zip(found.headings, found.headings[1:]))
    )
    assert found.pictures and all(p.get("alt") for p in found.pictures)
    return found


def test_one_run_without_truth(runs):
    page = report.report_html([report.read_run(runs[1].out)])
    found = check(page)
    assert "a &lt;clip&gt;.mp4" in page and "<clip>" not in page
    for said in ("TL-ID", "TG-ID", "0.976", "0.933", "0.961", "settings.pti.passes", "flicker"):
        assert said in page, said
    assert "true edit, dB" not in page
    assert len(found.pictures) > 6 and len(page) < 5e6


def test_several_runs(runs):
    page = report.report_html([report.read_run(r.out) for r in runs[1:]])
    check(page)
    assert (
        "The claims of the caption, measured" in page
        and "no stitching" in page
        and "true edit, dB" in page
        and page.count("<h2>") == 4
    )
    assert page == report.report_html([report.read_run(r.out) for r in runs[1:]])


def test_two_runs_of_one_name(runs, tmp_path):
    shutil.copytree(runs[1].out, tmp_path / "full", ignore=shutil.ignore_patterns("stages"))
    assert list(report.unique_names(map(report.read_run, (runs[1].out, tmp_path / "full")))) == [
        "full",
        "full (2)",
    ]


@pytest.mark.parametrize("gone", ["frames.json", "compare.mp4", "strip.png", "result.mp4"])
def test_a_thinned_run(runs, tmp_path, gone):
    shutil.copytree(runs[1].out, tmp_path / "run", ignore=shutil.ignore_patterns("stages", gone))
    page = report.report_html([report.read_run(tmp_path / "run")])
    assert "TL-ID" in page and Page(page).headings
    assert ("run the same command again" in page) == (gone == "frames.json")


def test_an_older_run(runs, tmp_path):
    "Only what the first version wrote."
    (tmp_path / "metrics.json").write_text(
        json.dumps(
            dict(
                frames=3,
                tl_id=0.99,
                tg_id=None,
                leak=0.0,
                seam=dict(stitched=1.0, blended=1.2),
                psnr=dict(pti=dict(mean=30.0, worst=28.0)),
            )
        )
    )
    (tmp_path / "run.json").write_text(
        json.dumps(dict(finished=True, edits=["smile=2"], settings=dict(dilation=None)))
    )
    page = report.report_html([report.read_run(tmp_path)])
    assert "0.9900" in page and "30.0" in page and "None" not in page


def test_command(runs, tmp_path, capsys):
    stitch_report([str(runs[1].out)], out=str(tmp_path / "r.html"))
    assert "1 run," in capsys.readouterr().out and (tmp_path / "r.html").read_text().startswith(
        "<!DOCTYPE html>"
    )
    for args, said in (
        ([str(tmp_path / "no")], "no such folder"),
        ([str(tmp_path)], "holds no finished run"),
    ):
        with pytest.raises(SystemExit) as left:
            stitch_report(args, out=str(tmp_path / "r.html"))
        err = capsys.readouterr().err
        assert left.value.code == 2 and said in err and err.count("\n") == 1
    with pytest.raises(SystemExit):
        stitch_report([str(runs[1].out)], out=str(tmp_path / "r.pdf"))
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(StitchError, match="cannot be read"):
        report.read_run(tmp_path)
