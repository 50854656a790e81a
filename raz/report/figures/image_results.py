"""What a trial predicted for single images, read from its artifacts. Nothing is trained or predicted.

`raz.report.figures.photographs` draws it. Coordinates are in px of the original image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raz.config import TrialConfig
from raz.errors import RazError
from raz.pipeline.graph import Node, dependency_closure
from raz.report.per_image import Floats, PerImage
from raz.store.cache import StageCache
from raz.store.paths import FITTED, PER_IMAGE
from raz.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from raz.pipeline.scoring import FittedThresholds, SplitPredictions

# true positives as in Table 3: within RADIUS px of a head that no better-ranked point claims
SIGMA, AFFINITY = 20.0, 0.5
RADIUS = SIGMA * math.sqrt(-2 * math.log(AFFINITY))


@dataclass(frozen=True)
class ImageResult:
    """One image with its ground truth and a trial's predictions."""

    id: str
    pixels: NDArray[np.uint8]  # (H, W, 3) original
    heads: Floats  # (n, 2) true heads
    head_found: NDArray[np.bool_]  # (n,) whether a correct point is matched to this head
    points: Floats  # (m, 2) counted points, the highest score first
    passes: NDArray[np.int8]  # (m,) the pass in which each was found
    correct: NDArray[np.bool_]  # (m,) whether it is within RADIUS of a head that no better-ranked point claims
    regions: tuple[Floats, ...]  # of pass 2, 3, …: (r, 4) x0, y0, x1, y1
    truth: NDArray[np.float32]  # (h, w) true heads of each cell, with the kernel of the counting branch
    density: NDArray[np.float32]  # (h, w) the estimate
    cell: tuple[float, float]  # width and height of a cell in px
    fused: float  # the trial's count


def load_image_results(
    config: TrialConfig, store: Path, names: Sequence[str], *, data_root: Path | None = None, split: str = "test"
) -> tuple[ImageResult, ...]:
    """A trial's results for images of a split; `names` as in `select_images`.

    Raises RazError for an image that the split lacks, and where an artifact of the trial is not in the store.
    """
    from raz.pipeline.score_stage import read_predictions
    from raz.pipeline.scoring import FittedThresholds
    from raz.pipeline.stage_context import TrialState

    trial = TrialState(config, StageCache(store), data_root, lambda _: None)
    score = Node("score", split)
    nodes = [node for node in dependency_closure(config, [score]) if node.split == split or node.stage == "counting"]
    for node in nodes:
        artifact = trial.cache.find(trial.keys[node])
        if artifact is None:
            raise RazError(
                f"stage {node}", f"is not in {store}, so there is nothing to draw",
                "run the study or the table again: it makes what is missing",
            )  # fmt: skip
        trial.artifacts[node] = artifact
    folder = trial.artifacts[score].folder
    context = trial.context(score)
    try:
        fitted = FittedThresholds.from_json(json.loads((folder / FITTED).read_text(encoding="utf-8")))
        images = PerImage.load(folder / PER_IMAGE)
        fused = images.counts["fused"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RazError(str(folder), f"cannot be read: {error}", "delete the folder and run again") from None
    predictions = read_predictions(context, split, ceiling=False)
    items = context.frames(split).items
    return tuple(
        _image_result(predictions, i, fitted, config, items[i].load_pixels(), float(fused[i]))
        for i in select_images(names, predictions.ids, images.truth, fused)
    )


def select_images(names: Sequence[str], ids: Sequence[str], truth: Floats, fused: Floats) -> list[int]:
    """The indices of the named images, each once.

    A name is an id (`test/IMG_3`), its last part, an index, `densest`, `median` or `sparsest` (by true heads), `worst`
    or `best` (by the trial's error). Raises RazError for any other.
    """
    by_truth, by_error = np.argsort(truth, kind="stable"), np.argsort(np.abs(fused - truth), kind="stable")
    keywords = {
        "densest": by_truth[-1], "median": by_truth[(len(ids) - 1) // 2], "sparsest": by_truth[0],
        "worst": by_error[-1], "best": by_error[0],
    }  # fmt: skip
    short = {name.rpartition("/")[2]: i for i, name in enumerate(ids)}
    indices = {**{str(i): i for i in range(len(ids))}, **keywords, **short, **{name: i for i, name in enumerate(ids)}}
    out: dict[int, None] = {}
    for name in names:
        if name not in indices:
            legal = [*keywords, *short]
            raise RazError(
                "--photo", f"{name!r} is no image of these {len(ids)}: expected {', '.join(keywords)}, an index from 0"
                f" to {len(ids) - 1}, or an image's name", did_you_mean(name, legal),
            )  # fmt: skip
        out[int(indices[name])] = None
    return list(out)


def _image_result(
    predictions: SplitPredictions, i: int, fitted: FittedThresholds, config: TrialConfig, pixels: NDArray[np.uint8],
    fused: float,
) -> ImageResult:  # fmt: skip
    from raz.paper.groundtruth import density_map
    from raz.paper.metrics import match

    (height, width), to_original = predictions.sizes[i], np.array(predictions.to_original[i])
    found = predictions.passes[config.depth - 1][i]
    points, counted = found.points, fitted.counted(found)
    xy, score, passes = points.xy[counted] * to_original, points.score[counted], points.depth[counted]
    order = np.lexsort((xy[:, 0], xy[:, 1], -score))  # the ranking of `match`, so that its arrays align with these
    xy, score, passes = xy[order], score[order], passes[order]
    heads = predictions.heads[i]
    matches = match(xy, score.astype(np.float64), heads)
    correct = (matches.distance < RADIUS) & (matches.best_before >= RADIUS)
    counting = config.resolved().counting
    inside = np.minimum(heads / to_original, np.nextafter([width, height], 0.0))
    truth = density_map(
        inside, height, width, stride=predictions.output_stride, beta=counting.beta, k=counting.k,
        kernel=counting.kernel,
    )  # fmt: skip
    cell = predictions.output_stride * to_original
    return ImageResult(
        predictions.ids[i], pixels, heads, _matched_heads(xy[correct], heads), xy, passes, correct,
        tuple(of_pass[i].regions * np.tile(to_original, 2) for of_pass in predictions.passes[1 : config.depth]),
        truth, predictions.density[i], (float(cell[0]), float(cell[1])), fused,
    )  # fmt: skip


def _matched_heads(points: Floats, heads: Floats) -> NDArray[np.bool_]:
    """(n,) whether a point is nearest to each head; of heads at the same position, as many as there are such points."""
    from scipy.spatial import cKDTree

    out = np.zeros(len(heads), dtype=np.bool_)
    if not len(points):
        return out
    _, nearest_heads = cKDTree(heads).query(points)
    for head in np.asarray(nearest_heads).tolist():
        coincident = np.flatnonzero((heads == heads[head]).all(axis=1)) if out[head] else np.array([head])
        free = coincident[~out[coincident]]
        out[free[:1]] = True
    return out
