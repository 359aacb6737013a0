"""A whole run at the size of the official networks: 2 frames, 2 PTI updates, 2 stitching updates, at 1024 px.

The weights are made by a formula (numbers from each entry's name), so nothing has to be downloaded; times and memory are those of the real ones.

    python tools/bench_1024.py [--dtype float32|bfloat16] [--threads 2] [--json] [--device cpu]
"""

import argparse
import json
import math
import platform
import resource
import sys
import tempfile
import time
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from stitch_nb.nets.bisenet import BiSeNet
from stitch_nb.core import autocast, sample, seeded
from stitch_nb.encode import Encoder
from stitch_nb.generator import Generator
from stitch_nb.masks import stitch_masks
from stitch_nb.models import Bundle
from stitch_nb.perceptual import LpipsPerceptual
from stitch_nb.pipeline import RunConfig, edit_clip
from stitch_nb.pti import PTIConfig
from stitch_nb.stitch import FrameTuner, StitchConfig, stitch_frame
from stitch_nb.video import read_clip


def scale_of(kind: str, key: str, shape: tuple, keys: set) -> tuple | None:
    "Offset, scale and whether the absolute value is taken, of one entry; None leaves it alone."
    leaf, parent = key.rpartition(".")[2], key.rpartition(".")[0]
    if leaf in ("resample_filter", "num_batches_tracked"):
        return None
    if kind == "generator":
        if key.startswith("mapping.fc"):
            return 0, 100 if leaf == "weight" else 10, False
        if key == "mapping.w_avg":
            return 0, 0.3, False
        if leaf == "bias":
            return (1, 0.1, False) if parent.endswith("affine") else (0, 0.1, False)
        if leaf == "noise_strength":
            return 0, 0.1, False
        return 0, 0.25 if key.endswith("torgb.weight") else 1, False
    if leaf == "w_avg":
        return 0, 0.3, False
    if leaf == "running_mean":
        return 0, 0.1, False
    if leaf == "running_var":
        return 0.5, 1, True
    if leaf == "bias":
        return 0, 0.1, False
    if len(shape) == 4:
        return 0, math.sqrt(1.3 / math.prod(shape[1:])), False
    if len(shape) == 2:
        return 0, 1, False
    return (1, 0.1, False) if f"{parent}.running_mean" in keys else (0.25, 0.05, False)


def formula_fill(net, kind: str):
    "Fill a network by the formula of the golden numbers; kind is 'generator' or 'convolutional'."
    state, keys = net.state_dict(), set(net.state_dict())
    for key, v in state.items():
        rule = scale_of(kind, key, tuple(v.shape), keys)
        if rule is None:
            continue
        n = np.asarray(
            np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(v.shape)),
            np.float32,
        )
        v.copy_(
            torch.from_numpy(
                np.asarray(
                    np.float32(rule[0]) + np.float32(rule[1]) * (np.abs(n) if rule[2] else n)
                )
            )
        )
    return net.eval().requires_grad_(False)


def formula_bundle(device="cpu") -> Bundle:
    "Generator, e4e, BiSeNet and LPIPS as large as the published ones."
    torch.manual_seed(0)
    G, E, S = (
        formula_fill(Generator(), "generator"),
        formula_fill(Encoder(), "convolutional"),
        formula_fill(BiSeNet(), "convolutional"),
    )
    direction = 0.1 * torch.randn(G.num_ws, G.w_dim, generator=seeded(0))
    move = lambda net: net.to(device)
    return Bundle(
        "formula",
        1024,
        move(G),
        encoder=move(E),
        parser=move(S),
        perceptual=move(LpipsPerceptual("alex")),
        directions=dict(smile=direction.to(device)),
        meta=dict(scale=1.0, recipe="reference"),
        device=torch.device(device),
        hash="formula",
    )


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (
        30 if sys.platform == "darwin" else 20
    )


def now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


class Clock:
    "Progress for `edit_clip` that notes when each tick came."

    def __init__(self):
        self.ticks = {}

    @contextmanager
    def __call__(self, name):
        self.ticks[name] = [now()]
        yield lambda *_: self.ticks[name].append(now())


def timed(run, n: int = 1, device="cpu") -> np.ndarray:
    "Seconds of one call, the fastest of n: by the clock, and of processors' work (which other programs do not change)."
    spent = []
    for _ in range(n):
        start = now()
        run()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        spent.append(now() - start)
    return np.min(spent, 0)


def measure(dtype: str = "float32", device: str = "cpu", out: Path | None = None) -> dict:
    "The whole run, then single steps."
    models, clock = formula_bundle(device), Clock()
    config = RunConfig.for_models(
        models,
        landmarks="none",
        pti=PTIConfig.reference(passes=1, dtype=dtype),
        stitch=StitchConfig.reference(steps=2, dtype=dtype),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = edit_clip(
            read_clip(sample("talk"), frames=slice(0, 2)),
            "smile=1",
            out or folder,
            models,
            config,
            progress=clock,
        )
        found = dict(
            dtype=dtype,
            device=device,
            threads=torch.get_num_threads(),
            cpu=platform.processor() or platform.machine(),
            torch=torch.__version__,
            seconds=round(run.record["seconds"], 1),
            peak_gib=round(peak_gib(), 2),
            leak=run.metrics["leak"],
            stages={
                k: dict(seconds=round(v["seconds"], 1), peak_gib=round(v["peak_mib"] / 1024, 2))
                for k, v in run.record["stages"].items()
            },
        )
        note = lambda name, spent: found.update(
            {f"{name}_s": round(float(spent[0]), 2), f"{name}_cpu_s": round(float(spent[1]), 2)}
        )
        note("pti_step", clock.ticks["generator"][-1] - clock.ticks["generator"][-2])
        crops = np.load(run.stages["crops"].path)
    G, w = models.generator, torch.randn(18, 512, generator=seeded(1)).to(device) * 0.3
    with torch.no_grad(), autocast(device, dtype):
        note("forward", timed(lambda: G.synthesis(w[None]), 2, device))
    mask = torch.zeros(1024, 1024)
    mask[200:900, 250:774] = 1
    masks, times = stitch_masks(mask, 1024), {}
    for steps in (1, 3):
        setting = StitchConfig.reference(steps=steps, dtype=dtype)
        times[steps] = timed(
            partial(
                stitch_frame, G, w, crops[0], crops[1], masks, setting, tuner=FrameTuner(G, setting)
            ),
            1,
            device,
        )
    note("stitch_step", (times[3] - times[1]) / 2)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = measure(options.dtype, options.device)
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{result['dtype']}, {result['threads']} threads: forward {result['forward_s']} s, PTI update {result['pti_step_s']} s, stitching update {result['stitch_step_s']} s, "
            f"peak {result['peak_gib']} GiB, whole run {result['seconds']} s"
        )
        print(
            "  processor seconds: "
            + ", ".join(
                f"{k} {result[k + '_cpu_s']}" for k in ("forward", "pti_step", "stitch_step")
            )
        )
        for name, stage in result["stages"].items():
            print(f"  {name:10} {stage['seconds']:7.1f} s  {stage['peak_gib']:5.2f} GiB")
