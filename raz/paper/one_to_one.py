"""One-to-one matching of points and heads, local density of heads, and their quartiles of a split by local density.

With tp matched pairs over all images, precision is tp / points, recall tp / heads, F1 = 2·tp / (points + heads).

The local density of a head is 1 / d², d the mean distance to its four nearest other heads of the image in px of the
original image: heads per px². On a square lattice it is the lattice's own density. A head with one to three other heads
takes the mean over these; a lone head has density 0.

The quartiles of a split are by the local density of all its heads, 0 the sparsest. A head belongs to its quartile. A
point belongs to that of its nearest head, right or wrong; in an image without heads it belongs to none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NEIGHBOURS = 4  # whose mean distance gives a head's local density
QUARTILES = 4
_TIE_MARGIN = 1e-9  # the tree may round distances differently from numpy, which decides about pairs near the border


@dataclass(frozen=True)
class CandidatePairs:
    """The pairs of a point and a head of one image that may be matched, in ascending order of points."""

    point: Integers  # (p,) index of the point
    head: Integers  # (p,) index of the head
    distance: Floats  # (p,) px
    points: int  # number of points of the image
    heads: int  # number of heads of the image

    def take(self, keep: NDArray[np.bool_]) -> CandidatePairs:
        """The pairs where the mask (p,) is true."""
        return CandidatePairs(self.point[keep], self.head[keep], self.distance[keep], self.points, self.heads)


def pairs_within(points: Floats, heads: Floats, radius: Floats) -> CandidatePairs:
    """All pairs of points (n, 2) and heads (m, 2) with d <= the head's radius (m,), all in px."""
    if not len(points) or not len(heads):
        none = np.zeros(0, np.int64)
        return CandidatePairs(none, none, np.zeros(0), len(points), len(heads))
    tree = cKDTree(points)
    near = tree.query_ball_point(heads, radius * (1 + _TIE_MARGIN) + _TIE_MARGIN, return_sorted=False)
    head = np.repeat(np.arange(len(heads)), [len(indices) for indices in near])
    point = np.fromiter((i for indices in near for i in indices), np.int64, len(head))
    step = points[point] - heads[head]
    distance = np.sqrt(step[:, 0] * step[:, 0] + step[:, 1] * step[:, 1])
    keep = np.flatnonzero(distance <= radius[head])
    keep = keep[np.lexsort((head[keep], point[keep]))]
    return CandidatePairs(point[keep], head[keep], distance[keep], len(points), len(heads))


def maximum_matching(pairs: CandidatePairs) -> Integers:
    """A maximum one-to-one matching: the head of each point, (points,), -1 for a point without one (Hopcroft, Karp)."""
    if not len(pairs.point):
        return np.full(pairs.points, -1, np.int64)
    starts = np.concatenate([[0], np.cumsum(np.bincount(pairs.point, minlength=pairs.points))])
    ones = np.ones(len(pairs.point), np.int8)
    graph = csr_array((ones, pairs.head.astype(np.int32), starts.astype(np.int32)), shape=(pairs.points, pairs.heads))
    return np.asarray(maximum_bipartite_matching(graph, perm_type="column"), dtype=np.int64)


def matching_size(pairs: CandidatePairs) -> int:
    """The size of a maximum one-to-one matching."""
    return int((maximum_matching(pairs) >= 0).sum())


# ------------------------------------------------------------------------------------ local density


def local_density(heads: Floats) -> Floats:
    """The local density of each head (m, 2) px of one image, (m,) heads per px²; inf where its nearest heads coincide
    with it."""
    neighbours = min(NEIGHBOURS, len(heads) - 1)
    if neighbours < 1:
        return np.zeros(len(heads))
    distance, _ = cKDTree(heads).query(heads, k=np.arange(2, neighbours + 2))  # the nearest one is the head itself
    with np.errstate(divide="ignore"):
        return np.asarray(1 / np.square(np.asarray(distance).mean(axis=1)))


def density_edges(densities: Sequence[Floats]) -> Floats:
    """The three local densities that divide the heads of all images into quartiles, ascending, (3,); nan without heads.

    The q-th is the density of the ceil(q·n/4)-th of n heads in ascending order: one that a head has, so that lone heads
    (0) and coincident ones (inf) need no arithmetic.
    """
    ranked = np.sort(np.concatenate([np.zeros(0), *densities]))
    if not len(ranked):
        return np.full(QUARTILES - 1, math.nan)
    return np.asarray(ranked[[-(-q * len(ranked) // QUARTILES) - 1 for q in range(1, QUARTILES)]])


def quartile_of(density: Floats, edges: Floats) -> Integers:
    """The quartile of each local density, (m,) 0 to 3. Heads as dense as an edge belong to the sparser side."""
    return np.asarray(np.searchsorted(edges, density, side="left"), dtype=np.int64)


@dataclass(frozen=True)
class Tally:
    """Heads, points and matched pairs of one image, or of many, by quartile of local density.

    A matched pair counts once in `found` under its head's quartile and once in `correct` under its point's: the nearest
    head of a point need not be the one that it is matched to.
    """

    heads: Integers  # (..., 4)
    points: Integers  # (..., 4); points of images without heads are in none
    found: Integers  # (..., 4, radii) matched heads
    correct: Integers  # (..., 4, radii) matched points
    all_points: Integers  # (...) with those of images without heads


def tally(points: Floats, heads: Floats, quartile: Integers, radii: Sequence[float]) -> Tally:
    """One image's points (n, 2) and heads (m, 2) in px, matched at each of `radii` px by a maximum one-to-one matching.

    quartile: (m,) of each head. A pair is within the radius if d <= radius. Which of several maximum matchings is taken
    follows from the coordinates alone, not from the order of points and heads.
    """
    points = points[np.lexsort((points[:, 0], points[:, 1]))]
    by_place = np.lexsort((quartile, heads[:, 0], heads[:, 1]))
    heads, quartile = heads[by_place], quartile[by_place]
    found, correct = (np.zeros((QUARTILES, len(radii)), np.int64) for _ in range(2))
    of_point = np.zeros(0, np.int64)
    if len(heads):
        of_point = quartile[np.asarray(cKDTree(heads).query(points)[1], dtype=np.int64)] if len(points) else of_point
        pairs = pairs_within(points, heads, np.full(len(heads), max(radii)))
        for k, radius in enumerate(radii):
            head = maximum_matching(pairs.take(pairs.distance <= radius))
            found[:, k] = np.bincount(quartile[head[head >= 0]], minlength=QUARTILES)
            correct[:, k] = np.bincount(of_point[head >= 0], minlength=QUARTILES)
    return Tally(
        np.bincount(quartile, minlength=QUARTILES), np.bincount(of_point, minlength=QUARTILES), found, correct,
        np.array(len(points)),
    )  # fmt: skip


def stack(tallies: Sequence[Tally], radii: int) -> Tally:
    """The tallies of many images as one, images first. `radii` is their number, for no images at all."""
    shapes = {"heads": (QUARTILES,), "points": (QUARTILES,), "found": (QUARTILES, radii), "correct": (QUARTILES, radii),
              "all_points": ()}  # fmt: skip
    return Tally(**{
        name: np.array([getattr(image, name) for image in tallies], dtype=np.int64).reshape(len(tallies), *shape)
        for name, shape in shapes.items()
    })  # fmt: skip


def one_to_one_scores(images: Tally, radii: Sequence[float]) -> dict[str, float]:
    """Scores of the images of a tally, pooled: fractions in [0, 1], nan where 0/0.

    Returns `f1@`, `precision@` and `recall@` for each radius, named as in `f1@8`, and in the quartiles `f1_q1@8` (the
    sparsest) to `f1_q4@8`, and `recall_q1@8` to `recall_q4@8`. In a quartile recall is found / heads, precision
    correct / points, and F1 their harmonic mean.
    """
    out: dict[str, float] = {}
    heads, points, every = images.heads.sum(axis=0), images.points.sum(axis=0), int(images.all_points.sum())
    for k, radius in enumerate(radii):
        found, correct = images.found[..., k].sum(axis=0), images.correct[..., k].sum(axis=0)
        matched, total = int(found.sum()), int(heads.sum())
        at = f"@{radius:g}"
        out[f"f1{at}"] = _fraction(2 * matched, every + total)
        out[f"precision{at}"], out[f"recall{at}"] = _fraction(matched, every), _fraction(matched, total)
        for q in range(QUARTILES):
            recall = _fraction(int(found[q]), int(heads[q]))
            out[f"recall_q{q + 1}{at}"] = recall
            out[f"f1_q{q + 1}{at}"] = harmonic_mean(_fraction(int(correct[q]), int(points[q])), recall)
    return out


def _fraction(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def harmonic_mean(precision: float, recall: float) -> float:
    """F1 of a precision and a recall, either nan where it is 0/0: no points but heads is F1 0, as 2·tp / (points +
    heads) has it; nan where both are nan."""
    if math.isnan(precision) and math.isnan(recall):
        return math.nan
    p, r = (0.0 if math.isnan(value) else value for value in (precision, recall))
    return 2 * p * r / (p + r) if p + r else 0.0
