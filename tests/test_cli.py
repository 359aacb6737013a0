"The command line: what works, and what each kind of bad input says."

import io
import json
import sys
import zipfile
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import tiny
from stitch_nb import script
from stitch_nb.commands.edit import report, stitch_edit
from stitch_nb.core import StitchError
from stitch_nb.metrics import leak
from stitch_nb.pipeline import edit_clip
from stitch_nb.pti import PTIConfig
from stitch_nb.run import checks, measure
from stitch_nb.run.settings import RunConfig
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return tiny.tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def disc_clip(tmp_path_factory):
    return tiny.face_clip(
        tmp_path_factory.mktemp("clip") / "disc.mp4", T=5, fps=Fraction(30000, 1001)
    )


@pytest.fixture
def call(monkeypatch, bundle, tmp_path, capsys):
    "`call(video, **options)` runs stitch_edit on discs; (status, last line of stderr, everything on stdout)."
    tiny.use_disc(monkeypatch)
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))

    def run(video, **options):
        return tiny.outcome(
            stitch_edit,
            capsys,
            str(video),
            **tiny.QUICK | dict(models=str(bundle), out=str(tmp_path / "run")) | options,
        )

    return run


def test_outputs(call, disc_clip, tmp_path):
    status, _, said = call(disc_clip, lossless=True)
    assert status == 0
    run, source = tmp_path / "run", read_clip(disc_clip)
    for name in ("result.mp4", "compare.mp4", "strip.png", "metrics.json", "run.json"):
        assert (run / name).is_file() and name in said
    result, both = read_clip(run / "result.mp4"), read_clip(run / "compare.mp4")
    assert (len(result), result.fps, result.width, result.height) == (
        5,
        Fraction(30000, 1001),
        64,
        48,
    )
    assert (len(both), both.fps, both.width, both.height) == (5, Fraction(30000, 1001), 128, 48)
    assert "outside of the mask: identical before encoding, and in result.mp4" in said
    metrics, record = (
        json.loads((run / "metrics.json").read_text()),
        json.loads((run / "run.json").read_text()),
    )
    assert metrics["leak"] == 0 and metrics["outside_identical"] == 1
    changed = [(a != b).any(-1).mean() for a, b in zip(source.frames(), result.frames())]
    assert all(0 < part < 0.8 for part in changed)  # something changed, and not everything
    assert {
        "faces",
        "crops",
        "masks",
        "pivots",
        "generator",
        "scores",
        "stitched",
        "result",
    } == set(record["stages"])
    assert all(s["seconds"] >= 0 and s["peak_mib"] > 50 for s in record["stages"].values())
    assert (
        record["landmarks"] == "disc"
        and record["settings"]["mask"] == "hull"
        and record["seeds"]["pti"] == 0
    )
    assert (
        record["versions"]["torch"]
        and record["bundle"]["hash"]
        and record["source"]["fps"] == "30000/1001"
    )
    assert np.asarray(Image.open(run / "strip.png")).shape[1] > 5 * 256


def test_run_json_says_how_it_was_computed(call, disc_clip, tmp_path):
    "Precision as it came to, not as it was asked for; the float32 policy; memory."
    assert call(disc_clip, frames="0:2", memory="low", dtype="bfloat16")[0] == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    pti, stitch = (record["settings"][k] for k in ("pti", "stitch"))
    assert (pti["memory"], stitch["memory"]) == ("low", "low")
    assert record["machine"]["dtype"] == dict(pti="bfloat16", stitch="bfloat16")
    assert record["machine"]["float32"] in ("ieee", "tf32", "mixed")
    assert record["machine"]["device"] == "cpu" and record["machine"]["threads"] >= 1
    call(disc_clip, frames="0:2", dtype="auto")
    machine = json.loads((tmp_path / "run" / "run.json").read_text())["machine"]
    assert set(machine["dtype"].values()) <= {"float32", "bfloat16"}


def test_a_number_that_is_none_is_left_out_of_the_report(call, disc_clip, tmp_path):
    "A run whose numbers cannot be said is a finished run all the same."
    assert call(disc_clip, frames="0:2", truth=str(disc_clip))[0] == 0
    out = tmp_path / "run"
    metrics = json.loads((out / "metrics.json").read_text())
    record = json.loads((out / "run.json").read_text())
    run = SimpleNamespace(metrics=metrics, record=record, out=out)
    assert "true edit, inside of the mask" in report(run)
    metrics["true_edit"] = dict(result=None, source=None, gain=None)
    assert "true edit" not in report(run)


def test_frames_without_a_paste_do_not_spoil_the_mean():
    rows = [dict(result=30.0), dict(result=float("nan")), dict(result=20.0)]
    assert measure._mean(rows, "result") == 25


def test_the_output_is_tried_once_and_first(call, disc_clip, tmp_path, monkeypatch):
    "What the result needs, and what it will be less than the source, is known before the work."
    tried = []

    def look(*args, **kwargs):
        tried.append(args)
        if len(tried) == 1:
            raise StitchError("no room left anywhere")
        return ["the sound is silent"]

    monkeypatch.setattr(checks, "check_output", look)
    status, line, _ = call(disc_clip, frames="0:2")
    assert status == 2 and "no room left anywhere" in line and len(tried) == 1
    assert not list((tmp_path / "run").rglob("*.np[yz]"))
    status, _, said = call(disc_clip, frames="0:2")
    assert status == 0 and len(tried) == 2 and said.count("note: the sound is silent\n") == 1


def test_wrong_outside_is_noticed(disc_clip):
    source = np.stack(list(read_clip(disc_clip).frames()))
    wrong = source.copy()
    wrong[0, 0, 0] += 1
    assert leak(wrong, source, np.zeros(source.shape[:3])) > 0


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(edit=["smlie=1"]), ["smlie", "did you mean 'smile'"]),
        (dict(edit=["smile=wide"]), ["wide", "number"]),
        (dict(edit=["smile"]), ["no strength", "smile=2"]),
        (dict(edit=None), ["no edit is given", "smile"]),
        (
            dict(models="ffhq"),
            ["'ffhq' is not complete", "ffhq.pkl", "stitch_weights download ffhq"],
        ),
        (dict(models="ffhg"), ["'ffhg' is not installed", "bundle.json"]),
        (dict(models="/nowhere/bundle"), ["/nowhere/bundle", "not installed"]),
        (dict(mask="parser"), ["has no parser", "--mask hull"]),
        (dict(mask="halo"), ["halo", "parser", "hull"]),
        (dict(norm="l3"), ["l3", "l1", "l2"]),
        (dict(device="tpu"), ["tpu", "cpu"]),
        (dict(frames="7:9"), ["7:9", "5 frames"]),
        (dict(frames="one"), ["one", "A:B"]),
        (dict(person="tall"), ["tall", "largest"]),
        (dict(person="3"), ["person is 3", "shows 1"]),
        (dict(pti_steps=-1), ["passes=-1"]),
        (dict(stitch_steps=-1), ["steps=-1"]),
        (dict(feather=-2), ["feather is -2"]),
        (dict(truth="/nowhere.mp4"), ["no such file"]),
    ],
)
def test_bad_options(call, disc_clip, bad, words):
    status, line, _ = call(disc_clip, **bad)
    assert status == 2 and line.startswith("stitch_edit: ")
    for word in words:
        assert word in line


def bad_clip(kind, folder, disc_clip, ffmpeg):
    "A file or folder that cannot be edited, and words that the message has to have."
    path = folder / "bad.mp4"
    if kind == "absent":
        return path, ["no such file", str(path)]
    if kind == "text":
        path.write_text("this is no video\n" * 50)
    if kind == "nothing":
        path.write_bytes(b"")
    if kind in ("no head", "no tail"):
        whole = folder / "whole.mp4"
        ffmpeg(
            "-f",
            "lavfi",
            "-i",
            "testsrc2=size=64x48:rate=25",
            "-frames:v",
            50,
            *(["-movflags", "+faststart"] if kind == "no tail" else []),
            whole,
        )
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
        return path, ["cut off"]
    if kind == "empty folder":
        path = folder / "frames"
        path.mkdir()
        return path, ["no frames"]
    if kind == "torn picture":
        path = folder / "frames"
        path.mkdir()
        Image.fromarray(next(tiny.face_frames())).save(path / "0.png")
        (path / "1.png").write_bytes((path / "0.png").read_bytes()[:100])
        return path, ["1.png", "damaged"]
    if kind == "no face":
        return tiny.face_clip(path, T=4, missing=range(4)), ["no face in any of the 4 frames"]
    if kind == "few faces":
        return tiny.face_clip(path, T=10, missing=(0, 2, 3, 4, 6, 7)), [
            "missing in 6 of 10",
            "0, 2-4, 6-7",
        ]
    if kind == "only sound":
        ffmpeg("-f", "lavfi", "-i", "sine=frequency=440", "-t", "0.2", path)
        return path, ["no picture"]
    return path, {"text": ["not a video"], "nothing": ["empty"]}[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "absent",
        "text",
        "nothing",
        "no head",
        "no tail",
        "empty folder",
        "torn picture",
        "no face",
        "few faces",
        "only sound",
    ],
)
def test_bad_clips(call, tmp_path, disc_clip, ffmpeg, kind):
    path, words = bad_clip(kind, tmp_path, disc_clip, ffmpeg)
    status, line, _ = call(path)
    assert status == 2 and line.startswith("stitch_edit: ")
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    "kind",
    ["one frame", "cut left", "cut corner", "half the faces", "odd size", "folder", "one picture"],
)
def test_hard_clips_work(call, tmp_path, kind):
    path = tmp_path / "clip.mp4"
    if kind == "one frame":
        tiny.face_clip(path, T=1)
    if kind == "cut left":
        tiny.face_clip(path, T=3, at=(4, 22))
    if kind == "cut corner":
        tiny.face_clip(path, T=3, at=(56, 12))
    if kind == "half the faces":
        tiny.face_clip(path, T=6, missing=(0, 2, 5))
    if kind == "odd size":
        tiny.face_clip(path.with_suffix(".mkv"), T=3, W=63, H=47).rename(path)
    if kind == "folder":
        path = tmp_path / "frames"
        path.mkdir()
        for t, frame in enumerate(tiny.face_frames(T=11)):
            Image.fromarray(frame).save(path / f"f{t}.png")
    if kind == "one picture":
        path = tmp_path / "one.png"
        Image.fromarray(next(tiny.face_frames())).save(path)
    status, line, said = call(path)
    assert status == 0, line
    source, result = read_clip(path), read_clip(tmp_path / "run" / "result.mp4")
    assert (len(result), result.fps, result.width, result.height) == (
        len(source),
        source.fps,
        source.width,
        source.height,
    )
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["leak"] == 0
    if kind == "half the faces":
        assert "no face in 3 frames, left as they are: 0, 2, 5" in said


def test_a_frame_in_which_the_parser_sees_no_face(monkeypatch, tmp_path, bundle, disc_clip):
    "It gets the hull of its landmarks, and the run says so; the reference's weights became NaN."
    import stitch_nb.run.stages as stages
    from stitch_nb.models import load_models

    tiny.use_disc(monkeypatch)
    labels = iter(
        [np.ones((32, 32), np.uint8), np.zeros((32, 32), np.uint8), np.ones((32, 32), np.uint8)]
    )
    central = np.pad(np.ones((16, 16), np.uint8), 8)
    monkeypatch.setattr(
        stages, "segment", lambda S, crops: np.stack([next(labels) * central for _ in crops])
    )
    models = replace(load_models(bundle), parser=object())
    config = RunConfig(pti=PTIConfig(passes=1), stitch=StitchConfig(steps=1))
    run = edit_clip(read_clip(disc_clip, frames=slice(0, 3)), "smile=1", tmp_path, models, config)
    assert run.record["stages"]["masks"]["hull_frames"] == [1]
    masks = np.load(run.stages["masks"].path)
    assert (masks[0] == central).all() and masks[1].any() and (masks[1] != central).any()


def test_lpips_that_cannot_be_fetched(monkeypatch, tmp_path, call, disc_clip):
    "The bundle's trunk is used, and the report says so."
    from stitch_nb import perceptual

    def fails(*args, **kwargs):
        raise StitchError("no network here")

    monkeypatch.setattr(perceptual, "lpips_perceptual", fails)
    status, _, said = call(disc_clip, perceptual="lpips", frames="0:2")
    assert (
        status == 0
        and "perceptual distance by bundle trunk (lpips-alex could not be fetched)" in said
    )


def test_the_source_is_never_overwritten(call, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    path = tiny.face_clip(run / "result.mp4", T=2)
    before = path.read_bytes()
    status, line, _ = call(path)
    assert status == 2 and "overwritten by its own edit" in line
    assert path.read_bytes() == before


def test_frames_are_not_mixed_with_results(call, tmp_path):
    "strip.png would be a frame of the next run."
    folder = tmp_path / "frames"
    folder.mkdir()
    for t, frame in enumerate(tiny.face_frames(T=2)):
        Image.fromarray(frame).save(folder / f"{t}.png")
    status, line, _ = call(folder, out=str(tmp_path / "frames"))
    assert status == 2 and "holds the clip's frames" in line
    assert sorted(p.name for p in folder.iterdir()) == ["0.png", "1.png"]


def test_foreign_files_in_the_run_folder_are_kept(call, disc_clip, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.mp4").write_text("holiday")
    assert call(disc_clip, frames="0:2")[0] == 0
    assert [p.read_text() for p in (run / "earlier").glob("*/result.mp4")] == ["holiday"]


def test_a_part_of_the_clip_is_the_same_part_everywhere(call, disc_clip, tmp_path):
    assert (
        call(disc_clip, frames="2:4", lossless=True, edit=["smile=0"], stitch_steps=0, pti_steps=0)[
            0
        ]
        == 0
    )
    for a, b in zip(
        read_clip(disc_clip, frames=slice(2, 4)).frames(),
        read_clip(tmp_path / "run" / "result.mp4").frames(),
        strict=True,
    ):
        assert (a[-3:] == b[-3:]).all() and (
            a[:, :3] == b[:, :3]
        ).all()  # away from the face: this very frame, not another


def test_keyframes_count_frames_of_the_video(call, disc_clip, tmp_path):
    for name, edit in dict(a="smile=0:0,2:0,3:2", b="smile=0").items():
        assert (
            call(disc_clip, edit=[edit], frames="1:5", lossless=True, out=str(tmp_path / name))[0]
            == 0
        )
    same = [
        bool((a == b).all())
        for a, b in zip(*(read_clip(tmp_path / n / "result.mp4").frames() for n in "ab"))
    ]
    assert same == [True, True, False, False]  # frames 1 and 2 have strength 0, 3 and 4 have 2


def test_what_a_stop_cut_short_is_dropped_in_silence(monkeypatch):
    "A stop within ZipFile's constructor: its __del__ misses attributes. Other errors are still told."
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda seen: told.append(str(seen.exc_value)))
    with pytest.raises(KeyboardInterrupt):
        script._stopper()()

    class Odd:
        def __del__(self):
            raise ValueError("told")

    half = zipfile.ZipFile.__new__(zipfile.ZipFile)
    half.fp = io.BytesIO()  # as far as it came
    del half
    odd = Odd()
    del odd
    assert told == ["told"]
