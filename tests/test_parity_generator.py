"The generator against golden numbers: images, latents, style space, gradients, clamp."

import zlib

import numpy as np
import pytest
import torch

from stitch_nb.generator import Generator


def fill(module, table, seed=0):
    "Fill a module's entries by the golden formula; every key and shape must agree."
    state = module.state_dict()
    keys = [k for k in table]
    assert sorted(state) == sorted(keys)
    for k in keys:
        v, (kind, *rest) = table[k], table[k]['fill']
        assert list(state[k].shape) == v['shape'], k
        if kind != 'keep':
            n = (
                np.random.default_rng(zlib.crc32(k.encode()) + seed)
                .standard_normal(v['shape'])
                .astype('float32')
            )
            n = np.abs(n) if kind == 'a' else n
            state[k] = torch.from_numpy(np.asarray(np.float32(rest[0]) + np.float32(rest[1]) * n))
        assert abs(state[k].double().sum().item() - v['sum']) <= 1e-3 * max(1, abs(v['sum']))
    module.load_state_dict(state)
    return module.requires_grad_(True).eval()


class Checker:
    def __init__(self, npz, arrays):
        self.npz, self.arrays, self.worst = npz, arrays, {}

    def __call__(self, name, got, slack=1.0):
        got = np.asarray(got.detach() if torch.is_tensor(got) else got)
        got, want = self.npz.pair(name, got)
        diff = np.abs(got - want).max()
        atol = self.arrays[name]['suggested_atol'] * slack
        self.worst[name] = diff / atol
        assert diff <= atol, f'{name}: off by {diff:.2e}, allowed {atol:.2e}'


@pytest.fixture(scope='module')
def small(parity, manifest):
    G = Generator(64, 64, 64, 2048, 128, 4)
    fill(G, manifest['models']['a1_gen_small/state_dict'])
    npz = parity('a1_gen_small')
    return G, npz, Checker(npz, manifest['fixtures']['a1_gen_small']['arrays'])


def tensors(npz, *names):
    return [torch.from_numpy(npz[n]) for n in names]


@torch.no_grad()
def test_mapping(small):
    G, npz, check = small
    (z,) = tensors(npz, 'z')
    check('map_psi1', G.mapping(z))
    check('map_psi07', G.mapping(z, 0.7))
    check('map_psi07_cutoff4', G.mapping(z, 0.7, 4))


@torch.no_grad()
def test_images(small):
    G, npz, check = small
    z, ws = tensors(npz, 'z', 'ws')
    check('img_const', G.synthesis(ws))
    check('img_none', G.synthesis(ws, noise='none'))
    check('img_from_z_psi07_const', G(z, 0.7))


@torch.no_grad()
def test_style_space(small):
    G, npz, check = small
    (ws,) = tensors(npz, 'ws')
    styles = G.styles(ws)
    assert [s.shape[1] for s in styles] == npz['style_dims'].tolist()
    for i, s in enumerate(styles):
        check(f'style_{i:02d}', s)
    check('img_style_input_const', G.synthesis_from_styles(styles))
    moved = [s + torch.from_numpy(npz[f'dstyle_{i:02d}']) for i, s in enumerate(styles)]
    check('img_style_edit_const', G.synthesis_from_styles(moved))


@torch.no_grad()
def test_features(small):
    G, npz, check = small
    _, feats = G.synthesis.from_styles(G.styles(*tensors(npz, 'ws')), features=True)
    check('feat_mean', torch.stack([f.mean() for f in feats]))
    check('feat_std', torch.stack([f.std() for f in feats]))
    check('feat_b8_patch', feats[1][:, :16])


@torch.no_grad()
def test_clamp(small):
    G, npz, check = small
    clamped = Generator(**{**G.config, 'conv_clamp': 1.0})
    clamped.load_state_dict(G.state_dict())
    check('img_clamp1_const', clamped.synthesis(*tensors(npz, 'ws')))


def test_gradients(small, manifest):
    G, npz, check = small
    ws = torch.from_numpy(npz['ws'])[:1].requires_grad_()
    target = torch.from_numpy(npz['grad_target_u8']).permute(2, 0, 1)[None] / 127.5 - 1
    G.zero_grad()
    loss = (G.synthesis(ws) - target).square().mean()
    loss.backward()
    check('grad_loss', loss.reshape(1))
    check('grad_ws', ws.grad)
    names = manifest['fixtures']['a1_gen_small']['meta']['grad_norm_names']
    params = dict(G.named_parameters())
    assert list(params) == names
    check(
        'grad_norms',
        torch.stack(
            [torch.tensor(-1.0) if params[n].grad is None else params[n].grad.norm() for n in names]
        ),
    )
    check('grad_b4_const', G.synthesis.b4.const.grad)
    check('grad_b16_conv0_weight_o0', G.synthesis.b16.conv0.weight.grad[:4])
    check('grad_b64_torgb_weight', G.synthesis.b64.torgb.weight.grad)
    G.zero_grad(set_to_none=True)


@torch.no_grad()
def test_full_size(parity, manifest):
    npz, name = parity('a2_gen_1024'), 'a2_gen_1024'
    check = Checker(npz, manifest['fixtures'][name]['arrays'])
    with torch.device('meta'):
        G = Generator()
    G = G.to_empty(device='cpu')
    for m in G.modules():
        if hasattr(m, 'resample_filter'):
            f = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
            m.resample_filter.copy_(f[:, None] * f)
    fill(G, manifest['models'][f'{name}/state_dict'])
    z, ws = tensors(npz, 'z', 'ws')
    check('map_psi1', G.mapping(z)[:, 0])
    check('map_psi07', G.mapping(z, 0.7)[:, 0])
    styles = G.styles(ws)
    check('styles_concat', torch.cat(styles, 1))
    x = G.synthesis_from_styles(styles)[0]
    check('img_mean', x.mean((1, 2)))
    check('img_std', x.flatten(1).std(1))
    check('img_area64', x.double().reshape(3, 64, 16, 64, 16).mean((2, 4)))
    for top, left in (100, 200), (600, 700), (992, 0):
        check(f'patch_y{top}_x{left}', x[:, top : top + 32, left : left + 32])


def test_the_doubling_convolutions_gradient():
    "On a processor in float32 the weight's gradient goes phase by phase: the same numbers as PyTorch's."
    from stitch_nb.engine.kernels import Spread
    from stitch_nb.generator import fir_kernel, upsample_conv

    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 6, 64, 64, generator=g), torch.randn(4, 6, 3, 3, generator=g)
    b, found = torch.randn(4, generator=g), []
    parts = [t.requires_grad_() for t in (x, w, b)]
    for plain in (False, True):
        y = upsample_conv(*parts[:2], fir_kernel(), b, plain)
        assert ('Spread' in str(y.grad_fn.next_functions[0][0])) == (not plain)
        found.append([y, *torch.autograd.grad((y * y.detach().cos()).sum(), parts)])
    for ours, theirs in zip(*found):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    small = [
        torch.randn(*s, dtype=torch.float64, generator=g) for s in ((2, 2, 3, 4), (2, 3, 3, 3))
    ]
    small = [t.requires_grad_() for t in small]
    assert torch.autograd.gradcheck(Spread.apply, small)
    assert torch.autograd.gradgradcheck(Spread.apply, small)
