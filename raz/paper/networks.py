"""Building blocks of Main-Net and RAZ-Net (section 3.1, Figure 2).

Tensors are (batch, channel, row, column). The network's input is RGB, normalised as the backbone expects, with sides
padded to multiples of 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 8  # of the features that the branches read
VGG_CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512)  # 0 = 2x2 max pooling


@dataclass(frozen=True)
class ColourStatistics:
    """Mean and standard deviation of red, green and blue, in 0 to 1, by which a backbone's input is normalised."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = ColourStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's


def normalise(pixels: Tensor, colours: ColourStatistics = IMAGENET) -> Tensor:
    """uint8 RGB (B, 3, H, W) -> normalised float32 of the same shape."""
    # Copied without waiting for the device, which a tensor made there would do at each call.
    mean = torch.tensor(colours.mean).view(1, 3, 1, 1).to(pixels.device, non_blocking=True)
    std = torch.tensor(colours.std).view(1, 3, 1, 1).to(pixels.device, non_blocking=True)
    return (pixels.float() / 255.0 - mean) / std


def network_input(
    pixels: NDArray[np.uint8], device: torch.device | str = "cpu", colours: ColourStatistics = IMAGENET
) -> Tensor:
    """One image (H, W, 3) uint8 -> (1, 3, ceil8(H), ceil8(W)) float32, padded right and below with 0 (mean colour)."""
    height, width = pixels.shape[:2]
    x = torch.from_numpy(np.array(pixels, copy=True)).to(device).permute(2, 0, 1)[None]
    return functional.pad(normalise(x, colours), (0, -width % STRIDE, 0, -height % STRIDE))


class Backbone(nn.Module):
    """What the branches read: (B, 3, H, W) -> (B, channels, H/8, W/8), for sides that are multiples of 8."""

    channels: int
    colours: ColourStatistics = IMAGENET
    alignment: int = STRIDE  # px; a tile whose corner is a multiple of it is computed as in the whole image

    @property
    def pretrained(self) -> nn.Module:
        """The part that has pretrained weights, where there are any."""
        return self

    def receptive_field(self) -> int | None:
        """Upper bound of half the receptive field, in px; None if every output depends on the whole image."""
        raise NotImplementedError


class VggBackbone(Backbone):
    """The first ten convolutions of VGG-16, through relu4_3: (B, 3, H, W) -> (B, 512·width, H/8, W/8).

    `features` has torchvision's layout: at width 1 it accepts the weights of `vgg16().features[:23]`.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for full_width in VGG_CHANNELS:
            if full_width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            out = max(1, round(full_width * width))
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
            channels = out
        self.features = nn.Sequential(*layers)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)
        return out

    def receptive_field(self) -> int:
        return receptive_field_radius(self.features)


def _dilated_conv(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=2, dilation=2), nn.ReLU(inplace=True)]


def _upsample_block(channels: int, out: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1), nn.ReLU(inplace=True), *_dilated_conv(out, out)]


class CountingBranch(nn.Module):
    """CSRNet's back end: 3x3 convolutions of dilation 2, then a 1x1 convolution.

    (B, C, h, w) -> density (B, 1, h·8/stride, w·8/stride) in persons per cell, and the feature map before the last
    convolution, of the same size. `output_stride` 4 and 2 add one and two de-convolutions (section 4.3).
    """

    def __init__(self, in_channels: int, channels: Sequence[int], output_stride: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for out in channels:
            layers += _dilated_conv(in_channels, out)
            in_channels = out
        for _ in range(int(math.log2(STRIDE // output_stride))):
            layers += _upsample_block(in_channels, in_channels)
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(in_channels, 1, 1)
        self.channels = in_channels
        self.output_stride = output_stride

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        rich = self.body(features)
        return self.head(rich), rich


class LocalizationBranch(nn.Module):
    """Dilated convolutions at 1/8 of the input's size, then three de-convolutions up to the input's size.

    (B, C, h, w) -> logits (B, 1, 8h, 8w), and the feature map before the last convolution, of the same size. The
    sigmoid of the logits is the response map of Eq. 3.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], upsample: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for out in channels:
            layers += _dilated_conv(in_channels, out)
            in_channels = out
        for out in upsample:
            layers += _upsample_block(in_channels, out)
            in_channels = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(in_channels, 1, 1)
        self.channels = in_channels

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        rich = self.body(features)
        return self.head(rich), rich


class AttentionBranch(nn.Module):
    """Zooming region proposal branch: feature maps of the other branches -> logits (B, 1, H, W).

    In Main-Net the counting branch's map is up-sampled to the input's size (nearest neighbour) and concatenated to the
    localization branch's. RAZ-Net has no counting branch and uses the localization branch's map alone. The
    concatenation is never allocated: its convolution is the sum of two, of which the second is computed before
    up-sampling.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, localization: Tensor, counting: Tensor | None = None) -> Tensor:
        conv, relu = self.body
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight
        own = localization.shape[1]
        hidden = functional.conv2d(localization, weight[:, :own], conv.bias, padding=1)
        if counting is not None:
            hidden += convolved_upsampled(counting, weight[:, own:], localization.shape[-1])
        out: Tensor = self.head(relu(hidden))
        return out


def convolved_upsampled(x: Tensor, weight: Tensor, width: int) -> Tensor:
    """conv3x3(upsample(x)) for nearest-neighbour up-sampling of x (B, C, h, w) by s = width / w >= 2: (B, O, s·h, s·w).

    Up-sampling repeats each value in a cell of s x s pixels. The three rows that a kernel covers are the cell above and
    twice the own cell (first row of the cell), three times the own cell (inner rows), or twice the own cell and the
    cell below (last row); the same holds for columns. So nine 3x3 kernels on x, sums of the kernel's taps, give the
    result with 9/s² of the work and without the up-sampled copy.
    """
    size, out = width // x.shape[-1], weight.shape[0]
    # [first, inner, last row][cell above, own, below][tap of the kernel]
    taps = torch.tensor(
        [[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]],
        dtype=weight.dtype, device=weight.device,
    )  # fmt: skip
    kernels = torch.einsum("alk,bmj,oikj->aboilm", taps, taps, weight).reshape(9 * out, -1, 3, 3)
    cells = functional.conv2d(x, kernels, padding=1)
    b, _, h, w = cells.shape
    # Batch, row, kind of row, column, kind of column, channel.
    cells = cells.reshape(b, 3, 3, out, h, w).permute(0, 4, 1, 5, 2, 3)
    rows = torch.cat([cells[:, :, :1], cells[:, :, 1:2].expand(-1, -1, size - 2, -1, -1, -1), cells[:, :, 2:]], 2)
    inner = rows[..., 1:2, :].expand(-1, -1, -1, -1, size - 2, -1)
    full = torch.cat([rows[..., :1, :], inner, rows[..., 2:, :]], 4)
    return full.reshape(b, h * size, w * size, out).permute(0, 3, 1, 2)


def initialise(module: nn.Module, kind: str = "normal") -> None:
    """Initialise all convolutions in place; biases are 0.

    `normal`: N(0, 0.01²) as in CSRNet (2). `kaiming`: He et al., for narrow networks trained from scratch.
    `kaiming-small`: the same, with a tenth of it in the last layer `head` of a branch, whose maps then begin near 0.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            if kind != "normal":
                fan_out = isinstance(layer, nn.ConvTranspose2d)  # weights are (in, out, k, k)
                nn.init.kaiming_normal_(layer.weight, mode="fan_out" if fan_out else "fan_in", nonlinearity="relu")
                if fan_out:  # each output pixel receives k²/stride² taps only
                    layer.weight.data.mul_(float(layer.stride[0]))
            else:
                nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if kind == "kaiming-small":
        head = module.get_submodule("head")
        assert isinstance(head, nn.Conv2d)
        head.weight.data.mul_(0.1)


def receptive_field_radius(module: nn.Module) -> int:
    """Upper bound of half the module's receptive field, in pixels of its input.

    Sums each kernel's radius at the stride of its layer. A tile with a margin of this size gives the same output inside
    the margin as the whole image.
    """
    reach, step = 0.0, 1.0
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            reach += step * math.ceil(layer.kernel_size[0] / layer.stride[0] / 2)
            step /= layer.stride[0]
        elif isinstance(layer, nn.Conv2d):
            reach += step * layer.dilation[0] * (layer.kernel_size[0] - 1) / 2
            step *= layer.stride[0]
        elif isinstance(layer, nn.MaxPool2d):
            reach += step
            step *= 2
    return math.ceil(reach)
