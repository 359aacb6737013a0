"The default clip with the bundle that comes with the package, in a hurry."

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stitch_nb.core import sample
from stitch_nb.models import load_models
from stitch_nb.pipeline import ablate, edit_clip
from stitch_nb.pti import PTIConfig
from stitch_nb.run.settings import RunConfig
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip

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
    wide = []
    for strength in (0, 1, 2, 3):
        run = edit_clip(
            read_clip(sample("talk"), frames=slice(0, 12)),
            f"smile={strength}",
            tmp_path,
            models,
            RunConfig(),
        )
        wide.append(run.metrics["mouth_width"]["result"])
    assert np.all(np.diff(wide) > 0), wide


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
