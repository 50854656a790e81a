"""What a trial made of single images, out of the artifacts it left: computed here, drawn by
`raz.report.figures.photographs`.

Nothing is trained or predicted. Coordinates are in px of the original image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raz.config import TrialConfig
from raz.errors import RazError
from raz.pipeline.graph import Node, dependency_closure
from raz.store.cache import StageCache
from raz.store.paths import FITTED, PER_IMAGE
from raz.utils.suggestions import did_you_mean

SIGMA, AFFINITY = 20.0, 0.5  # a point is right as Table 3 has it: nearer than 23.5 px to a head that is still free
RADIUS = SIGMA * math.sqrt(-2 * math.log(AFFINITY))

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ImageResult:
    """One image, and what a trial made of it."""

    id: str
    pixels: NDArray[np.uint8]  # (H, W, 3) original
    heads: Floats  # (n, 2)
    found: NDArray[np.bool_]  # (n,) whether a point claims this head
    points: Floats  # (m, 2) counted points, the surest first
    passes: NDArray[np.int8]  # (m,) the pass in which each was found
    right: NDArray[np.bool_]  # (m,) whether it claims a head within RADIUS that no surer one has
    regions: tuple[Floats, ...]  # of pass 2, 3, …: (r, 4) x0, y0, x1, y1
    truth: NDArray[np.float32]  # (h, w) heads of each cell, smeared as the counting branch learned them
    density: NDArray[np.float32]  # (h, w) as estimated
    cell: tuple[float, float]  # px a cell is wide and high
    fused: float  # the trial's count


def load_image_results(
    config: TrialConfig, store: Path, which: Sequence[str], *, data_root: Path | None = None, split: str = "test"
) -> tuple[ImageResult, ...]:
    """These images of a split, as the trial saw them.

    `which` are ids (`test/IMG_3`, or `IMG_3`), indices, or words: see `pick`. Raises RazError for an
    image that the split lacks, and when an artifact of the trial is not in the store.
    """
    from raz.pipeline.context import TrialState
    from raz.pipeline.predict_stages import predicted
    from raz.pipeline.scoring import FittedThresholds

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
    w = trial.workbench(score)
    try:
        fitted = FittedThresholds.from_json(json.loads((folder / FITTED).read_text(encoding="utf-8")))
        with np.load(folder / PER_IMAGE, allow_pickle=False) as arrays:
            fused, truth = arrays["fused"], arrays["truth"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RazError(str(folder), f"cannot be read: {error}", "delete the folder and run again") from None
    of = predicted(w, split, ceiling=False)
    chosen = pick(which, of.ids, truth, fused)
    items = w.frames(split).items
    return tuple(_seen(of, i, fitted, config, items[i].load_pixels(), float(fused[i])) for i in chosen)


def pick(which: Sequence[str], ids: Sequence[str], truth: NDArray[Any], fused: NDArray[Any]) -> list[int]:
    """The indices of the images that are asked for, each once: by id, by the last part of one, by index, or `densest`,
    `median`, `sparsest` (by true heads), `worst`, `best` (by the trial's error). Raises RazError for one that there is
    not."""
    by_truth, by_error = np.argsort(truth, kind="stable"), np.argsort(np.abs(fused - truth), kind="stable")
    words = {
        "densest": by_truth[-1], "median": by_truth[(len(ids) - 1) // 2], "sparsest": by_truth[0],
        "worst": by_error[-1], "best": by_error[0],
    }  # fmt: skip
    short = {name.rpartition("/")[2]: i for i, name in enumerate(ids)}
    known = {**{str(i): i for i in range(len(ids))}, **words, **short, **{name: i for i, name in enumerate(ids)}}
    out: dict[int, None] = {}
    for word in which:
        if word not in known:
            legal = [*words, *short]
            raise RazError(
                "--photo", f"{word!r} is no image of these {len(ids)}: expected {', '.join(words)}, an index from 0 to"
                f" {len(ids) - 1}, or an image's name", did_you_mean(word, legal),
            )  # fmt: skip
        out[int(known[word])] = None
    return list(out)


def _seen(of: Any, i: int, fitted: Any, config: TrialConfig, pixels: NDArray[np.uint8], fused: float) -> ImageResult:
    from raz.paper.groundtruth import density_map
    from raz.paper.metrics import match

    (height, width), to_original = of.sizes[i], np.array(of.to_original[i])
    points = of.passes[config.depth - 1][i]
    counted = fitted.counted(points)
    xy, score, passes = points.xy[counted] * to_original, points.score[counted], points.depth[counted]
    order = np.lexsort((xy[:, 0], xy[:, 1], -score))  # as `match` ranks them, so that its answers keep this order
    xy, score, passes = xy[order], score[order], passes[order]
    heads = of.heads[i]
    matches = match(xy, score.astype(np.float64), heads)
    right = (matches.distance < RADIUS) & (matches.best_before >= RADIUS)
    c = config.resolved().counting
    inside = np.minimum(heads / to_original, np.nextafter([width, height], 0.0))
    truth = density_map(
        inside, height, width, stride=of.output_stride, beta=c.beta, k=c.k, kernel=c.kernel
    )  # fmt: skip
    cell = of.output_stride * to_original
    return ImageResult(
        of.ids[i], pixels, heads, _matched_heads(xy[right], heads), xy, passes, right,
        tuple(regions[i] * np.tile(to_original, 2) for regions in of.regions[: config.depth - 1]),
        truth, of.density[i], (float(cell[0]), float(cell[1])), fused,
    )  # fmt: skip


def _matched_heads(points: Floats, heads: Floats) -> NDArray[np.bool_]:
    """(n,) the heads nearest to these points; of heads at one place as many as there are points."""
    from scipy.spatial import cKDTree

    out = np.zeros(len(heads), dtype=np.bool_)
    if not len(points):
        return out
    _, nearest_heads = cKDTree(heads).query(points)
    for at in np.asarray(nearest_heads).tolist():
        twins = np.flatnonzero((heads == heads[at]).all(axis=1)) if out[at] else np.array([at])
        free = twins[~out[twins]]
        out[free[:1]] = True
    return out
