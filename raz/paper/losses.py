"""Losses of the three branches: counting (Eq. 1), localization (Eq. 3) and attention, which the paper leaves open (12).

Each takes (B, 1, H, W) tensors and returns the mean over the images as a scalar tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PYRAMID = (1, 2, 4, 8, 16)  # block sides (cells) whose counts `pyramid` compares
PYRAMID_EPSILON = 1e-5  # added under the root of `pyramid`: bounds the gradient of nearly perfect (empty) windows
L1_PYRAMID = (1, 2, 4, 8)  # as PYRAMID, of `pyramid-l1`
EPSILON = 1e-12  # added under the root of Eq. 1, whose gradient is infinite at a perfect map


def counting_loss(density: Tensor, truth: Tensor, kind: str = "rmse") -> Tensor:
    """Loss of density maps in persons per cell (Eq. 1).

    `rmse`: 8·sqrt(1/(mn)·Σ|φ - φ̂|²) over a map of mn/64 cells, which is the RMSE of the map. `mse`: the mean squared
    error, as in CSRNet. `pyramid`: the root of a sum over k in PYRAMID of the mean squared count error of k x k blocks
    of cells, divided by k³. It penalises errors of a region's count more than errors that neighbouring cells cancel.

    `pyramid-l1`: a sum over k in L1_PYRAMID of the mean absolute count error of k x k blocks of cells, divided by k;
    single cells are smoothed by a 3x3 binomial kernel. Its minimum is a median: few very dense cells do not rule.
    """
    if kind == "pyramid-l1":
        return _l1_pyramid(density - truth)
    if kind == "pyramid":
        error = density - truth
        rows, cols = error.shape[-2:]
        error = functional.pad(error, (0, -cols % PYRAMID[-1], 0, -rows % PYRAMID[-1]))
        padded = error.shape[-1] * error.shape[-2] / (rows * cols)
        blocks = [(functional.avg_pool2d(error, k) * k * k).square().mean(dim=(1, 2, 3)) / k**3 for k in PYRAMID]
        return torch.sqrt(torch.stack(blocks).sum(0) * padded + PYRAMID_EPSILON).mean()
    mean_square = (density - truth).square().mean(dim=(1, 2, 3))
    if kind == "rmse":
        mean_square = torch.sqrt(mean_square + EPSILON)
    return mean_square.mean()


def _l1_pyramid(error: Tensor) -> Tensor:
    tap = torch.tensor([0.25, 0.5, 0.25], device=error.device, dtype=error.dtype)
    kernel = (tap[:, None] * tap)[None, None]
    total = functional.conv2d(functional.pad(error, (1, 1, 1, 1), mode="replicate"), kernel).abs().mean()
    rows, cols = error.shape[-2:]
    error = functional.pad(error, (0, -cols % L1_PYRAMID[-1], 0, -rows % L1_PYRAMID[-1]))
    padded = error.shape[-1] * error.shape[-2] / (rows * cols)
    for k in L1_PYRAMID[1:]:
        total = total + functional.avg_pool2d(error, k).abs().mean() * k * padded  # k² cells, divided by k
    return total


def localization_loss(logits: Tensor, labels: Tensor, gamma: float = 100.0) -> Tensor:
    """Mean over pixels of -γ·Y·log ψ - (1 - Y)·log(1 - ψ), with ψ = sigmoid(logits) and labels Y in {0, 1} (Eq. 3)."""
    weight = torch.tensor(gamma, device=logits.device, dtype=logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)


def attention_loss(logits: Tensor, truth: Tensor, kind: str = "mse") -> Tensor:
    """Loss against attention ground truth in [0, 1]: `mse` of sigmoid(logits), or soft-label cross entropy (12)."""
    if kind == "mse":
        return functional.mse_loss(torch.sigmoid(logits), truth)
    return functional.binary_cross_entropy_with_logits(logits, truth)
