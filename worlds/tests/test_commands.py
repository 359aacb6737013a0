"The two commands, at toy size: from nothing to a bundle that stitch_nb loads."

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stitch_nb.core import sample
from stitch_nb.models import load_models
from stitch_nb.video import read_clip

from stitch_worlds.make_bundle import worlds_people
from stitch_worlds.photo_parts import KINDS, NAMES, TRUE_EDITS, rows_of, worlds_mobile


def shapes(bundle):
    "What a role's network looks like from outside."
    G, codes = bundle.generator, torch.zeros(1, bundle.generator.num_ws, bundle.generator.w_dim)
    pictures = G.synthesis(codes)
    return pictures.shape, bundle.encoder(pictures).shape


@pytest.mark.slow
def test_people(tmp_path):
    "Renders, trainings, directions, bundle: every network, and the names that are shipped."
    out, work = tmp_path / "people", tmp_path / "work"
    worlds_people(str(out), str(work), toy=True)
    bundle, real = load_models(out), load_models("people")
    assert shapes(bundle) == (torch.Size([1, 3, 128, 128]), torch.Size([1, 12, 32]))
    roles = "parser", "detector", "landmarks", "identity", "perceptual"
    assert all(type(getattr(bundle, r)) is type(getattr(real, r)) for r in roles)
    assert set(bundle.directions) <= set(real.directions) and len(bundle.directions) == 8


def test_mobile(tmp_path):
    "Samples, directions, encoder, bundle, clips: the files and forms of what is shipped."
    worlds_mobile(str(tmp_path / "mobile"), str(tmp_path / "clips"), toy=True)
    bundle = load_models(tmp_path / "mobile")
    G = bundle.generator
    assert shapes(bundle) == (torch.Size([1, 3, 64, 64]), torch.Size([1, G.num_ws, G.w_dim]))
    assert set(bundle.directions) == set(NAMES) == set(KINDS)
    for name, direction in bundle.directions.items():
        up = direction[0] if name == "age" else direction
        first, last = rows_of(G, KINDS[name][1])
        moved = up.abs().sum(1).nonzero().flatten().tolist()
        assert moved == list(range(first, last))
    assert bundle.meta["recipe"] == "mobile"
    films = {p.stem: read_clip(p) for p in (tmp_path / "clips").iterdir()}
    assert set(films) == set(TRUE_EDITS) and all(f.has_audio for f in films.values())
    for name in TRUE_EDITS:
        assert len(films[name]) == 4 and read_clip(sample(name)).has_audio
    difference = films["portrait"][0].astype(int) - films["portrait_age"][0]
    assert abs(difference).max() > 4  # an edit, not compression


@pytest.mark.parametrize("module", ["make_bundle", "photo_parts"])
def test_help(module):
    "Each is a program; `--toy` is one of its options."
    done = subprocess.run(
        [sys.executable, "-m", f"stitch_worlds.{module}", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0 and "--toy" in done.stdout
