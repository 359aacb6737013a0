"Directions out of files and out of measures."

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from stitch_nb.commands.edit import as_yes_or_no, settings_of, with_directions
from stitch_nb.core import StitchError, sample, seeded
from stitch_nb.directions import DirectionConfig, direction_from, random_latents
from stitch_nb.edit import on_layers, read_direction
from stitch_nb.models import load_models
from stitch_nb.paste import carry_detail
from stitch_nb.run.settings import RunConfig
from stitch_nb.run.stages import crops_step, find_person, quads_of
from stitch_nb.run.store import Keep
from stitch_nb.video import read_clip


@pytest.fixture(scope="module")
def people():
    return load_models("people")


def test_a_pickle_in_a_direction_is_not_run(tmp_path):
    head = {"descr": "|O", "fortran_order": False, "shape": (1,)}
    with (tmp_path / "evil.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
        file.write(f"cbuiltins\nopen\n(V{tmp_path / 'ran'}\nVw\ntR.".encode())
    with pytest.raises(StitchError, match="evil.npy holds no direction"):
        read_direction(tmp_path / "evil.npy", 23, 512)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shape", [(3, 512), (23, 511), (18, 256), (2, 18, 512), ()])
def test_a_direction_of_another_shape_is_refused(shape, tmp_path):
    np.save(tmp_path / "odd.npy", np.ones(shape, np.float32))
    with pytest.raises(StitchError, match="does not fit a generator with 23 rows of 512"):
        read_direction(tmp_path / "odd.npy", 23, 512)


def test_numbers_that_are_none_and_files_that_are_none(tmp_path):
    np.save(tmp_path / "nan.npy", np.full(512, np.nan, np.float32))
    with pytest.raises(StitchError, match="not finite"):
        read_direction(tmp_path / "nan.npy", 23, 512)
    (tmp_path / "x.pt").write_bytes(b"PK")
    with pytest.raises(StitchError, match="numpy.save"):
        read_direction(tmp_path / "x.pt", 23, 512)
    with pytest.raises(StitchError, match="there is no direction file"):
        read_direction(tmp_path / "absent.npy", 23, 512)


def test_stylegan2_rows_go_to_the_same_resolution():
    "Rows 1 and 2 of StyleGAN2 draw 8 px: MobileStyleGAN has three layers there."
    rows = on_layers(torch.arange(18.0)[:, None].expand(18, 512), 23, 512)[:, 0].tolist()
    assert rows[0] == 0 and rows[1:4] == [1, 1, 2] and rows[19:22] == [13, 13, 14]


def test_a_bundle_with_directions_of_others(people, tmp_path):
    G = people.generator
    np.save(tmp_path / "wink.npy", np.ones(G.w_dim, np.float32))
    (tmp_path / "LICENSE").write_text("MIT License\n\nmore")
    bundle = with_directions(people, [tmp_path / "wink.npy"])
    assert bundle.directions["wink"].shape == (G.num_ws, G.w_dim) and "wink" not in people.directions
    record = bundle.meta["directions_of_others"]["wink"]
    assert record["licence"] == "MIT License" and len(record["sha256"]) == 64


def test_keep_detail_follows_the_recipe_unless_said(people):
    assert settings_of(people, keep_detail="auto").keep_detail is False
    assert settings_of(people, keep_detail="yes").keep_detail is True
    with pytest.raises(StitchError, match="use yes, no or auto"):
        as_yes_or_no("keep_detail", "maybe")


def test_photographs_are_sampled_by_cubics(people, tmp_path):
    "The recipe's crops keep more of the frame; those of the paper's sampling keep their key."
    photo = RunConfig.for_models(replace(people, meta=dict(recipe="mobile")))
    assert (photo.resample, RunConfig().resample) == ("bicubic", "bilinear")
    with pytest.raises(StitchError, match="resample is 'nearest'; choose one of bilinear, bicubic"):
        RunConfig(resample="nearest")
    clip, keys, fine = read_clip(sample("talk"), "0:1"), [], []
    for config in (RunConfig(), replace(RunConfig(), resample="bicubic")):
        keep = Keep(tmp_path)
        _, track = find_person(keep, clip, people, config)
        crops = keep(crops_step(clip, people, config, track, quads_of(people, config, track)))
        (crop,) = np.load(crops.path).astype(np.float32)
        keys.append(crops.key)
        fine.append(float(np.square(crop - cv2.GaussianBlur(crop, (0, 0), 1.0)).mean()))
    assert keys[0] != keys[1] and fine[1] > 1.2 * fine[0]


def test_what_stays_soft_gets_the_contrast_of_the_source():
    "With nothing left out there is nothing to carry: a soft drawing is raised, up to the gain."
    rng = np.random.default_rng(0)
    source = np.clip(np.rint(rng.normal(128, 30, (128, 128, 3))), 0, 255).astype(np.uint8)
    drawn = (128 + (source.astype(float) - 128) / 4).astype(np.uint8)
    plain, raised, full = (carry_detail(source, source, drawn, gain=g) for g in (1, 1.5, 8))
    assert (plain == drawn).all()
    assert 1.1 < raised.std() / drawn.std() < 1.5
    assert raised.std() < full.std() < source.std()
    assert (carry_detail(drawn, drawn, source, gain=8) == source).all()  # never lowered


@pytest.mark.slow
def test_a_measure_rises_and_what_is_held_stays(people):
    "Light above the forehead rises; light in the corners moves less than without being held."
    G = people.generator
    crown = lambda x: x[:, :, 16:30, 50:80].mean((1, 2, 3))
    corner = lambda x: x[:, :, :20, :14].mean((1, 2, 3))
    config = DirectionConfig(samples=8, views=1, fresh=3, power=0.0)
    free = direction_from(crown, people, None, config)
    held = direction_from(crown, people, dict(corner=corner), config)
    w = random_latents(G, 4, 0.7, seeded(9))
    with torch.no_grad():
        base, a, b = (G.synthesis(w + s).clamp(-1, 1) for s in (0, 2 * free.delta, 2 * held.delta))
    assert crown(b).mean() > crown(base).mean() + 0.05
    assert (corner(b) - corner(base)).abs().mean() < 0.7 * (corner(a) - corner(base)).abs().mean()
    with pytest.raises(StitchError, match="is to rise and to stay"):
        direction_from(crown, people, dict(measure=corner), config)
