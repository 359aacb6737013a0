"Several people in one run: each found, tuned and stitched alone, all pasted into one film."

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

import stitch_nb.run.stages as stages
from stitch_nb.commands.edit import stitch_edit
from stitch_nb.core import StitchError
from stitch_nb.figures.finished import read_run
from stitch_nb.figures.report import report_html
from stitch_nb.models import load_models
from stitch_nb.pipeline import edit_clip
from stitch_nb.pti import PTIConfig
from stitch_nb.run.checks import working_room
from stitch_nb.run.settings import RunConfig
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip, write_video

QUICK = RunConfig(
    mask="hull",
    pti=PTIConfig(passes=2, dtype="float32"),
    stitch=StitchConfig(steps=2, dtype="float32"),
    lossless=True,
)
T, W, H = 6, 64, 48


class Pair:
    "Finds a disc in each half of the frame."

    name = "disc"

    def __call__(self, frame):
        left, right = (tiny.Disc()(np.ascontiguousarray(half)) for half in np.split(frame, 2, 1))
        shift = [frame.shape[1] / 2, 0]
        return left + [replace(d, landmarks=d.landmarks + shift) for d in right]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return load_models(tiny.tiny_bundle(tmp_path_factory.mktemp("people") / "tiny"))


@pytest.fixture(autouse=True)
def pair(monkeypatch):
    found = lambda name="auto", models=None, device=None: Pair()
    monkeypatch.setattr(stages, "landmark_backend", found)


def two_discs(path, missing=(), apart=0, small=0):
    "Two faces beside each other; the right one is away in the frames `missing`, `small` px less."
    left = tiny.face_frames(T=T, W=W, H=H, at=(W / 2 + apart, H / 2))
    right = tiny.face_frames(T=T, W=W, H=H, missing=missing, at=(W / 2 - apart, H / 2))
    frames = [np.concatenate(both, 1) for both in zip(left, right)]
    return write_video(frames, path, 25, lossless=True)


def changed(run, clip) -> np.ndarray:
    "Which pixels of the film differ from the clip's: (T,H,W) bool."
    both = zip(read_clip(run.result).frames(), read_clip(clip).frames(), strict=True)
    return np.stack([(a != b).any(-1) for a, b in both])


@pytest.fixture(scope="module")
def shared(models, tmp_path_factory):
    "One person edited alone, then both, in one folder of stages."
    room = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "landmark_backend", lambda *a, **k: Pair())
        clip, lines = two_discs(room / "two.mp4", missing=(3, 4, 5)), []
        how = dict(stages=room / "stages", say=lines.append)
        left = edit_clip(clip, "smile=1", room / "left", models, replace(QUICK, person=0), **how)
        edits = ["smile=1@0", "age=1@1", "smile=-1@1"]
        looks = []
        both = edit_clip(clip, edits, room / "both", models, QUICK, preview=looks.append, **how)
        alone = edit_clip(clip, edits[1:], room / "right", models, QUICK, **how)
    return dict(clip=clip, left=left, both=both, right=alone, lines=lines, looks=looks, room=room)


def test_all_are_pasted_into_one_film(shared):
    "The film of two is the film of one on one side, and of the other on the other."
    films = {k: changed(shared[k], shared["clip"]) for k in ("left", "right", "both")}
    assert films["left"][:, :, :W].any((1, 2)).all() and not films["left"][:, :, W:].any()
    assert films["right"][:3, :, W:].any((1, 2)).all() and not films["right"][:, :, :W].any()
    assert (films["both"] == films["left"] | films["right"]).all()
    frames = [read_clip(shared[k].result) for k in ("left", "right", "both")]
    for t in range(T):
        left, right, both = (film[t] for film in frames)
        assert (both[:, :W] == left[:, :W]).all() and (both[:, W:] == right[:, W:]).all()


def test_who_is_away_stays_untouched(shared):
    assert not changed(shared["both"], shared["clip"])[3:, :, W:].any()
    assert shared["both"].record["stages"]["faces@1"]["untouched"] == [3, 4, 5]
    assert shared["both"].record["people"]["1"]["frames"] == "0-2"


def test_a_person_who_was_tuned_before_is_reused(shared):
    "Whether a number or the largest was asked for, alone or beside others."
    people = {p.number: p for p in shared["both"].people}
    assert all(stage.reused for stage in people[0].stages.values())
    made = [name for name, stage in people[1].stages.items() if not stage.reused]
    assert made == ["crops", "masks", "pivots", "generator", "scores", "stitched"]
    assert people[0].stages["generator"].key == shared["left"].stages["generator"].key
    assert all(s.reused for s in shared["right"].stages.values())
    keys = [people[k].stages[n].key for k in (0, 1) for n in ("crops", "generator", "stitched")]
    assert len(set(keys)) == 6


def test_the_record_says_who(shared):
    record, metrics = shared["both"].record, shared["both"].metrics
    assert sorted(record["edits"]) == ["age=1@1", "smile=-1@1", "smile=1@0"]
    assert {k: p["place"] for k, p in record["people"].items()} == {"0": "left", "1": "right"}
    assert set(metrics["people"]) == {"0", "1"} and metrics["file"]["outside_identical"] == 1
    assert all(m["leak"] == 0 and m["psnr"]["pti"]["mean"] for m in metrics["people"].values())
    curves = json.loads((shared["both"].out / "frames.json").read_text())
    assert curves["gap_stitched@0"][5] is not None and curves["gap_stitched@1"][5] is None
    assert "people" not in shared["left"].metrics and list(shared["left"].record["people"]) == ["0"]


def test_a_first_look_at_each(shared):
    assert [path.name for path in shared["looks"]] == ["preview_0.png", "preview_1.png"]


def test_the_screen_says_who_is_edited_and_how_to_choose(shared):
    said = [line for line in shared["lines"] if "people (" in line]
    assert said[0] == (
        "2 people (0: left, frames 0-5; 1: right, frames 0-2): 0 is edited; "
        "another: --edit smile=2@1, everybody: @all"
    )
    assert said[1].endswith("0 and 1 are edited")


def test_the_report_has_a_part_for_each(shared):
    page = report_html([read_run(shared["both"].out)])
    assert "both, person 0" in page and "both, person 1" in page
    assert "age=1" in page and "smile=-1" in page


def test_a_number_that_nobody_has(models, tmp_path):
    clip = two_discs(tmp_path / "two.mp4")
    with pytest.raises(StitchError, match=r"shows 2 \(0: left, 1: right, frames 0-5\)"):
        edit_clip(clip, "smile=1@2", tmp_path / "run", models, QUICK)


def test_overlapping_people_are_pasted_in_order(models, tmp_path):
    "The smaller face first; the run says where they meet."
    clip = two_discs(tmp_path / "two.mp4", apart=19)
    config = replace(QUICK, dilation=12, measure="none")
    run = edit_clip(clip, {"all": "smile=1"}, tmp_path / "run", models, config)
    first, last = (p.number for p in run.people)
    (line,) = [line for line in run.record["notes"] if "overlap" in line]
    assert f"{last}, whose face is larger, was pasted over {first}" in line


def test_the_command_line(models, tmp_path, capsys):
    clip = two_discs(tmp_path / "two.mp4")
    how = dict(tiny.QUICK, models=str(Path(tmp_path) / "tiny"), out=str(tmp_path / "run"))
    tiny.tiny_bundle(tmp_path / "tiny")
    status, _, said = tiny.outcome(
        stitch_edit, capsys, str(clip), **how | dict(edit=["smile=1@all", "age=1@1"])
    )
    assert status == 0 and "0 and 1 are edited" in said
    assert "person 0 (left): PTI" in said and "person 1 (right): PTI" in said
    status, line, _ = tiny.outcome(stitch_edit, capsys, str(clip), **how | dict(edit=["smile=1@7"]))
    assert status == 2 and "person is 7: the clip shows 2 (0: left, 1: right, frames 0-5)" in line
    how["edit"] = ["smile=1@me"]
    status, line, _ = tiny.outcome(stitch_edit, capsys, str(clip), **how)
    assert status == 2 and "names the person 'me'" in line


def test_room_for_the_stages_is_asked_for_before_the_work(models, tmp_path, monkeypatch):
    "A disk that holds the film and not the stages is refused in one line; kept stages need none."
    clip, config = two_discs(tmp_path / "two.mp4"), replace(QUICK, lossless=False)
    free = 2**20 + 2000  # the film takes 185 bytes and a MiB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(StitchError, match="no room left in .* the result takes"):
        edit_clip(clip, "smile=1@0", tmp_path / "run", models, config)
    assert not (tmp_path / "run" / "stages").exists()
    run = partial(working_room, read_clip(clip), models, folder=tmp_path / "run" / "stages")
    frames, R = len(read_clip(clip)), models.generator.resolution
    drawn = run(replace(config, keep_detail=True, mask="both")) - run(config)
    assert drawn == 2 * 3 * frames * R * R  # the edit and the reconstruction
    (tmp_path / "run" / "stages" / "generator-0").mkdir(parents=True)
    assert run(config) == 0
