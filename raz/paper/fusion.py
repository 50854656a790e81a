"""Two-stream count fusion (§3.1, Eq. 4) and the fit of its thresholds theta_f (18).

An image is divided into cells x cells equal cells, numbered row by row. For n images and g = cells² cells the density
counts `den`, the localization counts `loc` and the true counts `truth` are (n, g) float64 in persons; thresholds
`theta` are (g,) float64 in persons.

A new rule is a function in this module and an entry in `RULES`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raz.errors import RazError, raise_all

Floats = NDArray[np.float64]
Rule = Callable[[Floats, Floats, Floats], Floats]

KINDS = ("cell", "shared", "image")

# Every cell reaches the threshold -_UNREACHABLE, and none _UNREACHABLE. Finite, since JSON has no infinity.
_UNREACHABLE = 1e9
# Losses that differ by less than this, relative to their scale, are ties: far above rounding, far below one person.
_TIE = 1e-12


def _grid(den: Floats, loc: Floats, theta: Floats) -> Floats:
    """The density count where the mean of both counts reaches theta, else the mean, (n, g) (Eq. 4)."""
    mean = (den + loc) / 2
    return np.where(mean >= theta, den, mean)


def _average(den: Floats, loc: Floats, theta: Floats) -> Floats:
    """The mean of both counts (`RAZ_average`), (n, g); theta is not used."""
    return (den + loc) / 2


def _density(den: Floats, loc: Floats, theta: Floats) -> Floats:
    """The density count (`RAZ_density`), (n, g); theta is not used."""
    return den.copy()


def _localization(den: Floats, loc: Floats, theta: Floats) -> Floats:
    """The number of localized points (`RAZ_localization`), (n, g); theta is not used."""
    return loc.copy()


RULES: dict[str, Rule] = {"grid": _grid, "average": _average, "density": _density, "localization": _localization}


def _size_faults(where: str, **sizes: int) -> list[RazError]:
    return [RazError(where, f"{name} is {size!r}, expected 1 or more") for name, size in sizes.items() if size < 1]


def grid_points(xy: ArrayLike, height: int, width: int, cells: int) -> Floats:
    """Number of points per cell, (cells²,) float64 with sum n (18).

    xy: (n, 2) x, y in pixels of an image of height x width. A point on or outside the border, where rounding may put a
    point of a zoomed crop, counts in the nearest cell. Raises RazError for another shape, numbers that are not finite,
    or a size below 1.
    """
    points = np.asarray(xy, dtype=np.float64)
    faults = _size_faults("grid_points", height=height, width=width, cells=cells)
    if points.size == 0:
        points = points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        faults.append(RazError("grid_points", f"xy has shape {points.shape}, expected (n, 2)"))
    elif not np.isfinite(points).all():
        faults.append(RazError("grid_points", "xy holds numbers that are not finite"))
    raise_all(faults)
    column = np.clip(np.floor(points[:, 0] * cells / width), 0, cells - 1).astype(np.int64)
    row = np.clip(np.floor(points[:, 1] * cells / height), 0, cells - 1).astype(np.int64)
    return np.bincount(row * cells + column, minlength=cells * cells).astype(np.float64)


@lru_cache(maxsize=512)  # two per image size, of which a data set has few; each is small
def _overlaps(size: int, stride: int, cells: int) -> Floats:
    """Fraction of each bin of `stride` px in each cell, (cells, ceil(size / stride)); every column sums to 1.

    The last bin may hang over the image's border. No head is outside, so what it holds is in its part inside.
    """
    edges = np.arange(cells + 1) * (size / cells)
    edges[-1] = np.inf  # every bin ends by then, whatever rounding made of size
    starts = np.arange(-(-size // stride)) * float(stride)
    lengths = np.minimum(float(stride), size - starts)  # of each bin's part inside the image
    before = np.clip((edges[:, None] - starts) / lengths, 0.0, 1.0)  # fraction of each bin left of each edge
    fractions: Floats = np.diff(before, axis=0)
    fractions.setflags(write=False)
    return fractions


def grid_density(density: ArrayLike, height: int, width: int, stride: int, cells: int) -> Floats:
    """Sum of a density map per cell, (cells²,) float64 in persons, with the sum of the map (18).

    density: (ceil(height/stride), ceil(width/stride)) persons per bin of stride x stride pixels of an image of height x
    width. A bin that overlaps several cells is divided by area; of one that hangs over the image's border, the part
    inside. Raises RazError for another shape, numbers that are not finite, or a size below 1.
    """
    mass = np.asarray(density, dtype=np.float64)
    faults = _size_faults("grid_density", height=height, width=width, stride=stride, cells=cells)
    if not faults:
        shape = (-(-height // stride), -(-width // stride))
        if mass.shape != shape:
            size = f"{height} x {width} at stride {stride}"
            faults.append(RazError("grid_density", f"density has shape {mass.shape}, expected {shape} ({size})"))
        elif not np.isfinite(mass).all():
            faults.append(RazError("grid_density", "density holds numbers that are not finite"))
    raise_all(faults)
    return np.ravel(_overlaps(height, stride, cells) @ mass @ _overlaps(width, stride, cells).T)


def _checked_counts(where: str, **arrays: ArrayLike) -> tuple[Floats, ...]:
    """The arrays as float64. Raises RazError unless they have one shape (n, g) and plausible, finite values."""
    counts = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    faults = []
    shapes = {name: array.shape for name, array in counts.items()}
    first = next(iter(shapes.values()))
    if len(first) != 2 or len(set(shapes.values())) > 1:
        text = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        faults.append(RazError(where, f"shapes are {text}, expected one shape (images, cells)"))
    elif first[1] < 1 or first[0] < 1:
        faults.append(RazError(where, f"counts have shape {first}: nothing to fit a threshold to"))
    for name, array in counts.items():
        if not np.isfinite(array).all():
            bad = int(np.count_nonzero(~np.isfinite(array)))
            faults.append(RazError(where, f"{bad} numbers of {name} are not finite", "a diverged network?"))
        elif array.size and float(np.abs(array).max()) >= _UNREACHABLE / 2:
            faults.append(RazError(where, f"{name} holds a count of {float(np.abs(array).max()):.3g} in one cell"))
    raise_all(faults)
    return tuple(counts.values())


@dataclass(frozen=True)
class FusionInputs:
    """The terms of Eq. 4 for n images, from which the errors under any theta cost one pass over the cells.

    All in persons. Cells are the first axis, so that sums over cells add contiguous rows.
    """

    mean: Floats  # (g, n) mean of both counts
    gain: Floats  # (g, n) density count minus mean
    base: Floats  # (n,) signed error of each image if no cell chooses density

    @staticmethod
    def of(den: Floats, loc: Floats, truth: Floats) -> FusionInputs:
        """The terms for counts (n, g) in persons."""
        mean = (den + loc) / 2
        return FusionInputs(mean.T.copy(), (den - mean).T.copy(), (mean - truth).sum(axis=1))

    def errors(self, theta: ArrayLike) -> Floats:
        """Signed count error of each image under Eq. 4, (n,) persons; theta is (g,) or one number."""
        chosen = self.mean >= np.asarray(theta, dtype=np.float64).reshape(-1, 1)
        errors: Floats = self.base + (self.gain * chosen).sum(axis=0)
        return errors

    def mae(self, theta: ArrayLike) -> float:
        """Mean absolute count error of the images under Eq. 4, in persons; theta is (g,) or one number."""
        return float(np.abs(self.errors(theta)).mean())


@dataclass(frozen=True)
class _ThresholdPath:
    """Cells by descending mean of both counts: the order in which they choose density while theta is lowered."""

    order: NDArray[np.intp]  # (cells,) indices
    values: Floats  # (cells,) means, descending
    legal: NDArray[np.bool_]  # (cells + 1,) whether a theta exists at which exactly the first m choose density

    @staticmethod
    def of(means: Floats) -> _ThresholdPath:
        order = np.argsort(-means, kind="stable")
        values = means[order]
        legal = np.ones(len(values) + 1, dtype=np.bool_)
        legal[1:-1] = values[:-1] > values[1:]
        return _ThresholdPath(order, values, legal)

    def losses(self, start: float, changes: Floats) -> tuple[Floats, float]:
        """Losses with the first m cells choosing density, (cells + 1,), inf if no theta does so; and the tie margin."""
        steps = changes[self.order]
        losses = np.empty(len(steps) + 1)
        losses[0] = 0.0
        np.cumsum(steps, out=losses[1:])
        losses += start
        losses[~self.legal] = np.inf
        return losses, _TIE * (abs(start) + float(np.abs(steps).sum()))

    def theta(self, chosen: int) -> float:
        """The threshold that exactly the first `chosen` cells reach: midway between means, or +-_UNREACHABLE."""
        if chosen == 0:
            return _UNREACHABLE
        if chosen == len(self.values):
            return -_UNREACHABLE
        above, below = float(self.values[chosen - 1]), float(self.values[chosen])
        half = below + (above - below) / 2
        return half if half > below else above  # no float lies between adjacent floats


def _argmin_last(losses: Floats, tie: float) -> int:
    """Index of the last minimum within `tie`: the most cells, so the lowest theta."""
    return int(np.flatnonzero(losses <= losses.min() + tie)[-1])


def _fit_cell(den: Floats, loc: Floats, truth: Floats) -> Floats:
    """Theta (g,) that minimises each cell's own error."""
    mean = (den + loc) / 2
    before = np.abs(mean - truth)
    changes = np.abs(den - truth) - before
    theta = np.empty(den.shape[1])
    for cell in range(den.shape[1]):
        steps = _ThresholdPath.of(mean[:, cell])
        theta[cell] = steps.theta(_argmin_last(*steps.losses(float(before[:, cell].sum()), changes[:, cell])))
    return theta


def _fit_shared(inputs: FusionInputs) -> Floats:
    """The one theta that minimises the images' error, repeated for each cell, (g,)."""
    # Sorting each image's cells by descending mean gives its error after each of them chose density. Sorting the cells
    # of all images gives the order of these changes of the loss. So two sorts and two cumulative sums suffice.
    mean, gain = inputs.mean.T, inputs.gain.T
    own = np.argsort(-mean, axis=1, kind="stable")
    running = np.cumsum(np.take_along_axis(gain, own, axis=1), axis=1)
    after = np.abs(inputs.base[:, None] + running)
    start = np.abs(inputs.base)
    changes = np.diff(after, axis=1, prepend=start[:, None])
    steps = _ThresholdPath.of(np.take_along_axis(mean, own, axis=1).ravel())
    theta = steps.theta(_argmin_last(*steps.losses(float(start.sum()), changes.ravel())))
    return np.full(len(inputs.mean), theta)


def _coordinate_descent(inputs: FusionInputs, steps: Sequence[_ThresholdPath], theta: Floats) -> Floats:
    """Coordinate descent from theta: set each cell in turn to its exact optimum until no cell improves."""
    mean, gain = inputs.mean, inputs.gain
    chosen = [int(np.count_nonzero(mean[cell] >= theta[cell])) for cell in range(len(steps))]
    errors = inputs.errors(theta)
    settled, cell = 0, 0
    while settled < len(steps):
        takes = np.zeros(len(errors), dtype=np.bool_)
        takes[steps[cell].order[: chosen[cell]]] = True
        rest = errors - np.where(takes, gain[cell], 0.0)
        before = np.abs(rest)
        losses, tie = steps[cell].losses(float(before.sum()), np.abs(rest + gain[cell]) - before)
        best = _argmin_last(losses, tie)
        if losses[best] < losses[chosen[cell]] - 2 * tie:  # strictly better, or ties could alternate forever
            chosen[cell], settled = best, 0
            takes[:] = False
            takes[steps[cell].order[:best]] = True
            errors = rest + np.where(takes, gain[cell], 0.0)
        settled += 1
        cell = (cell + 1) % len(steps)
    return np.array([step.theta(m) for step, m in zip(steps, chosen, strict=True)])


def _fit_image(den: Floats, loc: Floats, truth: Floats) -> Floats:
    """Theta (g,) by coordinate descent on the images' error from both other solutions; the better of the two."""
    inputs = FusionInputs.of(den, loc, truth)
    steps = [_ThresholdPath.of(means) for means in inputs.mean]
    ends = [_coordinate_descent(inputs, steps, start) for start in (_fit_shared(inputs), _fit_cell(den, loc, truth))]
    losses = [inputs.mae(end) for end in ends]
    return ends[1] if losses[1] < losses[0] - _TIE * (1.0 + losses[0]) else ends[0]


def fit_theta(den: ArrayLike, loc: ArrayLike, truth: ArrayLike, kind: str) -> Floats:
    """Thresholds theta_f of Eq. 4, (g,) in persons, fitted to counts (n, g) in persons (18).

    - `cell`: for each cell the exact minimiser of that cell's summed absolute error.
    - `shared`: one number for all cells, the exact minimiser of the summed absolute error of the images' counts.
    - `image`: coordinate descent on the images' error over the g thresholds, from the `shared` and from the `cell`
      solution; the better result is returned, on a tie the one from `shared`. It is a coordinate-wise optimum and never
      worse than either start, but not necessarily the global optimum: changing several thresholds may improve it.

    The losses are piecewise constant in theta, so thresholds are midway between adjacent means (den + loc) / 2, or -1e9
    (always density) or 1e9 (never). Of equally good thresholds the lowest is taken. The result is deterministic and
    independent of the order of the images. Raises RazError for an unknown kind, other shapes, no images, and values
    that are not finite or too large to be counts.
    """
    if kind not in KINDS:
        raise RazError("fusion.theta_f", f"{kind!r} is not a way to fit it", f"one of {', '.join(KINDS)}")
    density, points, true = _checked_counts("fit_theta", den=den, loc=loc, truth=truth)
    if kind == "cell":
        return _fit_cell(density, points, true)
    if kind == "shared":
        return _fit_shared(FusionInputs.of(density, points, true))
    return _fit_image(density, points, true)


def assign_folds(ids: Sequence[str], folds: int) -> NDArray[np.int64]:
    """Fold of each image, (n,) from 0 to folds - 1: assigned in turn in the order of the sha256 of the ids (28).

    The folds depend on the set of images but not on their order, and their sizes differ by at most one. Raises RazError
    for fewer than 2 folds, or an id that occurs twice.
    """
    faults = []
    if folds < 2:
        faults.append(RazError("fusion.folds", f"got {folds}, expected 2 or more"))
    if len(set(ids)) < len(ids):
        duplicates = sorted({name for name in ids if list(ids).count(name) > 1})
        faults.append(RazError("assign_folds", f"{len(duplicates)} ids occur twice: {', '.join(duplicates[:5])}"))
    raise_all(faults)
    ranked = sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
    fold = np.empty(len(ids), dtype=np.int64)
    fold[ranked] = np.arange(len(ids)) % folds
    return fold
