"""The losses of the three branches (Eq. 1, Eq. 3, and the attention loss the paper leaves open).

Each takes (B, 1, H, W) tensors, treats every image of the batch alone, and returns their mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PYRAMID = (1, 2, 4, 8, 16)  # sides in cells of the blocks whose counts `pyramid` compares
PYRAMID_EPSILON = 1e-5  # under its root: an empty window learned well enough must not outweigh the others
EPSILON = 1e-12  # under the root of Eq. 1: its gradient is infinite at a perfect map


def counting_loss(density: Tensor, truth: Tensor, kind: str = "rmse") -> Tensor:
    """Eq. 1. 8·sqrt(1/(mn)·Σ|φ - φ̂|²) over a map of mn/64 cells is the RMSE of that map.

    `mse` is the mean square, CSRNet's. Under the root of `pyramid` stand also the squared errors of blocks of
    k x k cells, over k³: what a cell counts too little its neighbour may count too much, but not a whole region.
    """
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


def localization_loss(logits: Tensor, labels: Tensor, gamma: float = 100.0) -> Tensor:
    """Eq. 3: the mean over m·n of -γ·Y·log ψ - (1 - Y)·log(1 - ψ), ψ the sigmoid of the logits."""
    weight = torch.tensor(gamma, device=logits.device, dtype=logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)


def attention_loss(logits: Tensor, truth: Tensor, kind: str = "mse") -> Tensor:
    """Squared error of the sigmoid against v, or cross entropy with v as a soft label (12)."""
    if kind == "mse":
        return functional.mse_loss(torch.sigmoid(logits), truth)
    return functional.binary_cross_entropy_with_logits(logits, truth)
