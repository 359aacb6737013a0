"A bundle of 32 pixels, clips with a face that is a red disc, and a landmark backend that finds it: a whole run in a second or two."

import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

import stitch_nb.run.stages as stages
from stitch_nb.commands.edit import stitch_demo, stitch_edit
from stitch_nb.encode import Encoder
from stitch_nb.detectors import Detection
from stitch_nb.generator import Generator
from stitch_nb.models import save_bundle
from stitch_nb.nets.small import IdentityNet, Trunk
from stitch_nb.video import write_video


def template() -> np.ndarray:
    "68 points of a schematic face, (68,2), unit radius, y downwards."
    arc = lambda n, a, b, rx, ry, x=0.0, y=0.0: np.stack(
        [x + rx * np.cos(np.linspace(a, b, n)), y + ry * np.sin(np.linspace(a, b, n))], 1
    )
    line = lambda n, p, q: np.linspace(p, q, n)
    pi = np.pi
    eye = lambda x: arc(7, pi, 3 * pi, 0.16, 0.07, x, -0.3)[:6]
    return np.concatenate(
        [
            arc(17, pi, 0, 1, 1),
            line(5, (-0.7, -0.5), (-0.2, -0.5)),
            line(5, (0.2, -0.5), (0.7, -0.5)),
            line(4, (0, -0.3), (0, 0.1)),
            line(5, (-0.2, 0.2), (0.2, 0.2)),
            eye(-0.4),
            eye(0.4),
            arc(13, pi, 3 * pi, 0.35, 0.15, 0, 0.55)[:12],
            arc(9, pi, 3 * pi, 0.25, 0.06, 0, 0.55)[:8],
        ]
    )


class Disc:
    "Finds the red discs."

    name = "disc"

    def __call__(self, frame):
        x = frame.astype(int)
        red = (x[..., 0] > 150) & (x[..., 1] < 110) & (x[..., 2] < 110)
        if red.sum() < 40:
            return []
        rows, columns = np.nonzero(red)
        radius = (
            rows.max() - rows.min() + 1
        ) / 2  # a border that cuts the disc at the side leaves its height
        left, right = columns.min(), columns.max()
        x0 = (
            right - radius
            if left == 0
            else left + radius
            if right == frame.shape[1] - 1
            else (left + right) / 2
        )
        centre = np.array([x0, (rows.min() + rows.max()) / 2])
        return [Detection(template() * radius + centre, 1.0)]


def face_frames(T=6, W=64, H=48, missing=(), at=None):
    "Frames with a disc that wanders; none in the frames `missing`."
    y, x = np.mgrid[:H, :W]
    for t in range(T):
        frame = np.stack([60 + x, 90 + 2 * y, 120 + 0 * x], -1).astype(np.uint8)
        cx, cy = at or (W / 2 + 2 * np.sin(t), H / 2 - 2 + np.cos(t))
        inside = (x - cx) ** 2 + (y - cy) ** 2 < (H * 0.28) ** 2
        if t not in missing:
            frame[inside] = (220, 50, 40)
            frame[((x - cx) ** 2 + (y - cy) ** 2 < 9)] = (180, 90, 30)
        yield frame


def face_clip(path, fps=Fraction(25), **kwargs) -> Path:
    return write_video(face_frames(**kwargs), path, fps)


def tiny_encoder(G) -> Encoder:
    "An encoder for the generator of `tiny_bundle`, with random weights."
    return Encoder(resolution=32, num_ws=G.num_ws, w_dim=16, width=8, blocks=(1, 1, 1, 1))


def tiny_bundle(folder) -> Path:
    torch.manual_seed(0)
    G = Generator(
        z_dim=16, w_dim=16, resolution=32, channel_base=256, channel_max=32, mapping_layers=2
    )
    E = tiny_encoder(G)
    directions = dict(smile=0.3 * torch.randn(G.num_ws, 16), age=0.3 * torch.randn(G.num_ws, 16))
    return save_bundle(
        folder,
        "tiny",
        generator=G,
        encoder=E,
        perceptual=Trunk(),
        identity=IdentityNet(),
        directions=directions,
        meta=dict(scale=1.0),
    )


def use_disc(monkeypatch=None):
    "Runs find discs instead of faces."
    replacement = lambda name="auto", models=None, device=None: Disc()
    if monkeypatch is None:
        stages.landmark_backend = replacement
    else:
        monkeypatch.setattr(stages, "landmark_backend", replacement)


def outcome(command, capsys, *args, **options) -> tuple:
    "A command called here: (status, last line of stderr, everything on stdout); a traceback fails the test."
    capsys.readouterr()
    try:
        command(*args, **options)
    except SystemExit as stop:
        status = stop.code
    else:
        status = 0
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, re.split(r"[\r\n]+", said.err.strip())[-1], said.out


QUICK = dict(mask="hull", pti_steps=2, stitch_steps=2, edit=["smile=1"], device="cpu")


def main(words):
    "A command line, on discs."
    use_disc()
    command = dict(stitch_edit=stitch_edit, stitch_demo=stitch_demo)[words[0]]
    sys.argv = list(words)
    command.from_line()


if __name__ == "__main__":  # python tests/tiny.py stitch_edit ...
    main(sys.argv[1:])
