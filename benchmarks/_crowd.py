"""Seeded crowds for the benchmarks: clustered like photographs, at the sizes of the published data sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raz.paper.groundtruth import heads_inside, mean_neighbour_distance

Heads = NDArray[np.float64]


@dataclass(frozen=True)
class Crowd:
    """Heads (n, 2) x, y px of an image of `height` x `width`, and their mean distance to the four nearest, px."""

    name: str
    height: int
    width: int
    heads: Heads
    distances: NDArray[np.float64]

    def __str__(self) -> str:
        spread = "none"
        if len(self.heads):
            quantiles = np.quantile(self.distances, [0.05, 0.25, 0.5, 0.75, 0.95])
            spread = " / ".join(f"{q:.1f}" for q in quantiles)
        return (
            f"{self.name}: {self.height} x {self.width}, {len(self.heads)} heads, "
            f"mean distance of the 4 nearest at 5/25/50/75/95 %: {spread} px"
        )


# Height, width, heads, clusters: ShanghaiTech A's mean image; UCF-QNRF's mean image; its largest crowd.
SIZES = {"SHA": (589, 868, 500, 14), "Q": (2013, 2902, 815, 20), "Q12k": (2013, 2902, 12_000, 40)}


def crowd(name: str, seed: int = 0) -> Crowd:
    """A clustered crowd of one of SIZES, the same on every machine: print it to see its distances."""
    height, width, n, clusters = SIZES[name]
    rng = np.random.default_rng([seed, height, n])
    centre = rng.random((clusters, 2)) * [width, height]
    spread = rng.gamma(3.0, min(height, width) / 36, clusters)
    heads = np.zeros((0, 2))
    while len(heads) < n:
        which = rng.integers(0, clusters, n)
        stretched = rng.normal(size=(n, 2)) * spread[which, None] * [1.6, 1.0]
        heads = np.concatenate([heads, heads_inside(centre[which] + stretched, height, width)[0]])
    heads = heads[:n]
    return Crowd(name, height, width, heads, mean_neighbour_distance(heads, 4, height, width))


def hard_cases() -> list[Crowd]:
    """Annotations as they come: positions outside the image (dropped), twins, and 0, 1 and 3 heads."""
    rng = np.random.default_rng(7)
    height, width = 203, 310
    wild = rng.normal(size=(120, 2)) * [90, 60] + [155, 100]
    twins = np.repeat(rng.random((20, 2)) * [width, height], 3, axis=0)
    cases = {"negative": wild, "twins": twins}
    cases |= {f"{n} heads": rng.random((n, 2)) * [width, height] for n in (0, 1, 3)}
    out = []
    for name, points in cases.items():
        heads, _ = heads_inside(points, height, width)
        out.append(Crowd(name, height, width, heads, mean_neighbour_distance(heads, 4, height, width)))
    return out


def response(of: Crowd, seed: int = 0) -> NDArray[np.float32]:
    """A response map like a trained network's, (height, width): a soft bump on each head over faint noise."""
    from scipy import ndimage

    from raz.paper.groundtruth import head_labels

    rng = np.random.default_rng([seed, len(of.heads)])
    soft = ndimage.gaussian_filter(head_labels(of.heads, of.height, of.width).astype(np.float32), 1.0)
    noisy = soft / soft.max() * 0.9 + rng.random(soft.shape, dtype=np.float32) * 0.02
    return np.asarray(noisy, dtype=np.float32)
