"The report: one file, whole, readable by everybody, also where the run lacks something."

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

import tiny
from stitch_nb.commands.figure import stitch_report
from stitch_nb.figures import report
from stitch_nb.figures.finished import read_arms, read_run
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
        not found.fetched
        and not found.scripts
        and "http" not in re.sub(r"base64,[^\"]*", "", page).replace("<meta http-equiv=", "")
    )
    assert (
        found.headings[0] == 1
        and found.headings.count(1) == 1
        and all(b - a <= 1 for a, b in zip(found.headings, found.headings[1:]))
    )
    assert found.pictures and all(p.get("alt") for p in found.pictures)
    return found


def test_one_run_without_truth(runs):
    page = report.report_html([read_run(runs[1].out)])
    found = check(page)
    assert "a &lt;clip&gt;.mp4" in page and "<clip>" not in page
    for said in ("TL-ID", "TG-ID", "0.976", "0.933", "0.961", "settings.pti.passes", "flicker"):
        assert said in page, said
    assert "true edit, dB" not in page
    assert len(found.pictures) > 6 and len(page) < 5e6


def test_several_runs(runs):
    page = report.report_html([read_run(r.out) for r in runs[1:]])
    check(page)
    assert (
        "The claims of the caption, measured" in page
        and "no stitching" in page
        and "true edit, dB" in page
        and page.count("<h2>") == 4
    )
    assert page == report.report_html([read_run(r.out) for r in runs[1:]])


def test_two_runs_of_one_name(runs, tmp_path):
    shutil.copytree(runs[1].out, tmp_path / "full", ignore=shutil.ignore_patterns("stages"))
    assert list(report.unique_names(map(read_run, (runs[1].out, tmp_path / "full")))) == [
        "full",
        "full (2)",
    ]


@pytest.mark.parametrize("gone", ["frames.json", "compare.mp4", "strip.png", "result.mp4"])
def test_a_thinned_run(runs, tmp_path, gone):
    shutil.copytree(runs[1].out, tmp_path / "run", ignore=shutil.ignore_patterns("stages", gone))
    page = report.report_html([read_run(tmp_path / "run")])
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
    page = report.report_html([read_run(tmp_path)])
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
        read_run(tmp_path)


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


def poisoned(value):
    "Every text in a record, and every name, with markup in it."
    if isinstance(value, dict):
        kept = {k: poisoned(v) for k, v in value.items()}
        return kept | {EVIL: kept[next(iter(kept))]} if kept else {EVIL: EVIL}
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return EVIL if isinstance(value, str) else value


def test_markup_is_shown_as_text(runs, tmp_path):
    "Texts of all three files, their keys, the run's name and the page's title."
    folders = []
    for run, name in zip(runs[1:], ("<b>one", "no_stitching")):
        folder = tmp_path / name
        shutil.copytree(run.out, folder, ignore=shutil.ignore_patterns("stages"))
        record = poisoned(json.loads((folder / "run.json").read_text()))
        record |= dict(finished=True, notes=[EVIL], landmarks=EVIL)
        metrics = json.loads((folder / "metrics.json").read_text())
        for who in ("attributes", "attributes_of_truth"):
            if metrics.get(who):
                measures = metrics[who]["measures"]
                measures[EVIL] = measures[next(iter(measures))]
                metrics[who]["meant"] = [EVIL]
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "metrics.json").write_text(json.dumps(metrics | {EVIL: 1.0}))
        frames = json.loads((folder / "frames.json").read_text())
        (folder / "frames.json").write_text(json.dumps(frames | {EVIL: [1.0]}))
        folders.append(folder)
    for chosen in (folders[:1], folders):
        page = report.report_html([read_run(f) for f in chosen], title=EVIL)
        found = check(page)
        assert "<script" not in page and "onerror=alert(2)>" not in page and "<b>one" not in page
        assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 8
        assert "{{ 7 * 7 }}" in page and all("onerror" not in p for p in found.pictures)


def test_the_page_forbids_scripts(runs):
    page = report.report_html([read_run(runs[1].out)])
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)[1]
    assert (
        policy.startswith("default-src &#39;none&#39;; img-src data:;") and "script" not in policy
    )
    assert page.index("Content-Security-Policy") < page.index("<title>")


@pytest.mark.parametrize(
    "file, keys, value",
    [
        ("metrics.json", ("tl_id",), EVIL),
        ("metrics.json", ("attributes", "missed"), EVIL),
        ("metrics.json", ("attributes", "measures", "mouth_width", "change"), "1"),
        ("metrics.json", ("attributes", "measures"), [1]),
        ("metrics.json", ("attributes", "meant"), EVIL),
        ("metrics.json", ("gap",), 3),
        ("metrics.json", ("frames",), [1]),
        ("run.json", ("source", "width"), EVIL),
        ("run.json", ("source", "path"), 7),
        ("run.json", ("edits",), [1, 2]),
        ("run.json", ("stages", "faces", "seconds"), EVIL),
        ("run.json", ("notes",), EVIL),
        ("frames.json", ("trembling",), [EVIL]),
        ("frames.json", ("trembling",), EVIL),
    ],
)
def test_text_where_a_number_belongs(runs, tmp_path, capsys, file, keys, value):
    shutil.copytree(runs[1].out, tmp_path / "run", ignore=shutil.ignore_patterns("stages"))
    record = at = json.loads((tmp_path / "run" / file).read_text())
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    (tmp_path / "run" / file).write_text(json.dumps(record))
    with pytest.raises(SystemExit) as left:
        stitch_report([str(tmp_path / "run")], out=str(tmp_path / "r.html"))
    err = capsys.readouterr().err
    assert left.value.code == 2 and err.count("\n") == 1 and f"{file}: {'.'.join(keys)} is" in err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("text", ["null", "[]", "3", '"x"', "{}", "", "[" * 100000])
def test_files_of_another_kind(runs, tmp_path, text):
    "Never a traceback, whatever the three files are."
    for file in ("metrics.json", "run.json", "frames.json"):
        folder = tmp_path / file
        shutil.copytree(runs[1].out, folder, ignore=shutil.ignore_patterns("stages"))
        (folder / file).write_text(text)
        try:
            report.report_html([read_run(folder)])
        except StitchError as error:
            assert "\n" not in str(error) and (
                file in str(error) or "holds no finished" in str(error)
            )


def test_arms_that_were_run_before(runs):
    assert list(read_arms(runs[0])) == ["no_stitching", "full"]
    with pytest.raises(StitchError, match="holds no arms"):
        read_arms(runs[1].out)
