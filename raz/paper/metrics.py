"""Counting errors, and the paper's localization metric: §4.2, Table 3, rows (20) to (23) and (28).

For each (sigma, threshold), points in descending order of score each claim their nearest true head. A point is a true
positive if its affinity exp(-d²/(2·sigma²)) exceeds the threshold, that is if d < r = sigma·sqrt(-2·ln threshold), and
no better-ranked true positive has claimed that head.

A head is taken at radius r if a better-ranked point lies within r of it. So matching depends on r through one number
per point: `best_before`, the smallest distance at which a better-ranked point takes its head. One pass over the points
serves every sigma and threshold: a point is a true positive iff distance < r <= best_before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from raz.errors import RazError, raise_all

Floats = NDArray[np.float64]

SIGMAS = (40.0, 20.0, 5.0)
THRESHOLDS = tuple(k / 100 for k in range(50, 100, 5))
POOLS = ("dataset", "image")

# Heads whose distances differ by less than this fraction are compared again by numpy: the tree may round a distance
# differently (fused multiply-add), and a tie must not depend on that.
_TIE_MARGIN = 1e-9


def _count_errors(where: str, pred: ArrayLike, true: ArrayLike) -> Floats:
    """pred - true, (n,) persons. Raises RazError as `mae`."""
    predicted, truth = np.asarray(pred, dtype=np.float64), np.asarray(true, dtype=np.float64)
    faults = []
    if predicted.ndim != 1 or predicted.shape != truth.shape:
        faults.append(RazError(where, f"shapes are {predicted.shape} and {truth.shape}, expected one (images,)"))
    elif len(predicted) == 0:
        faults.append(RazError(where, "no images: the error is undefined", "is the split empty?"))
    for name, counts in (("pred", predicted), ("true", truth)):
        if not np.isfinite(counts).all():
            faults.append(RazError(where, f"{name} holds counts that are not finite", "a diverged network?"))
    raise_all(faults)
    return predicted - truth


def mae(pred: ArrayLike, true: ArrayLike) -> float:
    """Mean absolute error of the counts of n images, in persons. (20)

    pred, true: (n,) persons, n >= 1. Raises RazError for other shapes, no images, or counts that are not finite.
    """
    return float(np.abs(_count_errors("mae", pred, true)).mean())


def rmse(pred: ArrayLike, true: ArrayLike) -> float:
    """Root mean square error of the counts of n images, in persons; the paper calls it "MSE". (20)

    pred, true: (n,) persons, n >= 1. Raises RazError for other shapes, no images, or counts that are not finite.
    """
    return float(np.sqrt(np.square(_count_errors("rmse", pred, true)).mean()))


@dataclass(frozen=True)
class Matches:
    """One image's points in rank order, matched to its true heads for every radius at once.

    A point is a true positive at radius r iff distance < r <= best_before.
    """

    score: Floats  # (n,) descending
    distance: Floats  # (n,) to the nearest head, in original px; inf without heads
    best_before: Floats  # (n,) largest radius (px) at which that head is still free; inf if no better point claims it
    heads: int  # number of true heads
    points: Floats  # (n, 2) x, y in original px; breaks ties of equal scores when images are pooled


def _checked_points(where: str, name: str, xy: ArrayLike) -> tuple[Floats, list[RazError]]:
    points = np.asarray(xy, dtype=np.float64)
    if points.size == 0:
        points = points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        return np.empty((0, 2)), [RazError(where, f"{name} has shape {points.shape}, expected (n, 2) of x, y")]
    if not np.isfinite(points).all():
        return points, [RazError(where, f"{name} holds coordinates that are not finite")]
    return points, []


def _rank_order(score: Floats, xy: Floats) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Stable order by descending score, then y, then x; and (n - 1,) which neighbours in it share all three."""
    order = np.argsort(-score, kind="stable")  # fast on a concatenation of images that are already ranked
    ranked = score[order]
    same = ranked[1:] == ranked[:-1]
    if not same.any():
        return order, same
    tied = _tied(same)
    rows = order[tied]
    rows = rows[np.lexsort((xy[rows, 0], xy[rows, 1], -score[rows]))]
    order[tied] = rows
    at = np.flatnonzero(same)
    same[at] = (xy[order[at]] == xy[order[at + 1]]).all(axis=1)
    return order, same


def _tied(same: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices of the n elements that equal a neighbour, given (n - 1,) which neighbours are equal."""
    return np.flatnonzero(np.append(same, False) | np.append(False, same))


def _distances(a: Floats, b: Floats) -> Floats:
    step = a - b
    return np.sqrt(step[:, 0] * step[:, 0] + step[:, 1] * step[:, 1])


def match(points: ArrayLike, scores: ArrayLike, heads: ArrayLike) -> Matches:
    """Rank and match one image's points. (21)

    points: (n, 2) x, y in original px; scores: (n,), higher is more confident; heads: (m, 2) x, y in original px.

    Points are ranked by descending score, then y, then x. Each point claims its nearest head only. If several heads are
    equally near, such as coincident ones, it claims a free one, the lowest index first. The result does not depend on
    the order of the points. Raises RazError for other shapes or numbers that are not finite.
    """
    xy, faults = _checked_points("match", "points", points)
    true, more = _checked_points("match", "heads", heads)
    faults += more
    score = np.asarray(scores, dtype=np.float64)
    if score.shape != (len(xy),) and not (score.size == 0 and len(xy) == 0):
        faults.append(RazError("match", f"scores have shape {score.shape} for {len(xy)} points"))
    elif not np.isfinite(score).all():
        faults.append(RazError("match", "scores hold numbers that are not finite", "a diverged network?"))
    raise_all(faults)
    score = score.ravel()
    order, _ = _rank_order(score, xy)
    xy, score = xy[order], score[order]
    distance, best_before = np.full(len(xy), np.inf), np.full(len(xy), np.inf)
    if len(xy) and len(true):
        distance, best_before = _greedy_assign(xy, true)
    return Matches(score, distance, best_before, len(true), xy)


def _greedy_assign(xy: Floats, heads: Floats) -> tuple[Floats, Floats]:
    """(distance, best_before), each (n,) px, of ranked points (n, 2) among heads (m, 2); both non-empty."""
    # Coincident heads are one place with several heads, so that the tree never has to choose between them.
    by_place, fresh = _group_twins(heads)
    starts = np.flatnonzero(fresh)
    places = heads[by_place[starts]]
    ends = np.append(starts[1:], len(heads))

    tree = cKDTree(places, leafsize=24, compact_nodes=False, balanced_tree=False)
    query = tree.query(xy, k=[1, 2])  # a missing second place has distance inf
    near, at = np.asarray(query[0]), np.asarray(query[1])
    nearest = at[:, 0].astype(np.intp)
    distance = _distances(xy, places[nearest])

    # Points (nearly) halfway between places: find out exactly which places are equally near.
    several: dict[int, list[int]] = {}
    doubtful = np.flatnonzero(near[:, 1] <= near[:, 0] * (1 + _TIE_MARGIN))
    if len(doubtful):
        balls = tree.query_ball_point(xy[doubtful], near[doubtful, 0] * (1 + 2 * _TIE_MARGIN))
        sizes = np.array([len(ball) for ball in balls])
        around = np.concatenate(balls).astype(np.intp)
        exact = _distances(np.repeat(xy[doubtful], sizes, axis=0), places[around])
        least = np.minimum.reduceat(exact, np.cumsum(sizes) - sizes)
        equal = exact == np.repeat(least, sizes)
        distance[doubtful] = least
        tied_sets = np.split(np.where(equal, around, -1), np.cumsum(sizes)[:-1])
        for point, ball in zip(doubtful.tolist(), tied_sets, strict=True):
            tied = ball[ball >= 0].tolist()
            nearest[point] = tied[0]
            if len(tied) > 1:
                several[point] = tied

    best_before = _running_minimum(nearest, distance)

    # Places with several heads, and places tied by a point halfway between them, are resolved point by point in rank
    # order. All points of such a place take part, including those with one head to claim.
    special = np.zeros(len(places), dtype=np.bool_)
    special[ends - starts > 1] = True
    for tied in several.values():
        special[tied] = True
    if special.any():
        claims = {}
        for point in np.flatnonzero(special[nearest]).tolist():
            among = several[point] if point in several else [int(nearest[point])]
            claims[point] = sorted(head for place in among for head in by_place[starts[place] : ends[place]].tolist())
        _resolve_ties(claims, distance, best_before)
    return distance, best_before


def _group_twins(heads: Floats) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Order of heads (m, 2) that puts coincident ones together, and (m,) which in it are the first at their place."""
    # One key instead of two: coincident heads share it, and other heads almost never do.
    key = heads[:, 0] + heads[:, 1] * math.sqrt(2.0)
    order = np.argsort(key)
    ranked, moved = key[order], heads[order]
    fresh = np.ones(len(heads), dtype=np.bool_)
    fresh[1:] = (moved[1:, 0] != moved[:-1, 0]) | (moved[1:, 1] != moved[:-1, 1])
    if ((ranked[1:] == ranked[:-1]) & fresh[1:]).any():  # a collision: it may separate coincident heads
        order = np.lexsort((heads[:, 0], heads[:, 1]))
        fresh[1:] = (heads[order[1:]] != heads[order[:-1]]).any(axis=1)
    return order, fresh


def _running_minimum(nearest: NDArray[np.intp], distance: Floats) -> Floats:
    """Smallest distance of better-ranked points of the same place, (n,) px; inf for the first."""
    n = len(nearest)
    by_place = np.argsort(nearest, kind="stable")  # by place, then rank
    place = nearest[by_place]
    first = np.ones(n, dtype=np.bool_)
    first[1:] = place[1:] != place[:-1]
    # One running minimum for all places: it runs over the ranks of the distances, shifted by n per place, so that no
    # earlier place affects a later one. Ranks are integers, so nothing is rounded.
    by_distance = np.argsort(distance)
    rank = np.empty(n, dtype=np.int64)
    rank[by_distance] = np.arange(n)
    shift = n * np.cumsum(first)
    least = np.minimum.accumulate(rank[by_place] - shift) + shift
    before = np.full(n, np.inf)
    before[1:] = distance[by_distance[least[:-1]]]
    before[first] = np.inf
    result = np.empty(n)
    result[by_place] = before
    return result


def _resolve_ties(claims: dict[int, list[int]], distance: Floats, best_before: Floats) -> None:
    """Set `best_before` of the points in `claims`, which maps a rank to its equally near heads, in rank order.

    `taken` maps a head to the radius above which it is taken. A larger radius never frees a head (by induction over
    ranks), so one number per head suffices. At a radius r > d a point takes the first of its heads with taken >= r: the
    first head up to that head's radius, the second from there up to its own radius, and so on. `carry` is the radius
    reached so far. Above the largest of these radii no head is free.
    """
    taken: dict[int, float] = {}
    for point, heads in claims.items():
        carry, last = float(distance[point]), 0.0
        for head in heads:
            radius = taken.get(head, math.inf)
            last = max(last, radius)
            if carry < radius:
                taken[head], carry = carry, radius
        best_before[point] = last


def _pool_images(matches: Sequence[Matches]) -> tuple[Floats, Floats]:
    """(distance, best_before) of all images' points, ranked together; independent of the order of the images."""
    score = np.concatenate([image.score for image in matches])
    distance = np.concatenate([image.distance for image in matches])
    best_before = np.concatenate([image.best_before for image in matches])
    points = np.concatenate([image.points for image in matches])
    order, same = _rank_order(score, points)
    if same.any():
        # Points that share score and position keep their order within their image (`copy` numbers them). Between
        # images, the worse point is ranked first, so that the order of the images has no effect.
        owner = np.repeat(np.arange(len(matches)), [len(image.score) for image in matches])[order]
        at = np.arange(len(order))
        # Number of the (score, position) that a point has. The order is stable: image by image.
        group = np.cumsum(np.append(True, ~same))
        first = np.append(True, ~same | (owner[1:] != owner[:-1]))
        copy = at - np.maximum.accumulate(np.where(first, at, 0))
        tied = _tied(same)
        rows = order[tied]
        order[tied] = rows[np.lexsort((best_before[rows], -distance[rows], copy[tied], group[tied]))]
    return distance[order], best_before[order]


def _average_precision_recall(
    distance: Floats, best_before: Floats, heads: int, radius: float, ranks: Floats
) -> tuple[float, float]:
    """(AP, AR) of ranked points at one radius (px), fractions; nan where 0/0. `ranks` are 1, 2, 3, …"""
    if heads == 0:
        return (0.0 if len(distance) else math.nan), math.nan
    hits = np.compress((distance < radius) & (radius <= best_before), ranks)
    if len(hits) == 0:
        return 0.0, 0.0
    # Precision has its maxima at true positives, so its envelope is needed there only. Recall reaches k/100 with the
    # ceil(k·heads/100)-th true positive; integer arithmetic avoids rounding.
    precision = ranks[: len(hits)] / hits
    needed = np.maximum(-(-np.arange(101) * heads // 100), 1)
    at = needed[needed <= len(hits)] - 1  # non-decreasing: the envelope is a running maximum of the segments' maxima
    reached = np.maximum.accumulate(np.maximum.reduceat(precision, at)[::-1])
    return math.fsum(reached) / 101, len(hits) / heads


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are not nan, rounded once, so that their order does not matter; nan without any."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def localization_scores(
    matches: Sequence[Matches],
    sigmas: Sequence[float] = SIGMAS,
    thresholds: Sequence[float] = THRESHOLDS,
    pool: str = "dataset",
) -> dict[str, float]:
    """AP and AR as in Table 3, fractions in [0, 1]. (22), (23), (28)

    matches: one `Matches` per image; sigmas in original px; thresholds of the affinity, between 0 and 1.

    Returns for each sigma, named as in `@40` or `@2.5`: `apNN@` and `arNN@` at the thresholds .50 and .75 if they are
    in `thresholds`, and `map@` and `mar@`, the means over all thresholds. AP is the 101-point interpolated area under
    the precision-recall curve, AR the final recall.

    pool `dataset` ranks all images' points together. pool `image` scores each image and averages: an image without
    heads and points is skipped; one with points but without heads has AP 0 and does not count in AR, where it is 0/0.
    Without any head, AR is nan. The result does not depend on the order of the images.

    Raises RazError for an unknown pool, and for empty or invalid sigmas and thresholds.
    """
    where, faults = "localization_scores", []
    if pool not in POOLS:
        faults.append(RazError("metrics.pool", f"{pool!r} is not a way to pool", f"one of {', '.join(POOLS)}"))
    if not sigmas or not all(0 < sigma < math.inf for sigma in sigmas):
        faults.append(RazError(where, f"sigmas are {tuple(sigmas)}, expected one or more numbers over 0"))
    if not thresholds or not all(0 < threshold < 1 for threshold in thresholds):
        faults.append(RazError(where, f"thresholds are {tuple(thresholds)}, expected numbers between 0 and 1"))
    raise_all(faults)

    if pool == "dataset":
        pooled = _pool_images(matches) if matches else (np.empty(0), np.empty(0))
        lists = [(*pooled, sum(image.heads for image in matches))]
    else:
        lists = [(image.distance, image.best_before, image.heads) for image in matches]
    ranks = np.arange(1.0, 1 + max((len(distance) for distance, _, _ in lists), default=0))
    scores = {}
    for sigma in sigmas:
        aps, ars = [], []
        for threshold in thresholds:
            radius = sigma * math.sqrt(-2 * math.log(threshold))
            pairs = [_average_precision_recall(*ranked, radius, ranks[: len(ranked[0])]) for ranked in lists]
            aps.append(_mean([ap for ap, _ in pairs]))
            ars.append(_mean([ar for _, ar in pairs]))
        for shown in (50, 75):
            for threshold, ap, ar in zip(thresholds, aps, ars, strict=True):
                if math.isclose(threshold, shown / 100):
                    scores[f"ap{shown}@{sigma:g}"], scores[f"ar{shown}@{sigma:g}"] = ap, ar
        scores[f"map@{sigma:g}"], scores[f"mar@{sigma:g}"] = _mean(aps), _mean(ars)
    return scores
