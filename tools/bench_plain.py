"""One update as the authors' code computes it, for comparison on the same machine: same weights, same pictures, plain operations.

Written anew from what their code does without its CUDA kernels (their generator is StyleGAN2-ADA's): a modulated weight for
each sample in a grouped convolution; a transposed convolution, then the 4x4 low-pass by a padded depthwise convolution; noise,
bias, leaky ReLU and gain one after the other over the whole map; the features of the target computed in every update; Adam
parameter by parameter; fresh memory for every array.
"""

import torch
import torch.nn.functional as F

from stitch_nb.core import clone_network, to_tensor
from stitch_nb.engine.device import autocast
from stitch_nb.stitch import masked_error


def low_pass(x, f, padding, up=1):
    "Zeros between the pixels, a border of zeros, a 4x4 filter on each channel."
    N, C, H, W = x.shape
    if up > 1:
        x = F.pad(x.reshape(N, C, H, 1, W, 1), [0, up - 1, 0, 0, 0, up - 1])
        x = x.reshape(N, C, H * up, W * up)
    x = F.pad(x, padding)
    return F.conv2d(x, (f * up**2).flip((0, 1)).repeat(C, 1, 1, 1), groups=C)


def modulated_conv(x, layer, style, demodulate=True):
    "A weight for each sample; the samples as groups of one convolution."
    N, I, H, W = x.shape
    w = layer.weight[None] * style.reshape(N, 1, I, 1, 1)
    if demodulate:
        w = w * (w.square().sum((2, 3, 4)) + 1e-8).rsqrt().reshape(N, -1, 1, 1, 1)
    O, k = w.shape[1], w.shape[-1]
    x = x.reshape(1, N * I, H, W)
    if getattr(layer, 'up', False):
        w = w.transpose(1, 2).reshape(N * I, O, k, k)
        x = F.conv_transpose2d(x, w, stride=2, groups=N)
        x = low_pass(x, layer.resample_filter * 4, [1, 1, 1, 1])
    else:
        x = F.conv2d(x, w.reshape(N * O, I, k, k), padding=k // 2, groups=N)
    return x.reshape(N, O, *x.shape[2:])


def styled_conv(x, layer, style):
    x = modulated_conv(x, layer, style)
    x = x.add_(layer.noise_const * layer.noise_strength)
    x = x + layer.bias.reshape(1, -1, 1, 1)
    return F.leaky_relu(x, 0.2) * 2**0.5


def synthesis(G, w_plus):  # (N,L,D) -> (N,3,R,R)
    "The same picture as `G.synthesis`, up to rounding."
    styles = iter(G.styles(w_plus))
    x, picture = G.synthesis.b4.const.expand(len(w_plus), -1, -1, -1).contiguous(), None
    for block in G.synthesis.blocks:
        for conv in block.layers[:-1]:
            x = styled_conv(x, conv, next(styles))
        rgb = block.torgb
        y = modulated_conv(x, rgb, next(styles) * rgb.weight_gain, demodulate=False)
        y = y + rgb.bias.reshape(1, -1, 1, 1)
        if picture is not None:
            picture = low_pass(picture, block.resample_filter, [2, 1, 2, 1], up=2)
        picture = y if picture is None else picture.add_(y)
    return picture


def haar(x):  # (N,4C,H,W) -> (N,C,2H,2W)
    "The inverse Haar transform, as a transposed convolution of each channel's four bands."
    C = x.shape[1] // 4
    signs = x.new_tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
    bands = torch.cat([x[:, :C, None], x[:, C:].unflatten(1, (C, 3))], 2).flatten(1, 2)
    taps = (signs / 2).view(4, 1, 2, 2).repeat(C, 1, 1, 1)
    return F.conv_transpose2d(bands, taps, stride=2, groups=C)


def mobile_synthesis(G, w_plus):  # (N,L,D) -> (N,3,R,R)
    "MobileStyleGAN layer by layer: modulate the map, convolve, add noise and bias, leaky ReLU."
    net = G.synthesis
    x = net.const.expand(len(w_plus), -1, -1, -1)
    for layer, style in zip(net.layers, net.styles(w_plus)):
        x = x * style[:, :, None, None]
        if not hasattr(layer, 'bias'):
            x = haar(x)
            continue
        if getattr(layer, 'depthwise', None) is not None:
            x = F.conv2d(x, layer.depthwise, padding=1, groups=x.shape[1])
        x = F.conv2d(x, layer.pointwise, padding=layer.pointwise.shape[-1] // 2)
        x = x + layer.bias[:, None, None]
        if hasattr(layer, 'noise_const'):
            x = F.leaky_relu(x + layer.noise_const, 0.2)
    return x[:, :3] / 2


def copy_and_adam(G, lr):
    G_new = clone_network(G)
    return G_new, torch.optim.Adam(list(G_new.tunable().values()), lr=lr, fused=False)


def forward_step(case, dtype='float32'):  # () -> None
    def step():
        with torch.no_grad(), autocast('cpu', dtype):
            synthesis(case.G, case.pivots[:1])

    return step


def both_step(case, dtype):  # () -> None
    "Forward and backward of the small network, its gradients left to PyTorch."
    G = clone_network(case.G)
    params, w = list(G.tunable().values()), case.pivots[:1]

    def step():
        with autocast('cpu', dtype):
            drawn = mobile_synthesis(G, w)
        torch.autograd.grad(drawn.float().square().mean(), params, allow_unused=True)

    return step


def pti_step(case, dtype='float32', lr=3e-5):  # () -> None
    "One update of PTI: the squared error and the perceptual distance of one frame."
    G, adam = copy_and_adam(case.G, lr)
    target, w = to_tensor(torch.from_numpy(case.crops[:1])), case.pivots[:1]

    def step():
        with autocast('cpu', dtype):
            drawn = synthesis(G, w)
            loss = 10 * F.mse_loss(drawn, target) + case.perceptual(drawn, target).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def stitch_step(case, dtype='float32', lr=3e-4):  # () -> None
    "One update of stitching tuning of one frame."
    G, adam = copy_and_adam(case.G, lr)
    source, edit = (to_tensor(torch.from_numpy(case.crops[k])) for k in (0, 1))
    w = case.pivots[:1]

    def step():
        with autocast('cpu', dtype):
            drawn = synthesis(G, w)[0]
        border = masked_error(drawn, source, case.masks.border, 'l2')
        content = masked_error(drawn, edit, case.masks.content, 'l2')
        adam.zero_grad()
        (border + 0.01 * content).backward()
        adam.step()

    return step


STEPS = dict(forward=forward_step, both=both_step, update=pti_step, stitch=stitch_step)
