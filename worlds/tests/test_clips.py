"The sample clips: each has its film, its truth and its true edits, and they fit together."

import numpy as np
import pytest

from stitch_nb.core import sample
from stitch_worlds.dataset import ATTRIBUTES
from stitch_nb.video import read_clip

FRAMES = dict(talk=72, turn=60, pan=60, two=50, toon=48, hand=48, hair=48)
EDITS = dict(
    talk_smile="talk",
    talk_age="talk",
    talk_young="talk",
    toon_smile="toon",
    hand_smile="hand",
    hair_smile="hair",
)


def truth(name):
    with np.load(sample(f"{name}.truth.npz"), allow_pickle=False) as f:
        return {k: f[k] for k in f.files}


@pytest.mark.parametrize("name", FRAMES)
def test_truth_belongs_to_the_film(name):
    clip, known, T = read_clip(sample(name)), truth(name), FRAMES[name]
    people = (2,) if name == "two" else ()
    assert (
        len(clip) == T
        and known["labels"].shape == (T, 192, 240)
        and known["landmarks"].shape == (T, *people, 68, 2)
    )
    assert known["labels"].dtype == np.uint8 and known["labels"].max() <= 18
    assert {k[10:] for k in known if k.startswith("attribute_")} == set(ATTRIBUTES)
    assert all(
        known[f"attribute_{a}"].shape == (T,) and np.isfinite(known[f"attribute_{a}"]).all()
        for a in ATTRIBUTES
    )
    marks = known["landmarks"].reshape(T, -1, 68, 2)
    nose = np.round(marks[:, :, 30]).astype(
        int
    )  # the tip of the nose lies on the face, unless a hand hides it
    on = np.array(
        [[known["labels"][t, y, x] in range(1, 14) for x, y in nose[t]] for t in range(T)]
    )
    hidden = known.get("occluded", np.zeros(T))
    assert on[hidden == 0].all()
    jump = np.linalg.norm(np.diff(marks, axis=0), axis=-1)  # nothing teleports, and somebody moves
    assert jump.max() < 10 and jump.max(0).min() > 0.1


@pytest.mark.parametrize("name", EDITS)
def test_true_edit_is_the_same_performance(name):
    source, edit, known = (
        read_clip(sample(EDITS[name])),
        read_clip(sample(name)),
        truth(EDITS[name]),
    )
    assert (
        len(edit) == len(source) and edit.fps == source.fps and edit.has_audio == source.has_audio
    )
    for t in (0, len(source) // 2, len(source) - 1):
        labels = known["labels"][t]
        y, x = np.mgrid[:192, :240]
        marks = known["landmarks"][t]
        centre, width = marks.mean(0), np.ptp(marks[:, 0])
        far = (np.hypot(x - centre[0], y - centre[1]) > 1.3 * width) & (labels == 0)
        inside = (
            (labels > 0) & (labels < 14) & (np.hypot(x - centre[0], y - centre[1]) < 0.6 * width)
        )
        difference = np.abs(source[t].astype(int) - edit[t]).mean(-1)
        assert difference[far].mean() < 2 and np.quantile(difference[far], 0.99) < 12  # compression
        if inside.sum() > 180:
            assert difference[inside].mean() > 3 * difference[far].mean()


def test_lips_close_and_open():
    known = truth("talk")
    gap = (known["landmarks"][:, 66] - known["landmarks"][:, 62])[:, 1]
    assert gap.min() < 1.2 and gap.max() > 3
    assert np.corrcoef(gap, known["attribute_mouth_open"])[0, 1] > 0.6


def test_hand_hides_and_leaves():
    known = truth("hand")
    hidden = known["occluded"]
    assert (
        hidden[0] == hidden[-1] == 0
        and 0.2 < hidden.max() < 0.95
        and 8 <= (hidden > 0.02).sum() <= 24
    )


def test_long_hair_leaves_the_crop():
    from stitch_nb.align import quads_from_landmarks
    from stitch_worlds.dataset import SCALE, warp_labels

    known = truth("hair")
    quads = quads_from_landmarks(known["landmarks"], scale=SCALE)
    for t in (0, 24, 47):
        crop = warp_labels(known["labels"][t], quads[t], 128)
        assert (crop[-1] == 17).sum() > 6


def test_small_enough():
    assert sum(p.stat().st_size for p in sample("talk").parent.iterdir() if p.is_file()) < 5_000_000
