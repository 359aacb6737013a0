"Every published format, written with formula-filled weights, converted, and checked against golden numbers; and back to the source's names."

import json

import numpy as np
import pytest
import torch
from pickled import filled, write_ada, write_e4e, write_rosinality, write_run, write_stats, write_tf
from test_parity_edit import normal
from test_parity_generator import Checker

from stitch_nb.nets.bisenet import BiSeNet
from stitch_nb.core import StitchError
from stitch_nb.edit import Edit, apply_edit, first_row, global_direction, reference_strength
from stitch_nb.encode import Encoder
from stitch_nb.weights.formats import (
    build,
    convert_file,
    generator_config,
    identify,
    load_converted,
    read_network,
    rosinality_names,
    skeleton,
    to_source_keys,
)
from stitch_nb.generator import Generator
from stitch_nb.masks import segment

CONFIG = dict(
    z_dim=64,
    w_dim=64,
    resolution=64,
    channel_base=2048,
    channel_max=128,
    mapping_layers=4,
    conv_clamp=None,
)

FULL = dict(
    z_dim=512,
    w_dim=512,
    resolution=1024,
    channel_base=32768,
    channel_max=512,
    mapping_layers=8,
    conv_clamp=None,
)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def golden(parity, manifest):
    def load(name):
        return parity(name), Checker(parity(name), manifest["fixtures"][name]["arrays"])

    return load


def at(npz, *names):
    return [torch.from_numpy(npz[n]) for n in names]


def equal(a, b):
    return sorted(a) == sorted(b) and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def converted(path, tmp_path, **kwargs):
    "Through the disk and back, as a user does."
    out = convert_file(
        path,
        tmp_path / f"{path.stem}.{kwargs.get('part', 'x')}.safetensors",
        licence="test",
        **kwargs,
    )
    return load_converted(out)


def check_small(G, npz, check):
    z, ws = at(npz, "z", "ws")
    check("map_psi1", G.mapping(z))
    check("map_psi07", G.mapping(z, 0.7))
    check("map_psi07_cutoff4", G.mapping(z, 0.7, 4))
    check("img_const", G.synthesis(ws))
    check("img_none", G.synthesis(ws, noise="none"))
    check("img_from_z_psi07_const", G(z, 0.7))
    check("img_style_input_const", G.synthesis_from_styles(G.styles(ws)))


@pytest.fixture(scope="module")
def small(manifest):
    return filled(manifest["models"]["a1_gen_small/state_dict"])


@pytest.mark.parametrize("protocol", [2, 4])
def test_nvidia_pickle(golden, small, tmp_path, protocol):
    file = write_ada(tmp_path / "network.pkl", small, CONFIG, protocol)
    assert identify(file) == "stylegan2-ada"
    found = converted(file, tmp_path)
    assert found.cls == "Generator" and found.config == CONFIG
    check_small(build(found), *golden("a1_gen_small"))
    assert equal(to_source_keys(found.kind, found.state_dict), small)


def test_clamp_is_found_in_the_layers(golden, small, tmp_path):
    found = read_network(write_ada(tmp_path / "afhq.pkl", small, CONFIG | dict(conv_clamp=1.0)))
    npz, check = golden("a1_gen_small")
    assert found.config["conv_clamp"] == 1.0
    check("img_clamp1_const", build(found).synthesis(*at(npz, "ws")))


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensorflow_pickle_is_refused_with_the_remedy(tmp_path, protocol):
    said = r"tf.pkl: was written by TensorFlow; convert it with legacy.py .*--source=tf.pkl"
    with pytest.raises(StitchError, match=said):
        read_network(write_tf(tmp_path / "tf.pkl", protocol))


def test_saved_run(golden, small, tmp_path):
    rng = np.random.default_rng(0)
    pivots, quads = (
        torch.from_numpy(rng.standard_normal((3, 10, 64)).astype("float32")),
        [rng.standard_normal((4, 2)) for _ in range(3)],
    )
    found = converted(write_run(tmp_path / "model_anna.pt", small, CONFIG, pivots, quads), tmp_path)
    assert (
        found.kind == "stit-run"
        and torch.equal(found.arrays["pivots"], pivots)
        and np.array_equal(found.arrays["quads"].numpy(), np.stack(quads))
    )
    check_small(build(found), *golden("a1_gen_small"))
    assert equal(to_source_keys(found.kind, found.state_dict), small)
    with pytest.raises(StitchError, match="no pivots of shape"):
        read_network(write_run(tmp_path / "model_b.pt", small, CONFIG, pivots[:, :3], quads))


@pytest.mark.parametrize("zipped", [True, False])
def test_rosinality(golden, manifest, tmp_path, zipped):
    npz, check = golden("b_rosinality64")
    state, (average,) = (
        filled(manifest["models"]["b_rosinality64/state_dict"]),
        at(npz, "truncation_latent"),
    )
    found = converted(write_rosinality(tmp_path / "550000.pt", state, average[0], zipped), tmp_path)
    assert (
        found.kind == "rosinality"
        and found.config["resolution"] == 64
        and found.config["channel_base"] == 16384
    )
    G = build(found)
    z, latents = at(npz, "z", "latents")
    check("img_latents", G.synthesis(latents))
    check("w_from_z", G.mapping.single(z))
    check("latents_z_trunc07", G.mapping(z, 0.7))
    check("img_z_trunc07", G(z, 0.7))
    check("img_w2d", G.synthesis(latents[:, :1].expand(-1, 10, -1)))
    mixed = torch.cat([latents[:, :1].expand(-1, 4, -1), latents[:, 1:2].expand(-1, 6, -1)], 1)
    check("img_mix_inject4", G.synthesis(mixed))
    assert equal(to_source_keys(found.kind, found.state_dict), state)


def test_rosinality_names_at_1024(manifest):
    "Every key of the official decoder, at its official size; numbers that take no memory."
    shapes = {k: v.shape for k, v in skeleton(Generator, FULL).state_dict().items()}
    table = manifest["models"]["b_rosinality64/state_dict_1024_mult2"]
    names = {
        theirs: [1] * before + list(shapes[ours]) + [1] * behind
        for ours, theirs, before, behind in rosinality_names(1024, 8)
    }
    assert names == {k: v["shape"] for k, v in table.items() if not k.endswith("kernel")}
    assert set(shapes) - {row[0] for row in rosinality_names(1024, 8)} == {"mapping.w_avg"} | {
        k for k in shapes if k.endswith("resample_filter")
    }


def test_average_is_drawn_where_it_is_missing(small, tmp_path):
    file = write_rosinality(tmp_path / "nada.pt", to_source_keys("rosinality", small))
    one, two = read_network(file), read_network(file)
    assert (
        torch.equal(one.state_dict["mapping.w_avg"], two.state_dict["mapping.w_avg"])
        and "10000" in one.extra["w_avg"]
    )
    G = build(one)
    w = G.mapping.single(torch.randn(4000, 64, generator=torch.Generator().manual_seed(5)))
    assert (G.w_avg - w.mean(0)).abs().max() < 6 * w.std(0).max() / 4000**0.5


def test_noise_is_drawn_where_it_is_missing(small, tmp_path):
    theirs = {
        k: v for k, v in to_source_keys("rosinality", small).items() if not k.startswith("noises.")
    }
    found = read_network(write_rosinality(tmp_path / "bare.pt", theirs))
    assert found.config == CONFIG and "seed 0" in found.extra["noise"]
    assert 0.8 < found.state_dict["synthesis.b64.conv0.noise_const"].std() < 1.2


sizes = [
    dict(resolution=8, channel_base=64, channel_max=24, mapping_layers=1),
    dict(resolution=32, channel_base=4096, channel_max=16, mapping_layers=2),
    dict(resolution=128, channel_base=256, channel_max=64, mapping_layers=8, w_dim=24),
    dict(resolution=16, channel_base=128, channel_max=512, mapping_layers=3, z_dim=20),
]


@pytest.mark.parametrize("size", sizes, ids=lambda s: str(s["resolution"]))
def test_sizes_are_found(size, tmp_path):
    "Any resolution, width and depth, from the shapes alone; the network is the same one."
    G = Generator(**dict(z_dim=16, w_dim=16) | size)
    for write in (
        lambda: write_ada(tmp_path / "a.pkl", G.state_dict(), G.config),
        lambda: write_rosinality(
            tmp_path / "b.pt", to_source_keys("rosinality", G.state_dict()), G.w_avg
        ),
    ):
        found = read_network(write())
        H = build(found)
        assert [H.resolution, H.z_dim, H.w_dim, found.config["mapping_layers"]] == [
            G.resolution,
            G.z_dim,
            G.w_dim,
            size["mapping_layers"],
        ]
        w = torch.randn(1, G.num_ws, G.w_dim)
        torch.testing.assert_close(H.synthesis(w), G.synthesis(w), rtol=0, atol=1e-5)
    config = generator_config(Generator(**CONFIG).state_dict(), "x")
    assert config == CONFIG


@pytest.mark.parametrize(
    "wrong,said",
    [
        (dict(architecture="resnet"), "architecture 'resnet'"),
        (dict(activation="relu"), "nonlinearity 'relu'"),
        (dict(use_noise=False), "use_noise"),
    ],
)
def test_variants_are_refused(small, tmp_path, wrong, said):
    with pytest.raises(StitchError, match=said):
        read_network(write_ada(tmp_path / "x.pkl", small, CONFIG, **wrong))


def test_other_generators_are_refused(small, tmp_path):
    cases = [
        (
            {k: v for k, v in small.items() if k != "synthesis.b64.torgb.bias"},
            "lacks synthesis.b64.torgb.bias",
        ),
        (small | {"mapping.embed.weight": torch.zeros(64, 10)}, "class labels"),
        (
            {k: v for k, v in small.items() if not k.startswith("mapping.fc")},
            "no StyleGAN2 generator with a mapping",
        ),
        (small | {"synthesis.b8.conv0.resample_filter": torch.ones(4, 4) / 16}, "another low-pass"),
        (small | {"synthesis.b8.conv0.bias": torch.full((128,), float("nan"))}, "not finite"),
    ]
    for state, said in cases:
        with pytest.raises(StitchError, match=said):
            read_network(write_ada(tmp_path / "x.pkl", state, CONFIG))


def small_encoder():
    torch.manual_seed(0)
    E = Encoder(32, 12, 16, width=8, blocks=(1, 2, 2, 1), head_width=16, coarse=3, middle=7)
    E.w_avg.normal_()
    return E.eval()


def test_e4e_small(tmp_path):
    "Both halves of a small e4e checkpoint; the official size is below."
    E, G = small_encoder(), Generator(16, 16, 128, 512, 32, 3)
    decoder = to_source_keys("rosinality", G.state_dict())
    own = {k: v for k, v in E.state_dict().items() if k != "w_avg"}
    file = write_e4e(tmp_path / "e4e.pt", own, E.w_avg, decoder)
    assert identify(file) == "e4e"
    found = converted(file, tmp_path, part="encoder")
    crop = torch.randn(2, 3, 32, 32)
    assert found.config == json.loads(json.dumps(E.config)) and torch.equal(
        build(found)(crop), E(crop)
    )
    back = to_source_keys("e4e", found.state_dict)
    assert torch.equal(back.pop("latent_avg"), E.w_avg) and equal(
        back, {f"encoder.{k}": v for k, v in own.items()}
    )
    half = converted(file, tmp_path, part="generator")
    assert half.config["resolution"] == 128 and torch.allclose(
        half.state_dict["mapping.w_avg"], E.w_avg.mean(0)
    )
    assert equal(
        to_source_keys("e4e", half.state_dict), {f"decoder.{k}": v for k, v in decoder.items()}
    )
    with pytest.raises(StitchError, match="no latent_avg"):
        read_network(write_e4e(tmp_path / "a.pt", own, None))
    with pytest.raises(StitchError, match="has no decoder"):
        read_network(write_e4e(tmp_path / "a.pt", own, E.w_avg), part="generator")
    assert (
        not read_network(
            write_e4e(tmp_path / "a.pt", own, None, opts=dict(start_from_latent_avg=False))
        )
        .state_dict["w_avg"]
        .any()
    )
    with pytest.raises(StitchError, match="only Encoder4Editing"):
        read_network(write_e4e(tmp_path / "a.pt", {"conv.weight": torch.zeros(3)}, E.w_avg))


def test_bisenet(golden, manifest, tmp_path):
    npz, check = golden("d_bisenet")
    state = filled(manifest["models"]["d_bisenet/state_dict"])
    torch.save(
        {f"module.{k}": v for k, v in state.items()},
        tmp_path / "79999_iter.pth",
        _use_new_zipfile_serialization=False,
    )
    found = converted(tmp_path / "79999_iter.pth", tmp_path)
    assert (found.kind, found.cls) == ("bisenet", "BiSeNet") and equal(
        to_source_keys("bisenet", found.state_dict), state
    )
    S = build(found)
    x = torch.from_numpy(npz["input_u8"]).permute(2, 0, 1)[None].float() / 255
    heads = S.heads(S.normalise(x))
    for i, h in enumerate(heads):
        check(f"logits{i}_area64", h[0].double().reshape(19, 64, 8, 64, 8).mean((2, 4)))
    check("logits0_patch_y200_x240", heads[0][0, :, 200:232, 240:272])
    sure = np.unpackbits(npz["margin_gt_1e3"]).reshape(512, 512).astype(bool)
    labels = segment(S, npz["input_u8"][None])[0].numpy()  # as the pipeline calls it
    assert np.array_equal(labels[sure], npz["argmax"][sure])
    twice = segment(S, npz["input_u8"].repeat(2, 0).repeat(2, 1)[None])[0].numpy()
    assert np.array_equal(
        twice, labels.repeat(2, 0).repeat(2, 1)
    )  # a 1024 crop is parsed at 512, as by the authors


def test_bisenet_keys(manifest):
    state = skeleton(BiSeNet, {}).state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == {
        k: v["shape"] for k, v in manifest["models"]["d_bisenet/state_dict"].items()
    }


@pytest.mark.parametrize("name", ["dirA", "dirB"])
def test_directions(golden, tmp_path, name):
    "The authors' (1,18,512) float64 files, to the edited pivots of their code."
    npz, check = golden("h_edit")
    rows = npz["dirB"] if name == "dirB" else np.tile(npz["dirA_row"], (18, 1))
    np.save(tmp_path / f"{name}.npy", rows[None])
    found = converted(tmp_path / f"{name}.npy", tmp_path)
    assert (
        found.kind == "directions"
        and list(found.state_dict) == [name]
        and np.array_equal(found.state_dict[name].numpy(), rows)
    )
    pivots = torch.from_numpy(npz["pivots"]).double()
    used = {"x": first_row(found.state_dict[name])}
    check(
        f"{name}_edited",
        torch.stack(
            [
                apply_edit(pivots, [Edit("x", ((0, reference_strength(f)),))], used)
                for f in npz[f"{name}_factors"]
            ]
        ),
    )
    if name == "dirA":  # one row stands for all
        np.save(tmp_path / "row.npy", npz["dirA_row"])
        row = read_network(tmp_path / "row.npy").state_dict["row"]
        assert row.shape == (1, 512) and torch.equal(
            apply_edit(pivots, [Edit("x", ((0, 2.0),))], {"x": row}),
            apply_edit(pivots, [Edit("x", ((0, 2.0),))], used),
        )


def test_direction_tensors(tmp_path):
    "What .pt files hold: one tensor, several by name, one for each layer of W+ or of style space."
    rows, layers = torch.randn(18, 512), [torch.randn(1, n) for n in (512, 512, 256)]
    cases = [
        (rows[None], {"age": rows}),
        (rows[0], {"age": rows[:1]}),
        (dict(smile=rows, age=rows[:1]), dict(smile=rows, age=rows[:1])),
        (list(rows), {"age": rows}),
        (layers, {f"layer{i:02d}": v for i, v in enumerate(layers)}),
    ]
    for content, want in cases:
        for zipped in (True, False):
            torch.save(content, tmp_path / "age.pt", _use_new_zipfile_serialization=zipped)
            found = read_network(tmp_path / "age.pt")
            assert found.kind == "directions" and equal(found.state_dict, want)


@pytest.mark.parametrize("protocol", [2, 4])
def test_styleclip(golden, tmp_path, protocol):
    npz, check = golden("h_edit")
    np.save(tmp_path / "fs3.npy", normal("h/di_1024", (6048, 512), 0.05).numpy())
    found = converted(tmp_path / "fs3.npy", tmp_path)
    check(
        "direction_1024",
        global_direction(
            found.state_dict["relevance"], torch.from_numpy(npz["class_weights"]), 0.1
        ),
    )
    mean, std = (
        [np.random.randn(n).astype("float32") for n in (512, 512, 256)],
        [np.random.rand(n).astype("float32") for n in (512, 512, 256)],
    )
    stats = read_network(write_stats(tmp_path / "S_mean_std", mean, std, protocol))
    assert stats.kind == "styleclip-stats" and all(
        np.array_equal(stats.state_dict[f"mean.{i:02d}"].numpy(), v) for i, v in enumerate(mean)
    )
    assert np.array_equal(stats.state_dict["std.02"].numpy(), std[2]) and len(stats.state_dict) == 6


def test_conversion_happens_once_and_says_where_from(small, tmp_path):
    file = write_ada(tmp_path / "network.pkl", small, CONFIG)
    out = convert_file(
        file, tmp_path / "out" / "G.safetensors", licence="Nvidia Source Code License-NC"
    )
    record = json.loads(out.with_suffix(".json").read_text())
    assert (
        record["source"]["name"] == "network.pkl"
        and len(record["source"]["sha256"]) == 64
        and record["licence"].startswith("Nvidia")
        and record["args"] == CONFIG
    )
    stamp = out.stat().st_mtime_ns
    assert convert_file(file, out) == out and out.stat().st_mtime_ns == stamp
    assert sorted(p.name for p in out.parent.iterdir()) == ["G.json", "G.safetensors"]
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(content)
    with pytest.raises(StitchError, match="SHA-256 differs"):
        load_converted(out)
    out.with_suffix(".json").unlink()
    with pytest.raises(StitchError, match="no complete JSON"):
        load_converted(out)
    assert equal(load_converted(convert_file(file, out)).state_dict, small)


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04\x95")
    with pytest.raises(StitchError):
        convert_file(tmp_path / "bad.pkl", tmp_path / "out" / "bad.safetensors")
    assert not (tmp_path / "out").exists()
    with pytest.raises(StitchError, match="written as .safetensors"):
        convert_file(tmp_path / "bad.pkl", tmp_path / "bad.pt")
    with pytest.raises(StitchError, match="no such file"):
        convert_file(tmp_path / "none.pkl", tmp_path / "bad.safetensors")


@pytest.mark.slow
def test_nvidia_pickle_at_1024(golden, manifest, tmp_path):
    state = filled(manifest["models"]["a2_gen_1024/state_dict"])
    found = converted(write_ada(tmp_path / "ffhq.pkl", state, FULL), tmp_path)
    assert found.config == FULL
    assert equal(to_source_keys(found.kind, found.state_dict), state)
    G, (npz, check) = build(found), golden("a2_gen_1024")
    z, ws = at(npz, "z", "ws")
    check("map_psi1", G.mapping(z)[:, 0])
    check("map_psi07", G.mapping(z, 0.7)[:, 0])
    check("styles_concat", torch.cat(G.styles(ws), 1))
    x = G.synthesis(ws)[0]
    check("img_area64", x.double().reshape(3, 64, 16, 64, 16).mean((2, 4)))
    for top, left in (100, 200), (600, 700), (992, 0):
        check(f"patch_y{top}_x{left}", x[:, top : top + 32, left : left + 32])


@pytest.mark.slow
def test_e4e_at_its_official_size(golden, manifest, tmp_path):
    npz, check = golden("c_e4e")
    encoder, decoder = (
        filled(manifest["models"][f"c_e4e/state_dict_{half}"])
        for half in ("encoder", "decoder_1024")
    )
    file = write_e4e(tmp_path / "e4e_ffhq_encode.pt", encoder, *at(npz, "latent_avg"), decoder)
    found = converted(file, tmp_path, part="encoder")
    assert found.config == dict(
        resolution=256,
        num_ws=18,
        w_dim=512,
        width=64,
        blocks=[3, 4, 14, 3],
        head_width=512,
        stem_stride=1,
        coarse=3,
        middle=7,
        antialias=True,
        pool=None,
    )
    back = to_source_keys("e4e", found.state_dict)
    assert torch.equal(back.pop("latent_avg"), *at(npz, "latent_avg")) and equal(
        back, {f"encoder.{k}": v for k, v in encoder.items()}
    )
    del back, encoder
    E = build(found)
    del found
    crop = torch.from_numpy(npz["input_u8"]).permute(2, 0, 1)[None] / 127.5 - 1
    codes = E(crop)
    check("codes_with_avg", codes)
    check("codes_encoder_raw", E.offsets(crop))
    del E
    half = converted(file, tmp_path, part="generator")
    assert equal(
        to_source_keys("e4e", half.state_dict), {f"decoder.{k}": v for k, v in decoder.items()}
    )
    x = build(half).synthesis(torch.from_numpy(npz["codes_with_avg"]))[0]
    check("decoder_img_area64", x.double().reshape(3, 64, 16, 64, 16).mean((2, 4)))
    check("decoder_img_patch_y500_x300", x[None, :, 500:532, 300:332])
