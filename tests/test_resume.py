"A run that is stopped anywhere goes on with the same command and ends with the same bytes."

import os
import re
import signal
import subprocess
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

import forked
import tiny
from stitch_nb.models import load_models
from stitch_nb.pipeline import edit_clip
from stitch_nb.pti import PTIConfig
from stitch_nb.run.settings import RunConfig
from stitch_nb.run.store import OUTPUTS
from stitch_nb.stitch import StitchConfig

CONFIG = RunConfig(
    mask="hull",
    pti=PTIConfig(passes=7, batch=8, dtype="float32"),
    stitch=StitchConfig(steps=3, dtype="float32"),
    lossless=True,
)
STAGES = (
    "faces",
    "crops",
    "masks",
    "pivots",
    "generator",
    "scores",
    "stitched",
    "result",
    "compare",
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="session")
def models(folder):
    return load_models(tiny.tiny_bundle(folder / "tiny"))


@pytest.fixture(scope="session")
def bundle_path(folder, models):
    return folder / "tiny"


@pytest.fixture(scope="session")
def clip_path(folder):
    return tiny.face_clip(folder / "disc.mp4", T=5)


def bytes_of(run):
    return {n: (Path(run) / n).read_bytes() for n in OUTPUTS if n != "run.json"}


@pytest.fixture(scope="session")
def whole(folder, models, clip_path):
    "The bytes of a run that nobody stopped."
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_disc(patch)
        return bytes_of(edit_clip(clip_path, "smile=1", folder / "whole", models, CONFIG).out)


def stop_in(stage, at, error):
    def progress(name):
        def tick(done, total, text=""):
            if name == stage and done >= at:
                raise error

        return nullcontext(tick)

    return progress


def frames_in(run):
    "Stitched frames of a run folder: name to the time at which each was written."
    return {p.name: p.stat().st_mtime_ns for p in (run / "stages").glob("stitched-*/*.npz")}


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_interrupt_and_resume(tmp_path, monkeypatch, models, clip_path, whole, stage, at):
    tiny.use_disc(monkeypatch)
    at = at if stage != "generator" else (1, 6)[at > 1]
    with pytest.raises(KeyboardInterrupt):
        edit_clip(
            clip_path,
            "smile=1",
            tmp_path / "run",
            models,
            CONFIG,
            progress=stop_in(stage, min(at, 1) if stage == "pivots" else at, KeyboardInterrupt()),
        )
    assert not list(tmp_path.rglob("*.part*"))  # nothing half written is left
    kept, seen = frames_in(tmp_path / "run"), []
    watch = lambda name: nullcontext(
        lambda done, total, text="": seen.append(done) if name == stage else None
    )
    run = edit_clip(clip_path, "smile=1", tmp_path / "run", models, CONFIG, progress=watch)
    assert bytes_of(run.out) == whole
    before = STAGES[: STAGES.index(stage)]
    assert all(run.stages[name].reused for name in before if name in run.stages)
    assert not list((tmp_path / "run" / "stages").glob("*.resume.safetensors"))
    if stage == "generator" and at == 6:  # a checkpoint was there, and tuning went on from it
        assert min(seen) == 6
    if stage == "stitched":  # frames that were there are the same files
        after = frames_in(run.out)
        assert len(kept) == at and len(after) == 5 and kept.items() <= after.items()


def test_another_edit_reuses_what_does_not_depend_on_it(
    tmp_path, monkeypatch, models, clip_path, whole
):
    tiny.use_disc(monkeypatch)
    edit_clip(clip_path, "smile=1", tmp_path, models, CONFIG)
    other = edit_clip(clip_path, "age=1", tmp_path, models, CONFIG)
    assert [n for n, s in other.stages.items() if not s.reused] == ["stitched"]
    assert [p.read_bytes() for p in tmp_path.glob("earlier/smile1-*/result.mp4")] == [
        whole["result.mp4"]
    ]
    back = edit_clip(clip_path, "smile=1", tmp_path, models, CONFIG)
    assert all(s.reused for s in back.stages.values()) and bytes_of(back.out) == whole


def test_what_was_changed_is_computed_again(tmp_path, monkeypatch, models, clip_path):
    tiny.use_disc(monkeypatch)
    quick = replace(CONFIG, pti=PTIConfig(passes=1))
    edit_clip(clip_path, "smile=1", tmp_path, models, quick)
    again = lambda **changes: [
        n
        for n, s in edit_clip(
            clip_path, "smile=1", tmp_path, models, replace(quick, **changes)
        ).stages.items()
        if not s.reused
    ]
    assert again() == []
    assert again(feather=1) == []
    assert again(stitch=StitchConfig(steps=2)) == ["stitched"]
    assert again(pti=PTIConfig(passes=2)) == ["generator", "scores", "stitched"]
    assert again(sigma_axes=0.0) == ["crops", "masks", "pivots", "generator", "scores", "stitched"]


def test_a_clip_of_another_content_is_another_clip(tmp_path, monkeypatch, models):
    tiny.use_disc(monkeypatch)
    quick = replace(CONFIG, pti=PTIConfig(passes=1), stitch=StitchConfig(steps=1))
    path = tiny.face_clip(tmp_path / "clip.mp4", T=2)
    edit_clip(path, "smile=1", tmp_path / "run", models, quick)
    path.unlink()
    tiny.face_clip(path, T=2, at=(40, 20))
    assert not any(
        s.reused
        for s in edit_clip(path, "smile=1", tmp_path / "run", models, quick).stages.values()
    )


def shell(out, clip, bundle, limit=None):
    "The command as a process of its own, its files no longer than `limit` bytes."
    words = ["stitch_edit", clip, "--edit", "smile=1", "--models", bundle, "--mask", "hull"]
    words += ["--pti_steps", "7", "--stitch_steps", "3", "--lossless"]
    words += ["--device", "cpu", "--dtype", "float32", "--out", out]
    return forked.start(*words, limit=limit)


def finish(process):
    _, errors = process.communicate()
    return process.returncode, re.split(r"[\r\n]+", errors.strip())[-1], errors


@pytest.fixture(scope="session")
def shell_whole(folder, clip_path, bundle_path):
    "The bytes of the same run as a process."
    status, _, errors = finish(shell(folder / "shell", clip_path, bundle_path))
    assert status == 0, errors[-2000:]
    return bytes_of(folder / "shell")


@pytest.mark.parametrize("limit", [1_000, 8_000, 40_000, 100_000])
def test_no_room_left(tmp_path, clip_path, bundle_path, shell_whole, limit):
    "Files may not grow: what the system answers is what it answers on a full disk."
    status, line, errors = finish(shell(tmp_path, clip_path, bundle_path, limit))
    assert (
        status == 2
        and line.startswith("stitch_edit: ")
        and "no room left" in line
        and "Traceback" not in errors
    ), errors[-2000:]
    assert not list(tmp_path.rglob("*.part*"))
    kept = {
        p: p.stat().st_mtime_ns
        for p in (tmp_path / "stages").rglob("*")
        if p.is_file() and ".resume" not in p.name
    }
    assert finish(shell(tmp_path, clip_path, bundle_path))[0] == 0
    assert bytes_of(tmp_path) == shell_whole
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())  # nothing computed was lost


def test_a_disk_that_is_really_full(tmp_path, clip_path, bundle_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        status, line, errors = finish(shell(disk / "run", clip_path, bundle_path))
        assert (
            status == 2
            and line.startswith("stitch_edit: ")
            and "no room left" in line
            and "Traceback" not in errors
        ), errors[-2000:]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("stage", ["crops", "generator", "stitched"])
def test_ctrl_c_in_a_shell(tmp_path, clip_path, bundle_path, shell_whole, stage):
    "A real SIGINT to the process group, as a terminal sends it, once the stage before has finished."
    process = shell(tmp_path, clip_path, bundle_path)
    before = STAGES[STAGES.index(stage) - 1]
    end = time.time() + 300
    while (
        not list(tmp_path.glob(f"stages/{before}-*.json"))
        and process.poll() is None
        and time.time() < end
    ):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    status, line, errors = finish(process)
    if status == 0:
        pytest.skip("the run was faster than the signal")
    assert status == 130 and "the same command goes on" in line and "Traceback" not in errors, (
        errors[-2000:]
    )
    assert finish(shell(tmp_path, clip_path, bundle_path))[0] == 0
    assert bytes_of(tmp_path) == shell_whole
