"The estimate of a whole run: held against stages that were measured; no test looks at the clock."

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stitch_nb.commands import doctor
from stitch_nb.core import sample
from stitch_nb.models import load_models
from stitch_nb.run.progress import Eta, plan_of, seconds_of
from stitch_nb.run.settings import MOBILE, RunConfig
from stitch_nb.video import write_video

MEASURED = dict(  # one core: seconds of a stage, its ticks, seconds before the first tick
    mobile=dict(  # 50 frames at 512 px in bfloat16
        faces=(5.7, 50, 0.3),
        preview=(6.5, 12, 0.5),
        crops=(1.7, 50, 0.0),
        masks=(3.0, 50, 0.3),
        pivots=(41.4, 40, 3.0),
        generator=(302.4, 156, 4.0),
        recon=(20.7, 50, 0.4),
        scores=(12.4, 10, 1.0),
        edits=(18.1, 50, 0.4),
        heads=(3.7, 50, 0.0),
        start=(27.4, 30, 1.0),
        stitched=(191.0, 50, 4.0),
        result=(46.0, 50, 1.0),
        compare=(5.0, 50, 0.1),
    ),
    people=dict(  # 72 frames at 128 px; stitching and PTI as long as 12 frames let expect
        faces=(2.4, 72, 0.0),
        crops=(0.6, 72, 0.0),
        masks=(2.4, 72, 0.2),
        pivots=(0.6, 9, 0.1),
        generator=(163.0, 288, 6.2),
        scores=(5.0, 11, 0.5),
        stitched=(227.0, 72, 3.0),
        result=(6.0, 72, 0.3),
        compare=(0.6, 72, 0.1),
    ),
)


def machine(bundle: str, R: int) -> tuple:  # what `plan_of` takes before the frames
    "A bundle, and its settings in bfloat16, as they were measured."
    config = RunConfig(**MOBILE) if bundle == "mobile" else RunConfig()
    config = replace(config, pti=replace(config.pti, dtype="bfloat16"))
    meta = dict(recipe="mobile") if bundle == "mobile" else {}
    return SimpleNamespace(resolution=R, device=torch.device("cpu"), meta=meta, encoder=1), config


def errors(plan, stages, speed=1.0) -> tuple:  # [(seconds, estimate minus truth)], seconds in all
    "A run whose stages take what was measured, and what the estimate says on its way."
    now, rows = [0.0], []
    eta = Eta(plan, clock=lambda: now[0])
    for name, (seconds, ticks, first) in stages.items():
        eta.enter(name)
        now[0] += first / speed
        for i in range(ticks):
            now[0] += (seconds - first) / ticks / speed
            eta.tick(i + 1, ticks)
            rows.append((now[0], now[0] + eta.left()))
        eta.leave()
    return [(t, end - now[0]) for t, end in rows], now[0]


@pytest.mark.parametrize("speed", [2.0, 1.0, 0.5])
@pytest.mark.parametrize("bundle, T, R", [("mobile", 50, 512), ("people", 72, 128)])
def test_after_half_a_minute_the_end_is_known(bundle, T, R, speed):
    "Within two minutes and a sixth of the whole, whatever the machine."
    found, whole = errors(plan_of(*machine(bundle, R), T), MEASURED[bundle], speed)
    late = [abs(error) for t, error in found if t >= 30]
    assert max(late) < min(120, whole / 6)


def test_a_face_drawn_smaller_than_planned():
    "The plan is made before the size of the face is known: a quarter of the pixels, same bound."
    small = {k: (s / 4, n, first / 4) for k, (s, n, first) in MEASURED["mobile"].items()}
    found, whole = errors(plan_of(*machine("mobile", 512), 50), small, speed=0.5)
    assert max(abs(error) for t, error in found if t >= 30) < whole / 6


@pytest.mark.parametrize("speed", [4.0, 1.0, 0.1])
def test_the_doctor_stretches_a_trial(monkeypatch, speed, clip_of_talk):
    "The machine is so many times as fast as the plan in every stage: so is the answer."
    said = {}

    def trial(clip, models, config):
        plan = plan_of(models, config, len(clip))
        said.update(updates=config.pti.passes, frames=len(clip), steps=config.stitch.steps)
        return models, (), {name: seconds / speed for name, (seconds, _) in plan.items()}

    monkeypatch.setattr(doctor, "try_run", trial)
    found = doctor.ask_clip(clip_of_talk, "people", "cpu")
    models = load_models("people")
    plan = plan_of(models, RunConfig.for_models(models), 72)
    assert found["seconds"] == pytest.approx(sum(s for s, _ in plan.values()) / speed, rel=1e-3)
    assert said == dict(updates=3, frames=4, steps=3)


@pytest.fixture(scope="module")
def clip_of_talk():
    return str(sample("talk"))


def test_a_clip_without_a_face_in_its_first_frames(tmp_path):
    "The trial takes the middle of the picture."
    grey = (np.full((96, 96, 3), 90 + t, np.uint8) for t in range(3))
    found = doctor.ask_clip(str(write_video(grey, tmp_path / "grey.mp4", 25)), "people", "cpu")
    assert (found["people"], found["frames"]) == (0, 3) and found["seconds"] > 0


def test_the_answer_before_a_run_and_the_run():
    "Stages at the pace that was measured: the doctor's sum is within a quarter of the whole."
    models, config = machine("mobile", 512)
    trial = plan_of(models, doctor.trial_settings(config), 2)
    plan, stages = plan_of(models, config, 50), MEASURED["mobile"]
    paid = {name: seconds - first for name, (seconds, _, first) in stages.items()}
    took = {name: paid[name] * trial[name][0] / plan[name][0] for name in plan if name != "preview"}
    whole = sum(seconds for seconds, _, _ in stages.values())
    assert seconds_of(plan, trial, took) == pytest.approx(whole, rel=0.25)
