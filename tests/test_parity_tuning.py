"Pivotal tuning and stitching tuning against golden numbers of the authors' code."

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_parity_generator import Checker, fill

from stitch_nb.generator import Generator
from stitch_nb import pti
from stitch_nb.engine.frames import FrameTuner
from stitch_nb.pti import PTIConfig, lr_factor, morph, plain_pti, tune_generator
from stitch_nb.stitch import StitchConfig, plain_stitch, stitch_frame, stitch_objective


class Pooled:
    "The golden stand-in for LPIPS: mean absolute difference after 4x4 average pooling."

    name = 'pooled'

    def features(self, x):
        return [F.avg_pool2d(x, 4)]

    def distance(self, a, b):
        return (a[0] - b[0]).abs().flatten(1).mean(1)

    def __call__(self, x, y):
        return self.distance(self.features(x), self.features(y))


@pytest.fixture(scope='module')
def G(manifest):
    return fill(Generator(64, 64, 64, 2048, 128, 4), manifest['models']['a1_gen_small/state_dict'])


def golden(parity, manifest, name):
    return (
        parity(name),
        manifest['fixtures'][name]['meta'],
        Checker(parity(name), manifest['fixtures'][name]['arrays']),
    )


def moved(G, tuned, names):
    a, b = dict(G.named_parameters()), dict(tuned.named_parameters())
    return np.array(
        [float((b[n].detach().double() - a[n].detach().double()).norm()) for n in names]
    )


@pytest.mark.parametrize('tune', [tune_generator, plain_pti])
@pytest.mark.parametrize(
    'kind,passes,changes',
    [
        ('l2only', 1, {}),
        ('l2only', 5, {}),
        ('perc', 1, {}),
        ('perc', 5, {}),
        ('perc_ramp', 8, dict(ramp='pass')),
        ('l2only_locality', 3, dict(lambda_r=0.1)),
        ('perc_locality', 3, dict(lambda_r=0.1)),
        pytest.param('l2only', 20, {}, marks=pytest.mark.slow),
        pytest.param('perc', 20, {}, marks=pytest.mark.slow),
    ],
)
def test_pti(parity, manifest, monkeypatch, G, kind, passes, changes, tune):
    "The authors' numbers, by the engine and by the plain loop."
    npz, meta, check = golden(parity, manifest, 'g_pti')
    pivots, before = torch.from_numpy(npz['ws']), {k: v.clone() for k, v in G.state_dict().items()}
    config = PTIConfig.reference(
        passes=passes, lr=meta['lr'], lambda_lpips=float('perc' in kind), **changes
    )
    drawn, near = iter(torch.from_numpy(npz['locality_z']).float()), pti.neighbour
    monkeypatch.setattr(pti, 'neighbour', lambda p, z, **how: near(p, next(drawn)[None], **how))
    tuned, history = tune(G, pivots, npz['targets_u8'], Pooled(), config)
    check(f'imgs_{kind}_{passes}', tuned.synthesis(pivots))
    none = np.zeros_like(history['loss'])  # a plain loop has no column for what is not computed
    losses = np.stack([history.get(k, none) for k in ('loss', 'l2', 'lpips')], -1)
    check(f'losses_{kind}_{passes}', losses.reshape(passes, -1, 3))
    check(f'param_delta_norm_{kind}_{passes}', moved(G, tuned, meta['param_names']))
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())


def test_ramp(parity, manifest):
    golden(parity, manifest, 'g_pti')[2](
        'lr_ramp_factors_8', np.array([lr_factor((s + 1) / 8) for s in range(8)])
    )


@pytest.mark.parametrize('size', ['small', 'full'])
def test_morph(parity, manifest, size):
    npz, _, check = golden(parity, manifest, 'g_morph')
    check(
        f'morphed_{size}',
        morph(torch.from_numpy(npz[f'new_{size}']), torch.from_numpy(npz[f'fixed_{size}']), 30.0),
    )


cases = [(f'{n}_{s}', dict(norm=n, steps=s)) for n in ('l2', 'l1') for s in (1, 5, 20)]
cases += [(f'l1_{s}_offset', dict(norm='l1', steps=s, lambda_m=0.1)) for s in (1, 5, 20)]
cases += [(f'l2_thr{i}', dict(steps=20, threshold=i)) for i in range(3)]
cases += [
    ('l2_5_lambda1', dict(steps=5, lambda_m=1.0)),
    ('l2_5_style_input', dict(steps=5)),
    ('l2_5_wplus_only', dict(steps=5, tune='latent')),
]
long = lambda name, changes: pytest.mark.slow if changes['steps'] > 5 and 'thr' not in name else ()
cases = [pytest.param(*case, marks=long(*case)) for case in cases]


@pytest.mark.parametrize('name,changes', cases)
def test_stitch(parity, manifest, G, name, changes):
    npz, meta, check = golden(parity, manifest, 'g_stitch')
    at = lambda k: torch.from_numpy(npz[k])
    w_edit = (at('w') + at('direction'))[
        0
    ]  # not the stored `w_edit`: that one went through the W+ optimisation
    masks = SimpleNamespace(border=at('border_mask')[0, 0], content=at('content_mask')[0, 0])
    changes, threshold = dict(changes), changes.get('threshold')
    if threshold is not None:
        changes['border_threshold'] = float(npz['thresholds'][changes.pop('threshold')])
    config, before = (
        StitchConfig.reference(**changes),
        {k: v.clone() for k, v in G.state_dict().items()},
    )
    tuner = FrameTuner(stitch_objective, G, config)
    styles = [s.detach() for s in G.styles(w_edit[None])] if 'style' in name else None
    edit = at('content_image_offset' if 'offset' in name else 'content_image')[0]
    image, history = stitch_frame(
        G, w_edit, npz['border_image_u8'], edit, masks, config, styles, tuner
    )
    check(f'img_{name}', image[None])
    check(f'losses_{name}', np.stack([history['border'], history['content']], 1))
    if f'param_delta_norm_{name}' in npz:
        check(f'param_delta_norm_{name}', moved(G, tuner.G_st, meta['param_names']))
    if threshold is not None:
        assert history['updates'] == npz['thr_steps_done'][threshold]
    if styles is None:
        image, plain = plain_stitch(G, w_edit, npz['border_image_u8'], edit, masks, config)
        check(f'img_{name}', image[None])
        check(f'losses_{name}', np.stack([plain['border'], plain['content']], 1))
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())
