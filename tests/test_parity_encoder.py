"The encoder against golden codes, official size. One forward pass takes about 20 s on two cores."

import numpy as np
import pytest
import torch

from stitch_nb.encode import Encoder
from test_parity_generator import Checker, fill

FIXTURE = 'c_e4e'


def meta_encoder():
    with torch.device('meta'):
        return Encoder()


def test_keys_and_shapes(manifest):
    table = manifest['models'][f'{FIXTURE}/state_dict_encoder']
    state = {k: list(v.shape) for k, v in meta_encoder().state_dict().items() if k != 'w_avg'}
    assert list(state) == list(table)
    assert state == {k: v['shape'] for k, v in table.items()}


def texture(manifest):
    "The 1024 px integer texture of the golden data, (1,3,1024,1024) in [-1,1]."
    x, y = np.meshgrid(np.arange(1024), np.arange(1024))
    planes = []
    for a, b, s in manifest['fixtures'][FIXTURE]['meta']['integer_texture']['coeffs']:
        t = (a * x + b * y + (x * y >> s)) % 512
        planes.append(np.where(t <= 255, t, 511 - t))
    return (torch.from_numpy(np.stack(planes)).float() / 255 - 0.5)[None] / 0.5


def test_resize(parity, manifest):
    check = Checker(parity(FIXTURE), manifest['fixtures'][FIXTURE]['arrays'])
    crop = texture(manifest)
    small = dict(width=4, blocks=(1, 1, 1, 1), head_width=4)
    check('resize256_torchvision_default', Encoder(**small).resize(crop)[0])
    check('resize256_no_antialias', Encoder(antialias=False, **small).resize(crop)[0])


@pytest.fixture(scope='module')
def official(parity, manifest):
    npz, table = parity(FIXTURE), manifest['models'][f'{FIXTURE}/state_dict_encoder']
    E = meta_encoder().to_empty(device='cpu')
    for m in E.modules():
        if hasattr(m, 'num_batches_tracked'):
            m.num_batches_tracked.zero_()

    class Bare(torch.nn.Module):
        def state_dict(self):
            return {k: v for k, v in E.state_dict().items() if k != 'w_avg'}

        def load_state_dict(self, s):
            average = torch.from_numpy(npz['latent_avg']).expand_as(E.w_avg)
            E.load_state_dict(s | dict(w_avg=average))

    fill(Bare(), table)
    return E.eval(), npz, Checker(npz, manifest['fixtures'][FIXTURE]['arrays'])


@pytest.mark.slow
@torch.no_grad()
def test_codes(official):
    E, npz, check = official
    crop = torch.from_numpy(npz['input_u8']).permute(2, 0, 1)[None] / 127.5 - 1
    check('codes_encoder_raw', E.offsets(crop))
    check('codes_with_avg', E(crop))
    check('codes_batch2_with_avg', E(torch.cat([crop, crop.flip(3)])))
    for stage in 0, 3, 8:
        check(f'codes_raw_stage{stage}', E.offsets(crop, stage))


@pytest.mark.slow
@torch.no_grad()
def test_codes_from_large_crops(official, manifest):
    E, npz, check = official
    crop = texture(manifest)
    check('codes_from_1024_default_resize', E(crop))
    E.antialias = False
    try:
        check('codes_from_1024_no_antialias', E(crop))
    finally:
        E.antialias = True
