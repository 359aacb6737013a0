"The official networks' size, weights by a formula: the whole pipeline on a processor, within 8 GB."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "bench_1024.py"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_run_at_1024(dtype):
    "Two frames, two PTI updates, two stitching updates of each frame; nothing outside of the mask changes."
    done = subprocess.run(
        [sys.executable, str(TOOL), "--json", "--dtype", dtype, "--threads", "2"],
        capture_output=True,
        text=True,
        cwd=TOOL.parent.parent,
        env=os.environ | dict(PYTHONPATH=str(TOOL.parent.parent), OMP_NUM_THREADS="2"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        {k: found[k] for k in ("forward_s", "pti_step_s", "stitch_step_s", "peak_gib", "seconds")}
    )
    assert found["peak_gib"] < 8e9 / 2**30 and found["leak"] == 0
    assert set(found["stages"]) == {
        "faces",
        "crops",
        "masks",
        "pivots",
        "generator",
        "scores",
        "stitched",
        "result",
    }
    assert 0 < found["forward_s"] < found["pti_step_s"] and found["stitch_step_s"] > 0


def test_the_formula(manifest):
    "The filler agrees with the golden sums, entry by entry, for a small generator."
    sys.path.insert(0, str(TOOL.parent))
    try:
        import bench_1024
    finally:
        sys.path.pop(0)
    from stitch_nb.generator import Generator

    golden = manifest["models"]["a1_gen_small/state_dict"]
    net = bench_1024.formula_fill(
        Generator(
            z_dim=64, w_dim=64, resolution=64, channel_base=2048, channel_max=128, mapping_layers=4
        ),
        "generator",
    )
    for key, value in net.state_dict().items():
        assert float(value.double().sum()) == pytest.approx(golden[key]["sum"], abs=1e-6), key
