"""How the benchmarks of crowd localization score points: one function each, arrays in, numbers out.

    raz     ranked points claim their nearest head (this paper, section 4.2): AP and AR by sigma; `raz.paper.metrics`
    nwpu    the most pairs of a point and a head within the head's own radius, sigma_s and sigma_l of its box
            (Wang et al., NWPU-Crowd, TPAMI 2020; the benchmark site's published script)
    fidtm   the same with fixed radii of 4 and 8 px (Liang et al., FIDTM; its published script)
    qnrf    the same at 1, 2, …, 100 px, averaged over the radii (Idrees et al., UCF-QNRF, ECCV 2018)

Precision is tp / points, recall tp / heads, F1 = 2·tp / (points + heads), over all images together; what is 0/0 is nan.
Where the published scripts differ from each other or from this:

- They read whole numbers only, and their ground truth is floored first (`floored`). Here coordinates stay as they are
  unless one asks, since half a pixel is an eighth of the smallest radius.
- A pair is within the radius when d <= sigma, the border included; the paper's metric wants d < r.
- The most pairs are unique as a number, not as a set. Recall by level depends on the set; the script takes what its
  search in the order of the file finds. Here the smallest heads are served first, which no order changes.
- ScoreReport play no part: every point counts, so a file must hold the counted points only. The paper's metric ranks.
- Idrees et al. write of a greedy association, shortest pairs first; the scripts since then take the most pairs. Both
  are given. The "area under the precision-recall curve" of their text is left out: over distances both rise together,
  so what the area is taken of is not defined there.
- 0/0: a script adds 1e-20 and prints 0 for precision and recall, nan for F1; a level without heads counts as recall 0
  in its average over levels, here it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from raz.paper.metrics import localization_scores, mae, match, rmse
from raz.score.points import PointSet

Floats = NDArray[np.float64]
FIDTM_RADII = (4.0, 8.0)
QNRF_RADII = tuple(float(px) for px in range(1, 101))
LEVELS = 6
_TIE_MARGIN = 1e-9  # the tree may round a distance otherwise than numpy: what is near the border is looked at again


@dataclass(frozen=True)
class ScoreRow:
    """One line of a table of scores; fractions in [0, 1], nan where 0/0, None where the protocol has no such number."""

    protocol: str
    setting: str
    ap: float | None = None
    ar: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


@dataclass(frozen=True)
class CandidatePairs:
    """Every point and head of one image near enough to be a pair: (p,) indices and distances, points ascending."""

    point: NDArray[np.int64]
    head: NDArray[np.int64]
    distance: Floats
    points: int
    heads: int

    def take(self, kept: NDArray[np.bool_]) -> CandidatePairs:
        return CandidatePairs(self.point[kept], self.head[kept], self.distance[kept], self.points, self.heads)


def drop_fractions(marks: PointSet) -> PointSet:
    """The same with whole-numbered coordinates, as the published scripts read them."""
    return PointSet(np.floor(marks.xy), marks.score, marks.sigma, marks.level)


def pairs_within(points: Floats, heads: Floats, radius: Floats) -> CandidatePairs:
    """Pairs with d <= the head's radius (m,), in px; points (n, 2), heads (m, 2)."""
    if not len(points) or not len(heads):
        none = np.zeros(0, np.int64)
        return CandidatePairs(none, none, np.zeros(0), len(points), len(heads))
    tree = cKDTree(points)
    near = tree.query_ball_point(heads, radius * (1 + _TIE_MARGIN) + _TIE_MARGIN, return_sorted=False)
    head = np.repeat(np.arange(len(heads)), [len(found) for found in near])
    point = np.fromiter((i for found in near for i in found), np.int64, len(head))
    step = points[point] - heads[head]
    distance = np.sqrt(step[:, 0] * step[:, 0] + step[:, 1] * step[:, 1])
    kept = np.flatnonzero(distance <= radius[head])
    kept = kept[np.argsort(point[kept], kind="stable")]
    return CandidatePairs(point[kept], head[kept], distance[kept], len(points), len(heads))


def maximum_matching(pairs: CandidatePairs) -> int:
    """The size of a maximum one-to-one matching."""
    if not len(pairs.point):
        return 0
    starts = np.concatenate([[0], np.cumsum(np.bincount(pairs.point, minlength=pairs.points))])
    ones = np.ones(len(pairs.point), np.int8)
    graph = csr_array((ones, pairs.head.astype(np.int32), starts.astype(np.int32)), shape=(pairs.points, pairs.heads))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def greedy_matching(pairs: CandidatePairs) -> Floats:
    """The distances, rising, of the pairs that a greedy association takes: the shortest first, one to one.

    Equal distances are taken in the order of heads, then points. Taking those up to a radius t only gives the same
    pairs as far as t, so one association serves every radius.
    """
    order = np.lexsort((pairs.point, pairs.head, pairs.distance))
    point, head, distance = pairs.point[order], pairs.head[order], pairs.distance[order]
    taken = []
    while len(point):
        # A pair that is the first of its point and of its head is taken whatever else happens.
        first_point, first_head = np.zeros(len(point), np.bool_), np.zeros(len(point), np.bool_)
        first_point[np.unique(point, return_index=True)[1]] = True
        first_head[np.unique(head, return_index=True)[1]] = True
        mutual = first_point & first_head
        taken.append(distance[mutual])
        gone_point, gone_head = np.zeros(pairs.points, np.bool_), np.zeros(pairs.heads, np.bool_)
        gone_point[point[mutual]] = True
        gone_head[head[mutual]] = True
        left = ~(gone_point[point] | gone_head[head])
        point, head, distance = point[left], head[left], distance[left]
    return np.sort(np.concatenate(taken)) if taken else np.zeros(0)


def matching_sizes(pairs: CandidatePairs, radii: Sequence[float], greedy: Floats) -> NDArray[np.int64]:
    """`most_pairs` at each of the rising radii.

    What the greedy association and the radius before reached are lower bounds, and as many points or heads as have a
    partner at all is an upper one. Only where they differ is a matching solved.
    """
    first_point, first_head = np.full(pairs.points, np.inf), np.full(pairs.heads, np.inf)
    np.minimum.at(first_point, pairs.point, pairs.distance)
    np.minimum.at(first_head, pairs.head, pairs.distance)
    out = np.zeros(len(radii), np.int64)
    reached = 0
    for i, radius in enumerate(radii):
        least = max(int(np.searchsorted(greedy, radius, side="right")), reached)
        at_most = min(int((first_point <= radius).sum()), int((first_head <= radius).sum()))
        reached = least if least == at_most else maximum_matching(pairs.take(pairs.distance <= radius))
        out[i] = reached
    return out


def ratios(tp: int, points: int, heads: int) -> tuple[float, float, float]:
    """(precision, recall, F1); nan where 0/0."""
    return (
        tp / points if points else math.nan,
        tp / heads if heads else math.nan,
        2 * tp / (points + heads) if points + heads else math.nan,
    )


ImagePairs = Sequence[tuple[PointSet, PointSet]]  # (points, heads) of each image


def count_errors(images: ImagePairs) -> dict[str, float]:
    """MAE, RMSE and NAE of the number of points; NAE over the images that have heads, nan without any."""
    pred, true = (np.array([len(pair[k]) for pair in images], dtype=np.float64) for k in (0, 1))
    some = true > 0
    nae = float((np.abs(pred - true)[some] / true[some]).mean()) if some.any() else math.nan
    return {"mae": mae(pred, true), "rmse": rmse(pred, true), "nae": nae}


def raz(images: ImagePairs, sigmas: Sequence[float]) -> list[ScoreRow]:
    """The paper's AP and AR; points without scores are ranked by position alone."""
    matches = [
        match(points.xy, points.score if points.score is not None else np.ones(len(points)), heads.xy)
        for points, heads in images
    ]
    scores = localization_scores(matches, sigmas=sigmas)
    rows = []
    for sigma in sigmas:
        for setting, name in ((".50", "50"), (".75", "75"), ("mean", "")):
            ap, ar = (f"ap{name}@{sigma:g}", f"ar{name}@{sigma:g}") if name else (f"map@{sigma:g}", f"mar@{sigma:g}")
            rows.append(ScoreRow("raz", f"sigma {sigma:g} {setting}", ap=scores[ap], ar=scores[ar]))
    return rows


def nwpu(images: ImagePairs) -> list[ScoreRow]:
    """sigma_s and sigma_l of each head, and recall by level where levels are known. Heads need `sigma`."""
    n, m = (sum(len(pair[k]) for pair in images) for k in (0, 1))
    rows = []
    for column, name in ((0, "sigma_s"), (1, "sigma_l")):
        tp, served, of_level = 0, np.zeros(LEVELS, np.int64), np.zeros(LEVELS, np.int64)
        for points, heads in images:
            if not len(heads):
                continue
            assert heads.sigma is not None
            pairs = pairs_within(points.xy, heads.xy, heads.sigma[:, column])
            total = maximum_matching(pairs)
            tp += total
            if heads.level is None:
                continue
            # Matched heads form a matroid: serving level after level gives M(<= l) - M(< l) each.
            of_level += np.bincount(heads.level, minlength=LEVELS)
            before = 0
            for level in np.unique(heads.level):
                last = level == heads.level.max()
                up_to = total if last else maximum_matching(pairs.take(heads.level[pairs.head] <= level))
                served[level] += up_to - before
                before = up_to
        precision, recall, f1 = ratios(tp, n, m)
        rows.append(ScoreRow("nwpu", name, precision=precision, recall=recall, f1=f1))
        present = np.flatnonzero(of_level)
        rows += [ScoreRow("nwpu", f"{name} level {k}", recall=float(served[k] / of_level[k])) for k in present]
        if len(present):
            mean = float((served[present] / of_level[present]).mean())
            rows.append(ScoreRow("nwpu", f"{name} mean of levels", recall=mean))
    return rows


def fidtm(images: ImagePairs) -> list[ScoreRow]:
    """Fixed radii of 4 and 8 px."""
    n, m = (sum(len(pair[k]) for pair in images) for k in (0, 1))
    rows = []
    for radius in FIDTM_RADII:
        tp = sum(maximum_matching(pairs_within(p.xy, h.xy, np.full(len(h), radius))) for p, h in images)
        precision, recall, f1 = ratios(tp, n, m)
        rows.append(ScoreRow("fidtm", f"{radius:g} px", precision=precision, recall=recall, f1=f1))
    return rows


def qnrf(images: ImagePairs, told: Callable[[int, int], None] = lambda done, total: None) -> list[ScoreRow]:
    """1 to 100 px: the mean over the radii of precision, recall and F1, by the most pairs and by greedy ones.

    `told(images done, of how many)` is called as it goes: crowds of ten thousand take seconds each.
    """
    n, m = (sum(len(pair[k]) for pair in images) for k in (0, 1))
    most, greedily = (np.zeros(len(QNRF_RADII), np.int64) for _ in range(2))
    for done, (points, heads) in enumerate(images, 1):
        pairs = pairs_within(points.xy, heads.xy, np.full(len(heads), QNRF_RADII[-1]))
        greedy = greedy_matching(pairs)
        greedily += np.searchsorted(greedy, QNRF_RADII, side="right")
        most += matching_sizes(pairs, QNRF_RADII, greedy)
        told(done, len(images))
    rows = []
    for name, counts in (("1-100 px", most), ("1-100 px greedy", greedily)):
        each = np.array([ratios(int(tp), n, m) for tp in counts])
        precision, recall, f1 = (float(value) for value in each.mean(axis=0))
        rows.append(ScoreRow("qnrf", name, precision=precision, recall=recall, f1=f1))
    return rows
