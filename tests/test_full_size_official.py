"The official networks' size, weights by a formula: the whole pipeline on a processor, within 8 GB."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "bench.py"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_run_at_1024(dtype, tmp_path):
    "Two frames, one pass of PTI, two stitching updates of each frame; nothing outside of the mask changes."
    file = tmp_path / "bench.json"
    asked = ["--part", "official", "--dtypes", dtype, "--threads", "2", "--sizes", "tiny"]
    done = subprocess.run(
        [
            sys.executable,
            str(TOOL),
            *asked,
            "--device",
            "cpu",
            "--seconds",
            "900",
            "--json",
            str(file),
        ],
        capture_output=True,
        text=True,
        cwd=TOOL.parent.parent,
        env=os.environ | dict(PYTHONPATH=str(TOOL.parent.parent), OMP_NUM_THREADS="2"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text())["official run"][dtype]
    print(found)
    assert found["peak_gib"] < 8e9 / 2**30 and found["leak"] == 0
    stages = {"faces", "crops", "masks", "pivots", "generator", "scores", "stitched", "result"}
    assert stages <= set(found)


def test_the_benchmark_measures(tmp_path):
    "Every part that needs no card gives numbers, at a tiny size; a failure would be a row that says so."
    file, table = tmp_path / "bench.json", tmp_path / "table.md"
    parts = ["check", "forward", "update", "stitch", "around", "clip"]
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
