"Metrics on clips that were damaged on purpose: each damage moves its own number, and the right way round."

import numpy as np
import pytest

from stitch_nb.core import StitchError, sample
from stitch_nb.metrics import (
    attribute_change,
    edit_flicker,
    face_measures,
    flicker,
    gap,
    known_motion,
    leak,
    local_similarity,
    global_similarity,
    optical_flow,
    similarity_curves,
    tg_id,
    tl_id,
    warp_errors,
)
from stitch_nb.models import load_models
from stitch_nb.run.measure import score_pictures
from stitch_nb.video import read_clip


@pytest.fixture(scope="module")
def source():
    return np.stack(list(read_clip(sample("talk"), frames=slice(8, 12)).frames()))[:, ::2, ::2]


def ellipse(H, W, soft=0):
    y, x = np.mgrid[:H, :W]
    r = np.hypot((x - W / 2) / (W / 4), (y - H / 2) / (H / 3))
    return (r < 1).astype(float) if not soft else np.clip((1 - r) * soft + 0.5, 0, 1)


def test_flow_follows_a_known_translation():
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 255, (40, 40, 3), np.uint8).repeat(4, 0).repeat(4, 1).astype(np.float32)
    for axis in (0, 1):
        wide = sum(np.roll(wide, k, axis) for k in range(-3, 4)) / 7
    cut = lambda dx, dy: wide[20 - dy : 116 - dy, 20 - dx : 116 - dx].astype(np.uint8)
    for dx, dy in ((2, 1), (-4, 3), (0, -6)):
        flow = optical_flow(cut(0, 0), cut(dx, dy))[12:-12, 12:-12]
        assert np.median(np.linalg.norm(flow - [dx, dy], axis=-1)) < 0.15, (
            dx,
            dy,
            flow.mean((0, 1)),
        )
        assert (
            known_motion(
                optical_flow(cut(0, 0), cut(dx, dy)), optical_flow(cut(dx, dy), cut(0, 0))
            )[12:-12, 12:-12].mean()
            > 0.75
        )


def test_trembling_is_seen_and_motion_is_not(source):
    H, W = source.shape[1:3]
    mask = ellipse(H, W)
    add = lambda by: np.clip(
        source + mask[..., None] * np.reshape(by, (-1, 1, 1, 1)), 0, 255
    ).astype(np.uint8)
    steady, trembling = add([10] * 4), add([0, 10, 0, 10])
    error = lambda clip: warp_errors(
        dict(source=source[0], result=clip[0]), dict(source=source[1], result=clip[1]), mask
    )
    assert (
        error(source)["result"] == error(source)["source"]
        and error(source)["trembling"]["result"] == 0
    )
    assert error(trembling)["trembling"]["result"] > 8 > 4 * error(steady)["trembling"]["result"]
    assert flicker(trembling, source) > 4 * flicker(steady, source)


def test_jitter_raises_the_warping_error(source):
    jittered = np.stack([np.roll(f, 3 * (t % 2), 1) for t, f in enumerate(source)])
    before, now = ({"source": source[t], "result": jittered[t]} for t in (0, 1))
    found = warp_errors(before, now)
    assert found["result"] > 1.5 * found["source"]


def test_an_edit_that_moves_with_the_picture_does_not_flicker(source):
    pair = source[0], np.roll(source[0], 2, 1)
    change = source[0].astype(np.float32) - 128
    follows, stays = (
        edit_flicker(pair, (change, np.roll(change, d, 1)), ellipse(*source.shape[1:3]))
        for d in (2, 0)
    )
    assert follows < 0.15 and stays > 1.5 * follows
    assert np.isnan(edit_flicker(pair, (change * 0, change * 0)))


@pytest.mark.parametrize("soft", [1.5, 5, 12])
def test_the_gap_does_not_depend_on_the_feather(source, soft):
    frame, alpha = np.full_like(source[0], 100), ellipse(*source.shape[1:3], soft)
    pasted = np.rint(frame + 40 * alpha[..., None]).astype(np.uint8)
    assert abs(gap(pasted, frame, alpha) - 40) < 1.5 and gap(frame, frame, alpha) == 0
    assert leak(pasted, frame, alpha) == 0


def test_hard_paste_of_another_picture_has_a_large_gap(source):
    frame, alpha = source[0], ellipse(*source.shape[1:3], 5)
    other = np.clip(frame.astype(int) + 30, 0, 255)
    stitched = np.rint(
        frame + alpha[..., None] * (other - frame) * np.clip(3 * (alpha - 0.7), 0, 1)[..., None]
    ).astype(np.uint8)
    pasted = np.rint(frame + alpha[..., None] * (other - frame)).astype(np.uint8)
    assert gap(stitched, frame, alpha) < 3 < gap(pasted, frame, alpha)


def test_shuffled_frames_lower_local_identity_only():
    v = np.stack([np.cos(a := np.linspace(0, 1.5, 30)), np.sin(a)], 1)
    shuffled = v[np.random.default_rng(0).permutation(30)]
    assert tl_id(shuffled, v) < 0.95 and abs(tg_id(shuffled, v) - 1) < 1e-12
    swapped = v.copy()
    swapped[15:] = v[15:] @ [[-1, 0], [0, 1]]
    assert tg_id(swapped, v) < 0.9


def test_a_ratio_can_pass_one():
    moving, frozen = np.stack([np.cos(a := np.linspace(0, 1, 9)), np.sin(a)], 1), np.ones((9, 2))
    assert (
        tl_id(frozen, moving) > 1
        and tg_id(frozen, moving) > 1
        and local_similarity(frozen) == pytest.approx(1)
    )


def test_curves_have_the_means_of_the_numbers():
    v = np.random.default_rng(0).normal(size=(7, 5))
    curves = similarity_curves(v)
    assert np.nanmean(curves["local"]) == pytest.approx(local_similarity(v)) and curves[
        "whole"
    ].mean() == pytest.approx(global_similarity(v))
    assert np.isnan(curves["local"][0]) and similarity_curves(v[:1])["whole"] == [1]


def test_measures_survive_place_size_and_roll_and_see_the_mouth():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3, 68, 2)) * 40
    turn = np.array([[np.cos(0.7), np.sin(0.7)], [-np.sin(0.7), np.cos(0.7)]])
    for k, v in face_measures(points @ turn * 2.5 + [30, -9]).items():
        np.testing.assert_allclose(v, face_measures(points)[k], atol=1e-9)
    wider = points.copy()
    wider[:, 54] += (wider[:, 54] - wider[:, 48]) * 0.2
    found = attribute_change(points, wider, ["smile"])
    assert found["measures"]["mouth_width"]["change"] == pytest.approx(
        0.2 * found["measures"]["mouth_width"]["source"]
    )
    assert found["off_target"] == 0 and found["target"] > 0 and found["missed"] == 0
    wider[1] = np.nan
    assert attribute_change(points, wider, ["smile"])["missed"] == 1
    with pytest.raises(StitchError, match="landmarks has shape"):
        face_measures(points[0])


def test_source_and_result_are_of_the_same_frames():
    "Where no face was found in the result, the source's does not count either."
    points = np.random.default_rng(0).uniform(10, 90, (6, 68, 2))
    moved = points + np.random.default_rng(1).normal(0, 1, points.shape)
    moved[3] = np.nan
    found = attribute_change(points, moved, ["smile"])
    assert found["missed"] == 1
    for row in found["measures"].values():
        assert np.isclose(row["source"] + row["change"], row["result"])


def test_only_the_frames_asked_for_are_scored():
    models, done = load_models('people'), []
    w = models.generator.w_avg.reshape(1, 1, -1).repeat(4, models.generator.num_ws, 1)
    pictures = np.zeros((4, 128, 128, 3), np.uint8)
    found = score_pictures(
        models.generator, w, pictures, models.perceptual, [1, 3], done.append
    )
    assert done[-1] == 2
    for name, values in found.items():
        assert np.isfinite(values).tolist() == [False, True, False, True], name
