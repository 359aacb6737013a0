"Hands before the face: their pixels stay the source's, and PTI does not look at them."

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from test_mediapipe import read_member

from stitch_nb.align import crop_to_frame, quads_from_landmarks
from stitch_nb.core import hash_of, load_arrays, sample
from stitch_nb.hands import HandFinder, draw_hands, hands_in_crop
from stitch_nb.masks import IN_FRONT, dilate, stitch_masks
from stitch_nb.models import load_models
from stitch_nb.nets.mediapipe import Graph, GraphNet, Step, load_networks
from stitch_nb.pipeline import edit_clip
from stitch_nb.pti import PTIConfig, plain_pti, tune_generator
from stitch_nb.run.settings import RunConfig
from stitch_nb.run.stages import FrameMasks, behind, uncovered
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip

HOW = dict(
    pti=PTIConfig(passes=1, dtype="float32"),
    stitch=StitchConfig(steps=2, dtype="float32"),
    lossless=True,
)
FLAT = np.array([[50, 90], [35, 80], [28, 70], [24, 62], [20, 55.0]])  # wrist and thumb
FLAT = np.concatenate(
    [FLAT, *(np.stack([np.full(4, x), [50, 38, 30, 24]], 1) for x in (32, 43, 54, 65))]
)


def at(points, middle, size):
    "The hand, so large and there."
    return (points - points.mean(0)) * (size / 70) + middle


class OneHand(torch.nn.Module):
    "Stands for `HandFinder`: a hand at one place of every frame, or none."

    def __init__(self, points=None):
        super().__init__()
        self.points = None if points is None else torch.nn.Parameter(torch.from_numpy(points))

    def forward(self, frame, quad, before=()):
        return [] if self.points is None else [self.points.detach().numpy()]


def test_a_graph_with_what_hands_need():
    "A mean over pixels, a dense layer, and a layer that clips its own output at 6."
    weight = np.array([[2.0, -1.0], [0.5, 4.0]], np.float32)
    kernel = np.full((2, 1, 1, 1), 1, np.float32)
    graph = Graph(
        steps=(
            Step("conv", inputs=(0, 1, 2), output=3, same=True, then="relu6"),
            Step("mean", inputs=(3, 4), output=5),
            Step("dense", inputs=(5, 6, 7), output=8),
        ),
        constants={
            **{1: kernel, 2: np.array([0, 1], np.float32), 4: np.array([1, 2], np.int32)},
            **{6: weight, 7: np.array([0.25, 0], np.float32)},
        },
        inputs=(0,),
        outputs=(8,),
    )
    x = torch.tensor([[[[-3.0, 2.0], [9.0, 4.0]]]])
    first, second = (0 + 2 + 6 + 4) / 4, (0 + 3 + 6 + 5) / 4
    wanted = torch.tensor([[2 * first - second + 0.25, 0.5 * first + 4 * second]])
    torch.testing.assert_close(GraphNet(graph)(x)[0], wanted)


def test_no_mask_holds_what_is_in_front():
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 16:48, 16:48] = 1
    plain = FrameMasks(mask, 64, {})[0]
    mask[0, 30:60, 30:40] = IN_FRONT
    front = torch.from_numpy(mask[0] == IN_FRONT)
    found = FrameMasks(mask, 64, {})[0]
    for name in ("content", "border", "full"):
        part, whole = getattr(found, name), getattr(plain, name)
        assert (part[front] == 0).all() and (whole[front] > 0).any()
        torch.testing.assert_close(part[~front], whole[~front])
    alone = stitch_masks(torch.from_numpy(mask[0] == 1).float(), 64)
    assert (alone.full[front] > 0).any()  # dilation alone would enter the hand


def test_a_head_that_is_hidden_is_left_as_it_is():
    quad = np.array([[0, 0], [0, 63], [63, 63], [63, 0.0]])
    head = np.zeros((64, 64), np.uint8)
    head[20:40, 20:40] = 1
    some = behind(head, [at(FLAT, [40, 50], 30)], quad)
    assert {0, 1, 2} == set(np.unique(some)) and (some[head == 0] != 1).all()
    assert (behind(head, [at(FLAT, [30, 30], 200)], quad) == head).all()
    assert (behind(head, [at(FLAT, [500, 500], 30)], quad) == head).all()


def test_a_hand_is_drawn_where_its_points_lie():
    quad = np.array([[30, 20], [30, 83], [93, 83], [93, 20.0]])
    points = at(FLAT, [60, 50], 40)
    mask = hands_in_crop([points], quad, 64)
    back = crop_to_frame(quad, 64)
    rows, columns = np.nonzero(mask)
    frame = np.stack([columns + 0.5, rows + 0.5], 1) @ back[:, :2].T + back[:, 2]
    away = np.linalg.norm(frame[:, None] - points[None], axis=2).min(1)
    assert mask.any() and away.max() < 14
    assert draw_hands([np.full((21, 2), 1e9)], 8, 8).shape == (8, 8)


@pytest.mark.parametrize("tune", (tune_generator, plain_pti))
def test_pti_does_not_look_at_hands(tmp_path, tune):
    "Whatever the hand looks like, the same generator comes out; without masks, another."
    models = load_models(tiny.tiny_bundle(tmp_path))
    R, w = models.resolution, models.generator.w_avg.expand(3, models.generator.num_ws, -1)
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (3, R, R, 3), dtype=np.uint8)
    masks = np.zeros((3, R // 2, R // 2), np.uint8)
    masks[1, 4:9, 4:9] = IN_FRONT
    other = crops.copy()
    other[1, 8:18, 8:18] = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
    config = PTIConfig(passes=2, batch=2, dtype="float32", lambda_lpips=0, lambda_r=0)
    weights = lambda seen, **how: hash_of(tune(models.generator, w, seen, None, config, **how)[0])
    assert weights(crops, masks=masks) == weights(other, masks=masks)
    assert weights(crops) != weights(other)


def test_the_film_keeps_the_hand(tmp_path):
    people = load_models("people")
    clip = read_clip(sample("talk.mp4"), "40:42")
    face = load_arrays(sample("talk.truth.npz"))["landmarks"][40]
    points = at(FLAT, face.mean(0) + [15, 15], 40)
    runs = {}
    for name, finder in (("none", None), ("sees", OneHand()), ("hand", OneHand(points))):
        models = replace(people, hands=finder)
        how = dict(models=models, config=RunConfig(**HOW), stages=tmp_path / "stages")
        runs[name] = edit_clip(clip, "smile=2", tmp_path / name, **how)
    none, sees, hand = (r.record["stages"] for r in runs.values())
    assert "hands" not in none["masks"] and sees["masks"]["hands"] == []
    assert hand["masks"]["hands"] == [0, 1]
    same = none["generator"]["key"]
    assert sees["generator"]["key"] == same and hand["generator"]["key"] != same
    H, W = clip[0].shape[:2]
    inside = draw_hands([points - 0.5], H, W) > 0
    changed = lambda name: np.abs(read_clip(runs[name].result)[0].astype(int) - clip[0]).max(2)
    core = -dilate(-torch.from_numpy(inside).float(), 1).numpy() > 0
    assert changed("none")[core].max() > 0 and changed("hand")[core].max() == 0
    assert changed("hand").max() > 0
    off = replace(people, hands=OneHand(points))
    again = edit_clip(
        clip,
        "smile=2",
        tmp_path / "off",
        off,
        RunConfig(**HOW, hands=False),
        stages=tmp_path / "stages",
    )
    assert again.record["stages"]["masks"]["reused"]


def test_the_hand_is_no_detail_of_the_face():
    source, recon = np.full((64, 64, 3), 200, np.uint8), np.full((64, 64, 3), 100, np.uint8)
    front = torch.zeros(64, 64)
    assert uncovered(source, recon, None) is source
    front[20:40, 20:40] = 1
    seen = uncovered(source, recon, front)
    assert (seen[20:40, 20:40] == 100).all() and (seen[:10] == 200).all()


@pytest.mark.parametrize("name", ("hand", "talk"))
def test_hands_of_the_samples(name):
    "Found before the face and nowhere else; a face with an open mouth is no hand."
    nets = load_networks(read_member, ("palm", "hand"))
    finder = HandFinder(nets["palm"], nets["hand"])
    truth = load_arrays(sample(f"{name}.truth.npz"))
    clip, quads = read_clip(sample(f"{name}.mp4")), quads_from_landmarks(truth["landmarks"], 1.0)
    frames = (0, 21, 25, 40)
    found = [bool(finder(clip[t], quads[t])) for t in frames]
    assert found == [name == "hand" and t in (21, 25) for t in frames]
