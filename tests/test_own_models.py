"Networks that a user brings: any size, with or without the rest of a bundle, through two frames of a whole run."

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from stitch_nb.weights import catalogue as registry
from stitch_nb.nets.bisenet import BiSeNet
from stitch_nb.commands.weights import stitch_weights
from stitch_nb.core import StitchError
from stitch_nb.encode import Encoder, PivotConfig
from stitch_nb.detectors import centre_landmarks, landmark_backend
from stitch_nb.generator import Generator
from stitch_nb.models import fit_direction, load_models, save_network
from stitch_nb.nets.mobile import MobileGenerator
from stitch_nb.nets.small import IdentityNet, Trunk
from stitch_nb.pipeline import RunConfig, edit_clip
from stitch_nb.pti import PTIConfig
from stitch_nb.stitch import StitchConfig
from stitch_nb.video import read_clip


def filled(net):
    "Numbers by a formula, from each entry's name."

    def draw(k, v):
        return torch.from_numpy(
            np.asarray(
                np.random.default_rng(zlib.crc32(k.encode())).standard_normal(tuple(v.shape)),
                np.float32,
            )
        )

    state = {
        k: v
        if k.endswith(("resample_filter", "num_batches_tracked"))
        else draw(k, v).abs() + 0.5
        if "running_var" in k
        else draw(k, v) * (100 if k.startswith("mapping.fc") else 0.3)
        for k, v in net.state_dict().items()
    }
    net.load_state_dict(state)
    return net.eval()


GENERATORS = dict(
    small=dict(
        z_dim=16, w_dim=16, resolution=32, channel_base=256, channel_max=32, mapping_layers=2
    ),
    odd=dict(z_dim=24, w_dim=20, resolution=64, channel_base=640, channel_max=40, mapping_layers=8),
    deep=dict(
        z_dim=16, w_dim=16, resolution=32, channel_base=512, channel_max=48, mapping_layers=8
    ),
)

QUICK = dict(pivot=PivotConfig(steps=2), pti=PTIConfig(passes=1), stitch=StitchConfig(steps=2))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STITCH_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return read_clip(tiny.face_clip(tmp_path_factory.mktemp("clip") / "disc.mp4", T=2))


def save_generator(path, name="small"):
    G = filled(Generator(**GENERATORS[name]))
    torch.save(dict(G_ema=G.state_dict()), path)
    return G


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_alone(name, tmp_path, clip, monkeypatch):
    "Detected from the file; pivots by optimisation, the hull as mask, and both are said."
    tiny.use_disc(monkeypatch)
    G = save_generator(tmp_path / "mine.pkl", name)
    models = load_models(tmp_path / "mine.pkl")
    assert {
        k: models.generator.config[k] for k in ("z_dim", "w_dim", "resolution", "mapping_layers")
    } == {k: GENERATORS[name][k] for k in ("z_dim", "w_dim", "resolution", "mapping_layers")}
    z = torch.randn(1, G.z_dim)
    assert torch.equal(
        models.generator.synthesis(models.generator.mapping(z, 0.7)), G.synthesis(G.mapping(z, 0.7))
    )
    assert (
        models.encoder is models.parser is models.landmarks is None
        and models.perceptual is not None
    )
    with pytest.raises(StitchError, match="has no directions: put NAME.npy.*fit_direction"):
        edit_clip(clip, "smile=1", tmp_path / "run", models)
    models = replace(
        models,
        directions=dict(
            bright=fit_direction(models.generator, lambda x: x.mean((1, 2, 3)), n=60)[0]
        ),
    )
    run = edit_clip(
        clip, "bright=.5", tmp_path / "run", models, RunConfig.for_models(models, **QUICK)
    )
    assert run.record["stages"]["pivots"]["pivots"] == "optimised" and run.metrics["leak"] == 0
    assert any("no encoder: pivots were found by optimisation" in n for n in run.record["notes"])
    assert any("no parser" in n for n in run.record["notes"])


def test_the_recipe_follows_the_bundle(tmp_path):
    save_generator(tmp_path / "mine.pkl")
    own, people = (
        RunConfig.for_models(load_models(tmp_path / "mine.pkl")),
        RunConfig.for_models(load_models("people")),
    )
    assert (own.pti.passes, own.pti.lr, own.stitch.steps, own.stitch.norm) == (80, 3e-5, 100, "l2")
    assert people == RunConfig()


def test_a_folder(tmp_path):
    G = save_generator(tmp_path / "g.pkl")
    E = filled(Encoder(resolution=64, num_ws=G.num_ws, w_dim=16, width=8, blocks=(1, 1, 1, 1)))
    torch.save(
        dict(
            state_dict={f"encoder.{k}": v for k, v in E.state_dict().items() if k != "w_avg"},
            latent_avg=E.w_avg,
            opts={},
        ),
        tmp_path / "e.pt",
    )
    np.save(tmp_path / "smile.npy", np.ones((1, G.num_ws, 16), np.float32))
    np.save(tmp_path / "age.npy", np.ones(16, np.float32))
    models = load_models(tmp_path)
    x = torch.randn(1, 3, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        assert torch.allclose(models.encoder(x), E(x), atol=1e-5)
    assert {k: tuple(v.shape) for k, v in models.directions.items()} == dict(
        smile=(G.num_ws, 16), age=(G.num_ws, 16)
    )
    assert load_models(tmp_path).hash == models.hash  # the second time from the cache
    np.save(tmp_path / "age.npy", np.zeros(16, np.float32))
    assert load_models(tmp_path).hash != models.hash
    np.save(tmp_path / "yaw.npy", np.ones(24, np.float32))
    with pytest.raises(StitchError, match=r"direction 'yaw' has shape \(1, 24\)"):
        load_models(tmp_path)


def test_an_encoder_of_another_size(tmp_path):
    save_generator(tmp_path / "g.pkl", "odd")
    E = filled(Encoder(resolution=64, num_ws=8, w_dim=20, width=8, blocks=(1, 1, 1, 1)))
    torch.save(
        dict(
            state_dict={f"encoder.{k}": v for k, v in E.state_dict().items() if k != "w_avg"},
            latent_avg=E.w_avg,
            opts={},
        ),
        tmp_path / "e.pt",
    )
    with pytest.raises(
        StitchError, match=r"latents of shape \(8, 20\), the generator takes \(10, 20\)"
    ):
        load_models(tmp_path)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: (p / "x.pkl").write_bytes(b"\x80\x02cos\nsystem\n"), "x.pkl"),
        (lambda p: (p / "x.txt").write_text("hello"), "neither a bundle.json nor weights"),
        (lambda p: np.save(p / "smile.npy", np.ones(16)), "there is no generator in smile.npy"),
        (
            lambda p: (save_generator(p / "a.pkl"), save_generator(p / "b.pkl", "deep")),
            "a.pkl and b.pkl are both a generator",
        ),
    ],
)
def test_folders_that_are_no_bundle(tmp_path, make, words):
    (tmp_path / "own").mkdir()
    make(tmp_path / "own")
    with pytest.raises(StitchError, match=words) as said:
        load_models(tmp_path / "own")
    assert "\n" not in str(said.value)


RECORDS = ['', 'null', '[]', '3', '{}', '{"networks": []}', '{"networks": {"generator": 3}}']
RECORDS += ['{"name": "x", "resolution": 32, "networks": {"generator": {"file": "a"}}}', '[' * 10**5]
RECORDS += ['{"name": "x", "resolution": 32, "networks": {}, "directions": "no"}']


@pytest.mark.parametrize("text", RECORDS)
def test_a_record_that_is_none(tmp_path, text):
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(StitchError, match="is not a bundle's record") as said:
        load_models(tmp_path)
    assert "\n" not in str(said.value)


def test_every_network_that_is_saved_is_read(tmp_path):
    "One file of each class that `save_network` writes, given as the user's own."
    torch.manual_seed(0)
    small = dict(z_dim=16, w_dim=16, channels=(16, 16, 16, 16), mapping_layers=2)
    nets = dict(mobile=MobileGenerator(32, **small), trunk=Trunk(), identity=IdentityNet())
    for name, net in nets.items():
        save_network(tmp_path / f"{name}.safetensors", net)
    models = load_models(tmp_path)
    assert isinstance(models.generator, MobileGenerator) and models.resolution == 32
    assert models.identity is not None and models.perceptual.trunk is not None


def test_a_given_device_is_looked_at_too(monkeypatch):
    "A torch.device sets the float32 policy and is refused like a name."
    seen = []
    pick = lambda name: seen.append(name) or torch.device("cpu")
    monkeypatch.setattr("stitch_nb.models.pick_device", pick)
    load_models("people", torch.device("cuda"))
    assert seen == [torch.device("cuda")]


def test_names(tmp_path, monkeypatch):
    with pytest.raises(StitchError, match="bundle 'ffhg' is not installed.*to download: ffhq"):
        load_models("ffhg")
    with pytest.raises(
        StitchError,
        match="'ffhq' is not complete, missing: ffhq.pkl.*e4e_ffhq_encode.pt.*79999_iter.pth.*stitch_weights download ffhq",
    ):
        load_models("ffhq")
    with pytest.raises(StitchError, match="no file of weights"):
        load_models(__file__)
    save_generator(tmp_path / "g.pkl")
    monkeypatch.setenv("STITCH_MODELS", str(tmp_path / "g.pkl"))
    assert load_models().name == "g" and load_models("people").name == "people"


@pytest.fixture
def official(monkeypatch, tmp_path):
    "A small ffhq in the published formats, as files of the user's."
    for name in ("ffhq.pkl", "79999_iter.pth", "smile.npy", "age.npy"):
        monkeypatch.setitem(
            registry.REGISTRY, name, replace(registry.REGISTRY[name], sha256="", size=0)
        )
    room = tmp_path / "pretrained"
    room.mkdir()
    G = save_generator(room / "ffhq.pkl", "odd")
    E = filled(Encoder(resolution=64, num_ws=G.num_ws, w_dim=20, width=8, blocks=(1, 1, 1, 1)))
    torch.save(
        dict(
            state_dict={f"encoder.{k}": v for k, v in E.state_dict().items() if k != "w_avg"},
            latent_avg=E.w_avg,
            opts={},
        ),
        room / "e4e_ffhq_encode.pt",
    )
    torch.save(filled(BiSeNet(width=8)).state_dict(), room / "79999_iter.pth")
    for name in ("smile", "age"):
        np.save(room / f"{name}.npy", 0.1 * np.ones((1, G.num_ws, 20), np.float32))
    (room / "alexnet-owt-7be5be79.pth").write_bytes(b"")
    monkeypatch.setitem(
        registry.REGISTRY,
        "alexnet-owt-7be5be79.pth",
        replace(registry.REGISTRY["alexnet-owt-7be5be79.pth"], sha256=""),
    )
    return room


def test_imported_official_files(official, tmp_path, clip, monkeypatch, capsys):
    "import, verify, load, edit; then a generator that was fine-tuned from it."
    tiny.use_disc(monkeypatch)
    stitch_weights(["import", str(official)])
    assert "trusted on first use" in capsys.readouterr().out
    stitch_weights(["verify"])
    models = load_models("ffhq")
    assert (models.name, models.resolution, models.scale, set(models.directions)) == (
        "ffhq",
        64,
        1.0,
        {"smile", "age"},
    )
    assert (
        models.encoder.num_ws == models.generator.num_ws
        and models.parser is not None
        and models.meta["recipe"] == "reference"
    )
    run = edit_clip(
        clip, "smile=1", tmp_path / "run", models, RunConfig.for_models(models, **QUICK)
    )
    stages = run.record["stages"]
    assert (
        stages["pivots"]["pivots"] == "encoder"
        and stages["masks"]["mask"] == "parser"
        and run.metrics["leak"] == 0
    )
    save_generator(tmp_path / "nada.pkl", "odd")
    both = load_models(f"ffhq+{tmp_path / 'nada.pkl'}")
    assert (
        both.name == "ffhq+nada"
        and both.encoder is not None
        and set(both.directions) == {"smile", "age"}
        and both.hash != models.hash
    )
    save_generator(tmp_path / "other.pkl", "deep")
    with pytest.raises(StitchError, match="leave the encoder out"):
        load_models(f"ffhq+{tmp_path / 'other.pkl'}")
    with pytest.raises(StitchError, match="two whole bundles"):
        load_models("ffhq+people")
    converted = registry.converted_path(registry.REGISTRY["ffhq.pkl"])
    whole = converted.read_bytes()
    converted.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StitchError, match="damaged"):
        load_models("ffhq")
    with pytest.raises(SystemExit):
        stitch_weights(["verify"])


def test_animals(tmp_path, clip, monkeypatch):
    "No landmarks: an error that names the way out, and the way out works."
    save_generator(tmp_path / "dog.pkl")
    models = load_models(tmp_path / "dog.pkl")
    models = replace(
        models,
        meta=models.meta | dict(domain="animals"),
        directions=dict(bright=torch.ones(models.generator.num_ws, 16)),
    )
    config = RunConfig.for_models(models, **QUICK)
    with pytest.raises(StitchError, match="--landmarks none"):
        edit_clip(clip, "bright=1", tmp_path / "run", models, config)
    run = edit_clip(clip, "bright=1", tmp_path / "run", models, replace(config, landmarks="none"))
    side = min(clip.width, clip.height)
    corners = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]]) * side + [
        clip.width / 2 - 0.5,
        clip.height / 2 - 0.5,
    ]
    np.testing.assert_allclose(run.quads, np.broadcast_to(corners, run.quads.shape), atol=1e-6)
    assert (
        "no landmarks: the crop is the centre square of the frame" in run.record["notes"]
        and run.metrics["leak"] == 0
    )


def test_centre_of_a_scaled_bundle():
    backend = landmark_backend("none", scale=1.3)
    [found] = backend(np.zeros((50, 80, 3), np.uint8))
    assert (
        np.allclose(found.landmarks, centre_landmarks(50, 80, 1.3))
        and found.landmarks.min() > 0
        and found.landmarks[:, 1].max() < 50
    )
