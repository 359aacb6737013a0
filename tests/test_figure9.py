"The arms of Figure 9 on a bundle of 32 pixels: what they share, what they write, what they say."

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import tiny
from stitch_nb import pipeline
from stitch_nb.figures import app as apps, arms, claims, curves, figure9, finished, motion
from stitch_nb.figures.app import Figure9App
from stitch_nb.commands.figure import stitch_figure
from stitch_nb.core import StitchError
from stitch_nb.encode import PivotConfig, SharedConfig
from stitch_nb.figures.sheet import OKABE_ITO, paint
from stitch_nb.models import load_models
from stitch_nb.pipeline import RunConfig
from stitch_nb.run.settings import PAPER_ARMS, PIVOT_ARMS, arms_for
from stitch_nb.pti import PTIConfig
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip

CONFIG = RunConfig(
    mask="hull",
    pti=PTIConfig(passes=2, dtype="float32"),
    stitch=StitchConfig(steps=2, dtype="float32"),
    pivot=PivotConfig(steps=2),
)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_disc(patch)
        clip, models = (
            read_clip(tiny.face_clip(folder / "clip.mp4", T=4)),
            load_models(tiny.tiny_bundle(folder / "bundle")),
        )
        made = figure9.write_figure_9(
            clip,
            ["smile=1"],
            folder / "out",
            models,
            CONFIG,
            rows=[0, 3],
            zoom=("hair",),
            truth=clip,
        )
        runs = pipeline.ablate(clip, "smile=1", folder / "out", models, CONFIG, truth=clip)
        yield dict(clip=clip, models=models, made=made, runs=runs, folder=folder)


def test_arms_share_their_stages(room):
    runs = room["runs"]
    assert tuple(runs) == PAPER_ARMS and all(
        s.reused for run in runs.values() for s in run.stages.values()
    )
    path = lambda arm, stage: runs[arm].stages[stage].path
    assert path("full", "crops") == path("optimised", "crops") and path(
        "full", "generator"
    ) == path("no_stitching", "generator")
    assert (
        path("full", "pivots") == path("no_pti", "pivots") != path("optimised", "pivots")
        and "generator" not in runs["no_pti"].stages
    )


def test_files(room):
    made = room["made"]
    assert set(made) == {"png", "pdf", "true edit", "numbers", "curves", "mp4"} and all(
        p.stat().st_size > 500 for p in made.values()
    )
    assert len(read_clip(made["mp4"])) == 4
    said = json.loads(made["numbers"].read_text())
    assert {c["claim"] for c in said["claims"]} <= {c.says for c in claims.CLAIMS} and set(
        said["arms"]["gap"]
    ) == set(PAPER_ARMS)
    picture = np.asarray(Image.open(made["png"]))
    assert picture.std() > 10 and picture.shape[1] > 5 * 250


def test_a_frame_of_each_measure(room):
    for run in room["runs"].values():
        values = curves.frame_values(run)
        assert {
            "gap_stitched",
            "edit_flicker",
            "trembling",
            "identity_distance",
            "pti_psnr",
            "pti_ssim",
            "pti_perceptual",
            "true_edit_gain",
        } <= set(values)
        assert (
            all(len(v) == 4 for v in values.values())
            and values["trembling"][0] is None
            and values["trembling"][1] is not None
        )
        assert np.nanmean(np.array(values["gap_stitched"], float)) == pytest.approx(
            run.metrics["gap"]["stitched"], abs=1e-5
        )
        if run.out.name == "no_stitching":
            assert run.metrics["gap"]["stitched"] == run.metrics["gap"]["blended"]


def test_every_arm_changes_something():
    changed = {a: change(CONFIG) for a, change in pipeline.ARMS.items()}
    assert changed["full"] == CONFIG and all(c != CONFIG for a, c in changed.items() if a != "full")
    assert len({repr(c) for c in changed.values()}) == len(changed)
    assert len({(a.colour, a.dash) for a in arms.LEGEND.values()}) == len(changed) and all(
        a.colour in OKABE_ITO for a in arms.LEGEND.values()
    )
    assert (
        changed["l2"].stitch.norm == "l2"
        and changed["no_locality"].pti.lambda_r == 0 == changed["no_smoothing"].sigma_axes
    )


def test_claims_say_when_they_fail():
    good = dict(edit_flicker=0.2, identity_distance=0.1, gap=dict(stitched=3.0))
    bad = dict(edit_flicker=0.1, identity_distance=0.2, gap=dict(stitched=2.0))
    runs = dict(
        full=dict(edit_flicker=0.15, identity_distance=0.05, gap=dict(stitched=2.5)),
        optimised=good,
        no_pti=good,
        no_stitching=bad,
    )
    found = claims.check_claims(runs)
    assert [c["holds"] for c in found] == [True, True, False] and [
        bool(c["why"]) for c in found
    ] == [False, False, True]
    page = claims.claims_html(found)
    assert page.count("<td>yes</td>") == 2 and "<b>no</b>" in page and found[2]["why"] in page
    assert claims.check_claims(dict(full=good)) == []


def test_the_best_of_a_row_is_bold():
    runs = {
        a: dict(gap=dict(stitched=g), tl_id=t)
        for a, g, t in (("full", 2.0, 1.01), ("no_pti", 3.0, 0.999))
    }
    page = arms.table_html(runs)
    assert "<b>2.00</b>" in page and "<b>0.9990</b>" in page and "<b>3.00</b>" not in page
    assert not arms.best_arms("target", dict(full=1.0, no_pti=2.0))


def test_refusals(room):
    with pytest.raises(StitchError, match="no arm is called 'no_face'"):
        pipeline.check_arms(["no_face"])
    with pytest.raises(StitchError, match="no arm is chosen"):
        pipeline.check_arms([])
    with pytest.raises(StitchError, match="frame 9 is not in the clip"):
        figure9.write_figure_9(
            room["clip"], ["smile=1"], room["folder"] / "o", room["models"], CONFIG, rows=[9]
        )
    assert not (room["folder"] / "o").exists()
    with pytest.raises(StitchError, match="frame -1"):
        figure9.figure_9(room["clip"], room["runs"], [-1])


def test_the_app(room, monkeypatch):
    "Every control does something, and what is there already is not computed again."
    tiny.use_disc(monkeypatch)
    clip = room["folder"] / "clip.mp4"
    monkeypatch.setattr(apps, "sample_clips", lambda: [])
    app = Figure9App(
        str(clip),
        models=room["models"],
        config=CONFIG,
        folder=room["folder"] / "app",
        part=slice(0, 3),
        arms=("no_stitching", "full"),
    )
    try:
        assert app.wait(90) and app.error is None, app.status.value
        assert (
            set(app.runs) == {"no_stitching", "full"}
            and app.image.value.startswith("<img alt=")
            and "<table" in app.table.value
        )
        seen = app.image.value
        app.frame.value = 0
        assert app.image.value != seen and app.idle.is_set()
        diagram = app.diagram.value
        app.curve.value = "gap_stitched"
        assert app.diagram.value != diagram
        app.toggles["no_stitching"].value = False
        assert app.wait(60) and set(app.runs) == {"full"}
        seen = app.image.value
        app.strength.value = -2
        assert app.wait(60) and app.error is None and app.image.value != seen
        app.toggles["full"].value = False
        assert (
            app.wait(60) and "no arm is chosen" in app.error and 'role="alert"' in app.status.value
        )
    finally:
        app.close()
    app.thread.join(10)
    assert not app.thread.is_alive()


def test_a_clip_that_changes_in_between(room, monkeypatch, tmp_path):
    "Arms of two different films are no comparison."
    tiny.use_disc(monkeypatch)
    path = tiny.face_clip(tmp_path / "clip.mp4", T=2)
    honest = pipeline.edit_clip

    def and_then(*args, **kwargs):
        run = honest(*args, **kwargs)
        tiny.face_clip(path, T=2, at=(30, 22))
        return run

    monkeypatch.setattr(pipeline, "edit_clip", and_then)
    with pytest.raises(StitchError, match="changed after it was read"):
        pipeline.ablate(
            read_clip(path),
            "smile=1",
            tmp_path / "out",
            room["models"],
            CONFIG,
            ("no_stitching", "full"),
        )


def test_settings_follow_the_bundle(room, monkeypatch):
    "Where no settings are given, published generators get the authors' depth, the small one this project's."
    tiny.use_disc(monkeypatch)
    clip, passes = room["clip"].trim(0, 1), {}
    for recipe in ("people", "reference"):
        monkeypatch.setitem(room["models"].meta, "recipe", recipe)
        run = pipeline.edit_clip(clip, "smile=1", room["folder"] / recipe, room["models"])
        passes[recipe] = (
            run.record["settings"]["pti"]["passes"],
            run.record["settings"]["stitch"]["norm"],
        )
    assert passes == dict(
        people=(PTIConfig().passes, "l1"), reference=(PTIConfig.reference().passes, "l2")
    )


def test_bold_only_where_best_means_something():
    "Not within the step of a number, not where nobody is worse, not below what counts as good."
    bold = lambda name, *values: arms.best_arms(name, dict(zip(("full", "no_pti", "l2"), values)))
    assert bold("gap", 2.0, 2.1, 3.0) == {"full", "no_pti"}
    assert bold("gap", 2.0, 2.1, 2.15) == set()
    assert bold("seam", 0.8, 1.0, 1.3) == set() == bold("leak", 0.0, 0.1, 0.2)
    assert bold("true_edit", -1.0, -3.0, -2.0) == set() and bold("true_edit", 1.0, -3.0) == {"full"}
    assert bold("identity", None, 0.5) == set()


def test_a_negative_number_is_explained():
    said = arms.explain_true_edit(
        dict(full=dict(true_edit=dict(gain=-0.5)), no_pti=dict(true_edit=dict(gain=0.2)))
    )
    assert said.startswith("Below 0 for full:") and "no PTI" not in said
    assert arms.explain_true_edit(dict(full=dict(true_edit=dict(gain=0.5)), l2={})) == ""


def test_what_a_still_cannot_show():
    "A steady edit leaves the same line in every frame, a flickering one does not."
    frame = np.full((40, 60, 3), 90, np.uint8)
    steady, flickering = [frame.copy() for _ in range(4)], [frame.copy() for _ in range(4)]
    for t in range(4):
        steady[t][10:14, 20:31] += 20
        flickering[t][10:14, 20:31] += 10 + 20 * (t % 2)
    frames = {"source": [frame] * 4, "optimised pivots": flickering, "full": steady}
    rows = motion.motion_rows(frames)
    assert all(p.shape == frame.shape for pictures in rows.values() for p in pictures)
    spread = {title: pictures[1].astype(int).std(0).max() for title, pictures in rows.items()}
    assert spread["source"] == spread["full"] == 0 and spread["optimised pivots"] == 30
    assert (rows["source"][1] == 128).all()
    assert motion.arms_apart(frames) == {"source": 20.0, "optimised pivots": 10.0, "full": 0.0}
    assert (motion.error_map(frame, frame) == 0).all()
    assert (motion.error_map(frame, frame + np.uint8(40)) == 255).all()


def test_five_columns_without_their_titles(room):
    "Each column has a row in which it differs from all others."
    clip, runs = room["clip"], room["runs"]
    sheet = figure9.figure_9(clip, runs, [1])
    titles = [text for _, _, text, *_, upright in sheet.texts if upright]
    assert [t for t in titles if t in ("source", "full")] == ["source", "full"]
    by_row = [[p[0] for p in sheet.pictures[5 * r : 5 * r + 5]] for r in range(4)]
    assert [len(row) for row in by_row] == [5] * 4
    for i in range(5):
        for j in range(i):
            assert any((row[i] != row[j]).any() for row in by_row), (i, j)
    assert (by_row[1][4] == 0).all() and (by_row[3][0] == 128).all()


def test_kept_arms(room, tmp_path):
    "A page shows them again, and nothing of this machine is in them."
    kept = finished.keep_arms(room["folder"] / "out", tmp_path / "kept")
    assert list(kept) == list(PAPER_ARMS)
    assert arms.table_html(kept) == arms.table_html(room["runs"])
    rows = [0, 3]
    pictures = [paint(figure9.figure_9(room["clip"], runs, rows)) for runs in (kept, room["runs"])]
    assert (pictures[0] == pictures[1]).all()
    texts = [p.read_text() for p in (tmp_path / "kept").rglob("*.json")]
    assert texts and not any(str(room["folder"]) in t or "seconds" in t for t in texts)


def test_arms_follow_the_recipe(room, monkeypatch, tmp_path):
    "Where the recipe shares an offset, the ways to pivots are compared, and `shared` is the method."
    tiny.use_disc(monkeypatch)
    sharing = replace(CONFIG, pivots="shared", shared=SharedConfig(steps=2), measure="full")
    assert (arms_for(CONFIG), arms_for(sharing)) == (PAPER_ARMS, PIVOT_ARMS)
    clip = room["clip"]
    made = figure9.write_figure_9(
        clip, ["smile=1"], tmp_path / "out", room["models"], sharing, rows=[1], zoom=(), video=None
    )
    runs = finished.read_arms(tmp_path / "out")
    assert tuple(runs) == PIVOT_ARMS
    key = lambda arm, stage: runs[arm].record["stages"][stage]["key"]
    for stage, different in (("crops", 1), ("masks", 1), ("pivots", 3), ("generator", 3)):
        assert len({key(arm, stage) for arm in runs}) == different, stage
    passes = {a: run.record["settings"]["pti"]["passes"] for a, run in runs.items()}
    assert set(passes.values()) == {CONFIG.pti.passes}
    said = json.loads(made["numbers"].read_text())["claims"]
    assert [c["method"] for c in said] == ["shared offset"]
    sheet = figure9.figure_9(clip, runs, [1])
    texts = [text for _, _, text, *_ in sheet.texts]
    assert "off shared" in texts and "off full" not in texts
    maps = [p[0] for p in sheet.pictures[4:8]]
    assert (maps[2] == 0).all() and maps[1].any() and maps[3].any()
    full = pipeline.ablate(
        clip, "smile=1", tmp_path / "out", room["models"], sharing, ("full", "shared")
    )
    assert all(s.reused for s in full["full"].stages.values())
    same = {stage.name: stage.key for stage in full["shared"].stages.values()}
    assert same == {stage.name: stage.key for stage in full["full"].stages.values()}


def test_the_app_of_a_recipe_that_shares(room):
    app = Figure9App(
        str(room["clip"].path),
        models=room["models"],
        config=replace(CONFIG, pivots="shared"),
        folder=room["folder"] / "sharing",
        start=False,
    )
    on = tuple(a for a, toggle in app.toggles.items() if toggle.value)
    app.close()
    assert on == PIVOT_ARMS


def test_arms_on_the_command_line(room, monkeypatch, tmp_path, capsys):
    "Those that are named; a wrong name is refused before anything is loaded or written."
    tiny.use_disc(monkeypatch)
    clip, models = str(room["clip"].path), str(room["folder"] / "bundle")
    how = dict(models=models, out=str(tmp_path / "out"), zoom="off", video="no", frames="0:2")
    wrong = tiny.outcome(stitch_figure, capsys, "9", clip, arms="no_face", **how, **tiny.QUICK)
    assert wrong[0] == 2 and "no arm is called 'no_face'" in wrong[1]
    other = tiny.outcome(stitch_figure, capsys, "3", clip, arms="full", **how, **tiny.QUICK)
    assert other[0] == 2 and "--arms belongs to figure 9" in other[1]
    assert not (tmp_path / "out").exists()
    done = tiny.outcome(stitch_figure, capsys, "9", clip, arms="full,shared", **how, **tiny.QUICK)
    assert done[0] == 0, done
    assert tuple(finished.read_arms(tmp_path / "out")) == ("shared", "full")
