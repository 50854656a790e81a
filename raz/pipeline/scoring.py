"""Scores of a split from its density maps and points: thresholds, two-stream fusion, the paper's metrics.

Thresholds and theta_f are fitted on validation or training images. A validation score of a value fitted on validation
images is cross-fitted: each fold is scored with the value fitted on the other folds (I9). The metrics `threshold_*` and
`theta_f_*` of every split are the values fitted on all validation images: those that other images are predicted with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raz.config import FusionConfig, MetricsConfig, PeaksConfig
from raz.data.region import Polygon, cell_coverage, in_polygon
from raz.errors import TrialFailure
from raz.paper import fusion as fuse
from raz.paper.expected import CELL, best_of_expected
from raz.paper.groundtruth import head_labels
from raz.paper.metrics import Matches, localization_scores, mae, match, rmse
from raz.paper.peaks import find_peaks, fit_threshold
from raz.pipeline.conformal import Conformal
from raz.pipeline.passes import PassResult
from raz.pipeline.quartile_scores import quartile_scores
from raz.utils.json_types import Json, JsonObject, as_float, as_list, get_float

FloatArray = NDArray[np.float64]
ISOLATED_PEAK = 0.5  # a lone plus of true labels averages 5/9 at its centre and 4/9 at its arms (13)


@dataclass(frozen=True)
class SplitPredictions:
    """The predictions for one split, and its ground truth. Lists have one entry per image, in order."""

    ids: tuple[str, ...]
    heads: list[FloatArray]  # (n, 2) original px
    sizes: list[tuple[int, int]]  # (H, W) of the network's input
    to_original: list[tuple[float, float]]  # original px per input px, x and y
    density: list[NDArray[np.float32]]
    output_stride: int
    passes: list[list[PassResult]]  # [pass - 1][image], input px
    ceiling: NDArray[np.int64]  # (images,): see `ceiling_counts`
    parts: tuple[str, ...] = ()  # the part of each image, where the data set's protocol scores parts separately
    gflop: FloatArray | None = None  # (images,) of the networks, see `raz.pipeline.flops`; None where nobody asks

    def __len__(self) -> int:
        return len(self.ids)


def clip_to_roi(split: SplitPredictions, polygons: Sequence[Polygon]) -> SplitPredictions:
    """The predictions without density and points outside each image's region of interest.

    A density cell on the border keeps the share of its pixels inside. Samples have no heads outside.
    """
    if not any(polygons):
        return split
    density, passes = list(split.density), [list(points) for points in split.passes]
    for i, polygon in enumerate(polygons):
        if not polygon:
            continue
        (height, width), (x, y) = split.sizes[i], split.to_original[i]
        density[i] = split.density[i] * cell_coverage(polygon, height, width, split.output_stride, (1 / x, 1 / y))
        for of_pass in passes:
            found = of_pass[i]
            points = found.points.take(in_polygon(polygon, found.points.xy * [x, y]))
            expected = found.expected
            if expected is not None:
                expected = expected * cell_coverage(polygon, height, width, CELL, (1 / x, 1 / y))
            of_pass[i] = replace(found, points=points, expected=expected)
    return replace(split, density=density, passes=passes)


@dataclass(frozen=True)
class FittedThresholds:
    """Score thresholds of Main-Net and RAZ-Net, and theta_f of each grid cell in persons; and of validation images the
    errors of the counts that come of such values, for intervals (None: not known)."""

    main: float
    raz: float
    theta_f: FloatArray
    conformal: Conformal | None = None

    def counted(self, found: PassResult) -> NDArray[np.bool_]:
        """Which points count, (n,): as many as the maps expect, where that is known; else those whose score reaches the
        threshold of the network that found them."""
        points = found.points
        if found.expected is not None:
            return best_of_expected(points, found.expected)
        return np.asarray(points.score >= np.where(points.network == 0, self.main, self.raz))

    def as_json(self) -> JsonObject:
        """JSON values; an infinite theta_f is a text."""
        theta: list[Json] = [float(t) if np.isfinite(t) else str(float(t)) for t in self.theta_f]
        document: JsonObject = {"main": float(self.main), "raz": float(self.raz), "theta_f": theta}
        return document if self.conformal is None else {**document, "conformal": [*self.conformal.values]}

    @classmethod
    def from_json(cls, document: Mapping[str, Json]) -> FittedThresholds:
        """The inverse of `as_json`. Raises ValueError for another document."""
        theta = [float(t) if isinstance(t, str) else as_float(t, "theta_f") for t in as_list(document.get("theta_f"))]
        conformal = None
        if "conformal" in document:  # earlier versions did not write it
            values = [as_float(value, "conformal") for value in as_list(document["conformal"], "conformal")]
            conformal = Conformal(tuple(values))
        return cls(get_float(document, "main"), get_float(document, "raz"), np.array(theta), conformal)


@dataclass(frozen=True)
class Counts:
    """Per image and grid cell: (images, cells²)."""

    density: FloatArray
    localization: FloatArray
    truth: FloatArray


@dataclass(frozen=True)
class Scores:
    """The metrics of a split, and their values per image for paired comparisons and figures.

    `per_image`: `ids` and `parts` (text); `truth`, `fused`, `density`, `localization`, `ceiling` (images,) persons;
    `regions` (images, passes - 1); `cells_truth`, `cells_density`, `cells_localization` (images, cells²) persons; and
    every ranked point of image i at `match_ends[i - 1]:match_ends[i]` of `match_score`, `match_distance` and
    `match_before` (see `raz.paper.metrics.Matches`; original px). Of counted points matched one to one
    (`raz.paper.one_to_one.Tally`): `points` (images,); `quartile_heads` and `quartile_points` (images, 4);
    `quartile_found` and `quartile_correct` (images, 4, radii); `radii` (radii,) px; `quartile_edges` (3,) the local
    densities between the quartiles, heads per px² of the original images. `gflop` (images,) of all networks.

    `fitted` is for other images: fitted on all validation images, not fold by fold.
    """

    metrics: dict[str, float]
    per_image: Mapping[str, NDArray[np.generic]]
    fitted: FittedThresholds


def ceiling_counts(heads: Sequence[FloatArray], sizes: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """The number of heads that decoding the *true* label map of each image gives, (images,) (14).

    heads: (n, 2) x, y in input px; sizes: (H, W) of the input. Heads nearer than 4 px become one peak.
    """
    counts = [
        len(find_peaks(head_labels(h, height, width).astype(np.float32), ISOLATED_PEAK)[0])
        for h, (height, width) in zip(heads, sizes, strict=True)
    ]
    return np.array(counts, dtype=np.int64)


def thresholds(split: SplitPredictions, indices: Sequence[int], peaks: PeaksConfig) -> tuple[float, float]:
    """One threshold per network, which minimises the count error of the images at `indices` (13).

    Main-Net's is fitted on the points of pass 1; RAZ-Net's then on those of pass 2, with Main-Net's fixed. Both are 0,
    and not used, where the maps' expected heads are counted.
    """
    if peaks.count == "expected":
        return 0.0, 0.0
    if not isinstance(peaks.threshold, str):
        return peaks.threshold, peaks.threshold
    truth = np.array([len(split.heads[i]) for i in indices])
    main = fit_threshold([split.passes[0][i].points.score for i in indices], truth.tolist())
    if len(split.passes) < 2:
        return main, main
    second = [split.passes[1][i].points for i in indices]
    if not any((p.network == 1).any() for p in second):
        return main, main
    outside = np.array([int(((p.network == 0) & (p.score >= main)).sum()) for p in second])
    inside = np.maximum(truth - outside, 0)  # below 0 the error grows by a constant only
    return main, fit_threshold([p.score[p.network == 1] for p in second], inside.tolist())


def cell_counts(
    split: SplitPredictions, fitted: FittedThresholds, indices: Sequence[int], depth: int, cells: int
) -> Counts:
    """Counts of each grid cell of the images at `indices`: by both branches, and the true ones. The localization
    branch's are the expected heads where they are known, else the numbers of counted points."""
    rows: list[tuple[FloatArray, FloatArray, FloatArray]] = []
    for i in indices:
        height, width = split.sizes[i]
        found = split.passes[depth - 1][i]
        heads = split.heads[i] / np.array(split.to_original[i])
        if found.expected is not None:
            localized = fuse.grid_density(found.expected.sum(axis=0), height, width, CELL, cells)
        else:
            localized = fuse.grid_points(found.points.xy[fitted.counted(found)], height, width, cells)
        rows.append(
            (
                fuse.grid_density(split.density[i], height, width, split.output_stride, cells),
                localized,
                fuse.grid_points(heads, height, width, cells),
            )
        )
    den, loc, truth = (np.stack(column).astype(np.float64) for column in zip(*rows, strict=True))
    return Counts(den, loc, truth)


def fit(
    val: SplitPredictions,
    indices: Sequence[int],
    train: SplitPredictions | None,
    depth: int,
    peaks: PeaksConfig,
    fusion: FusionConfig,
) -> FittedThresholds:
    """Thresholds fitted on the validation images at `indices`, and theta_f fitted on these or on the training images
    (18)."""
    main, raz = thresholds(val, indices, peaks)
    cells = fusion.cells * fusion.cells
    fitted = FittedThresholds(main, raz, np.zeros(cells))
    if fusion.rule != "grid":
        return fitted
    if not isinstance(fusion.theta_f, str):
        return FittedThresholds(main, raz, np.full(cells, fusion.theta_f))
    source, chosen = (val, indices) if fusion.fit_on == "val" or train is None else (train, range(len(train)))
    counts = cell_counts(source, fitted, chosen, depth, fusion.cells)
    return FittedThresholds(
        main, raz, fuse.fit_theta(counts.density, counts.localization, counts.truth, fusion.theta_f)
    )


def score(
    split: SplitPredictions,
    fits: Sequence[tuple[Sequence[int], FittedThresholds]],
    fitted: FittedThresholds,
    depth: int,
    fusion: FusionConfig,
    metrics: MetricsConfig,
) -> Scores:
    """The scores of a split. Each of `fits` holds indices of images and the fitted values that they are scored with:
    one entry for all test images, or one per fold of the validation images. `fitted` is what is told as fitted.

    `mae` and `rmse` are of the fused count; the paper's "MSE" is `rmse` (20). `*_ceiling` are of `ceiling_counts`.
    Where the data set's protocol scores parts (WorldExpo's five scenes), these errors are means over the parts, and
    `mae@scene1` … are those of each part. F1, precision, recall and all that is by quartile of local density are of
    the counted points, pooled over the images whatever `metrics.points` and `metrics.pool` say.
    """
    fused, den, loc, truth = (np.zeros(len(split)) for _ in range(4))
    cells = {name: np.zeros((len(split), fusion.cells**2)) for name in ("density", "localization", "truth")}
    matches: dict[int, Matches] = {}
    counted: dict[int, FloatArray] = {}
    for indices, used in fits:
        if not indices:
            continue
        counts = cell_counts(split, used, indices, depth, fusion.cells)
        rule = fuse.RULES[fusion.rule]
        fused[list(indices)] = rule(counts.density, counts.localization, used.theta_f).sum(axis=1)
        den[list(indices)] = counts.density.sum(axis=1)
        loc[list(indices)] = counts.localization.sum(axis=1)
        for name, values in cells.items():
            values[list(indices)] = getattr(counts, name)
        for i in indices:
            truth[i] = len(split.heads[i])
            found = split.passes[depth - 1][i]
            points, counts_as_head = found.points, used.counted(found)
            ranked = counts_as_head if metrics.points == "counted" else points.score >= metrics.floor
            xy = points.xy * np.array(split.to_original[i])
            counted[i] = xy[counts_as_head]
            matches[i] = match(xy[ranked], points.score[ranked].astype(np.float64), split.heads[i])
    by_quartile = quartile_scores(split.heads, [counted[i] for i in range(len(split))], metrics.radii)
    compared = {"": (fused, truth), "_density": (den, truth), "_localization": (loc, truth),
                "_ceiling": (split.ceiling, truth), **by_quartile.counts}  # fmt: skip
    errors = {
        f"{name}{suffix}": {part: error(pred[indices], true[indices]) for part, indices in _parts(split.parts).items()}
        for suffix, (pred, true) in compared.items()
        for name, error in (("mae", mae), ("rmse", rmse))
    }
    out = {name: float(np.mean(list(by_part.values()))) for name, by_part in errors.items()}
    out |= {f"{name}@{part}": value for name, by_part in errors.items() for part, value in by_part.items() if part}
    out |= {
        "bias": float((fused - truth).mean()), "images": float(len(split)), "heads": float(truth.sum()),
    }  # fmt: skip
    out |= localization_scores([matches[i] for i in range(len(split))], sigmas=metrics.sigmas, pool=metrics.pool)
    out |= by_quartile.metrics
    zoomed = np.array([[len(found.regions) for found in of_pass] for of_pass in split.passes[1:depth]])
    zoomed = zoomed.reshape(depth - 1, len(split))
    out["regions_per_image"] = float(zoomed.sum(axis=0).mean()) if len(split) else 0.0
    out["images_zoomed"] = float((zoomed.sum(axis=0) > 0).mean()) if len(split) else 0.0
    for d in range(depth - 1):
        out[f"regions_per_image_{d + 2}"] = float(zoomed[d].mean())
        out[f"images_zoomed_{d + 2}"] = float((zoomed[d] > 0).mean())
    gflop = np.zeros(0) if split.gflop is None else split.gflop
    out["gflops_per_image"] = float(gflop.mean()) if len(gflop) else math.nan
    if fitted.main > 0:  # else no threshold is used
        out["threshold_main"], out["threshold_raz"] = fitted.main, fitted.raz
    if fusion.rule == "grid":
        out |= {f"theta_f_{g}": float(t) for g, t in enumerate(fitted.theta_f) if np.isfinite(t)}
    per_image: dict[str, NDArray[np.generic]] = {
        "ids": np.array(split.ids), "parts": np.array(split.parts or [""] * len(split)),
        "truth": truth, "fused": fused, "density": den, "localization": loc,
        "ceiling": split.ceiling, "regions": zoomed.T, **{f"cells_{name}": values for name, values in cells.items()},
        **_packed([matches[i] for i in range(len(split))]), **by_quartile.per_image,
        **({"gflop": split.gflop} if split.gflop is not None else {}),
    }  # fmt: skip
    # Undefined metrics (the recall of a split without heads) are left out.
    return Scores({name: float(value) for name, value in out.items() if np.isfinite(value)}, per_image, fitted)


def _packed(matches: Sequence[Matches]) -> dict[str, NDArray[np.generic]]:
    """The ranked points of all images in a row, in single precision, which suffices for figures and resampling."""
    none = np.zeros(0)
    return {
        "match_ends": np.cumsum([len(m.score) for m in matches], dtype=np.int64),
        "match_score": np.concatenate([none, *[m.score for m in matches]]).astype(np.float32),
        "match_distance": np.concatenate([none, *[m.distance for m in matches]]).astype(np.float32),
        "match_before": np.concatenate([none, *[m.best_before for m in matches]]).astype(np.float32),
    }


def _parts(parts: Sequence[str]) -> dict[str, NDArray[np.intp] | slice]:
    """Part -> its images; all images under "" where there are no parts."""
    if not any(parts):
        return {"": slice(None)}
    return {part: np.flatnonzero(np.array(parts) == part) for part in sorted(set(parts))}


def check_validation_images(
    split: str, images: int, peaks: PeaksConfig, fusion: FusionConfig, *, with_train: bool
) -> None:
    """Raise TrialFailure unless a split can be scored with this number of validation images.

    One is too few for the validation score where anything is fitted on validation images: there are no others to fit
    it on, and an image scored with its own fit says nothing (I9). The scores of other splits stay: a fit to one image
    is a poor one, but none of the images that it scores was fitted on. with_train: whether training images are
    predicted, on which `fusion.fit_on: train` fits theta_f.
    """
    if not images:
        raise TrialFailure("stage score", "the validation split has no images", "use more training images", "invalid")
    theta = fusion.rule == "grid" and isinstance(fusion.theta_f, str) and not (with_train and fusion.fit_on == "train")
    threshold = peaks.count == "threshold" and peaks.threshold == "fitted"
    fitted = [name for name, it in (("peaks.threshold", threshold), ("fusion.theta_f", theta)) if it]
    if split == "val" and images == 1 and fitted:
        raise TrialFailure(
            "stage score",
            f"{' and '.join(fitted)} would be fitted on the only validation image, which they then score",
            "use more training images (of 6 and more two are for validation), or set what is fitted to a number",
            "invalid",
        )


def score_split(
    name: str,
    split: SplitPredictions,
    val: SplitPredictions,
    train: SplitPredictions | None,
    depth: int,
    peaks: PeaksConfig,
    fusion: FusionConfig,
    metrics: MetricsConfig,
) -> Scores:
    """The scores of `split` (`name`: val, train or test). Raises as `check_validation_images`."""
    check_validation_images(name, len(val), peaks, fusion, with_train=train is not None)
    all_val = range(len(val))
    fold = fuse.assign_folds(val.ids, fusion.folds)
    fits = []
    for f in range(fusion.folds if len(val) > 1 else 0):
        inside = [i for i in all_val if fold[i] == f]
        outside = [i for i in all_val if fold[i] != f]  # never empty: two images are in two folds
        if inside:
            fits.append((inside, fit(val, outside, train, depth, peaks, fusion)))
    fitted = fit(val, all_val, train, depth, peaks, fusion)
    fitted = replace(fitted, conformal=cross_fitted_errors(val, fits, depth, fusion))
    if name != "val" or not fits:
        fits = [(list(range(len(split))), fitted)]
    return score(split, fits, fitted, depth, fusion, metrics)


def cross_fitted_errors(
    val: SplitPredictions, fits: Sequence[tuple[Sequence[int], FittedThresholds]], depth: int, fusion: FusionConfig
) -> Conformal:
    """The errors of the fused counts of validation images; `fits` as in `score`, each fitted on other images."""
    fused: list[float] = []
    truth: list[float] = []
    for indices, fitted in fits:
        counts = cell_counts(val, fitted, indices, depth, fusion.cells)
        fused += fuse.RULES[fusion.rule](counts.density, counts.localization, fitted.theta_f).sum(axis=1).tolist()
        truth += [float(len(val.heads[i])) for i in indices]
    return Conformal.of(fused, truth)
