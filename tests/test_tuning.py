"Tuning under bad luck: interruptions, divergence, empty masks, zero weights, wrong shapes; and what must stay untouched."

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stitch_nb.core import StitchError
from stitch_nb.generator import Generator
from stitch_nb.engine.clip import TargetFeatures
from stitch_nb.engine.frames import CommonStart, FrameTuner
from stitch_nb.pti import PTIConfig, tune_generator
from stitch_nb.stitch import (
    StitchConfig,
    common_start,
    masked_error,
    stitch_frame,
    stitch_frames,
    stitch_objective,
)

T, R = 5, 16


class Pooled:
    name = 'pooled'

    def __init__(self):
        self.calls = 0

    def features(self, x):
        self.calls += not x.requires_grad
        return [F.avg_pool2d(x, 4)]

    def distance(self, a, b):
        return (a[0] - b[0]).abs().flatten(1).mean(1)

    def __call__(self, x, y):
        return self.distance(self.features(x), self.features(y))


@pytest.fixture
def G():
    torch.manual_seed(0)
    return Generator(32, 32, R, 512, 32, 2).eval()


@pytest.fixture
def clip():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(T, 6, 32, generator=rng), torch.rand(T, 3, R, R, generator=rng) * 2 - 1


def state(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


config = PTIConfig(passes=6, batch=2, lr=1e-3, lambda_r=0.5)


@pytest.mark.parametrize('stop_after', [1, 7, 13, 17])
def test_interrupted_anywhere_gives_the_same_result(G, clip, tmp_path, stop_after):
    whole, history = tune_generator(G, *clip, Pooled(), config)

    def interrupt(done, total, text):
        if done == stop_after:
            raise KeyboardInterrupt

    path = tmp_path / 'pti.safetensors'
    with pytest.raises(KeyboardInterrupt):
        tune_generator(G, *clip, Pooled(), config, interrupt, checkpoint=path, checkpoint_every=2)
    seen = []
    again, later = tune_generator(
        G,
        *clip,
        Pooled(),
        config,
        lambda d, t, s: seen.append(d),
        checkpoint=path,
        checkpoint_every=2,
    )
    assert (
        seen[0] == stop_after // 6 * 6 + 1 and seen[-1] == 18
    )  # 3 updates a pass, written every 2 passes
    assert same(state(again), state(whole))
    assert all(np.array_equal(later[k], history[k]) for k in history)
    finished, _ = tune_generator(
        G, *clip, Pooled(), config, lambda *a: pytest.fail('nothing is left to do'), checkpoint=path
    )
    assert same(state(finished), state(whole))
    assert [p.name for p in tmp_path.iterdir()] == ['pti.safetensors']


def test_checkpoint_of_another_run_is_not_used(G, clip, tmp_path):
    path = tmp_path / 'pti.safetensors'
    tune_generator(G, *clip, Pooled(), config, checkpoint=path)
    with pytest.raises(StitchError, match='another clip'):
        tune_generator(G, clip[0] + 1, clip[1], Pooled(), config, checkpoint=path)
    path.write_bytes(b'rubbish')
    with pytest.raises(StitchError, match='delete it'):
        tune_generator(G, *clip, Pooled(), config, checkpoint=path)


def test_a_new_network_and_an_untouched_one(G, clip):
    before, pivots, crops = state(G), clip[0].clone(), clip[1].clone()
    tuned, history = tune_generator(G, *clip, Pooled(), config)
    assert same(before, state(G)) and all(p.requires_grad for p in G.parameters())
    assert torch.equal(pivots, clip[0]) and torch.equal(crops, clip[1])
    assert not same(before, state(tuned)) and not any(p.requires_grad for p in tuned.parameters())
    assert {p.data_ptr() for p in G.parameters()}.isdisjoint(
        p.data_ptr() for p in tuned.parameters()
    )
    assert same({k: v for k, v in before.items() if k.startswith('mapping')}, state(tuned))
    assert (
        history['loss'].shape == (6, 3)
        and history['psnr'].shape == (6,)
        and history['psnr'][-1] > history['psnr'][0]
    )


def test_same_seed_same_result_and_global_randomness_untouched(G, clip):
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, _ = tune_generator(G, *clip, Pooled(), config)
    assert torch.equal(states[0], torch.get_rng_state()) and np.array_equal(
        states[1], np.random.get_state()[1]
    )
    b, _ = tune_generator(G, *clip, Pooled(), config)
    c, _ = tune_generator(
        G, *clip, Pooled(), PTIConfig(passes=6, batch=2, lr=1e-3, lambda_r=0.5, seed=1)
    )
    assert same(state(a), state(b)) and not same(state(a), state(c))


def test_bytes_and_floats_are_the_same_clip(G, clip):
    u8 = np.random.default_rng(0).integers(0, 256, (T, R, R, 3), dtype=np.uint8)
    floats = torch.from_numpy(u8).movedim(-1, 1).float().div(127.5).sub(1)
    a, _ = tune_generator(G, clip[0], u8, None, PTIConfig(passes=1, lambda_lpips=0))
    b, _ = tune_generator(G, clip[0], floats, None, PTIConfig(passes=1, lambda_lpips=0))
    assert same(state(a), state(b))


@pytest.mark.parametrize('zero', ['lambda_lpips', 'lambda_l2', 'lambda_r'])
def test_zero_weights(G, clip, zero):
    _, history = tune_generator(G, *clip, Pooled(), PTIConfig(passes=2, **{zero: 0.0}))
    assert np.isfinite(history['loss']).all()
    column = history[{'lambda_lpips': 'lpips', 'lambda_r': 'locality'}.get(zero, 'l2')]
    assert (column > 0).all() == (zero == 'lambda_l2')


def test_no_passes_is_a_copy(G, clip):
    tuned, history = tune_generator(G, *clip, Pooled(), PTIConfig(passes=0))
    assert same(state(tuned), state(G)) and history['psnr'].shape == (0,)


def test_one_frame(G, clip):
    _, history = tune_generator(G, clip[0][:1], clip[1][:1], Pooled(), PTIConfig(passes=2))
    assert history['psnr'].shape == (2,)


def test_features_of_targets_are_computed_once(G, clip):
    perceptual = Pooled()
    tune_generator(G, *clip, perceptual, PTIConfig(passes=4, batch=2, lambda_r=0.0))
    assert perceptual.calls == 1 + 3  # one frame to learn the size, three batches
    small = TargetFeatures(perceptual, clip[1], 'cpu', 2, budget=2 * 3 * 16 * 4)
    assert small.n == 2 and torch.equal(small([4, 1])[0], F.avg_pool2d(clip[1][[4, 1]], 4))


def test_divergence_is_an_error_and_keeps_the_last_good_state(G, clip, tmp_path):
    path, crops = tmp_path / 'pti.safetensors', clip[1].clone()

    class Bad(Pooled):
        def distance(self, a, b):
            self.n = getattr(self, 'n', 0) + 1
            return super().distance(a, b) * (float('nan') if self.n == 8 else 1)

    with pytest.raises(StitchError, match=r'pass 3, update 2.*smaller lr.*kept in'):
        tune_generator(
            G,
            clip[0],
            crops,
            Bad(),
            PTIConfig(passes=6, batch=2, lambda_r=0.0),
            checkpoint=path,
            checkpoint_every=1,
        )
    good = path.read_bytes()
    assert len(good) > 1000
    with pytest.raises(StitchError, match='lr'):
        tune_generator(
            G,
            clip[0],
            crops,
            None,
            PTIConfig(passes=40, lr=1e18, ramp='none', lambda_lpips=0, lambda_r=0),
        )


def test_bfloat16_is_close(G, clip):
    a, ha = tune_generator(G, *clip, Pooled(), PTIConfig(passes=6, batch=2, dtype='float32'))
    b, hb = tune_generator(G, *clip, Pooled(), PTIConfig(passes=6, batch=2, dtype='bfloat16'))
    assert abs(ha['psnr'][-1] - hb['psnr'][-1]) < 0.5 and all(
        p.dtype == torch.float32 for p in b.parameters()
    )


@pytest.mark.parametrize(
    'field,value',
    [
        ('passes', -1),
        ('passes', 2.5),
        ('batch', 0),
        ('lr', 0),
        ('lr', float('nan')),
        ('lambda_l2', -1),
        ('lambda_r', float('inf')),
        ('alpha', 0),
        ('ramp', 'up'),
        ('dtype', 'float16'),
    ],
)
def test_pti_settings(field, value):
    with pytest.raises(StitchError, match=f'{field}=.*; '):
        PTIConfig(**{field: value})
    with pytest.raises(StitchError, match='nothing is fitted'):
        PTIConfig(lambda_l2=0, lambda_lpips=0)


@pytest.mark.parametrize(
    'field,value',
    [
        ('steps', -1),
        ('steps', 1.5),
        ('workers', -1),
        ('first_resolution', 4.5),
        ('lr', -1),
        ('lambda_m', float('nan')),
        ('norm', 'l3'),
        ('tune', 'all'),
        ('dtype', 'half'),
        ('first_resolution', 2),
        ('border_threshold', -1),
    ],
)
def test_stitch_settings(field, value):
    with pytest.raises(StitchError, match=f'{field}=.*; '):
        StitchConfig(**{field: value})


def test_wrong_shapes(G, clip):
    with pytest.raises(StitchError, match='pivots has shape'):
        tune_generator(G, clip[0][:, :3], clip[1], Pooled())
    with pytest.raises(StitchError, match='crops has shape'):
        tune_generator(G, clip[0], clip[1][:, :, :8], Pooled())
    with pytest.raises(StitchError, match='0 frames'):
        tune_generator(G, clip[0][:0], clip[1][:0], Pooled())
    with pytest.raises(StitchError, match='perceptual network'):
        tune_generator(G, *clip)


def make_masks(border=True, content=True):
    b, c = torch.zeros(R, R), torch.zeros(R, R)
    c[4:12, 4:12] = float(content)
    b[2:14, 2:14] = float(border)
    b[4:12, 4:12] = 0
    return SimpleNamespace(border=b, content=c)


quick = StitchConfig(steps=6, lr=3e-3, lambda_m=0.1, workers=2, dtype='float32')


def test_stitching_moves_the_border_and_touches_nothing_else(G, clip):
    w, source, masks, before = clip[0][0], clip[1][0], make_masks(), state(G)
    edit = G.synthesis(w[None])[0].detach()
    image, history = stitch_frame(
        G, w, source, None, masks, StitchConfig(steps=60, lr=3e-3, lambda_m=0.1)
    )
    assert (
        same(before, state(G))
        and all(p.requires_grad for p in G.parameters())
        and not image.requires_grad
    )
    assert masked_error(image, source, masks.border) < 0.6 * masked_error(
        edit, source, masks.border
    )
    assert history['content'][0] == 0 and history['updates'] == 60 and len(history['border']) == 60


@pytest.mark.parametrize('norm', ['l1', 'l2'])
def test_empty_masks(G, clip, norm):
    settings = StitchConfig(steps=3, norm=norm)
    edit = G.synthesis(clip[0][:1])[0].detach()
    image, history = stitch_frame(
        G, clip[0][0], clip[1][0], None, make_masks(border=False), settings
    )
    assert torch.equal(image, edit) and history['updates'] == 0
    image, history = stitch_frame(
        G, clip[0][0], clip[1][0], None, make_masks(content=False), settings
    )
    assert (
        image.isfinite().all()
        and (history['content'] == 0).all()
        and history['border'][-1] < history['border'][0]
    )
    image, _ = stitch_frame(
        G,
        clip[0][0],
        clip[1][0],
        None,
        make_masks(),
        StitchConfig(steps=3, norm=norm, lambda_m=0.0),
    )
    assert image.isfinite().all()


def test_half_precision_ends_with_a_picture_in_full(G, clip):
    edit, masks = G.synthesis(clip[0][:1])[0].detach(), make_masks()
    untuned, history = stitch_frame(
        G,
        clip[0][0],
        clip[1][0],
        None,
        masks,
        StitchConfig(steps=20, dtype='bfloat16', border_threshold=99.0),
    )
    assert torch.equal(untuned, edit) and history['updates'] == 0 and history['content'][0] == 0
    a, _ = stitch_frame(
        G, clip[0][0], clip[1][0], None, masks, StitchConfig(steps=20, dtype='bfloat16', lr=3e-3)
    )
    b, _ = stitch_frame(
        G, clip[0][0], clip[1][0], None, masks, StitchConfig(steps=20, dtype='float32', lr=3e-3)
    )
    assert (a - b).abs().mean() < 0.1 * (b - edit).abs().mean()


def test_l1_ties_have_no_gradient():
    image, target, mask = (
        torch.zeros(3, 2, 2, requires_grad=True),
        torch.zeros(3, 2, 2),
        torch.ones(2, 2),
    )
    target[0, 0, 0], target[0, 1, 1] = 1e-6, -0.5
    error = masked_error(image, target, mask, 'l1', 1e-5)
    error.backward()
    assert (
        error.item() == pytest.approx(0.125)
        and image.grad.count_nonzero() == 1
        and image.grad[0, 1, 1] == 0.25
    )
    assert masked_error(image, target, mask, 'l2').item() == pytest.approx(0.0625)
    assert masked_error(image, target, torch.zeros(2, 2)) == 0
    half = mask * torch.tensor([0.0, 1.0])
    assert masked_error(image, target, half, 'l1').item() == pytest.approx(0.25)


def test_divergence_in_stitching(G, clip):
    with pytest.raises(StitchError, match='smaller lr'):
        stitch_frame(
            G,
            clip[0][0],
            clip[1][0],
            None,
            make_masks(),
            StitchConfig(steps=30, lr=1e18, ramp=False),
        )
    source = clip[1].clone()
    source[2] = float('nan')
    with pytest.raises(StitchError, match='frame 2'):
        list(stitch_frames(G, clip[0], source, [make_masks()] * T, config=quick))


def test_a_clip_is_its_frames(G, clip):
    masks, before = [make_masks()] * T, state(G)
    alone = [stitch_frame(G, clip[0][t], clip[1][t], None, masks[t], quick)[0] for t in range(T)]
    threads, seen = torch.get_num_threads(), []
    got = list(
        stitch_frames(G, *clip, masks, config=quick, progress=lambda d, n, s: seen.append((d, n)))
    )
    assert torch.get_num_threads() == threads and same(before, state(G))
    assert [t for t, *_ in got] == list(range(T)) and seen == [(t + 1, T) for t in range(T)]
    for a, (_, b, _) in zip(alone, got):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    late = list(stitch_frames(G, *clip, masks, config=quick, start=3))
    assert [t for t, *_ in late] == [3, 4] and all(
        torch.equal(a[1], b[1]) for a, b in zip(got[3:], late)
    )


def test_frames_begin_where_the_clip_says(G, clip):
    w, crops = clip
    masks = [make_masks() for _ in range(T)]
    config = StitchConfig(steps=3, common=12, lr=5e-3, dtype='float32', first_resolution=4)
    before = state(G)
    common = common_start(G, w, crops, masks, config=config)
    assert same(state(G), before)
    kept = CommonStart.from_tensors(common.tensors())
    assert kept.updates == 12 and all(map(torch.equal, kept.squares, common.squares))
    assert any((s > 0).any() for s in kept.squares)

    found = list(stitch_frames(G, w, crops, masks, config=config))
    given = list(stitch_frames(G, w, crops, masks, config=config, common=kept))
    late = list(stitch_frames(G, w, crops, masks, config=config, common=kept, start=3))
    for (t, a, ha), (_, b, _) in zip(found, given):
        assert torch.equal(a, b), t
    for (t, a, _), (_, b, _) in zip(found[3:], late):
        assert torch.equal(a, b), t  # resumed: the same bits

    alone = list(stitch_frames(G, w, crops, masks, config=replace(config, common=0)))
    begins = [np.mean([h['border'][0] for *_, h in results]) for results in (found, alone)]
    assert begins[0] < 0.97 * begins[1]  # the clip's updates are felt before a frame's first
    with torch.no_grad():
        edits = [G.synthesis(w[t : t + 1])[0] for t in range(T)]
    drawn = list(stitch_frames(G, w, crops, masks, edits, config=config, common=kept))
    for (_, a, _), (_, b, _) in zip(drawn, found):
        torch.testing.assert_close(a, b)  # what must be kept is what G_pti draws, not the start


def test_a_lone_frame_has_no_common_start():
    config = StitchConfig(steps=5, common=20)
    assert (config.alone().steps, config.alone().common) == (20, 0)
    assert StitchConfig(steps=5).alone() == StitchConfig(steps=5)
    with pytest.raises(StitchError, match="common=3 .* use common=0"):
        StitchConfig(common=3, tune='latent')


def test_a_short_clip_gets_its_updates():
    config = PTIConfig(passes=2, least=30, batch=4)
    assert [config.for_frames(T).passes for T in (4, 6, 60, 400)] == [30, 15, 2, 2]
    assert PTIConfig(passes=0, least=30).for_frames(4).passes == 0  # no PTI is no PTI


def test_stopping_early_leaves_no_thread_behind(G, clip):
    import threading

    before = threading.active_count()
    frames = stitch_frames(G, *clip, [make_masks()] * T, config=StitchConfig(steps=100, workers=2))
    next(frames)
    frames.close()
    assert threading.active_count() == before


def test_crops_of_another_method(G, clip):
    u8 = np.random.default_rng(0).integers(0, 256, (2, R, R, 3), dtype=np.uint8)
    image, history = stitch_frame(G, clip[0][0], u8[0], u8[1], make_masks(), quick)
    assert history['content'][0] > 0 and image.shape == (3, R, R)
    with pytest.raises(StitchError, match='source_crop'):
        stitch_frame(G, clip[0][0], u8[0][:8], u8[1], make_masks(), quick)
    with pytest.raises(StitchError, match='masks.border'):
        stitch_frame(
            G,
            clip[0][0],
            u8[0],
            None,
            SimpleNamespace(border=torch.zeros(8, 8), content=torch.zeros(8, 8)),
            quick,
        )
    with pytest.raises(StitchError, match='stitch_masks'):
        stitch_frame(G, clip[0][0], u8[0], None, None, quick)
    with pytest.raises(StitchError, match='has 4 frames'):
        list(stitch_frames(G, clip[0], clip[1][:4], [make_masks()] * T, config=quick))


def test_parts_of_the_generator(G, clip):
    with torch.no_grad():
        styles = G.styles(clip[0])
        torch.testing.assert_close(G.draw_blocks(styles)[1], G.synthesis(clip[0]))
        torch.testing.assert_close(
            G.draw_blocks(styles, 8, state=G.draw_blocks(styles, last=8))[1], G.synthesis(clip[0])
        )
    tuner = FrameTuner(stitch_objective, G, StitchConfig(steps=2, first_resolution=8))
    stitch_frame(G, clip[0][0], clip[1][0], None, make_masks(), tuner.config, tuner=tuner)
    changed = {
        n.split('.')[1]
        for n, p in tuner.G_st.named_parameters()
        if not torch.equal(p, dict(G.named_parameters())[n])
    }
    assert changed == {'b8', 'b16'}
    with pytest.raises(StitchError, match='nothing to tune'):
        FrameTuner(stitch_objective, G, StitchConfig(first_resolution=32))
