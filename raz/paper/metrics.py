"""Counting errors, and the paper's localization metric: §4.2, Table 3, reading rows (20) to (23) and (28).

The metric asks, for each (sigma, threshold): points in the order of their scores each claim their nearest true head;
a point is a true positive when its affinity exp(-d²/2 sigma²) exceeds the threshold, that is when d < r with
r = sigma·sqrt(-2 ln threshold), and no better-ranked true positive has that head already.

Matching does not depend on r but for one number: a head is taken at radius r once a better-ranked point lies within
r of it. So one pass that stores, for each point, its distance and the distance from which on its head is taken
(`best_before`) serves every sigma and threshold: a point is a true positive iff distance < r <= best_before.
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

# Heads whose distances differ by less than this share are looked at again in exact arithmetic: the tree may round
# a distance differently from numpy (fused multiply-add), and a tie must not depend on that.
_NEARLY = 1e-9


def _paired(where: str, pred: ArrayLike, true: ArrayLike) -> Floats:
    """pred - true, (n,), checked."""
    predicted, truth = np.asarray(pred, dtype=np.float64), np.asarray(true, dtype=np.float64)
    faults = []
    if predicted.ndim != 1 or predicted.shape != truth.shape:
        faults.append(RazError(where, f"shapes are {predicted.shape} and {truth.shape}, expected one (images,)"))
    elif len(predicted) == 0:
        faults.append(RazError(where, "no images: the error of nothing is not defined", "is the split empty?"))
    for name, counts in (("pred", predicted), ("true", truth)):
        if not np.isfinite(counts).all():
            faults.append(RazError(where, f"{name} holds counts that are not finite", "a diverged network?"))
    raise_all(faults)
    return predicted - truth


def mae(pred: ArrayLike, true: ArrayLike) -> float:
    """Mean absolute error of the counts of n images, in persons. (20)

    pred, true: (n,) persons, n >= 1. Raises RazError on other shapes, no images, numbers that are not finite.
    """
    return float(np.abs(_paired("mae", pred, true)).mean())


def rmse(pred: ArrayLike, true: ArrayLike) -> float:
    """Root mean square error of the counts of n images, in persons; the paper prints it as "MSE". (20)

    pred, true: (n,) persons, n >= 1. Raises RazError on other shapes, no images, numbers that are not finite.
    """
    return float(np.sqrt(np.square(_paired("rmse", pred, true)).mean()))


@dataclass(frozen=True)
class Matches:
    """One image's points in the order of their ranks, matched to its true heads for every radius at once.

    score: (n,) descending. distance: (n,) to the nearest head, in original px; inf without heads. best_before: (n,)
    the largest radius at which that head is still free for this point, in px; inf if no better-ranked point claims
    it. heads: how many true heads there are. points: (n, 2) x, y, which settles the rank of equal scores when
    images are pooled. A point is a true positive at radius r iff distance < r <= best_before.
    """

    score: Floats
    distance: Floats
    best_before: Floats
    heads: int
    points: Floats


def _points_of(where: str, name: str, xy: ArrayLike) -> tuple[Floats, list[RazError]]:
    points = np.asarray(xy, dtype=np.float64)
    if points.size == 0:
        points = points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        return np.empty((0, 2)), [RazError(where, f"{name} has shape {points.shape}, expected (n, 2) of x, y")]
    if not np.isfinite(points).all():
        return points, [RazError(where, f"{name} holds coordinates that are not finite")]
    return points, []


def _by_rank(score: Floats, xy: Floats) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The order by falling score, then y, then x, stable; and (n - 1,) which neighbours in it share all three."""
    order = np.argsort(-score, kind="stable")  # which is quick where images that are ranked already follow each other
    ranked = score[order]
    same = ranked[1:] == ranked[:-1]
    if not same.any():
        return order, same
    tied = _members(same)
    rows = order[tied]
    rows = rows[np.lexsort((xy[rows, 0], xy[rows, 1], -score[rows]))]
    order[tied] = rows
    at = np.flatnonzero(same)
    same[at] = (xy[order[at]] == xy[order[at + 1]]).all(axis=1)
    return order, same


def _members(same: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Who of n is like a neighbour, given (n - 1,) which neighbours are alike."""
    return np.flatnonzero(np.append(same, False) | np.append(False, same))


def _distances(a: Floats, b: Floats) -> Floats:
    step = a - b
    return np.sqrt(step[:, 0] * step[:, 0] + step[:, 1] * step[:, 1])


def match(points: ArrayLike, scores: ArrayLike, heads: ArrayLike) -> Matches:
    """Rank and match one image's points. (21)

    points: (n, 2) x, y in original px; scores: (n,), higher is surer; heads: (m, 2) x, y in original px.

    The rank is by falling score, then by y, then by x. Each point claims its nearest head only. Where several heads
    are equally near (twins above all) it takes one that is still free, the lowest index first. So the order of the
    points does not matter. Raises RazError on other shapes or numbers that are not finite.
    """
    xy, faults = _points_of("match", "points", points)
    true, more = _points_of("match", "heads", heads)
    faults += more
    score = np.asarray(scores, dtype=np.float64)
    if score.shape != (len(xy),) and not (score.size == 0 and len(xy) == 0):
        faults.append(RazError("match", f"scores have shape {score.shape} for {len(xy)} points"))
    elif not np.isfinite(score).all():
        faults.append(RazError("match", "scores hold numbers that are not finite", "a diverged network?"))
    raise_all(faults)
    score = score.ravel()
    order, _ = _by_rank(score, xy)
    xy, score = xy[order], score[order]
    distance, best_before = np.full(len(xy), np.inf), np.full(len(xy), np.inf)
    if len(xy) and len(true):
        distance, best_before = _greedy_assign(xy, true)
    return Matches(score, distance, best_before, len(true), xy)


def _greedy_assign(xy: Floats, heads: Floats) -> tuple[Floats, Floats]:
    """(distance, best_before) of ranked points (n, 2) among heads (m, 2); both non-empty."""
    # Twins are one place with room for several: the tree then never has to choose between them.
    by_place, fresh = _places(heads)
    starts = np.flatnonzero(fresh)
    places = heads[by_place[starts]]
    ends = np.append(starts[1:], len(heads))

    tree = cKDTree(places, leafsize=24, compact_nodes=False, balanced_tree=False)
    found = tree.query(xy, k=[1, 2])  # a missing second place has distance inf
    near, at = np.asarray(found[0]), np.asarray(found[1])
    nearest = at[:, 0].astype(np.intp)
    distance = _distances(xy, places[nearest])

    # Points (nearly) halfway between places: settle exactly which of them are equally near.
    several: dict[int, list[int]] = {}
    doubtful = np.flatnonzero(near[:, 1] <= near[:, 0] * (1 + _NEARLY))
    if len(doubtful):
        balls = tree.query_ball_point(xy[doubtful], near[doubtful, 0] * (1 + 2 * _NEARLY))
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

    best_before = _running_least(nearest, distance)

    # Rooms for several, and places tied to another by a point halfway, are settled in order of rank, one point
    # after another. All points of such a place take part, also those that have no choice.
    special = np.zeros(len(places), dtype=np.bool_)
    special[ends - starts > 1] = True
    for tied in several.values():
        special[tied] = True
    if special.any():
        claims = {}
        for point in np.flatnonzero(special[nearest]).tolist():
            among = several[point] if point in several else [int(nearest[point])]
            claims[point] = sorted(head for place in among for head in by_place[starts[place] : ends[place]].tolist())
        _average_precision_recall(claims, distance, best_before)
    return distance, best_before


def _places(heads: Floats) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Heads (m, 2) in an order that brings twins together, and (m,) which in it are the first at their place."""
    # One key instead of two: heads at one place share it, and others almost never do.
    key = heads[:, 0] + heads[:, 1] * math.sqrt(2.0)
    order = np.argsort(key)
    ranked, moved = key[order], heads[order]
    fresh = np.ones(len(heads), dtype=np.bool_)
    fresh[1:] = (moved[1:, 0] != moved[:-1, 0]) | (moved[1:, 1] != moved[:-1, 1])
    if ((ranked[1:] == ranked[:-1]) & fresh[1:]).any():  # others do: they may lie between twins
        order = np.lexsort((heads[:, 0], heads[:, 1]))
        fresh[1:] = (heads[order[1:]] != heads[order[:-1]]).any(axis=1)
    return order, fresh


def _running_least(nearest: NDArray[np.intp], distance: Floats) -> Floats:
    """For each ranked point the least distance among better-ranked points of the same place; inf for the first."""
    n = len(nearest)
    by_place = np.argsort(nearest, kind="stable")  # by place, then rank
    place = nearest[by_place]
    first = np.ones(n, dtype=np.bool_)
    first[1:] = place[1:] != place[:-1]
    # One running minimum for all places: over the distances' ranks, lowered by n from place to place, so that no
    # earlier place reaches into a later one. Whole numbers, so nothing is lost.
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


def _average_precision_recall(claims: dict[int, list[int]], distance: Floats, best_before: Floats) -> None:
    """Fill in best_before of the points in `claims`: rank -> its equally near heads, by index; in order of rank.

    `taken` holds for each head the radius from which on it is taken. A larger radius never frees a head (by
    induction over ranks), so one number says all. At a radius r > d a point takes the first of its heads with
    taken >= r: the first one up to that head's own radius, the second from there up to its own, and so on, which is
    what `carry` walks through. Beyond the largest of these radii none is free.
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


def _ranked(matches: Sequence[Matches]) -> tuple[Floats, Floats]:
    """(distance, best_before) of all images' points, pooled and ranked; the order of the images does not matter."""
    score = np.concatenate([image.score for image in matches])
    distance = np.concatenate([image.distance for image in matches])
    best_before = np.concatenate([image.best_before for image in matches])
    points = np.concatenate([image.points for image in matches])
    order, same = _by_rank(score, points)
    if same.any():
        # Points that share score and position keep their order within their image (`copy` counts them); those of
        # different images are ranked the worse first, so that no order of the images flatters.
        owner = np.repeat(np.arange(len(matches)), [len(image.score) for image in matches])[order]
        at = np.arange(len(order))
        group = np.cumsum(np.append(True, ~same))  # of one score and position; stable, so one image after another
        first = np.append(True, ~same | (owner[1:] != owner[:-1]))
        copy = at - np.maximum.accumulate(np.where(first, at, 0))
        tied = _members(same)
        rows = order[tied]
        order[tied] = rows[np.lexsort((best_before[rows], -distance[rows], copy[tied], group[tied]))]
    return distance[order], best_before[order]


def _ap_ar(distance: Floats, best_before: Floats, heads: int, radius: float, ranks: Floats) -> tuple[float, float]:
    """(AP, AR) of ranked points at one radius; a ratio without a denominator is nan. `ranks` are 1, 2, 3 …"""
    if heads == 0:
        return (0.0 if len(distance) else math.nan), math.nan
    hits = np.compress((distance < radius) & (radius <= best_before), ranks)
    if len(hits) == 0:
        return 0.0, 0.0
    # Precision peaks at true positives, so its envelope is wanted there alone. Recall reaches k/100 with the
    # ceil(k·heads/100)-th of them, in whole numbers: no rounding decides it.
    precision = ranks[: len(hits)] / hits
    needed = np.maximum(-(-np.arange(101) * heads // 100), 1)
    at = needed[needed <= len(hits)] - 1  # never falls, so the envelope there is a maximum of the stretches' maxima
    reached = np.maximum.accumulate(np.maximum.reduceat(precision, at)[::-1])
    return math.fsum(reached) / 101, len(hits) / heads


def _mean(values: Sequence[float]) -> float:
    """The mean of the values that are defined, rounded once, so that their order does not matter; nan if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def localization_scores(
    matches: Sequence[Matches],
    sigmas: Sequence[float] = SIGMAS,
    thresholds: Sequence[float] = THRESHOLDS,
    pool: str = "dataset",
) -> dict[str, float]:
    """AP and AR as in Table 3, fractions in [0, 1]. (22), (23), (28)

    matches: one `Matches` an image; sigmas in original px; thresholds of the affinity, between 0 and 1.

    For each sigma, written as in `@40` or `@2.5`: `apNN@` and `arNN@` at the thresholds .50 and .75 (those of them
    that are asked for), and `map@`, `mar@`, the means over all thresholds. AP is the 101-point interpolated area
    under precision over recall, AR the final recall.

    pool `dataset` ranks all images' points together. `image` scores each image by itself and averages: one without
    heads and points is left out, one without heads but with points has AP 0 and, as its recall is 0/0, no part in
    AR. What is 0/0 for the whole set (no heads at all) is nan. The order of the images does not matter.

    Raises RazError on an unknown pool, no or wrong sigmas and thresholds.
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
        pooled = _ranked(matches) if matches else (np.empty(0), np.empty(0))
        lists = [(*pooled, sum(image.heads for image in matches))]
    else:
        lists = [(image.distance, image.best_before, image.heads) for image in matches]
    ranks = np.arange(1.0, 1 + max((len(distance) for distance, _, _ in lists), default=0))
    scores = {}
    for sigma in sigmas:
        aps, ars = [], []
        for threshold in thresholds:
            radius = sigma * math.sqrt(-2 * math.log(threshold))
            pairs = [_ap_ar(*ranked, radius, ranks[: len(ranked[0])]) for ranked in lists]
            aps.append(_mean([ap for ap, _ in pairs]))
            ars.append(_mean([ar for _, ar in pairs]))
        for shown in (50, 75):
            for threshold, ap, ar in zip(thresholds, aps, ars, strict=True):
                if math.isclose(threshold, shown / 100):
                    scores[f"ap{shown}@{sigma:g}"], scores[f"ar{shown}@{sigma:g}"] = ap, ar
        scores[f"map@{sigma:g}"], scores[f"mar@{sigma:g}"] = _mean(aps), _mean(ars)
    return scores
