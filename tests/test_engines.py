"Two engines, one objective: the plain loops give the fast film; a reader's term is one function, and everything follows."

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import tiny
from stitch_nb.core import StitchError, load_arrays
from stitch_nb.engine.tuner import objective_key
from stitch_nb.models import load_models
from stitch_nb.pipeline import edit_clip
from stitch_nb.pti import PTIConfig, pti_objective
from stitch_nb.run.settings import RunConfig
from stitch_nb.run.stages import frame_file
from stitch_nb.stitch import StitchConfig, masked_error, stitch_objective
from stitch_nb.video import read_clip

CONFIG = RunConfig(
    mask="hull",
    pti=PTIConfig(passes=3, batch=2, lr=1e-3, dtype="float32"),
    stitch=StitchConfig(steps=4, dtype="float32"),
    lossless=True,
    measure="none",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "`run(name, ...)` edits the same three frames into a folder of that name; stages are shared."
    folder = tmp_path_factory.mktemp("engines")
    models = load_models(tiny.tiny_bundle(folder / "tiny"))
    clip = tiny.face_clip(folder / "disc.mp4", T=3)

    def edit(name, config=CONFIG, **how):
        with pytest.MonkeyPatch.context() as patch:
            tiny.use_disc(patch)
            how = dict(stages=folder / "stages", **how)
            return edit_clip(clip, "smile=1", folder / name, models, config, **how)

    edit.models = models
    return edit


def frames_of(run):
    clip = read_clip(run.result)
    return np.stack([clip[t] for t in range(len(clip))]).astype(int)


def test_the_plain_loops_give_the_same_film(run):
    "As near as the golden numbers are checked; the tuned stages are others, the rest is shared."
    fast, plain = run("fast"), run("plain", replace(CONFIG, engine="plain"))
    others = {name for name, stage in plain.stages.items() if not stage.reused}
    assert others == {"generator", "stitched"}
    a, b = frames_of(fast), frames_of(plain)
    assert np.abs(a - b).max() <= 2 and np.abs(a - b).mean() < 0.02  # grey levels
    for name, terms in (("generator", {"lpips", "l2", "locality"}), ("stitched", {"border", "content"})):
        found = [r.record["stages"][name]["terms"] for r in (fast, plain)]
        assert set(found[0]) == set(found[1]) == {"loss", *terms}
        for k in found[0]:
            assert found[0][k] == pytest.approx(found[1][k], rel=0.02, abs=1e-3)


def test_engine_is_one_of_two():
    with pytest.raises(StitchError, match="engine is 'slow'; choose one of fast, plain"):
        RunConfig(engine="slow")


def perceptual_border(perceptual, G_st, frame, config):
    stitched, b = G_st.synthesis(frame.w_edit[None])[0], frame.border
    at_border = lambda picture: (picture * b)[None]
    return dict(
        border=masked_error(stitched, frame.source, b),
        content=masked_error(stitched, frame.edit, frame.content, tie=config.tie),
        perceptual=perceptual(at_border(stitched), at_border(frame.source)).mean(),
    )


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_a_new_term_is_one_function(run, engine):
    "Another stitched stage, the term in the record and in every frame's history; it goes on where it stopped."
    config = replace(CONFIG, engine=engine)
    mine = partial(perceptual_border, run.models.perceptual)
    theirs = run(f"theirs-{engine}", config)
    seen, stop = [], KeyboardInterrupt()

    def progress(name):
        def tick(done, total, text=""):
            if name == "stitched" and done == 2:
                raise stop

        return nullcontext(tick)

    with pytest.raises(KeyboardInterrupt):
        run(f"mine-{engine}", config, objectives=dict(stitch=mine), progress=progress)
    watch = lambda name: nullcontext(
        lambda done, total, text="": seen.append(done) if name == "stitched" else None
    )
    done = run(f"mine-{engine}", config, objectives=dict(stitch=mine), progress=watch)
    assert seen[0] == 3  # two frames were there
    assert [n for n, s in done.stages.items() if not s.reused] == ["stitched"]
    assert done.stages["stitched"].key != theirs.stages["stitched"].key
    assert "perceptual" in done.record["stages"]["stitched"]["terms"]
    assert "perceptual" not in theirs.record["stages"]["stitched"]["terms"]
    for t in range(3):
        column = load_arrays(frame_file(done.stages["stitched"].path, t))["term_perceptual"]
        assert column.shape == (4,) and column[-1] < column[0]
    saved = json.loads((done.out / "run.json").read_text())
    assert saved["objectives"] and "perceptual" in saved["stages"]["stitched"]["terms"]
    again = run(f"mine-{engine}", config, objectives=dict(stitch=mine))
    assert all(stage.reused for stage in again.stages.values())


def test_a_term_of_pti_follows_too(run):
    def sharp(G_pti, batch, config):
        terms = pti_objective(G_pti, batch, config)
        if batch.crops is not None:
            edges = lambda x: x[..., 1:] - x[..., :-1]
            recon = G_pti.synthesis(batch.pivots)
            terms["gradient"] = (edges(recon) - edges(batch.crops)).abs().mean((1, 2, 3))
        return terms

    done = run("sharp", objectives=dict(pti=sharp))
    assert "gradient" in done.record["stages"]["generator"]["terms"]
    assert not done.stages["generator"].reused and done.stages["pivots"].reused is not None


def test_only_tuning_stages_have_an_objective(run):
    with pytest.raises(StitchError, match="'paste'"):
        run("wrong", objectives=dict(paste=stitch_objective))


def test_the_key_of_an_objective():
    "It follows the code, the defaults and what the code refers to; it does not change by itself."
    make = lambda factor: lambda G, frame, config: dict(border=factor * frame)
    assert objective_key(make(1.0)) == objective_key(make(1.0)) != objective_key(make(2.0))
    other = lambda G, frame, config: dict(edge=frame)
    assert objective_key(other) not in (objective_key(make(1.0)), objective_key(stitch_objective))
    with_default = lambda G, frame, config, power=2: dict(border=frame**power)
    first = objective_key(with_default)
    with_default.__defaults__ = (1,)
    assert objective_key(with_default) != first


def test_a_run_without_stitching_has_no_terms(run):
    done = run("pasted", replace(CONFIG, stitching=False))
    assert done.record["stages"]["stitched"]["terms"] == {}
