"The official networks' size, weights by a formula: the whole pipeline on a processor, within 8 GB."

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

TOOL = Path(__file__).resolve().parent.parent / "tools" / "bench.py"


@pytest.mark.slow
def test_whole_run_at_1024(tmp_path):
    """Two frames, one pass of PTI, two stitching updates of each frame; nothing outside of the mask changes.

    Both precisions in one process, which makes the networks once; its peak is that of both."""
    file, dtypes = tmp_path / "bench.json", ["float32", "bfloat16"]
    asked = ["--part", "official", "--dtypes", *dtypes, "--threads", "2", "--sizes", "tiny"]
    done = subprocess.run(
        [
            sys.executable,
            str(TOOL),
            *asked,
            "--device",
            "cpu",
            "--seconds",
            "1800",
            "--json",
            str(file),
        ],
        capture_output=True,
        text=True,
        cwd=TOOL.parent.parent,
        env=os.environ | dict(PYTHONPATH=str(TOOL.parent.parent), OMP_NUM_THREADS="2"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    runs = json.loads(file.read_text())["official run"]
    stages = {"faces", "crops", "masks", "pivots", "generator", "scores", "stitched", "result"}
    for dtype in dtypes:
        found = runs[dtype]
        assert found["peak_gib"] < 8e9 / 2**30 and found["leak"] == 0
        assert stages <= set(found)


@pytest.mark.slow
def test_the_benchmark_measures(tmp_path):
    "Every part that needs no card gives numbers, at a tiny size; a failure would be a row that says so."
    file, table = tmp_path / "bench.json", tmp_path / "table.md"
    parts = ["check", "forward", "plain", "both", "update", "stitch", "around", "clip"]
    done = subprocess.run(
        [sys.executable, str(TOOL), "--sizes", "tiny", "--check", "tiny", "--device", "cpu"]
        + ["--part", *parts, "--json", str(file), "--table", str(table)],
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(TOOL.parent.parent), OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text())
    rows = [(part, name, row) for part, some in found.items() for name, row in some.items()]
    assert not [r for r in rows if "failed" in r[2]] and table.read_text().startswith("| 1024 px")
    for part in ("forward 32", "update 32"):
        assert all(row["ms_per_frame"] > 0 for row in found[part].values())
    assert found["clip 32"]["bfloat16"]["minutes_300_frames_authors"] > 0


@pytest.mark.slow
def test_a_cards_agreement_and_stacked_weights():
    "What the benchmark compares a card with gives 0 against itself; grouped convolutions run."
    sys.path.insert(0, str(TOOL.parent))
    try:
        import bench
    finally:
        sys.path.pop(0)
    assert set(bench.agreement("tiny", "cpu").values()) == {0.0}
    assert bench.stacked_ms(bench.Case("tiny", "cpu", 2), "float32", 2)["ms_per_frame"] > 0


def test_the_formula(manifest):
    "The filler agrees with the golden sums, entry by entry, for a small generator."
    sys.path.insert(0, str(TOOL.parent))
    try:
        import bench
    finally:
        sys.path.pop(0)
    from stitch_nb.generator import Generator

    golden = manifest["models"]["a1_gen_small/state_dict"]
    net = bench.formula_fill(
        Generator(
            z_dim=64, w_dim=64, resolution=64, channel_base=2048, channel_max=128, mapping_layers=4
        ),
        "generator",
    )
    for key, value in net.state_dict().items():
        assert float(value.double().sum()) == pytest.approx(golden[key]["sum"], abs=1e-6), key


def test_plain_operations_draw_the_same():
    "What the benchmark compares with is the same picture and the same gradient, for both networks."
    sys.path.insert(0, str(TOOL.parent))
    try:
        import bench
        import bench_plain
    finally:
        sys.path.pop(0)
    from stitch_nb.nets.mobile import MobileGenerator

    case = bench.Case("tiny", "cpu", 2)
    torch.manual_seed(0)
    mobile = MobileGenerator(resolution=32, channels=(32, 32, 16, 8)).requires_grad_(False)
    w = torch.randn(2, mobile.num_ws, 512, generator=torch.Generator().manual_seed(1))
    pairs = [
        (case.G, case.pivots, bench_plain.synthesis),
        (mobile, w, bench_plain.mobile_synthesis),
    ]
    for G, w, plain in pairs:
        weights = list(G.requires_grad_().tunable().values())
        for a, b in zip(
            *(run_with_gradients(f, w, weights) for f in (G.synthesis, partial(plain, G)))
        ):
            assert float((a - b).norm() / a.norm()) < 1e-4


def run_with_gradients(draw, w, weights):
    "A picture, and the gradients of its mean square."
    drawn = draw(w)
    slopes = torch.autograd.grad(drawn.square().mean(), weights, allow_unused=True)
    return [drawn.detach(), *(g for g in slopes if g is not None)]


def small_512():
    "A generator of 512 px with few channels, and a clip of two frames."
    from stitch_nb.generator import Generator
    from stitch_nb.masks import stitch_masks

    torch.manual_seed(0)
    shape = dict(resolution=512, channel_base=1024, channel_max=16, z_dim=16, w_dim=16)
    G = Generator(**shape, mapping_layers=1).eval().requires_grad_(False)
    w, mask = torch.randn(2, G.num_ws, 16), torch.zeros(512, 512)
    mask[100:400, 100:400] = 1
    crops = np.random.default_rng(0).integers(0, 256, (2, 512, 512, 3), dtype=np.uint8)
    return G, w, crops, stitch_masks(mask, 512)


def test_little_memory_gives_the_same(dtype="bfloat16"):
    """Blocks that are drawn again give the very same tuned weights and stitched picture.

    In float32 test_side_by_side compares the two, on a small generator."""
    from stitch_nb.pti import PTIConfig, tune_generator
    from stitch_nb.stitch import StitchConfig, stitch_frame

    G, w, crops, masks = small_512()
    found = []
    for memory in ("normal", "low"):
        how = dict(dtype=dtype, memory=memory)
        config = PTIConfig(passes=2, batch=1, lambda_lpips=0, alpha=1.0, **how)
        G_pti, _ = tune_generator(G, w, crops, None, config)
        assert G_pti.synthesis.again is None
        parts = w[0], crops[0], None, masks
        image, _ = stitch_frame(G_pti, *parts, StitchConfig(steps=3, first_resolution=4, **how))
        found.append([image, *G_pti.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found))
    name = "synthesis.b512.conv1.weight"
    assert not torch.equal(G_pti.state_dict()[name], G.state_dict()[name])


def test_little_memory_keeps_less():
    "What autograd keeps of one picture, in bytes: less than half when large blocks are drawn again."
    from stitch_nb.core import clone_network
    from stitch_nb.engine.device import keep_little
    from stitch_nb.pti import PTIConfig

    G, w, *_ = small_512()
    kept = {}
    for memory in ("normal", "low"):
        G_new, seen = clone_network(G), {}
        keep_little(G_new, PTIConfig(memory=memory))
        count = lambda t, seen=seen: seen.update({t.untyped_storage().data_ptr(): t.nbytes}) or t
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            drawn = G_new.synthesis(w[:1])
        kept[memory] = sum(seen.values())
        assert drawn.requires_grad
    assert kept["low"] < kept["normal"] / 2
