"""What a counter has to beat to have learned anything of crowds: guesses that know next to nothing of the pictures.

Both are fitted on training images alone and scored on test images, in persons an image.
"""

from __future__ import annotations

import itertools
import statistics

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raz.data.contract import Dataset, Pixels, Sample
from raz.paper.metrics import mae, rmse

CELLS = 4  # per side; the counts of edges in 4 x 4 cells are what the ridge regression sees
EDGE = 8.0  # grey levels a pixel: a steeper gradient is an edge
PENALTIES = np.logspace(-3, 6, 37)  # of standardised features; the best is found on the training images


def baselines(dataset: Dataset) -> dict[str, dict[str, float]]:
    """`median` and `ridge`, each {test.mae, test.rmse}; empty where a split has no images.

    median: always the training images' median count. ridge: a ridge regression of the count on the counts of
    edge pixels in each cell, its penalty the one of least leave-one-out error on the training images.
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
    """Pixels on an edge in each cell, (CELLS²,): a picture's simplest statistics.

    The gradient is Sobel's, over 8: grey levels a pixel.
    """
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    slope = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) / 8
    rows = np.linspace(0, grey.shape[0], CELLS + 1).round().astype(int)
    cols = np.linspace(0, grey.shape[1], CELLS + 1).round().astype(int)
    cells = [slope[a:b, c:d] for a, b in itertools.pairwise(rows) for c, d in itertools.pairwise(cols)]
    return np.array([(cell > EDGE).sum() for cell in cells], dtype=np.float64)


def predict_ridge(x: NDArray[np.float64], y: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ridge regression (n, f) -> (n,), told for (m, f) other rows.

    The penalty minimises the leave-one-out squared error, in closed form: residual / (1 - leverage).
    """
    centre, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    mean = y.mean()
    u, s, vt = np.linalg.svd((x - centre) / spread, full_matrices=False)
    turned = u.T @ (y - mean)

    def left_out(penalty: float) -> float:
        shrink = s**2 / (s**2 + penalty)
        leverage = 1 / len(y) + (u**2 @ shrink)
        return float(np.mean(((y - mean - u @ (shrink * turned)) / np.maximum(1 - leverage, 1e-9)) ** 2))

    penalty = min(PENALTIES, key=left_out)
    return np.asarray(mean + (wanted - centre) / spread @ (vt.T @ (s / (s**2 + penalty) * turned)))


def _features(items: tuple[Sample, ...]) -> NDArray[np.float64]:
    return np.array([edge_counts(item.load_pixels()) for item in items])
