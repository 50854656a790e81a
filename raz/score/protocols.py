"""Scoring protocols of crowd localization benchmarks, one function each.

    raz     ranked points claim their nearest head (this paper, section 4.2): AP and AR per sigma; `raz.paper.metrics`
    nwpu    maximum one-to-one matching of points and heads within each head's own radius, sigma_s and sigma_l of its
            box (Wang et al., NWPU-Crowd, TPAMI 2020; the script published by the benchmark)
    fidtm   the same with fixed radii of 4 and 8 px (Liang et al., FIDTM; its published script)
    qnrf    the same at 1, 2, …, 100 px, averaged over the radii (Idrees et al., UCF-QNRF, ECCV 2018)

With tp matched pairs over all images, precision is tp / points, recall tp / heads, F1 = 2·tp / (points + heads); 0/0 is
nan. Where the published scripts differ from each other or from this module:

- The scripts read whole numbers only, and their ground truth is floored first (`drop_fractions`). Here coordinates keep
  their fractions by default, since half a pixel is an eighth of the smallest radius.
- A pair is within the radius if d <= sigma, border included; the paper's metric requires d < r.
- The size of a maximum matching is unique, the matching is not. Recall by level depends on the matching, and the script
  takes the one that its search finds. Here heads of lower levels are matched first, independent of order.
- Scores are ignored: every point counts, so a file must hold the counted points only. The paper's metric ranks points.
- Idrees et al. describe a greedy association, shortest pairs first; later scripts use a maximum matching. Both are
  computed. The "area under the precision-recall curve" of their text is omitted: over distances, precision and recall
  increase together, so the area is not defined.
- 0/0: a script adds 1e-20 and prints 0 for precision and recall, nan for F1. In its mean over levels a level without
  heads counts as recall 0; here it is omitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raz.paper.metrics import localization_scores, mae, match, rmse
from raz.paper.one_to_one import CandidatePairs, matching_size, pairs_within
from raz.score.points import Floats, PointSet

FIDTM_RADII = (4.0, 8.0)
QNRF_RADII = tuple(float(px) for px in range(1, 101))
LEVELS = 6


@dataclass(frozen=True)
class ScoreRow:
    """One row of a table of scores: fractions in [0, 1], nan where 0/0, None where the protocol has no such number."""

    protocol: str
    setting: str
    ap: float | None = None
    ar: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


def drop_fractions(points: PointSet) -> PointSet:
    """The points with coordinates rounded down, as the published scripts read them."""
    return PointSet(np.floor(points.xy), points.score, points.sigma, points.level)


def greedy_matching(pairs: CandidatePairs) -> Floats:
    """Ascending distances (px) of the pairs of a greedy one-to-one matching, shortest pairs first.

    Equal distances are ordered by head, then point. The pairs up to a radius t are the greedy matching at radius t, so
    one matching serves every radius.
    """
    order = np.lexsort((pairs.point, pairs.head, pairs.distance))
    point, head, distance = pairs.point[order], pairs.head[order], pairs.distance[order]
    taken = []
    while len(point):
        # A pair that is the shortest of both its point and its head is in the matching.
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
    """Size of the maximum matching at each of the ascending radii (px); `greedy` is `greedy_matching(pairs)`.

    The greedy matching and the result at the previous radius are lower bounds; the numbers of points and of heads with
    any partner are upper bounds. A matching is computed only where the bounds differ.
    """
    first_point, first_head = np.full(pairs.points, np.inf), np.full(pairs.heads, np.inf)
    np.minimum.at(first_point, pairs.point, pairs.distance)
    np.minimum.at(first_head, pairs.head, pairs.distance)
    out = np.zeros(len(radii), np.int64)
    size = 0
    for i, radius in enumerate(radii):
        least = max(int(np.searchsorted(greedy, radius, side="right")), size)
        at_most = min(int((first_point <= radius).sum()), int((first_head <= radius).sum()))
        size = least if least == at_most else matching_size(pairs.take(pairs.distance <= radius))
        out[i] = size
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
    """MAE, RMSE (heads per image) and NAE of the number of points; NAE over images with heads, nan without any."""
    pred, true = (np.array([len(pair[k]) for pair in images], dtype=np.float64) for k in (0, 1))
    some = true > 0
    nae = float((np.abs(pred - true)[some] / true[some]).mean()) if some.any() else math.nan
    return {"mae": mae(pred, true), "rmse": rmse(pred, true), "nae": nae}


def raz(images: ImagePairs, sigmas: Sequence[float]) -> list[ScoreRow]:
    """AP and AR of section 4.2 for sigmas in px; points without scores are ranked by position only."""
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
    """Radii sigma_s and sigma_l of each head, and recall by level where levels are known. All heads need `sigma`."""
    n, m = (sum(len(pair[k]) for pair in images) for k in (0, 1))
    rows = []
    for column, name in ((0, "sigma_s"), (1, "sigma_l")):
        tp, matched, of_level = 0, np.zeros(LEVELS, np.int64), np.zeros(LEVELS, np.int64)
        for points, heads in images:
            if not len(heads):
                continue
            assert heads.sigma is not None
            pairs = pairs_within(points.xy, heads.xy, heads.sigma[:, column])
            total = matching_size(pairs)
            tp += total
            if heads.level is None:
                continue
            # Matchable sets of heads form a matroid: matching level by level gives level l |M(<= l)| - |M(< l)| heads.
            of_level += np.bincount(heads.level, minlength=LEVELS)
            before = 0
            for level in np.unique(heads.level):
                last = level == heads.level.max()
                up_to = total if last else matching_size(pairs.take(heads.level[pairs.head] <= level))
                matched[level] += up_to - before
                before = up_to
        precision, recall, f1 = ratios(tp, n, m)
        rows.append(ScoreRow("nwpu", name, precision=precision, recall=recall, f1=f1))
        present = np.flatnonzero(of_level)
        rows += [ScoreRow("nwpu", f"{name} level {k}", recall=float(matched[k] / of_level[k])) for k in present]
        if len(present):
            mean = float((matched[present] / of_level[present]).mean())
            rows.append(ScoreRow("nwpu", f"{name} mean of levels", recall=mean))
    return rows


def fidtm(images: ImagePairs) -> list[ScoreRow]:
    """Fixed radii of 4 and 8 px."""
    n, m = (sum(len(pair[k]) for pair in images) for k in (0, 1))
    rows = []
    for radius in FIDTM_RADII:
        tp = sum(matching_size(pairs_within(p.xy, h.xy, np.full(len(h), radius))) for p, h in images)
        precision, recall, f1 = ratios(tp, n, m)
        rows.append(ScoreRow("fidtm", f"{radius:g} px", precision=precision, recall=recall, f1=f1))
    return rows


def qnrf(images: ImagePairs, progress: Callable[[int, int], None] = lambda done, total: None) -> list[ScoreRow]:
    """Radii of 1 to 100 px: means over the radii of precision, recall and F1, by maximum and by greedy matching.

    `progress(images done, total)` is called after each image: a crowd of ten thousand takes seconds.
    """
    n, m = (sum(len(pair[k]) for pair in images) for k in (0, 1))
    maximum_sizes, greedy_sizes = (np.zeros(len(QNRF_RADII), np.int64) for _ in range(2))
    for done, (points, heads) in enumerate(images, 1):
        pairs = pairs_within(points.xy, heads.xy, np.full(len(heads), QNRF_RADII[-1]))
        greedy = greedy_matching(pairs)
        greedy_sizes += np.searchsorted(greedy, QNRF_RADII, side="right")
        maximum_sizes += matching_sizes(pairs, QNRF_RADII, greedy)
        progress(done, len(images))
    rows = []
    for name, counts in (("1-100 px", maximum_sizes), ("1-100 px greedy", greedy_sizes)):
        per_radius = np.array([ratios(int(tp), n, m) for tp in counts])
        precision, recall, f1 = (float(value) for value in per_radius.mean(axis=0))
        rows.append(ScoreRow("qnrf", name, precision=precision, recall=recall, f1=f1))
    return rows
