"Runs under attack: killed, twice at once, with damaged files, links and foreign files."

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import forked
import tiny
from stitch_nb.core import StitchError
from stitch_nb.metrics import leak
from stitch_nb.models import load_models
from stitch_nb.paste import paste_mask
from stitch_nb.pipeline import edit_clip
from stitch_nb.pti import PTIConfig
from stitch_nb.run import checks
from stitch_nb.run.settings import RunConfig
from stitch_nb.run.stages import FrameMasks
from stitch_nb.run.store import OUTPUTS, finished, hold, read_sealed, write_sealed
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip

CONFIG = RunConfig(
    mask="hull",
    pti=PTIConfig(passes=7, batch=8, dtype="float32"),
    stitch=StitchConfig(steps=3, dtype="float32"),
    lossless=True,
)
DAMAGES = ("cut", "flip", "empty", "folder", "link", "other")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    "A bundle, a clip, a finished run, and one that was stopped in the middle of stitching."
    folder = tmp_path_factory.mktemp("faults")
    models = load_models(tiny.tiny_bundle(folder / "tiny"))
    clip = tiny.face_clip(folder / "disc.mp4", T=4)
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_disc(patch)
        edit_clip(clip, "smile=1", folder / "whole", models, CONFIG)
        for name, stage, at in (("stopped", "stitched", 2), ("tuning", "generator", 6)):
            with pytest.raises(KeyboardInterrupt):
                stop = stop_in(stage, at)
                edit_clip(clip, "smile=1", folder / name, models, CONFIG, progress=stop)
    return folder, models, clip, bytes_of(folder / "whole")


def stop_in(stage, at):
    def progress(name):
        def tick(done, total, text=""):
            if name == stage and done >= at:
                raise KeyboardInterrupt

        return nullcontext(tick)

    return progress


def bytes_of(out):
    return {n: (Path(out) / n).read_bytes() for n in OUTPUTS if n != "run.json"}


def copied(room, which, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(room[0] / which, out)
    return out


def again(room, out, monkeypatch, edit="smile=1", config=CONFIG):
    tiny.use_disc(monkeypatch)
    return edit_clip(room[2], edit, out, room[1], config)


def damage(path, how):
    content = path.read_bytes() if path.is_file() else b""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) * 2 // 3])
    if how == "flip":
        bad = bytearray(content)
        bad[len(bad) // 2] ^= 0x10
        path.write_bytes(bad)
    if how == "empty":
        path.write_bytes(b"")
    if how == "folder":
        path.mkdir()
    if how == "link":
        elsewhere = path.parents[2] / f"elsewhere{path.suffix}"
        elsewhere.write_bytes(content)
        path.symlink_to(elsewhere)
    if how == "other":
        text = path.suffix in (".json", ".mp4")
        path.write_bytes(b"null" if text else np.random.default_rng(0).bytes(max(1, len(content))))


FINISHED = [
    *(f"stages/{s}-*.{e}" for s in ("faces", "pivots", "scores") for e in ("npz", "json")),
    *(f"stages/{s}-*.{e}" for s in ("crops", "masks") for e in ("npy", "json")),
    "stages/generator-*.safetensors",
    "stages/generator-*.json",
    "stages/stitched-*.json",
    "stages/stitched-*/000001.npz",
    *OUTPUTS,
]
CASES = [(f, how) for f in FINISHED for how in DAMAGES]
QUICK_CASES = [(f, DAMAGES[i % len(DAMAGES)]) for i, f in enumerate(FINISHED)]


def check_mended(room, out, monkeypatch):
    before = sorted(p.name for p in out.parent.iterdir())
    run = again(room, out, monkeypatch)
    assert bytes_of(out) == room[3] and finished(out, run.record["key"])
    assert not list(out.rglob(".*.part*")) and not (out / ".run" / "new").exists()
    assert sorted(p.name for p in out.parent.iterdir()) == before
    assert not [p for p in (out / "stages").iterdir() if p.is_symlink()]


@pytest.mark.parametrize("file,how", QUICK_CASES)
def test_a_damaged_file_of_a_finished_run(room, tmp_path, monkeypatch, file, how):
    out = copied(room, "whole", tmp_path)
    damage(next(out.glob(file)), how)
    check_mended(room, out, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("file,how", [c for c in CASES if c not in QUICK_CASES])
def test_every_damaged_file_of_a_finished_run(room, tmp_path, monkeypatch, file, how):
    out = copied(room, "whole", tmp_path)
    damage(next(out.glob(file)), how)
    check_mended(room, out, monkeypatch)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_frame_of_a_stopped_run(room, tmp_path, monkeypatch, how):
    out = copied(room, "stopped", tmp_path)
    assert len(list(out.glob("stages/stitched-*/*.npz"))) == 2
    damage(next(out.glob("stages/stitched-*/000001.npz")), how)
    check_mended(room, out, monkeypatch)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint(room, tmp_path, monkeypatch, how):
    out = copied(room, "tuning", tmp_path)
    damage(next(out.glob("stages/generator-*.resume.safetensors")), how)
    check_mended(room, out, monkeypatch)


def test_a_frame_of_another_place_is_not_taken(room, tmp_path, monkeypatch):
    "Whole, readable, of the right size, and wrong."
    out = copied(room, "stopped", tmp_path)
    frames = sorted(out.glob("stages/stitched-*/*.npz"))
    shutil.copy(frames[0], frames[1])
    check_mended(room, out, monkeypatch)


def test_only_what_is_wrong_is_made_again(room, tmp_path, monkeypatch):
    out = copied(room, "whole", tmp_path)
    frames = sorted(out.glob("stages/stitched-*/*.npz"))
    damage(frames[1], "flip")
    kept = {p: p.stat().st_mtime_ns for p in frames if p != frames[1]}
    run = again(room, out, monkeypatch)
    assert [n for n, s in run.stages.items() if not s.reused] == ["stitched"]
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert bytes_of(out) == room[3]


@pytest.mark.parametrize("name", ["stages", "earlier", ".run"])
def test_nothing_is_written_through_a_link(room, tmp_path, monkeypatch, name):
    out = copied(room, "whole", tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    if (out / name).exists():
        shutil.rmtree(out / name)
    (out / name).symlink_to(outside)
    try:
        again(room, out, monkeypatch, "age=1")
    except StitchError as error:
        assert "is a link" in str(error) and "\n" not in str(error)
    assert not list(outside.iterdir())


def test_a_record_that_points_elsewhere(room, tmp_path, monkeypatch):
    "An old run.json, sealed and all, that names folders outside of the run's."
    out = copied(room, "whole", tmp_path)
    record = read_sealed(out / "run.json")
    write_sealed(out / "run.json", record | dict(edits=["../../../stolen"], key="../../../../x"))
    again(room, out, monkeypatch)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert bytes_of(out) == room[3]


def call(room, capsys, monkeypatch, **options):
    tiny.use_disc(monkeypatch)
    base = tiny.QUICK | dict(models=str(room[0] / "tiny"))
    return tiny.outcome(tiny.stitch_edit, capsys, str(room[2]), **base | options)


def test_a_loop_of_links_is_one_line(room, tmp_path, monkeypatch, capsys):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for out in ("a", "a/run"):
        status, line, _ = call(room, capsys, monkeypatch, out=str(tmp_path / out))
        assert status == 2 and line.startswith("stitch_edit: ") and str(tmp_path / out) in line


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(dilation=0), ["dilation is 0", "no border"]),
        (dict(dilation=40), ["content mask is empty", "smaller dilation"]),
        (dict(mask="parser"), ["has no parser"]),
    ],
)
def test_what_cannot_work_is_said_before_the_work(room, tmp_path, monkeypatch, capsys, bad, words):
    out = tmp_path / "run"
    status, line, _ = call(room, capsys, monkeypatch, out=str(out), **bad)
    assert status == 2 and all(word in line for word in words), line
    assert not list(out.rglob("*.np[yz]"))


def test_frames_of_other_sizes_of_truth(room, tmp_path, monkeypatch, capsys):
    other = tiny.face_clip(tmp_path / "other.mp4", T=3)
    status, line, _ = call(room, capsys, monkeypatch, out=str(tmp_path / "run"), truth=str(other))
    assert status == 2 and "3 frames of 64x48, the clip 4 of 64x48" in line


def outside_masks(room, run, config=CONFIG):
    heads = FrameMasks(np.load(run.stages["masks"].path), 32, config.masks)
    return [paste_mask(q, heads[k].full, 48, 64, 0) == 0 for k, q in enumerate(run.quads)]


@pytest.mark.parametrize("stage", ["faces", "crops", "generator", "stitched"])
def test_a_clip_that_is_replaced_meanwhile(room, tmp_path, monkeypatch, stage):
    "The run is refused, and keeps no frame of the other clip: the first one comes out as it was."
    tiny.use_disc(monkeypatch)
    path, kept = tmp_path / "c.mp4", tmp_path / "kept.mp4"
    for copy in (path, kept):
        shutil.copyfile(room[2], copy)
    other = tiny.face_clip(tmp_path / "other.mp4", T=4, at=(20, 22))

    def progress(name):
        def tick(done, total, text=""):
            if name == stage and other.exists():
                os.replace(other, path)

        return nullcontext(tick)

    with pytest.raises(StitchError, match="changed after it was read"):
        edit_clip(path, "smile=1", tmp_path / "run", room[1], CONFIG, progress=progress)
    assert not (tmp_path / "run" / "result.mp4").exists()
    os.replace(kept, path)
    edit_clip(path, "smile=1", tmp_path / "run", room[1], CONFIG)
    assert bytes_of(tmp_path / "run") == room[3]


@pytest.mark.parametrize("lossless", [True, False])
def test_the_delivered_file_is_measured(room, tmp_path, monkeypatch, lossless):
    "Before encoding nothing outside of the mask changes; of the file, the numbers are its own."
    config = replace(CONFIG, lossless=lossless)
    run = again(room, tmp_path / "run", monkeypatch, config=config)
    assert run.metrics["leak"] == 0 and run.metrics["outside_identical"] == 1
    same, squares, n = 0, 0.0, 0
    pairs = zip(read_clip(room[2]).frames(), read_clip(run.result).frames())
    for outside, (a, b) in zip(outside_masks(room, run), pairs):
        error = a[outside].astype(int) - b[outside]
        same, squares, n = (
            same + (error == 0).all(1).sum(),
            squares + (error**2).sum(),
            n + len(a[outside]),
        )
    file = run.metrics["file"]
    assert file["outside_identical"] == pytest.approx(same / n)
    if lossless:
        assert file["outside_identical"] == 1 and file["outside_psnr"] is None
    else:
        assert file["outside_identical"] < 0.9
        assert file["outside_psnr"] == pytest.approx(10 * np.log10(255**2 * 3 * n / squares))


def test_one_changed_pixel_is_a_leak():
    source = np.zeros((1000, 1000, 3), np.uint8)
    result = source.copy()
    result[3, 4, 1] = 1
    assert leak(result, source, np.zeros((1000, 1000))) == 1e-6


@pytest.mark.parametrize("measure", ["none", "fast", "full"])
def test_how_much_is_measured(room, tmp_path, monkeypatch, measure):
    run = again(room, tmp_path / "run", monkeypatch, config=replace(CONFIG, measure=measure))
    assert run.metrics["measure"] == measure and run.strip.is_file()
    assert (run.result).read_bytes() == room[3]["result.mp4"]
    curves = json.loads((run.out / "frames.json").read_text())
    if measure == "none":
        assert "seam" not in run.metrics and curves == {} and "scores" not in run.stages
    else:
        assert run.metrics["seam"]["stitched"] > 0 and len(curves["leak"]) == 4


def test_numbers_of_another_judge_are_taken_again(room, tmp_path, monkeypatch):
    "Who is seen is measured by a network: with another one a finished run is not finished."
    from stitch_nb.nets.small import IdentityNet

    out = copied(room, "whole", tmp_path)
    first = again(room, out, monkeypatch)
    other = replace(room[1], identity=IdentityNet().eval())
    second = edit_clip(room[2], "smile=1", out, other, CONFIG)
    assert first.record["key"] != second.record["key"]
    assert all(s.reused for s in second.stages.values())
    assert first.metrics["identity_distance"] != second.metrics["identity_distance"]
    assert (out / "result.mp4").read_bytes() == room[3]["result.mp4"]


def test_sampled_numbers_are_those_of_the_sample(tmp_path, monkeypatch, room):
    "What is slow is taken on some frames, the rest on all of them; both as without sampling."
    from stitch_nb.run import measure

    clip = tiny.face_clip(tmp_path / "disc.mp4", T=8)
    tiny.use_disc(monkeypatch)
    monkeypatch.setattr(measure, "SAMPLE", 3)
    curves = {}
    for how in ("fast", "full"):
        config = replace(CONFIG, measure=how)
        run = edit_clip(
            clip, "smile=1", tmp_path / how, room[1], config, stages=tmp_path / "stages"
        )
        curves[how] = json.loads((run.out / "frames.json").read_text())
    fast, full = curves["fast"], curves["full"]
    taken = [t for t, v in enumerate(fast["trembling"]) if v is not None]
    assert taken == [1, 4, 7] and full["trembling"][1:].count(None) == 0
    assert all(fast["trembling"][t] == full["trembling"][t] for t in taken)
    assert all(fast["edit_flicker"][t] == full["edit_flicker"][t] for t in taken)
    assert fast["leak"] == full["leak"] and fast["flicker"] == full["flicker"]


def test_frames_without_a_face_stay_as_they_are(tmp_path, monkeypatch, room):
    "A title card in the middle: its frames are the source's, bit by bit; the rest is edited."
    frames = list(tiny.face_frames(T=30))
    card = np.zeros_like(frames[0])
    card[10:30, 20:40] = 255
    frames[8:22] = [card] * 14
    clip = tiny.write_video(frames, tmp_path / "card.mp4", 25, lossless=True)
    tiny.use_disc(monkeypatch)
    run = edit_clip(clip, "smile=0:0,25:0,26:3", tmp_path / "run", room[1], CONFIG)
    untouched = run.record["stages"]["faces"]["untouched"]
    assert set(range(9, 21)) <= set(untouched)
    changed = [(a != b).any() for a, b in zip(frames, read_clip(run.result).frames(), strict=True)]
    assert not any(changed[t] for t in untouched) and changed[0] and changed[-1]
    assert len(run.quads) == 30 - len(untouched) == run.metrics["edited_frames"]
    curves = json.loads((run.out / "frames.json").read_text())
    assert len(curves["leak"]) == 30 and curves["leak"][15] is None and curves["leak"][25] == 0
    assert read_clip(run.out / "compare.mp4").n_frames == 30


def shell_arguments(room, out, edit="smile=1"):
    said = ["stitch_edit", str(room[2]), "--edit", edit, "--models", str(room[0] / "tiny")]
    said += ["--mask", "hull", "--pti_steps", "7", "--stitch_steps", "3", "--lossless"]
    return [*said, "--device", "cpu", "--dtype", "float32", "--out", str(out)]


def shell(room, out, edit="smile=1"):
    return forked.start(*shell_arguments(room, out, edit))


def ended_well(process) -> bool:
    _, said = process.communicate()
    assert process.returncode == 0, said[-2000:]
    return True


@pytest.fixture(scope="module")
def films(room, tmp_path_factory):
    "The run folder of each edit when nothing disturbs it."
    found = {}
    for edit in ("smile=1", "age=1"):
        out = tmp_path_factory.mktemp("films") / "run"
        assert ended_well(shell(room, out, edit))
        found[edit] = out
    return found


@pytest.mark.parametrize("prepared", [False, True])
def test_two_edits_at_once(room, films, tmp_path, prepared):
    "One of the two is done, whole; the other is done too or says who is there. Then it is done."
    out = tmp_path / "run"
    if prepared:  # every stage of both edits is there
        for whole in films.values():
            shutil.copytree(whole / "stages", out / "stages", dirs_exist_ok=True)
    running = {edit: shell(room, out, edit) for edit in films}
    lines = {edit: p.communicate()[1] for edit, p in running.items()}
    done = [edit for edit, p in running.items() if p.returncode == 0]
    for edit, p in running.items():
        assert p.returncode in (0, 2) and "Traceback" not in lines[edit], lines[edit]
        if p.returncode:
            assert (
                "is in use by process" in lines[edit] and "choose another run folder" in lines[edit]
            )
    assert done
    first = check_film(out, films)
    (other,) = set(films) - {first}
    assert ended_well(shell(room, out, other)) and check_film(out, films) == other


def test_a_second_edit_in_the_midst_is_refused(room, tmp_path, monkeypatch):
    "While one edit writes its films, another in the same folder neither begins nor is believed."
    out, told = copied(room, "whole", tmp_path), []
    monkeypatch.setattr(checks, "hold", lambda out, what: hold(out, what, wait=0.1))

    def progress(name):
        def tick(done, total, text=""):
            if name == "compare" and not told:
                with pytest.raises(StitchError, match="is in use by process") as error:
                    edit_clip(room[2], "smile=1", out, room[1], CONFIG)
                told.append(str(error.value))

        return nullcontext(tick)

    tiny.use_disc(monkeypatch)
    run = edit_clip(room[2], "age=1", out, room[1], CONFIG, progress=progress)
    assert "(age=1)" in told[0] and finished(out, run.record["key"])
    assert read_sealed(out / "run.json")["edits"] == ["age=1"]
    (aside,) = (out / "earlier").iterdir()
    assert (aside / "result.mp4").read_bytes() == room[3]["result.mp4"]


def check_film(out, films):
    "The record and the film belong together; which edit it is."
    record = read_sealed(out / "run.json")
    assert finished(out, record["key"])
    (edit,) = record["edits"]
    assert (out / "result.mp4").read_bytes() == (films[edit] / "result.mp4").read_bytes()
    return edit


def kill_often(room, films, out, rng, kills, span):
    "SIGKILL at random moments, each time the same command again; the film is the same in the end."
    hit = 0
    while hit < kills:
        process = shell(room, out)
        begun = time.time() + 120
        while not (out / ".run" / "by.json").exists() and process.poll() is None:
            assert time.time() < begun
            time.sleep(0.005)
        time.sleep(rng.uniform(0, span))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            hit += 1
        process.communicate()
        if process.returncode == 0:
            check_film(out, films)
            shutil.rmtree(out)
    assert ended_well(shell(room, out)) and check_film(out, films) == "smile=1"
    assert not [p for p in out.rglob("*") if ".part" in p.name or ".resume" in p.name]
    assert not (out / ".run" / "new").exists() and not list(out.glob("earlier/*"))


def test_killed_at_random(room, films, tmp_path):
    kill_often(room, films, tmp_path / "run", random.Random(0), 3, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_often_at_random(room, films, tmp_path, seed):
    "Ten folders, four kills each, over all stages."
    kill_often(room, films, tmp_path / "run", random.Random(seed), 4, 2.5)


def test_processes_that_share_a_run(room, films, tmp_path):
    "Two processes started by torchrun: the same film within rounding, one record, no film twice."
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("tiny.py"))]
    command += shell_arguments(room, out)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("result.mp4 ") == 1  # one report
    record = read_sealed(out / "run.json")
    assert record["machine"]["processes"] == 2 and finished(out, record["key"])
    alone = read_clip(films["smile=1"] / "result.mp4").frames()
    for a, b in zip(alone, read_clip(out / "result.mp4").frames(), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 2
