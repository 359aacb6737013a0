"The default clip with the bundle that comes with the package, in a hurry."

import errno
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from stitch_nb.commands import edit as command
from stitch_nb.core import StitchError, sample
from stitch_nb.models import default_models, load_models
from stitch_nb.pipeline import ablate, edit_clip
from stitch_nb.pti import PTIConfig
from stitch_nb.run.settings import RunConfig
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip
from stitch_nb.weights import catalogue, download

QUICK = RunConfig(pti=PTIConfig(passes=3), stitch=StitchConfig(steps=3), lossless=True)


@pytest.fixture(scope="session")
def models():
    return load_models("people")


@pytest.fixture(scope="session")
def run(models, tmp_path_factory):
    "A run without a network: nothing is fetched behind one's back."

    def refused(*args):
        raise AssertionError("the demo wants the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refused)
        return edit_clip(
            read_clip(sample("talk"), frames=slice(0, 6)),
            "smile=2",
            tmp_path_factory.mktemp("demo"),
            models,
            QUICK,
        )


def test_demo(run):
    clip, result = read_clip(sample("talk")), read_clip(run.result)
    assert (len(result), result.fps, result.width, result.height) == (
        6,
        clip.fps,
        clip.width,
        clip.height,
    )
    assert run.metrics["outside_identical"] == 1
    assert run.metrics["psnr"]["pti"]["mean"] > run.metrics["psnr"]["inversion"]["mean"] > 12
    assert run.metrics["tl_id"] > 0.8 and run.metrics["tg_id"] > 0.8
    assert (
        run.record["landmarks"] == "bundle" and run.record["stages"]["masks"]["hull_frames"] == []
    )


def test_sound_is_kept(run):
    assert read_clip(sample("talk")).has_audio and read_clip(run.result).has_audio


@pytest.mark.slow
def test_stronger_is_stronger(models, tmp_path):
    "The mouth widens with every step of the strength."
    brief = RunConfig(pti=PTIConfig(passes=8), stitch=StitchConfig(steps=20))
    clip, wide = read_clip(sample("talk"), frames=slice(0, 5)), []
    for strength in (0, 1, 2, 3):
        run = edit_clip(clip, f"smile={strength}", tmp_path, models, brief)
        wide.append(run.metrics["mouth_width"]["result"])
    assert np.all(np.diff(wide) > 0), wide


@pytest.mark.slow
def test_arms_of_figure_9(models, tmp_path):
    arms = ablate(
        read_clip(sample("talk"), frames=slice(0, 2)),
        "smile=2",
        tmp_path,
        models,
        QUICK,
        arms=("no_pti", "no_stitching", "full"),
    )
    assert all(run.metrics["leak"] == 0 for run in arms.values())
    assert "generator" not in arms["no_pti"].stages
    assert (
        arms["no_stitching"].metrics["seam"]["stitched"]
        == arms["no_stitching"].metrics["seam"]["blended"]
    )
    assert arms["full"].stages["crops"].path == arms["no_pti"].stages["crops"].path  # shared


@pytest.mark.slow
@pytest.mark.parametrize("name", ["turn", "pan", "two"])
def test_the_other_samples(models, tmp_path, name):
    clip = read_clip(sample(name), frames=slice(10, 13))
    run = edit_clip(clip, "age=1", tmp_path, models, QUICK)
    assert run.metrics["leak"] == 0 and len(read_clip(run.result)) == 3
    if name == "two":
        assert run.record["stages"]["faces"]["people"] == 2


@pytest.mark.parametrize("mask", ["parser", "hull"])
def test_a_real_clip(models, tmp_path, mask):
    "Real footage with dlib's landmarks runs to the end; what is outside of the mask stays."
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "portrait_640.mp4"
    if not path.is_file():
        pytest.skip("the real clip is not here")
    pytest.importorskip("dlib")
    clip = read_clip(path, frames=slice(0, 2))
    run = edit_clip(clip, "smile=1", tmp_path, models, replace(QUICK, landmarks="dlib", mask=mask))
    result = read_clip(run.result)
    assert (len(result), result.fps, result.width, result.height) == (
        2,
        clip.fps,
        clip.width,
        clip.height,
    )
    assert (
        run.metrics["outside_identical"] == 1
        and run.metrics["psnr"]["pti"]["mean"] > 10
        and run.record["landmarks"] == "dlib"
    )


@pytest.fixture
def bare(monkeypatch, tmp_path):
    "A machine on which nothing was fetched and nothing is named."
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STITCH_MODELS", raising=False)
    monkeypatch.setattr(catalogue, "installed_member", lambda *a: None)
    return tmp_path / "cache"


def left_in(cache):
    "Files that a fetch would be found by."
    return [p.name for p in cache.rglob("*") if p.suffix in (".whl", ".safetensors", ".part")]


def test_the_default_is_what_was_fetched(bare, monkeypatch):
    "STITCH_MODELS first; then the photographs if they are here; then the shipped bundle."
    assert default_models() == "people"
    monkeypatch.setattr("stitch_nb.models.missing_files", lambda name: [])
    assert default_models() == "mobile"
    monkeypatch.setenv("STITCH_MODELS", "mobile-256")
    assert default_models() == "mobile-256"


def refusal(kind):
    "What goes wrong while pip brings a wheel."

    def bring(requirement, folder, options=()):
        path = Path(folder) / "random_face-2021.7.21.1-py3-none-any.whl"
        path.write_bytes(b"half")
        if kind == "no network":
            raise StitchError("pip could not fetch random-face (no network): get it elsewhere")
        if kind == "disk full":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return path  # wrong bytes

    return bring


@pytest.mark.parametrize("kind", ["no network", "wrong bytes", "disk full"])
def test_what_cannot_be_fetched_costs_one_line(bare, monkeypatch, capsys, kind):
    "The demo goes on with the rendered bundle; nothing half fetched is left."
    monkeypatch.setattr(download, "pip_download", refusal(kind))
    assert command.choose_models(None, True) == "people"
    terms, note = capsys.readouterr().out.split("note: ")
    assert len(terms.splitlines()) == 2 and "not for trade" in terms and "by pip" in terms
    assert note.count("\n") == 1 and "could not be fetched" in note and "people" in note
    assert not left_in(bare) and default_models() == "people"


def test_ctrl_c_while_fetching(bare, monkeypatch, capsys, tmp_path):
    "One line and status 130; nothing half fetched is left."

    def stopped(requirement, folder, options=()):
        (Path(folder) / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "pip_download", stopped)
    status, line, _ = tiny.outcome(command.stitch_demo, capsys, out=str(tmp_path / "run"))
    assert status == 130 and "stopped" in line and not left_in(bare)


def test_the_demo_fetches_and_then_uses(bare, monkeypatch, capsys):
    "Without a question; the two lines come first."
    fetched = []
    monkeypatch.setattr(command, "fetch", lambda file: fetched.append(file.name))
    monkeypatch.setattr(command, "convert", lambda file: None)
    assert command.choose_models(None, True) == "mobile"
    assert len(fetched) == 2 and len(capsys.readouterr().out.splitlines()) == 2
    assert command.choose_models(None, True, rendered=True) == "people"
    assert command.choose_models("ffhq", True) == "ffhq" and len(fetched) == 2


def test_a_terminal_is_asked_once(bare, monkeypatch, capsys):
    "No is remembered; elsewhere one line names the option; offline nobody is asked."
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "n")
    assert command.choose_models(None) == "people" and not asked  # no terminal
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "--yes" in said and "people" in said
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("STITCH_OFFLINE", "1")
    assert command.choose_models(None) == "people" and not asked
    monkeypatch.delenv("STITCH_OFFLINE")
    assert [command.choose_models(None) for _ in range(2)] == ["people"] * 2 and len(asked) == 1
    monkeypatch.setattr(command, "fetch", lambda file: None)
    monkeypatch.setattr(command, "convert", lambda file: None)
    assert command.choose_models(None, True) == "mobile"  # --yes
