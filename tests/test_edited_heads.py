"`mask='both'`: what the edited head covers besides the source's is head, and no border."

from dataclasses import replace

import numpy as np
import pytest

from stitch_nb.core import StitchError, sample
from stitch_nb.models import load_models
from stitch_nb.pipeline import edit_clip
from stitch_nb.pti import PTIConfig
from stitch_nb.run.settings import RunConfig
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip

HOW = dict(
    pti=PTIConfig(passes=1, dtype="float32"),
    stitch=StitchConfig(steps=2, dtype="float32"),
    lossless=True,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "The same two frames by the source's mask alone, and by both heads'."
    room, people = tmp_path_factory.mktemp("heads"), load_models("people")
    clip = read_clip(sample("talk.mp4"), "40:42")
    how = dict(models=people, stages=room / "stages")
    run = lambda mask: edit_clip(
        clip, "gender=-3", room / mask, config=RunConfig(mask=mask, **HOW), **how
    )
    return {mask: run(mask) for mask in ("parser", "both")}


def test_the_edited_head_is_head(runs):
    source, both = (np.load(r.stages["masks"].path) for r in runs.values())
    assert source.shape == both.shape and (both >= source).all() and (both > source).any()
    assert set(np.unique(both)) == {0, 1}


def test_only_what_depends_on_it_is_made_again(runs):
    parser, both = (r.record["stages"] for r in runs.values())
    assert "masks" in parser and "heads" not in parser and "heads" in both
    assert both["generator"]["reused"] and both["generator"]["key"] == parser["generator"]["key"]
    assert both["stitched"]["key"] != parser["stitched"]["key"]


def test_the_film_is_the_source_outside_of_it(runs):
    assert all(r.metrics["outside_identical"] == 1 for r in runs.values())


def test_without_a_parser_it_is_refused(tmp_path, runs):
    blind = replace(load_models("people"), parser=None)
    with pytest.raises(StitchError, match="has no parser"):
        edit_clip(
            sample("talk.mp4"), "smile=1", tmp_path, blind, RunConfig(mask="both", **HOW)
        )


def test_the_edit_is_drawn_once_and_is_what_is_stitched(runs):
    edits, stitched = (runs["both"].stages[k].path for k in ("edits", "stitched"))
    for t, edit in enumerate(np.load(edits)):
        assert (np.load(stitched / f"{t:06d}.npz")["edit"] == edit).all()
    assert "edits" not in runs["parser"].stages


def test_the_arm_without_stitching_pastes_the_same_edit(runs, tmp_path):
    edits = runs["both"].stages["edits"].path
    how = dict(models="people", stages=edits.parent)
    clip, config = read_clip(sample("talk.mp4"), "40:42"), RunConfig(mask="both", **HOW)
    run = edit_clip(clip, "gender=-3", tmp_path, config=replace(config, stitching=False), **how)
    assert run.record["stages"]["edits"]["reused"]
    for t, edit in enumerate(np.load(edits)):
        assert (np.load(run.stages["stitched"].path / f"{t:06d}.npz")["stitched"] == edit).all()
