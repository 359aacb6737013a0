"Faster ways give the same: frames side by side, recorded updates, other plans; several processes against one, and after one of them dies."

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_tuning import Pooled, R, T, make_masks, same, state

from stitch_nb.encode import PivotConfig
from stitch_nb.generator import Generator, Plan, choose_plan
from stitch_nb.engine.clip import ClipTuner
from stitch_nb.engine.device import make_adam
from stitch_nb.engine.frames import FrameTuner, claimed_blocks
from stitch_nb.pti import PTIBatch, PTIConfig, pti_objective, tune_generator
from stitch_nb.stitch import (
    StitchConfig,
    as_frame,
    stitch_frame,
    stitch_frames,
    stitch_objective,
)

close = torch.testing.assert_close


def make_G():
    torch.manual_seed(0)
    return Generator(32, 32, R, 512, 32, 2).eval()


def make_clip():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(T, 6, 32, generator=rng), torch.rand(T, 3, R, R, generator=rng) * 2 - 1


@pytest.fixture
def G():
    G = make_G()
    with torch.no_grad():
        for name, p in G.named_parameters():
            if name.endswith('noise_strength'):
                p.fill_(0.1)
    return G


@pytest.fixture
def clip():
    return make_clip()


exact = StitchConfig(steps=6, lr=3e-3, dtype='float32', workers=1)


def test_one_update_is_an_update(G, clip):
    "The ramp's last rate is not 0."
    config = PTIConfig(passes=1, batch=T, dtype='float32')
    assert config.rate(0, 0, 1) == config.lr
    G_pti, history = tune_generator(G, *clip, Pooled(), config)
    assert not same(state(G), state(G_pti)) and history['lr'].tolist() == [[config.lr]]
    for passes in (1, 2, 16):
        for updates in (1, 3):
            last = PTIConfig(passes=passes).rate(passes - 1, updates - 1, updates)
            assert last > 0
    for steps in (1, 2, 30):
        assert PivotConfig(steps=steps).lr_at(steps - 1) > 0
    assert PivotConfig(steps=1).lr_at(0) == PivotConfig().lr
    theirs = PTIConfig(passes=8, ramp='pass')
    assert theirs.rate(7, 0, 3) == 0 and theirs.rate(3, 2, 3) == theirs.lr


@pytest.mark.parametrize('lanes', [2, 3])
@pytest.mark.parametrize('first', [4, 8])
def test_frames_side_by_side(G, clip, lanes, first):
    "Each lane ends where its frame ends alone; weights go home before the next group."
    config = StitchConfig(steps=6, lr=3e-3, dtype='float32', first_resolution=first)
    masks, before = [make_masks(), make_masks(content=False), make_masks(border=False)], state(G)
    alone = [stitch_frame(G, clip[0][t], clip[1][t], None, masks[t % 3], config) for t in range(T)]
    tuner, found = FrameTuner(stitch_objective, G, config, lanes=lanes), []
    for a in range(0, T, lanes):
        some = range(a, min(a + lanes, T))
        frames = [as_frame(G, clip[0][t], clip[1][t], None, masks[t % 3]) for t in some]
        tuner.reset()
        found += tuner.tune(frames, config.steps)
    assert len(found) == T and same(before, state(G))
    for (image, history), (other, theirs) in zip(alone, found):
        close(other, image, atol=1e-4, rtol=1e-4)
        assert history['updates'] == theirs['updates']
        for k in ('border', 'content'):
            close(torch.tensor(theirs[k]), torch.tensor(history[k]), atol=1e-4, rtol=1e-4)


def test_a_lane_may_be_done_before_the_others(G, clip):
    frames = [as_frame(G, clip[0][t], clip[1][t], None, make_masks()) for t in (0, 1)]
    ends = [FrameTuner(stitch_objective, G, exact).tune([f], 6)[0][1]['border'][3] for f in frames]
    config = StitchConfig(steps=6, lr=3e-3, dtype='float32', border_threshold=max(ends) + 1e-6)
    alone = [FrameTuner(stitch_objective, G, config).tune([f], 6)[0] for f in frames]
    both = FrameTuner(stitch_objective, G, config, lanes=2).tune(frames, 6)
    assert {h['updates'] for _, h in alone} != {6}
    for (image, history), (other, theirs) in zip(alone, both):
        assert history['updates'] == theirs['updates'] == len(theirs['border']) - 1
        close(other, image, atol=1e-4, rtol=1e-4)


class Recorded:
    "What a CUDA graph does, as far as it can be had on a CPU: the first call's step again and again."

    enabled, graph = True, None

    def __init__(self, replay):
        self.replay, self.calls = replay, 0

    def __call__(self):
        self.calls += 1
        self.replay.clear()
        return self.replay.step()


def test_recorded_updates_of_stitching(G, clip):
    "Losses read every ten updates, early stop found late, the same pictures."
    tuner = FrameTuner(stitch_objective, G, exact)
    replay = tuner.update.replay = Recorded(tuner.update.replay)
    frame = as_frame(G, clip[0][0], clip[1][0], None, make_masks())
    a, history = tuner.tune([frame], 6)[0]
    b, theirs = stitch_frame(G, clip[0][0], clip[1][0], None, make_masks(), exact)
    assert torch.equal(a, b) and replay.calls == 6
    assert history['updates'] == 6 and (history['border'] == theirs['border']).all()
    tuner.reset()
    nan = as_frame(G, clip[0][0], clip[1][0] * float('nan'), None, make_masks())
    with pytest.raises(ValueError, match='diverged at update 1'):
        tuner.tune([nan], 6)


def test_what_a_step_reads_stays_where_it_is(G, clip):
    "A recorded step knows addresses, not names: loading another frame or batch must not move a tensor."
    tuner = FrameTuner(stitch_objective, G, StitchConfig(steps=1, dtype='float32', first_resolution=8), lanes=2)
    frames = [as_frame(G, clip[0][t], clip[1][t], None, make_masks()) for t in range(4)]

    def places():
        lanes = [
            [v for v in vars(lane).values() if isinstance(v, torch.Tensor)] for lane in tuner.lanes
        ]
        frozen = [t for lane in tuner.lanes for t in lane.kept]
        adam = [t for s in tuner.adam.state.values() for t in s.values()]
        terms = tuner.update.terms.values()
        return [t.data_ptr() for t in [*sum(lanes, []), *frozen, *adam, *tuner.params, *terms]]

    tuner.tune(frames[:2], 1)
    before = places()
    tuner.reset()
    tuner.tune(frames[2:], 1)
    assert places() == before
    G_pti = make_G()
    adam = make_adam(list(G_pti.tunable().values()), 1e-3)
    config = PTIConfig(dtype='float32', batch=2)
    nets = PTIBatch(G, Pooled()), G_pti, adam
    clip_tuner = ClipTuner(pti_objective, *nets, *clip, config)
    clip_tuner([0, 1], 1e-3, clip[0][:1])
    loaded = clip_tuner.prepare(2, beside=True)
    where = lambda: [
        t.data_ptr() for t in (loaded.pivots, loaded.crops, loaded.w_r, *loaded.features)
    ]
    before = where()
    clip_tuner([3, 2], 1e-3, clip[0][1:2])
    assert where() == before and torch.equal(loaded.crops, clip[1][[3, 2]])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('N', [1, 3])
def test_every_plan_draws_the_same(G, clip, N, dtype):
    "Pictures and gradients of all memory orders, both ways to double, fused and plain."
    results = []
    for plan in [
        Plan(c, p, q) for c in (True, False) for p in (False, True) for q in (False, True)
    ]:
        G.synthesis.plan = plan
        G.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
            image = G.synthesis(clip[0][:N])
        (image * clip[1][:N]).sum().backward()
        grads = [p.grad.clone() for p in G.tunable().values()]
        if dtype == 'bfloat16':  # single numbers are sums that nearly cancel
            grads = [torch.cat([g.flatten() for g in grads])]
        results.append((image.detach(), grads))
    slack = 1e-4 if dtype == 'float32' else 0.1
    image, grads = results[0]
    for other, theirs in results[1:]:
        assert (other - image).norm() <= slack / 3 * image.norm()
        for a, b in zip(grads, theirs):
            assert (a - b).norm() <= slack * a.norm() + 1e-6


def test_weight_or_activations(G, clip):
    "A frame alone is modulated in the weight where that is cheaper: the same picture as in a batch."
    with torch.no_grad():
        together = G.synthesis(clip[0])
        for t in range(T):
            close(G.synthesis(clip[0][t : t + 1])[0], together[t], atol=1e-5, rtol=1e-4)


def test_little_memory_changes_nothing(G, clip):
    for config in (PTIConfig(passes=3, batch=4, dtype='float32', lr=1e-3),):
        a, _ = tune_generator(G, *clip, Pooled(), config)
        low = PTIConfig(passes=3, batch=4, dtype='float32', lr=1e-3, memory='low')
        b, _ = tune_generator(G, *clip, Pooled(), low)
        close(b.synthesis(clip[0]), a.synthesis(clip[0]), atol=1e-4, rtol=1e-4)
    low = StitchConfig(steps=6, lr=3e-3, dtype='float32', memory='low')
    masks = [make_masks()] * T
    for (_, a, _), (_, b, _) in zip(
        stitch_frames(G, *clip, masks, config=exact), stitch_frames(G, *clip, masks, config=low)
    ):
        close(a, b, atol=1e-4, rtol=1e-4)


SCRIPT = '''
import os, sys, torch
sys.path.insert(0, {tests!r})
from test_side_by_side import make_G, make_clip
from test_tuning import Pooled
from stitch_nb.engine.device import join_ranks
from stitch_nb.pti import PTIConfig, tune_generator
torch.set_num_threads(1)
here, G = join_ranks('cpu'), make_G()
die = os.environ.get('DIE')
def progress(done, total, text):
    if die and here.rank == 1 and done == int(die): os._exit(9)
config = PTIConfig(passes=6, batch=3, dtype='float32', lr=1e-3, lambda_r=.5)
G_pti, history = tune_generator(G, *make_clip(), Pooled(), config, progress, checkpoint=sys.argv[1] + '/pti.safetensors', checkpoint_every=2)
if here.rank == 0: torch.save(dict(state=G_pti.state_dict(), loss=history['loss'].tolist(), psnr=history['psnr'].tolist(), world=here.world), sys.argv[1] + '/found.pt')
'''


def torchrun(folder, n: int, text=SCRIPT, **environment):
    script = folder / 'script.py'
    script.write_text(text.format(tests=str(Path(__file__).parent)))
    root = str(Path(__file__).resolve().parents[1])
    env = os.environ | dict(PYTHONPATH=root, OMP_NUM_THREADS='1') | environment
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', n]
    return subprocess.run(
        [*map(str, command), str(script), str(folder)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


LEAVE = '''
import atexit, sys, torch
import torch.distributed as dist
still = lambda: open(sys.argv[1] + f'/{{here.rank}}', 'w').write(str(dist.is_initialized()))
atexit.register(still)  # the last of all that run at the end
from stitch_nb.engine.device import add_over_ranks, join_ranks
here = join_ranks('cpu')
add_over_ranks([torch.ones(3)])
'''


def test_a_process_leaves_its_group_before_it_ends(tmp_path):
    "One that ends while the group's threads run is, two times in three, aborted."
    done = torchrun(tmp_path, 2, LEAVE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / f'{rank}').read_text() for rank in range(2)] == ['False'] * 2


@pytest.mark.parametrize('deaths', [pytest.param([], marks=pytest.mark.slow), ['9']])
def test_two_processes_give_what_one_gives(tmp_path, deaths):
    "PTI under torchrun, gloo; also with a process that dies and a second start."
    config = PTIConfig(passes=6, batch=3, dtype='float32', lr=1e-3, lambda_r=0.5)
    alone, history = tune_generator(make_G(), *make_clip(), Pooled(), config)
    for die in deaths:
        assert torchrun(tmp_path, 2, DIE=die).returncode != 0
        assert (tmp_path / 'pti.safetensors').exists() and not (tmp_path / 'found.pt').exists()
    done = torchrun(tmp_path, 2)
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / 'found.pt', weights_only=True)
    assert found['world'] == 2
    for k, v in alone.state_dict().items():
        close(found['state'][k], v, atol=1e-5, rtol=1e-4, msg=k)
    np.testing.assert_allclose(found['loss'], history['loss'], atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(found['psnr'], history['psnr'], atol=1e-3, rtol=1e-4)


CLAIM = '''
import sys, time
from pathlib import Path
from stitch_nb.engine.frames import claimed_blocks
folder, pause = Path(sys.argv[1]), float(sys.argv[2])
for a, b in claimed_blocks(folder, 12, lambda t: (folder/f'{t}.done').exists(), size=3, wait=.05):
    print(a, b, flush=True)
    for t in range(a, b):
        if (folder/f'{t}.done').exists(): continue
        time.sleep(pause)
        with open(folder/f'{t}.done', 'x') as f: f.write(sys.argv[3])
'''


def test_a_dead_process_leaves_its_block_to_others(tmp_path):
    "Blocks are shared without two doing one; after a kill the others do the rest."
    root = str(Path(__file__).resolve().parents[1])
    start = lambda pause, name: subprocess.Popen(
        [sys.executable, '-c', CLAIM, str(tmp_path), str(pause), name],
        env=os.environ | dict(PYTHONPATH=root),
        stdout=subprocess.PIPE,
    )
    slow = start(60, 'slow')
    assert slow.stdout.readline().split()[0] == b'0'  # it holds the first block
    quick = start(0, 'quick')
    deadline = time.time() + 120
    while len(list(tmp_path.glob('*.done'))) < 9 and time.time() < deadline:
        time.sleep(0.1)
    assert {p.stem for p in tmp_path.glob('*.done')} == {str(t) for t in range(3, 12)}
    assert quick.poll() is None  # it waits for the block that another one holds
    slow.kill()
    slow.wait()
    assert quick.wait(timeout=120) == 0
    assert {p.stem for p in tmp_path.glob('*.done')} == {str(t) for t in range(12)}


def test_claims_begin_at_the_first_missing_frame(tmp_path):
    done = {0, 1, 2, 4}
    seen = []
    for a, b in claimed_blocks(tmp_path, 8, lambda t: t in done, size=4):
        seen.append((a, b))
        done |= set(range(a, b))
    assert seen == [(3, 4), (5, 8)]


def test_the_plan_follows_the_device():
    "As measured on an H100 (tools/bench_h100.json) and on a processor."
    from types import SimpleNamespace

    card = lambda dtype: SimpleNamespace(device=torch.device('cuda'), dtype=dtype)
    assert choose_plan(torch.zeros(1)) == Plan(channels_last=True, phases=False)
    assert choose_plan(card(torch.float32), 1) == Plan(channels_last=False, phases=False)
    assert choose_plan(card(torch.bfloat16), 1) == Plan(channels_last=True, phases=True)
    assert choose_plan(card(torch.bfloat16), 4) == Plan(channels_last=False, phases=False)
