"""Baselines that a crowd counter has to beat: estimates that use almost nothing of the images.

Both are fitted on the training images and scored on the test images, in persons per image.
"""

from __future__ import annotations

import itertools
import statistics

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raz.data.contract import Dataset, Pixels, Sample
from raz.paper.metrics import mae, rmse

CELLS = 4  # per side; the features are the numbers of edge pixels in 4 x 4 cells
EDGE = 8.0  # grey levels per pixel; a pixel with a steeper gradient is an edge pixel
PENALTIES = np.logspace(-3, 6, 37)  # ridge penalties for standardised features, of which one is selected


def baselines(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Test errors {test.mae, test.rmse} of `median` and `ridge`, in persons; {} if train or test has no images.

    median: the median count of the training images. ridge: a ridge regression of the count on the edge pixels per cell,
    with the penalty of least leave-one-out error on the training images.
    """
    train, test = dataset.items["train"], dataset.items["test"]
    if not train or not test:
        return {}
    counts = np.array([len(item.load_heads()) for item in train], dtype=np.float64)
    truth = [len(item.load_heads()) for item in test]
    median = [float(statistics.median(counts.tolist()))] * len(truth)
    ridge = predict_ridge(_features(train), counts, _features(test))
    return {
        name: {"test.mae": float(mae(guess, truth)), "test.rmse": float(rmse(guess, truth))}
        for name, guess in (("median", median), ("ridge", list(np.maximum(ridge, 0.0))))
    }


def edge_counts(pixels: Pixels) -> NDArray[np.float64]:
    """Number of edge pixels in each cell, (CELLS²,) float64.

    A Sobel gradient, divided by 8 to be in grey levels per pixel, is compared with EDGE.
    """
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    slope = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) / 8
    rows = np.linspace(0, grey.shape[0], CELLS + 1).round().astype(int)
    cols = np.linspace(0, grey.shape[1], CELLS + 1).round().astype(int)
    cells = [slope[a:b, c:d] for a, b in itertools.pairwise(rows) for c, d in itertools.pairwise(cols)]
    return np.array([(cell > EDGE).sum() for cell in cells], dtype=np.float64)


def predict_ridge(x: NDArray[np.float64], y: NDArray[np.float64], queries: NDArray[np.float64]) -> NDArray[np.float64]:
    """Predictions (m,) for `queries` (m, f) of a ridge regression fitted to x (n, f) and y (n,).

    The penalty of PENALTIES is the one that minimises the squared leave-one-out error residual / (1 - leverage).
    """
    centre, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    mean = y.mean()
    u, s, vt = np.linalg.svd((x - centre) / spread, full_matrices=False)
    projected = u.T @ (y - mean)

    def leave_one_out_error(penalty: float) -> float:
        shrink = s**2 / (s**2 + penalty)
        leverage = 1 / len(y) + (u**2 @ shrink)
        return float(np.mean(((y - mean - u @ (shrink * projected)) / np.maximum(1 - leverage, 1e-9)) ** 2))

    penalty = min(PENALTIES, key=leave_one_out_error)
    return np.asarray(mean + (queries - centre) / spread @ (vt.T @ (s / (s**2 + penalty) * projected)))


def _features(items: tuple[Sample, ...]) -> NDArray[np.float64]:
    """(n, CELLS²) of n images."""
    return np.array([edge_counts(item.load_pixels()) for item in items])
