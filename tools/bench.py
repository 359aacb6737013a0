"""How fast the method is here: one generator's updates, stitching's updates, what surrounds them; people's, 512 and the official size.

Weights come from a formula (numbers from each entry's name), so nothing has to be downloaded; times and memory are those of the real ones.
Needs torch, numpy, scipy and pillow only; what needs more is left out, and said.

    python tools/bench.py                        what suits this machine, under five minutes on one with a GPU
    python tools/bench.py --part update stitch   only these: check plain forward both update stitch profile around clip threads run official
    python tools/bench.py --sizes people         sizes: people mobile official
    python tools/bench.py --json FILE            all numbers; --add keeps what is there, of two times the shorter;
                                                 --table FILE writes them as markdown, reference numbers beside them
"""

import argparse
import json
import math
import os
import platform
import resource
import sys
import tempfile
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from stitch_nb import stitch  # noqa: E402
from stitch_nb.core import clone_network, seeded, to_image  # noqa: E402
from stitch_nb.engine.clip import ClipTuner  # noqa: E402
from stitch_nb.engine.device import (  # noqa: E402
    Replay,
    adam_tensors,
    autocast,
    float32_policy,
    free_memory,
    make_adam,
    peak_memory,
    pick_device,
    precision,
    reuse_memory,
    threads,
    useful_threads,
)
from stitch_nb.engine.frames import FrameLoop, FrameTuner  # noqa: E402
from stitch_nb.generator import Generator, Plan  # noqa: E402
from stitch_nb.masks import stitch_masks  # noqa: E402
from stitch_nb.nets.mobile import MobileGenerator  # noqa: E402
from stitch_nb.perceptual import Perceptual  # noqa: E402
from stitch_nb.pti import PTIBatch, PTIConfig, pti_objective, tune_generator  # noqa: E402
from stitch_nb.stitch import StitchConfig, stitch_frames, stitch_objective  # noqa: E402

SIZES = dict(
    people=dict(z_dim=256, w_dim=256, resolution=128, channel_base=4096, channel_max=256),
    mobile=dict(resolution=512),  # of MobileStyleGAN, the others are StyleGAN2s
    official=dict(resolution=1024),
    tiny=dict(z_dim=32, w_dim=32, resolution=32, channel_base=512, channel_max=32),
)
# The authors' code at 1024 px, ms, batch 1: measured with the same random weights
REFERENCE = {
    'one H100': dict(forward=32.0, update=82.0, stitch=75.0),
    'two CPU cores': dict(forward=1500.0, update=5400.0, stitch=5100.0),
}
SCHEDULES = dict(authors=dict(passes=80, steps=100), ours=dict(passes=16, steps=60))


class AlexTrunk(Perceptual):
    "LPIPS's AlexNet with random weights: the same sums, nothing to fetch."

    name = 'alex, random'

    def __init__(self):
        super().__init__()
        conv = lambda i, o, k, s, p: nn.Conv2d(i, o, k, s, p)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(conv(3, 64, 11, 4, 2), nn.ReLU()),
                nn.Sequential(nn.MaxPool2d(3, 2), conv(64, 192, 5, 1, 2), nn.ReLU()),
                nn.Sequential(nn.MaxPool2d(3, 2), conv(192, 384, 3, 1, 1), nn.ReLU()),
                nn.Sequential(conv(384, 256, 3, 1, 1), nn.ReLU()),
                nn.Sequential(conv(256, 256, 3, 1, 1), nn.ReLU()),
            ]
        )
        self.requires_grad_(False)

    def maps(self, x):
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return out


def small_trunk(x_px: int) -> Perceptual:
    "The measure that suits a size: below 1024 px a trunk like the bundles' own."
    torch.manual_seed(1)
    if x_px >= 1024:
        return AlexTrunk()
    from stitch_nb.nets.small import Trunk
    from stitch_nb.perceptual import TrunkPerceptual

    return TrunkPerceptual(Trunk())


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


def make_generator(size: str):
    "A generator of one size; its weights by a formula, or drawn as they are before training."
    if size != 'mobile':
        return formula_fill(Generator(**SIZES[size]), 'generator')
    torch.manual_seed(0)
    return MobileGenerator(**SIZES[size]).eval().requires_grad_(False)


class Case:
    "A generator of one size, a measure, and a clip that it could have drawn."

    def __init__(self, size: str, device, frames: int = 8):
        self.size, self.device = size, torch.device(device)
        self.G = make_generator(size).to(self.device)
        self.R = self.G.resolution
        self.perceptual = small_trunk(self.R).to(self.device)
        w = torch.randn(frames, 1, self.G.w_dim, generator=seeded(1)) * 0.3
        self.pivots = w.expand(-1, self.G.num_ws, -1).contiguous().to(self.device)
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (frames, self.R // 8, self.R // 8, 3), np.uint8)
        self.crops = coarse.repeat(8, 1).repeat(8, 2)
        mask = torch.zeros(self.R, self.R)
        mask[self.R // 5 : -self.R // 8, self.R // 4 : -self.R // 4] = 1
        self.masks = stitch_masks(mask, self.R)


def peak_gib(device) -> float:
    if torch.device(device).type == 'cuda':
        return round(peak_memory(device, reset=True) / 2**30, 2)
    scale = 2 ** (30 if sys.platform == 'darwin' else 20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 2)


def wait(device):
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def fastest(spent) -> float:
    "The best of several times: what else runs on a processor only ever adds."
    return float(min(spent))


def median_ms(run, device, seconds: float = 1.5, most: int = 20, least: int = 4) -> float:
    "Median of repeated calls, each waited for; the first is not counted. On a CPU `fastest`."
    run()
    wait(device)
    spent, begin = [], time.perf_counter()
    while len(spent) < least or (time.perf_counter() - begin < seconds and len(spent) < most):
        start = time.perf_counter()
        run()
        wait(device)
        spent.append(1e3 * (time.perf_counter() - start))
    return fastest(spent) if torch.device(device).type == 'cpu' else float(np.median(spent))


def forward_ms(case: Case, dtype: str, batch: int, plan=None) -> dict:
    case.G.synthesis.plan = plan
    w = case.pivots[:batch]
    with torch.no_grad(), autocast(case.device, dtype), precision(case.device, dtype):
        ms = median_ms(lambda: case.G.synthesis(w), case.device)
    case.G.synthesis.plan = None
    return dict(ms_per_frame=ms / batch)


def update_ms(
    case: Case, dtype: str, batch: int, plan=None, graph=True, search=True, **changes
) -> dict:
    "One PTI update with the perceptual distance, without the locality term, as the authors run it."
    peak_gib(case.device)
    config = PTIConfig.reference(dtype=dtype, batch=batch, **changes)
    G_pti = clone_network(case.G)
    G_pti.synthesis.plan = plan
    adam = make_adam(list(G_pti.tunable().values()), config.lr)
    with precision(case.device, dtype, search), reuse_memory(case.device):
        tuner, index = clip_tuner(case, G_pti, adam, config), list(range(batch))
        tuner.prepare(batch).update.replay.enabled &= graph
        start = time.perf_counter()
        tuner(index, config.lr)
        wait(case.device)
        first = time.perf_counter() - start
        ms = median_ms(lambda: tuner(index, config.lr), case.device)
    return dict(ms_per_frame=ms / batch, first_s=first, peak_gib=peak_gib(case.device))


def clip_tuner(case: Case, G_pti, adam, config) -> ClipTuner:
    "The engine of PTI, without the locality term."
    clip = PTIBatch(case.G, case.perceptual)
    return ClipTuner(pti_objective, clip, G_pti, adam, case.pivots, case.crops, config)


def both_ms(case: Case, dtype: str, batch: int) -> dict:
    "Forward and backward alone: the mean square of what is drawn, its gradient for all weights."
    G, w = clone_network(case.G), case.pivots[:batch]
    params = list(G.tunable().values())

    def run():
        with autocast(case.device, dtype):
            drawn = G.synthesis(w)
        torch.autograd.grad(drawn.square().mean(), params, allow_unused=True)

    with precision(case.device, dtype), reuse_memory(case.device):
        return dict(ms_per_frame=median_ms(run, case.device) / batch)


def plain_alone(size: str, what: str, dtype: str, number: int) -> float:  # ms
    import bench_plain

    with threads(number):
        case = Case(size, 'cpu', 2)
        return median_ms(bench_plain.STEPS[what](case, dtype), 'cpu', 15.0, 7, 3)


def plain_ms(case: Case, what: str, dtype: str = 'float32') -> dict:
    """One frame as plain operations compute it (`bench_plain`), in a process of its own.

    There nothing has changed how the C library hands out memory, which they depend on."""
    job = plain_alone, case.size, what, dtype, torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return dict(ms_per_frame=pool.submit(*job).result())


def plain_rows(case: Case) -> dict:  # name to arguments of `plain_ms`
    if case.size == 'mobile':
        return {f'both, {d}': dict(what='both', dtype=d) for d in ('float32', 'bfloat16')}
    return {what: dict(what=what) for what in ('forward', 'update', 'stitch')}


def single_steps(tuner, frames: list, seconds: float = 6.0, most: int = 20) -> tuple:  # ms, ms
    "Loading of some frames, and the fastest of their updates; the first two are not counted."
    loop, spent = FrameLoop(tuner, frames, most + 2), []
    start = begin = time.perf_counter()
    loop.begin()
    load = time.perf_counter() - start
    for step in range(most + 2):
        start = time.perf_counter()
        loop.advance(step)
        spent.append(time.perf_counter() - start)
        if len(spent) > 4 and time.perf_counter() - begin > seconds:
            break
    return 1e3 * load, 1e3 * fastest(spent[2:])


def stitch_ms(case: Case, dtype: str, lanes: int, plan=None, graph=True, **changes) -> dict:
    "One stitching update a frame: a longer loop less a shorter one, over updates and frames."
    peak_gib(case.device)
    config = StitchConfig.reference(dtype=dtype, **changes)
    G_pti = clone_network(case.G, trainable=False)
    G_pti.synthesis.plan = plan
    tuner = FrameTuner(stitch_objective, G_pti, config, lanes=lanes)
    tuner.update.replay.enabled &= graph
    frame = partial(stitch.as_frame, G_pti, masks=case.masks)
    frames = [frame(case.pivots[k], case.crops[k], case.crops[k - 1]) for k in range(lanes)]
    if case.device.type == 'cpu':
        with reuse_memory(case.device):
            load, ms = single_steps(tuner, frames)
        return dict(ms_per_frame=ms / lanes, load_ms=load / lanes, peak_gib=peak_gib(case.device))
    a, b = 4, 12
    with reuse_memory(case.device):
        run = lambda steps: tuner.tune(frames, steps)
        few, many = (median_ms(partial(run, n), case.device, 0.5, 5, 1) for n in (a, b))
    ms = (many - few) / (b - a) / lanes
    return dict(
        ms_per_frame=ms, load_ms=(few - a * ms * lanes) / lanes, peak_gib=peak_gib(case.device)
    )


def stacked_ms(case: Case, dtype: str, lanes: int, first: int = 4) -> dict:
    "Stitching with stacked weights by torch.func.vmap (grouped convolutions), for comparison."
    from torch.func import functional_call, vmap

    G, R = clone_network(case.G, trainable=False), case.R
    G.synthesis.plan = Plan(channels_last=False, plain=True)
    names = list(G.tunable(first))
    named = dict(G.named_parameters())
    stacked = [named[n].detach().expand(lanes, *named[n].shape).clone() for n in names]
    stacked = [p.requires_grad_() for p in stacked]
    fixed = {n: p for n, p in named.items() if n not in names} | dict(G.named_buffers())
    source, edit = (torch.rand(lanes, 3, R, R, device=case.device) for _ in range(2))
    border = case.masks.border.to(case.device)
    content = case.masks.content.to(case.device)
    w, adam = case.pivots[:lanes], make_adam(stacked, 3e-4)

    def loss(own, w, source, edit):
        styles = functional_call(G, (fixed | dict(zip(names, own)),), (w[None],))
        image = styles[0].float()
        total = stitch.masked_error(image, source, border, 'l2')
        return total + 0.01 * stitch.masked_error(image, edit, content, 'l2')

    G.forward = lambda w_plus: G.synthesis(w_plus)

    def step():
        with autocast(case.device, dtype):
            total = vmap(loss)(stacked, w, source, edit).sum()
        total.backward()
        adam.step()

    clear = lambda: adam.zero_grad(set_to_none=True)
    replay = Replay(step, case.device, [*stacked, *adam_tensors(adam)], clear)
    with precision(case.device, dtype):
        ms = median_ms(replay, case.device)
    return dict(ms_per_frame=ms / lanes, peak_gib=peak_gib(case.device))


def agreement(size: str, device) -> dict:
    "The device's results against the CPU's, float32: the relative difference of pictures."
    found, config = {}, PTIConfig(passes=3, batch=2, dtype='float32', lr=1e-3)
    few = StitchConfig(steps=5, dtype='float32', workers=2, norm='l2', tie=0.0)
    results = []
    for where in ('cpu', device):
        case = Case(size, where, 4)
        with torch.no_grad(), precision(where, 'float32'):
            forward = case.G.synthesis(case.pivots).cpu()
        G_pti, _ = tune_generator(case.G, case.pivots, case.crops, case.perceptual, config)
        with torch.no_grad(), precision(where, 'float32'):
            tuned = G_pti.synthesis(case.pivots).cpu()
        moved = case.pivots + 0.05
        masks = [case.masks] * 4
        done = stitch_frames(G_pti, moved, case.crops, masks, config=few)
        results.append((forward, tuned, torch.stack([image.cpu() for _, image, _ in done])))
    for name, a, b in zip(('forward', 'pti', 'stitch'), *results):
        found[name] = float((a.double() - b.double()).norm() / a.double().norm())
    return found


def guarded(run, *args, **kwargs) -> dict:
    "A row, or why there is none: one thing that fails must not lose the others."
    try:
        return {
            k: round(v, 4) if isinstance(v, float) else v for k, v in run(*args, **kwargs).items()
        }
    except Exception as error:
        return dict(failed=f'{type(error).__name__}: {str(error).splitlines()[0][:200]}')
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


LAST = Plan(channels_last=True, phases=True)
PLANS = dict(
    phases_last=LAST,
    filter_first=Plan(channels_last=False, phases=False),
    filter_last=Plan(channels_last=True, phases=False),
    phases_first=Plan(channels_last=False, phases=True),
)


def update_rows(case: Case, cuda: bool) -> dict:  # name to arguments of `update_ms`
    if not cuda:
        batch = 1 if case.R >= 1024 else 4
        return {f'{d}, batch {batch}': dict(dtype=d, batch=batch) for d in ('float32', 'bfloat16')}
    rows = {f'bfloat16, batch {n}': dict(dtype='bfloat16', batch=n) for n in (1, 4, 8)}
    rows |= {f'{d}, batch 4': dict(dtype=d, batch=4) for d in ('float32', 'tf32')}
    rows |= {
        f'bfloat16, batch 4, {n}': dict(dtype='bfloat16', batch=4, plan=p) for n, p in PLANS.items()
    }
    rows['bfloat16, batch 4, one at a time'] = dict(dtype='bfloat16', batch=4, memory='low')
    rows['bfloat16, batch 4, no search'] = dict(dtype='bfloat16', batch=4, search=False)
    rows['bfloat16, batch 4, no graph'] = dict(dtype='bfloat16', batch=4, graph=False)
    return rows


def stitch_rows(case: Case, cuda: bool) -> dict:  # name to arguments of `stitch_ms`
    if not cuda:
        rows = {f'{d}, 1 lane': dict(dtype=d, lanes=1) for d in ('float32', 'bfloat16')}
        late = {f'{n}, from 32 px': row | dict(first_resolution=32) for n, row in rows.items()}
        return rows | (late if case.R >= 512 else {})
    half = dict(dtype='bfloat16')
    rows = {f'bfloat16, {n} lanes': half | dict(lanes=n) for n in (1, 2, 4, 8)}
    rows |= {f'{d}, 4 lanes': dict(dtype=d, lanes=4) for d in ('float32', 'tf32')}
    rows['bfloat16, 4 lanes, from 32 px'] = half | dict(lanes=4, first_resolution=32)
    rows |= {f'bfloat16, 4 lanes, {n}': half | dict(lanes=4, plan=p) for n, p in PLANS.items()}
    rows['bfloat16, 1 lane, no graph'] = half | dict(lanes=1, graph=False)
    return rows


def thread_rows(sizes=()) -> dict:
    "An update of PTI and a frame's stitching at the people's size, on 1, 2, 4 ... threads."
    there, found = torch.get_num_threads(), {}
    case, large = Case('people', 'cpu', 16), [Case(s, 'cpu', 4) for s in sizes if s != 'people']
    for n in [k for k in (1, 2, 4, 8, 16) if k <= there]:
        with threads(n):
            row = {}
            row['update_ms'] = update_ms(case, 'float32', 4)['ms_per_frame'] * 4
            with threads(useful_threads(4 * case.R**2)):
                row['update_by_rule_ms'] = update_ms(case, 'float32', 4)['ms_per_frame'] * 4
            few = StitchConfig(steps=3, dtype='float32')
            for workers in [0, *((1, 2, 4, 8, 16) if n == 16 else ())]:
                run = partial(clip_frames, case, replace(few, workers=workers))
                row[f'stitch_{workers or "rule"}_ms'] = median_ms(run, 'cpu', 0.2, 2, 1) / 48
            for other in large:
                batch = 1 if other.R >= 1024 else 4
                spent = update_ms(other, 'bfloat16', batch)['ms_per_frame']
                row[f'update_{other.size}_bfloat16_ms'] = spent * batch
        found[f'{n} threads'] = {k: round(v, 2) for k, v in row.items()}
    return found


def clip_frames(case: Case, config):
    "Sixteen frames through stitching."
    masks = [case.masks] * 16
    for _ in stitch_frames(case.G, case.pivots[:16], case.crops[:16], masks, config=config):
        pass


def around_rows(case: Case) -> dict:
    "What surrounds the two loops, for one frame."
    from stitch_nb.metrics import psnr, ssim
    from stitch_nb.paste import paste

    R, frame = case.R, np.zeros((1080, 1920, 3), np.uint8)
    quad = np.array([[500, 60], [500, 1040], [1480, 1040], [1480, 60]], float)
    picture = case.crops[0]
    runs = dict(
        masks=lambda: stitch_masks(case.masks.content, R),
        paste=lambda: paste(frame, picture, quad, case.masks.full, 1),
        measure=lambda: (psnr(picture, picture), ssim(picture, case.crops[1])),
        to_image=lambda: to_image(torch.zeros(3, R, R)),
    )
    return {
        k: guarded(lambda run=run: dict(ms=median_ms(run, 'cpu', 0.5, 5, 1)))
        for k, run in runs.items()
    }


def clip_row(case: Case, frames: int, passes: int, steps: int, dtype: str) -> dict:
    "The two loops over a clip, as a run calls them; from that, 300 frames on whole schedules."
    clip = Case(case.size, case.device, frames)
    start = time.perf_counter()
    batch = 8 if case.device.type == 'cuda' else 1
    config = PTIConfig.reference(passes=passes, batch=batch, dtype=dtype)
    G_pti, _ = tune_generator(clip.G, clip.pivots, clip.crops, clip.perceptual, config)
    wait(case.device)
    tuned = time.perf_counter()
    again = StitchConfig.reference(steps=steps, dtype=dtype)
    masks = [clip.masks] * frames
    for _, image, _ in stitch_frames(G_pti, clip.pivots, clip.crops, masks, config=again):
        to_image(image)
    wait(case.device)
    end = time.perf_counter()
    found = dict(
        frames=frames, passes=passes, steps=steps, pti_s=tuned - start, stitch_s=end - tuned
    )
    each = dict(pti=found['pti_s'] / frames / passes, stitch=found['stitch_s'] / frames / steps)
    for name, s in SCHEDULES.items():
        whole = 300 * (s['passes'] * each['pti'] + s['steps'] * each['stitch'])
        found[f'minutes_300_frames_{name}'] = whole / 60
    return found


def whole_run(frames: int, device, passes=None, steps=None) -> dict:
    "The demo's clip through every stage, by the bundle that comes with the package."
    from stitch_nb.models import load_models
    from stitch_nb.core import sample
    from stitch_nb.pipeline import RunConfig, edit_clip
    from stitch_nb.video import read_clip

    models, start = load_models('people', device), time.perf_counter()
    config = RunConfig.for_models(models)
    if passes:
        config = replace(config, pti=replace(config.pti, passes=passes))
    if steps:
        config = replace(config, stitch=replace(config.stitch, steps=steps))
    with tempfile.TemporaryDirectory() as out:
        clip = read_clip(sample('talk'), frames=slice(0, frames))
        run = edit_clip(clip, 'smile=2', out, models, config)
    found = dict(frames=frames, seconds=time.perf_counter() - start)
    return found | {k: v['seconds'] for k, v in run.record['stages'].items()}


@cache
def formula_bundle(device):
    "Generator, e4e, BiSeNet and a perceptual distance as large as the published ones."
    from stitch_nb.encode import Encoder
    from stitch_nb.models import Bundle
    from stitch_nb.nets.bisenet import BiSeNet

    torch.manual_seed(0)
    direction = 0.1 * torch.randn(18, 512, generator=seeded(0))
    nets = dict(encoder=Encoder(), parser=BiSeNet())
    nets = {k: formula_fill(net, 'convolutional').to(device) for k, net in nets.items()}
    return Bundle(
        'formula',
        1024,
        formula_fill(Generator(), 'generator').to(device),
        **nets,
        perceptual=AlexTrunk().to(device),
        directions=dict(smile=direction.to(device)),
        meta=dict(scale=1.0, recipe='reference'),
        device=torch.device(device),
        hash='formula',
    )


def official_run(dtype: str, device, memory: str = 'normal') -> dict:
    "Every stage at the official size: two frames, one pass, two stitching updates each."
    from stitch_nb.core import sample
    from stitch_nb.pipeline import RunConfig, edit_clip
    from stitch_nb.video import read_clip

    models, start = formula_bundle(device), time.perf_counter()
    config = RunConfig.for_models(
        models,
        landmarks='none',
        pti=PTIConfig.reference(passes=1, dtype=dtype, memory=memory),
        stitch=StitchConfig.reference(steps=2, dtype=dtype, memory=memory),
    )
    with tempfile.TemporaryDirectory() as out:
        run = edit_clip(
            read_clip(sample('talk'), frames=slice(0, 2)), 'smile=1', out, models, config
        )
    found = dict(
        seconds=time.perf_counter() - start, peak_gib=peak_gib('cpu'), leak=run.metrics['leak']
    )
    found['stage_gib'] = {
        k: round(v['peak_mib'] / 1024, 2) for k, v in run.record['stages'].items()
    }
    return found | {k: v['seconds'] for k, v in run.record['stages'].items()}


def profile_rows(case: Case, dtype: str, batch: int, top: int = 25) -> dict:
    "Where an update's time goes, kernel by kernel, in ms of the device."
    from torch.profiler import ProfilerActivity, profile

    cuda = case.device.type == 'cuda'
    config = PTIConfig.reference(dtype=dtype, batch=batch)
    G_pti = clone_network(case.G)
    adam = make_adam(list(G_pti.tunable().values()), config.lr)
    with precision(case.device, dtype), reuse_memory(case.device):
        tuner, index = clip_tuner(case, G_pti, adam, config), list(range(batch))
        tuner.prepare(batch).update.replay.enabled = False
        tuner(index, None, config.lr)
        kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
        with profile(activities=kinds) as seen:
            tuner(index, None, config.lr)
            wait(case.device)
    time_of = lambda e: e.self_device_time_total if cuda else e.self_cpu_time_total
    events = sorted(seen.key_averages(), key=time_of, reverse=True)[:top]
    return {e.key[:90]: round(time_of(e) / 1e3, 3) for e in events if time_of(e) > 0}


def processor() -> str:
    "What the processor calls itself, and how many cores there are."
    told, cores = Path('/proc/cpuinfo'), os.cpu_count()
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.processor()}, {cores} cores'


def machine(device) -> dict:
    device = torch.device(device)
    found = dict(
        device=str(device), torch=torch.__version__, threads=torch.get_num_threads(),
        system=platform.system(), float32=float32_policy(), name=processor(),
    )  # fmt: skip
    if device.type == 'cuda':
        found |= dict(name=torch.cuda.get_device_name(device), free_gib=free_memory(device) / 2**30)
    return found


def conv_rate(dtype: str, device) -> dict:
    "What this machine reaches in a convolution that suits it (64 channels, 256 px): 1e9 operations a second."
    dtype = getattr(torch, dtype)
    x = torch.randn(1, 64, 256, 256, device=device, dtype=dtype)
    x, w = x.contiguous(memory_format=torch.channels_last), torch.randn(64, 64, 3, 3).to(x)
    with torch.no_grad(), precision(device, 'float32'):
        ms = median_ms(lambda: nn.functional.conv2d(x, w, padding=1), device)
    return dict(gflop_per_s=2 * w.numel() * 256**2 / ms / 1e6)


class Book:
    "Rows as they come: printed, kept, and written after each, so that a stopped run loses nothing."

    def __init__(self, file, seconds: float, add: bool = False):
        self.file, self.begin, self.seconds = file, time.perf_counter(), seconds
        there = add and file and Path(file).exists()
        self.rows = json.loads(Path(file).read_text()) if there else {}

    def keep(self, part: str, name: str, row: dict):
        "A row that measured something; of two times of one thing the shorter."
        rows = self.rows.setdefault(part, {})
        none = 'left_out' in row or 'failed' in row
        slower = row.get('ms_per_frame', 0) > rows.get(name, {}).get('ms_per_frame', math.inf)
        slower |= rows.get(name, {}).get('gflop_per_s', 0) > row.get('gflop_per_s', math.inf)
        if name not in rows or not (none or slower):
            rows[name] = row

    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.begin)

    def add(self, part: str, name: str, run, *args, need: float = 5.0, **kwargs):
        if self.left() < need:
            row = dict(left_out='no time left')
        else:
            row = guarded(run, *args, **kwargs)
        self.keep(part, name, row)
        said = ', '.join(
            f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}' for k, v in row.items()
        )
        print(f'{self.seconds - self.left():5.0f} s  {part:22} {name:38} {said[:400]}', flush=True)
        if self.file:
            Path(self.file).write_text(json.dumps(self.rows, indent=1) + '\n')


def loops(case: Case, book: Book, parts, cuda: bool):
    "The two loops, and where their time goes."
    big = case.R >= 1024
    if 'profile' in parts:
        batch = 4 if cuda else 1
        for dtype in ('bfloat16', 'float32'):
            book.add(f'profile {case.R}', dtype, profile_rows, case, dtype, batch)
    for part, rows, run in (('update', update_rows, update_ms), ('stitch', stitch_rows, stitch_ms)):
        if part not in parts:
            continue
        for name, arguments in rows(case, cuda).items():
            if big or not any(
                word in name for word in ('filter', 'phases', 'no graph', 'no search')
            ):
                book.add(f'{part} {case.R}', name, run, case, **arguments)
    if 'stitch' in parts and cuda and big:
        book.add(f'stitch {case.R}', 'bfloat16, 4 lanes, vmap', stacked_ms, case, 'bfloat16', 4)


def beside(case: Case, book: Book, parts, cuda: bool):
    "A clip, single pictures, and what surrounds the loops."
    if 'clip' in parts and (cuda or case.R < 1024):
        n = 24 if case.R >= 512 else 8
        book.add(f'clip {case.R}', 'bfloat16', clip_row, case, n, 2, 20, 'bfloat16', need=20)
    dtypes = ('float32', 'tf32', 'bfloat16') if cuda else ('float32', 'bfloat16')
    if 'both' in parts:
        for dtype in dtypes:
            for batch in (1, 4) if case.R < 1024 else (1,):
                book.add(f'both {case.R}', f'{dtype}, batch {batch}', both_ms, case, dtype, batch)
    if 'plain' in parts and not cuda:
        for name, arguments in plain_rows(case).items():
            book.add(f'plain {case.R}', name, plain_ms, case, **arguments)
    if 'forward' in parts:
        for dtype in dtypes:
            for batch in (1, 4) if cuda else (1,):
                name = f'{dtype}, batch {batch}'
                book.add(f'forward {case.R}', name, forward_ms, case, dtype, batch)
    if 'around' in parts:
        for name, row in around_rows(case).items():
            book.add(f'around {case.R}', name, lambda row=row: row)


def measure(options) -> Book:
    device = pick_device(options.device)
    cuda, book, parts = (
        device.type == 'cuda',
        Book(options.json, options.seconds, options.add),
        options.part,
    )
    book.add('machine', 'machine', machine, device)
    if 'check' in parts and cuda:
        book.add('check', 'float32, against the CPU', agreement, options.check, device)
    for dtype in ('float32', 'bfloat16') if 'plain' in parts else ():
        book.add('rate', dtype, conv_rate, dtype, device)
    cases = [Case(size, device) for size in options.sizes]
    for case in cases:
        loops(case, book, parts, cuda)
    for case in cases:
        beside(case, book, parts, cuda)
    if 'threads' in parts:
        for name, row in thread_rows(options.sizes).items() if book.left() > 20 else ():
            book.add('threads', name, lambda row=row: row)
    if 'run' in parts:
        few = dict(passes=2, steps=4) if options.quick else {}
        book.add('run', 'people', whole_run, options.frames, device, **few)
    if 'official' in parts:
        for dtype in options.dtypes:
            name = dtype + ', memory low' * (options.memory == 'low')
            book.add('official run', name, official_run, dtype, device, options.memory)
    return book


def table(rows: dict) -> str:
    "The numbers that a reader asks for, as markdown."
    lines = [
        '| 1024 px, ms a frame | here | the authors, one H100 | the authors, two CPU cores |',
        '|---|---|---|---|',
    ]
    theirs = list(REFERENCE.values())
    for part in ('forward', 'update', 'stitch'):
        for name, row in rows.get(f'{part} 1024', {}).items():
            if 'ms_per_frame' in row:
                beside = ' | '.join(f'{t[part]:g}' for t in theirs)
                lines.append(f'| {part}, {name} | {row["ms_per_frame"]:.1f} | {beside} |')
    for name, row in rows.get('clip 1024', {}).items():
        for k, v in row.items():
            if k.startswith('minutes'):
                lines.append(f'| {k.replace("_", " ")}, {name} | {v:.1f} min | | |')
    return '\n'.join(lines)


PARTS = (
    'check',
    'plain',
    'forward',
    'both',
    'update',
    'stitch',
    'profile',
    'around',
    'clip',
    'threads',
    'run',
    'official',
)

DEFAULT_PARTS = ('check', 'forward', 'update', 'stitch', 'around', 'clip', 'threads')

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='auto')
    parser.add_argument('--sizes', nargs='+', choices=list(SIZES), default=['people', 'official'])
    parser.add_argument(
        '--part', nargs='+', choices=PARTS, default=[p for p in PARTS if p in DEFAULT_PARTS]
    )
    parser.add_argument('--check', choices=list(SIZES), default='people', help='size of that part')
    parser.add_argument(
        '--dtypes', nargs='+', default=['float32', 'bfloat16'], help='of the official run'
    )
    parser.add_argument('--seconds', type=float, default=280, help='start nothing after this')
    parser.add_argument('--frames', type=int, default=24, help='of the whole run')
    parser.add_argument(
        '--quick', action='store_true', help='the whole run with few passes and updates'
    )
    parser.add_argument(
        '--memory', choices=['normal', 'low'], default='normal', help='official run'
    )
    parser.add_argument('--threads', type=int, default=0)
    parser.add_argument('--json', default='')
    parser.add_argument('--add', action='store_true', help='to what is in the JSON file already')
    parser.add_argument('--table', default='')
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    book = measure(chosen)
    print('\n' + table(book.rows))
    if chosen.table:
        Path(chosen.table).write_text(table(book.rows) + '\n')
