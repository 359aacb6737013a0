"Masks against the golden numbers of the authors' code."

import numpy as np, pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from stitch_nb.core import StitchError
from stitch_nb.masks import dilate, erode, face_mask, resize_mask, stitch_masks


@pytest.fixture
def gold(parity):
    return parity('f_masks')


def bits(packed):
    return np.unpackbits(packed).reshape(512, 512)


def test_foreground(gold):
    head = face_mask(gold['labels'])
    assert np.array_equal(head.numpy(), bits(gold['foreground']))
    large = resize_mask(head, 1024, 'bilinear').numpy()
    got, want = gold.pair('naive_foreground_1024', large)
    assert np.abs(got - want).max() <= 3e-5


@pytest.mark.parametrize('whole', [0, 1])
@pytest.mark.parametrize('inner', [0, 10])
def test_masks_of_the_code(gold, inner, whole):
    small = stitch_masks(gold['labels'], 512, 25, inner // 2, 'code', bool(whole))
    large = stitch_masks(gold['labels'], 1024, 50, inner, 'code', bool(whole))
    for name in ('content', 'border') if whole else ('content', 'border', 'full'):
        assert np.array_equal(
            getattr(small, name).numpy(), bits(gold[f'{name}_512_i{inner}_w{whole}'])
        )
        got, want = gold.pair(f'{name}_1024_i{inner}_w{whole}', getattr(large, name).numpy())
        assert np.abs(got - want).max() <= 3e-5


class LargestTensor(TorchDispatchMode):
    "Remembers the largest tensor that any operation gave."

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        for x in given if isinstance(given, (tuple, list)) else [given]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return given


def test_no_operation_grows_with_the_width_of_the_border(gold):
    "A window of a pixel's neighbours for every pixel (unfold) would be thousands of masks large."
    sizes = []
    for dilation in (10, 50):
        with LargestTensor() as largest:
            stitch_masks(gold['labels'], 1024, dilation, variant='code')
        sizes.append(largest.numel)
    assert sizes[0] == sizes[1] <= 4 * 1024**2


@pytest.mark.parametrize('n', [1, 5, 16, 33])
@pytest.mark.parametrize('radius', [0, 1, 2, 3, 7, 12, 40])
def test_dilation_is_the_maximum_of_a_square(n, radius):
    x = torch.randn(2, n, n + 4, generator=torch.Generator().manual_seed(n))

    def windows(value):
        return (
            torch.nn.functional.pad(x, (radius,) * 4, value=value)
            .unfold(1, 2 * radius + 1, 1)
            .unfold(2, 2 * radius + 1, 1)
        )

    assert torch.equal(dilate(x, radius), windows(-1e9).amax((-1, -2)))
    assert torch.equal(erode(x, radius), windows(1e9).amin((-1, -2)))
    assert torch.equal(erode(x, radius, outside=0.0), windows(0.0).amin((-1, -2)))


def test_nothing_to_stitch_is_said():
    with pytest.raises(StitchError, match='frame 7: the face mask is empty'):
        stitch_masks(torch.zeros(64, 64), 64, frame=7)
    with pytest.raises(StitchError, match='frame 3: the border mask is empty'):
        stitch_masks(torch.ones(64, 64), 64, frame=3)
    with pytest.raises(StitchError, match='content mask is empty'):
        stitch_masks(torch.ones(64, 64), 64, 32, edge=True)
    with pytest.raises(StitchError, match='variant'):
        stitch_masks(torch.ones(64, 64), 64, variant='papers')
