"Alignment and pasting against the golden numbers of the authors' code."

import numpy as np, pytest, torch
from stitch_nb.align import (
    crop_frame,
    face_axes,
    inverse_coefficients,
    quads_from_landmarks,
    smooth_quads,
)
from stitch_nb.masks import erode
from stitch_nb.paste import feather_mask, paste, paste_mask


@pytest.fixture
def gold(parity):
    return parity('e_alignment')


def levels(a, b):
    return np.abs(a.astype(int) - b.astype(int))


def opaque(image):
    "RGB (...,3) with an alpha of 255, which the golden pictures have too: (...,4)."
    return np.concatenate([image, np.full_like(image[..., :1], 255)], -1)


@pytest.mark.parametrize('scale,tag', [(1.0, 's10'), (1.2, 's12')])
def test_axes_and_quads(gold, scale, tag):
    for found, name in zip(face_axes(gold['landmarks'], scale), 'cxy'):
        assert np.abs(found - gold[f'transform_{name}_{tag}']).max() < 1e-9
    raw = quads_from_landmarks(gold['landmarks'], scale)
    assert np.abs(raw - gold[f'quads_c0x0_{tag}']).max() < 1e-9
    for smooth in (quads_from_landmarks(gold['landmarks'], scale, 1, 3), smooth_quads(raw, 1, 3)):
        assert np.abs(smooth - gold[f'quads_c1x3_{tag}']).max() < 1e-9


def crops(gold, tag, size, **kwargs):
    "The crops of the stored frames."
    quads = gold[f'quads_c1x3_{tag}'][gold['frame_index']]
    return np.stack([crop_frame(f, q, size, **kwargs) for f, q in zip(gold['frames_u8'], quads)])


@pytest.mark.parametrize('tag', ['s10', 's12'])
def test_crops_256(gold, tag):
    name = f'crops256_c1x3_{tag}_u8'
    assert np.array_equal(*gold.pair(name, crops(gold, tag, 256, reference=True)))
    if tag == 's10':  # no shrinking here: our own crop is the same numbers, rounded
        assert levels(*gold.pair(name, crops(gold, tag, 256, border='black'))).max() <= 1
        floored = crops(gold, tag, 256, border='black', rounding='floor')
        floored = levels(*gold.pair(name, floored))
        assert floored.max() <= 1 and (floored > 0).mean() < 5e-4


def test_crops_where_the_frame_shrinks(gold):
    assert np.array_equal(*gold.pair('crop64_shrink_u8', crops(gold, 's12', 64, reference=True)))


def test_crops_1024(gold):
    found = crops(gold, 's10', 1024, reference=True)
    assert np.array_equal(found[:, 480:544, 480:544], gold['crop1024_patch_y480_x480_u8'])
    assert np.array_equal(found[:, :64, :64], gold['crop1024_patch_y0_x0_u8'])
    means = found.reshape(-1, 64, 16, 64, 16, 3).mean((2, 4))
    got, want = gold.pair('crop1024_area64', means)
    assert np.abs(got - want).max() < 1e-4


@pytest.mark.parametrize('R', [256, 1024])
def test_inverse_coefficients(gold, R):
    found = np.stack([inverse_coefficients(q, R) for q in gold['quads_c1x3_s10']])
    assert np.abs(found - gold[f'inverse_coeffs_{R}']).max() < 1e-8


def test_feather(gold):
    mask = torch.from_numpy(gold['paste_mask256_u8']).float() / 255
    assert np.array_equal(
        (erode(mask, 25, outside=0.0) * 255).round().byte().numpy(), gold['feather_eroded256_u8']
    )
    assert (
        levels(
            (feather_mask(mask, 25) * 255).round().byte().numpy(), gold['feather_blurred256_u8']
        ).max()
        <= 1
    )


@pytest.mark.parametrize(
    'name,masked,feather,exact',
    [
        ('paste_rgba_u8', False, 0, True),
        ('paste_mask_r0_rgba_u8', True, 0, True),
        ('paste_mask_r25_rgba_u8', True, 25, False),
    ],
)
def test_paste(gold, name, masked, feather, exact):
    mask = torch.from_numpy(gold['paste_mask256_u8']).float() / 255 if masked else None
    inverted = 255 - crops(gold, 's10', 256, reference=True)
    rows = list(
        zip(gold['frames_u8'], inverted, gold['quads_c1x3_s10'][gold['frame_index']], strict=True)
    )
    reference = np.stack([paste(*row, mask, feather, reference=True) for row in rows])
    ours = levels(*gold.pair(name, opaque(reference)))
    assert ours.max() <= (0 if exact else 2) and (ours > 1).mean() < 7.5e-4
    better = np.stack([paste(*row, mask, feather) for row in rows])
    assert (levels(*gold.pair(name, opaque(better))) > 2).mean() < 7.5e-4
    if masked:
        for (frame, _, quad), found in zip(rows, better):
            weight = paste_mask(quad, mask, *frame.shape[:2], feather)
            assert np.array_equal(found[weight == 0], frame[weight == 0])


@pytest.mark.parametrize('feather', [0, 25])
def test_paste_1024(gold, parity, manifest, feather):
    mask = torch.from_numpy(parity('f_masks')['full_1024_i0_w0'])
    assert int((mask * 255).round().long().sum()) == int(gold['paste1024_fullmask_used_u8_sum'][0])
    y, x = np.mgrid[:1024, :1024]
    waves = [
        (a * x + b * y + ((x * y) >> s)) % 512
        for a, b, s in manifest['fixtures']['c_e4e']['meta']['integer_texture']['coeffs']
    ]
    crop = np.stack([np.where(t <= 255, t, 511 - t) for t in waves], -1).astype(np.uint8)
    found = paste(
        gold['frames_u8'][0], crop, gold['quads_c1x3_s10'][4], mask, feather, reference=True
    )
    off = levels(*gold.pair(f'paste1024_mask_r{feather}_rgba_u8', opaque(found)))
    assert off.max() <= 2 and (off > 1).mean() < 7.5e-4


def test_inputs_stay_as_they_were(gold):
    landmarks, frame = gold['landmarks'].copy(), gold['frames_u8'][0].copy()
    quads = quads_from_landmarks(landmarks, 1.2)
    kept = quads.copy()
    smooth_quads(quads, 1, 3)
    mask = torch.rand(64, 64)
    before = mask.clone()
    for reference in (False, True):
        crop = crop_frame(frame, quads[4], 64, reference=reference)
        was = crop.copy()
        paste(frame, crop, quads[4], mask, 3, reference=reference)
        assert np.array_equal(crop, was)
    assert np.array_equal(landmarks, gold['landmarks']) and np.array_equal(quads, kept)
    assert np.array_equal(frame, gold['frames_u8'][0]) and torch.equal(mask, before)
