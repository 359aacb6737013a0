"Where and how things are computed: devices that are there, float32 that is float32, a device without float64, threads, memory of the right card."

import contextlib
import os
import platform
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_tuning import Pooled, R, T, make_masks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stitch_nb.engine import device
from stitch_nb.core import StitchError
from stitch_nb.detectors import BundleFaces, MediaPipeFaces
from stitch_nb.generator import Generator
from stitch_nb.engine.clip import CropStore
from stitch_nb.pti import PTIConfig, pti_objective, tune_generator
from stitch_nb.stitch import StitchConfig, common_start, stitch_frames


@pytest.fixture
def G():
    torch.manual_seed(0)
    return Generator(32, 32, R, 512, 32, 2).eval()


@pytest.fixture
def clip():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(T, 6, 32, generator=rng), torch.rand(T, 3, R, R, generator=rng) * 2 - 1


@pytest.fixture
def two_cards(monkeypatch):
    "As far as names go: a machine with two cards."
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)


class NoFloat64(TorchDispatchMode):
    "A device that refuses float64, as MPS does."

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f'Cannot convert a MPS Tensor to float64 dtype ({func})')
        return found


def test_a_card_that_is_not_there(two_cards):
    assert str(device.pick_device('cuda:1')) == 'cuda:1'
    for name in ('cuda:7', 'cuda:2', 'cuda:x', 'cuda:-1'):
        with pytest.raises(StitchError, match='cuda:0, cuda:1, cpu'):
            device.pick_device(name)
    with pytest.raises(StitchError, match='not available'):
        device.pick_device('cpu:3')


def test_each_process_has_its_own_card(two_cards, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert str(device.pick_device('auto')) == 'cuda:1'


def test_float32_is_float32(two_cards):
    device.pick_device('cuda', tf32=True)
    assert device.float32_policy() == 'tf32'
    device.pick_device('cuda')
    assert device.float32_policy() == 'ieee'
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    with device.precision('cuda', 'tf32'):
        assert device.float32_policy() == 'tf32' and torch.backends.cudnn.benchmark
    assert device.float32_policy() == 'ieee' and not torch.backends.cudnn.benchmark


def test_the_right_cards_memory(monkeypatch):
    asked = []
    for name in ('mem_get_info', 'memory_reserved', 'memory_allocated', 'max_memory_allocated'):
        answer = (5, 9) if name == 'mem_get_info' else 3
        ask = lambda d=None, answer=answer: asked.append(str(d)) or answer
        monkeypatch.setattr(torch.cuda, name, ask)
    assert device.free_memory('cuda:1') == 5 and device.peak_memory('cuda:1') == 3
    assert set(asked) == {'cuda:1'} and device.free_memory('cpu') == 0


def test_a_stage_watches_the_card_that_it_runs_on(monkeypatch, tmp_path):
    "Its peak is in the note, from zero, and no other card is asked."
    from stitch_nb.run.store import Keep, WantedStage

    asked, peaks = [], dict(now=5 * 2**20)
    reset = lambda d=None: asked.append(str(d)) or peaks.update(now=0)
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', reset)
    read = lambda d=None: asked.append(str(d)) or peaks['now']
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', read)

    def make(path, tick, n):
        peaks.update(now=peaks['now'] + 3 * 2**20)
        path.write_text('x')

    stage = Keep(tmp_path, device='cuda:1')(WantedStage('work', '.txt', make, (1,)))
    assert stage.note['peak_gpu_mib'] == 3 and set(asked) == {'cuda:1'}
    asked.clear()
    assert 'peak_gpu_mib' not in Keep(tmp_path)(WantedStage('work', '.txt', make, (2,))).note
    assert not asked


def test_frames_follow_the_cards_memory(monkeypatch):
    room = SimpleNamespace(free=80 * 2**30)
    monkeypatch.setattr(device, 'free_memory', lambda d: room.free)
    assert device.frames_at_once(1024, 8, 'cuda') == 8
    room.free = 6 * 2**30
    assert device.frames_at_once(1024, 8, 'cuda') == 1
    assert device.frames_at_once(128, 8, 'cuda', 'low') == 1


def test_tuning_without_float64(G, clip):
    with NoFloat64():
        G_pti, _ = tune_generator(G, *clip, Pooled(), PTIConfig(passes=2, lambda_r=0.5))
        config = StitchConfig(steps=2, workers=1)
        results = stitch_frames(G_pti, *clip, [make_masks()] * T, config=config)
        assert len(list(results)) == T


def test_the_other_stages_bring_numbers_home_before_they_widen_them():
    "Float64 on MPS fails, so what a network gave goes to the processor first, everywhere."
    package = Path(device.__file__).parents[1]
    wide = re.compile(r'\.(double\(\)|to\(torch\.(double|float64)\))(\.\w+\([^()]*\))*\.cpu\(\)')
    sources = {p: p.read_text(encoding='utf-8') for p in package.rglob('*.py')}
    assert not [f'{p.name}: {m[0]}' for p, text in sources.items() for m in wide.finditer(text)]
    assert wide.search('x[0].double().reshape(-1).cpu()') and not wide.search('x.cpu().double()')


class Away(torch.Tensor):
    "A tensor on a device that has no float64."

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.double:
            raise TypeError('Cannot convert a MPS Tensor to float64 dtype')
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else found


def test_landmarks_from_a_device_without_float64():
    net = torch.nn.Linear(1, 1)
    frame, centre = np.zeros((64, 64, 3), np.uint8), np.array([32.0, 32.0])
    find = BundleFaces(net, lambda patch: torch.zeros(1, 68, 2).as_subclass(Away))
    assert find.points(frame, centre, 20.0).dtype == np.float64
    mesh = SimpleNamespace(side=192, square=lambda *_: np.array([[1.0, 0, 0], [0, 1.0, 0]]))
    call = lambda patch: (torch.zeros(1, 468, 3).as_subclass(Away), torch.zeros(1))
    mesh = type('Mesh', (), dict(vars(mesh), __call__=lambda self, patch: call(patch)))()
    found, _ = MediaPipeFaces(net, mesh).look(torch.zeros(3, 64, 64), centre[None], centre[None])
    assert found.dtype == np.float64


def test_a_stage_that_the_device_cannot_do():
    tried = []

    def stage(where):
        tried.append(where.type)
        if where.type == 'mps':
            raise NotImplementedError(
                "The operator 'aten::x' is not implemented for the MPS device"
            )
        return 7

    assert device.with_fallback(stage, 'mps') == 7 and tried == ['mps', 'cpu']

    def broken(where):
        raise RuntimeError('sizes do not match')

    with pytest.raises(RuntimeError, match='sizes'):
        device.with_fallback(broken, 'mps')
    with pytest.raises(NotImplementedError):
        device.with_fallback(lambda where: stage(torch.device('mps')), 'cpu')


def test_small_work_runs_on_few_threads(G, clip):
    seen, before = set(), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        look = lambda *_: seen.add(torch.get_num_threads())
        tune_generator(G, *clip, Pooled(), PTIConfig(passes=1), look)
        assert seen == {1} and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    rule = [device.useful_threads(4 * 128**2, n) for n in (1, 2, 4, 8, 16)]
    assert rule == [1, 2, 4, 4, 4] and device.useful_threads(1024**2, 16) == 16


def test_memory_is_used_again_only_inside(monkeypatch):
    calls = []
    libc = SimpleNamespace(
        mallopt=lambda *a: calls.append(a), malloc_trim=lambda *a: calls.append(a)
    )
    monkeypatch.setattr(device, '_LIBC', libc)
    monkeypatch.delenv('MALLOC_ARENA_MAX', raising=False)
    with pytest.raises(KeyError), device.reuse_memory('cpu'):
        assert len(calls) == 3
        raise KeyError
    assert len(calls) == 7 and calls[-1] == (0,)
    with device.reuse_memory('cuda'):
        assert len(calls) == 7
    del calls[:]
    with device.reuse_memory('cpu'):
        with device.reuse_memory('cpu'):
            pass
        assert (device._MMAP_MAX, 2**16) not in calls  # the outer block goes on as it was
    assert (device._MMAP_MAX, 2**16) in calls


HEAPS = """
import ctypes, sys, threading, torch
from stitch_nb.engine import device
threads = [threading.Thread(target=lambda: torch.ones(10 * 2**20)) for _ in range(3)]
with device.reuse_memory():
    for work in [threading.Thread.start, threading.Thread.join]:
        for thread in threads:
            work(thread)
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b'w'))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='a setting of glibc')
def test_threads_share_the_heap(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}
    told = tmp_path / 'heaps.xml'
    subprocess.run([sys.executable, '-c', HEAPS, str(told)], env=env, check=True)
    assert told.read_text().count('<heap nr=') == 1


def test_crops_are_sent_as_they_are(clip):
    u8 = np.random.default_rng(0).integers(0, 256, (T, R, R, 3), dtype=np.uint8)
    for crops in (u8, clip[1]):
        for budget in (0, 1e9):
            store = CropStore(crops, torch.device('cpu'), budget)
            buffer = store.buffer(2)
            store.fill(buffer, [3, 0])
            assert torch.equal(buffer, torch.as_tensor(crops[[3, 0]]))
            assert (store.there is None) == (budget == 0) and buffer.element_size() in (1, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA card here')
def test_a_card_gives_what_the_processor_gives(G, clip):
    config = PTIConfig(passes=3, batch=2, dtype='float32', lr=1e-3)
    few, masks = StitchConfig(steps=5, dtype='float32'), [make_masks()] * T
    there = Generator(**G.config).eval().to('cuda')
    there.load_state_dict(G.state_dict())
    a, _ = tune_generator(G, *clip, Pooled(), config)
    b, _ = tune_generator(there, *clip, Pooled(), config)
    for (name, p), q in zip(a.named_parameters(), b.parameters()):
        torch.testing.assert_close(p, q.cpu(), atol=1e-3, rtol=1e-3, msg=name)
    pairs = zip(
        stitch_frames(a, *clip, masks, config=few), stitch_frames(b, *clip, masks, config=few)
    )
    for (_, x, _), (_, y, _) in pairs:
        torch.testing.assert_close(x, y.cpu(), atol=1e-2, rtol=1e-3)


def test_the_version_that_is_needed():
    from pathlib import Path

    settings = (Path(__file__).resolve().parents[1] / 'settings.ini').read_text()
    assert 'torch>=2.5' in settings and 'torchvision>=0.20' in settings


def test_parked_weights_are_the_same_numbers():
    "Every dtype and shape, views and empty buffers too; the file is never written by the network."
    net = torch.nn.Module()
    net.rough = torch.nn.Parameter(torch.randn(3, 5).bfloat16())
    net.last = torch.nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    net.register_buffer('one', torch.tensor(7.0, dtype=torch.float64))
    net.register_buffer('none', torch.zeros(0, 3))
    net.register_buffer('count', torch.arange(33, dtype=torch.int64))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert device.park(net) == 64 * (1 + 8 + 1 + 5)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    net.rough.data.add_(1)
    assert torch.equal(net.rough.detach(), before['rough'] + 1)
    assert torch.equal(net.count, before['count'])


def test_workers_change_nothing_but_who_computes(G, clip, monkeypatch):
    "Any number of threads gives the same sums, and the same bits whichever is faster."
    from stitch_nb.engine import clip as engine

    config = PTIConfig(passes=2, batch=4, dtype='float32')
    seen, count, alive = [], iter((1, 3, 3)), threading.active_count()

    def measured(network, batch, config):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.01 * (len(seen) % 3))
        return pti_objective(network, batch, config)

    with device.threads(4):
        found = []
        for n in count:
            monkeypatch.setattr(engine, 'update_workers', lambda *_, n=n: n)
            monkeypatch.setattr('stitch_nb.pti.useful_threads', lambda pixels: 4)
            G_pti, _ = tune_generator(G, *clip, Pooled(), config, objective=measured)
            found.append(torch.cat([p.flatten() for p in G_pti.parameters()]))
            if n == 3:
                assert {own for _, own in seen} == {1} and len({who for who, _ in seen}) > 1
            seen.clear()
        assert torch.get_num_threads() == 4 and threading.active_count() == alive
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert torch.equal(found[1], found[2])


def test_a_worker_that_fails_ends_the_update():
    taken, workers = [], device.Workers(2)
    pieces = [lambda: 1, lambda: 1 / 0, lambda: 3]
    with contextlib.closing(workers), pytest.raises(ZeroDivisionError):
        workers.run(pieces, taken.append)
    assert taken == [1]


def test_frames_of_a_common_start_share_the_work(G, clip, monkeypatch):
    from stitch_nb.engine import frames as engine

    how, found = StitchConfig(steps=2, common=4, dtype='float32'), []
    for n in (1, 2):
        monkeypatch.setattr(engine, 'update_workers', lambda *_, n=n: n)
        start = common_start(G, *clip, [make_masks()] * len(clip[0]), config=how)
        found.append(torch.cat([w.flatten() for w in start.weights]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
