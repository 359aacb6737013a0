"Edits against golden numbers: linear directions, frozen fine rows, StyleCLIP's global directions."

import zlib

import numpy as np
import pytest
import torch
from test_parity_generator import Checker, fill

from stitch_nb.edit import (
    Edit,
    apply_edit,
    class_weights,
    conv_layers,
    edit_styles,
    first_row,
    freeze_fine,
    global_direction,
    reference_strength,
    split_direction,
)
from stitch_nb.generator import Generator


def normal(label, shape, scale):
    return torch.from_numpy(
        np.random.default_rng(zlib.crc32(label.encode())).standard_normal(shape).astype('float32')
        * np.float32(scale)
    )


@pytest.fixture(scope='module')
def golden(parity, manifest):
    npz, fixture = parity('h_edit'), manifest['fixtures']['h_edit']
    return npz, fixture['meta'], Checker(npz, fixture['arrays'])


@pytest.mark.parametrize('name', ['dirA', 'dirB'])
def test_linear_directions(golden, name):
    npz, _, check = golden
    direction = torch.from_numpy(
        npz['dirB'] if name == 'dirB' else np.tile(npz['dirA_row'], (18, 1))
    )
    pivots = torch.from_numpy(npz['pivots']).double()
    edited = [
        apply_edit(pivots, [Edit('x', ((0, reference_strength(f)),))], {'x': first_row(direction)})
        for f in npz[f'{name}_factors']
    ]
    check(f'{name}_edited', torch.stack(edited))
    if name == 'dirB':  # without `first_row` every row counts, which is another edit
        ours = apply_edit(pivots, [Edit('x', ((0, -2.0),))], {'x': direction})
        torch.testing.assert_close(ours, pivots - 2 * direction)
        assert (ours - edited[0]).abs().max() > 0.1


def test_freeze(golden):
    npz, _, check = golden
    check('pivots_freeze8', freeze_fine(torch.from_numpy(npz['pivots']), 8))


@pytest.mark.parametrize('name,channels', [('1024', 6048), ('small', 928)])
def test_global_direction(golden, name, channels):
    npz, meta, check = golden
    direction = global_direction(
        normal(f'h/di_{name}', (channels, 512), 0.05),
        torch.from_numpy(npz['class_weights']),
        meta['beta'],
    )
    check(f'direction_{name}', direction)
    assert int((direction != 0).sum()) == meta[f'nonzero_{name}']
    with pytest.raises(ValueError, match='smaller beta'):
        global_direction(
            normal(f'h/di_{name}', (channels, 512), 0.05),
            torch.from_numpy(npz['class_weights']),
            99.0,
        )


def test_class_weights_are_unit_and_ignore_length():
    w = class_weights(
        lambda texts: torch.stack([normal('h/text/' + t, (512,), 1 + len(t)) for t in texts]),
        ('face', 'face with lipstick'),
        ('{}', 'a {}'),
    )
    same = class_weights(
        lambda texts: torch.stack([normal('h/text/' + t, (512,), 1) for t in texts]),
        ('face', 'face with lipstick'),
        ('{}', 'a {}'),
    )
    torch.testing.assert_close(w, same)
    torch.testing.assert_close(w.norm(dim=0), torch.ones(2))


def test_split(golden):
    npz, meta, check = golden
    parts = split_direction(torch.from_numpy(npz['direction_1024']), meta['dims_1024'])
    check('to_styles_1024_concat', torch.cat(parts))
    assert conv_layers(18) == meta['is_conv_1024']


@torch.no_grad()
def test_style_edit(golden, manifest):
    npz, _, check = golden
    G = fill(Generator(64, 64, 64, 2048, 128, 4), manifest['models']['a1_gen_small/state_dict'])
    styles = G.styles(torch.from_numpy(npz['w_small']))
    parts = split_direction(torch.from_numpy(npz['direction_small']), [s.shape[1] for s in styles])
    assert [p.numel() for p in parts] == npz['small_edit_dims'].tolist()
    for i, factor in enumerate((-3.0, 1.5, 6.0)):
        edited = edit_styles(styles, parts, reference_strength(factor, 'styleclip'))
        check(f'small_styles_concat_{i}', torch.cat(edited, 1))
        check(f'small_img_{i}', G.synthesis_from_styles(edited))
