"""The inferred stages (density maps, points, zoom passes) and the computed stage (scores)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from raz.paper.zoom import Points
from raz.pipeline.context import MEMO, ExecutionContext, frames_of
from raz.pipeline.graph import Node, fits_theta_on_train
from raz.pipeline.regions import MapFunction, points_of, zoom_pass
from raz.pipeline.scoring import Scores, SplitPredictions, ceiling_counts, clip_to_roi, score_split
from raz.store.paths import ARRAYS

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]  # what an inferred stage stores, by name


def density(context: ExecutionContext) -> Arrays:
    """`d0`, `d1`, ...: the density map of each image, (ceil(H/s), ceil(W/s)) float32 persons per cell."""
    network, frames = context.main_net("counting"), context.frames(context.node.split)
    out = {}
    for i in context.iter_images(frames):
        maps = network.maps(frames.pixels(i), ("density",), context.device, MEMO, frames.ids[i])
        out[f"d{i}"] = maps["density"]
    return out


def points(context: ExecutionContext) -> Arrays:
    """The points of pass 1, of all images in a row (see `_pack_points`)."""
    network, frames = context.main_net("localization"), context.frames(context.node.split)
    points = []
    for i in context.iter_images(frames):
        maps = network.maps(frames.pixels(i), ("response",), context.device, MEMO, frames.ids[i])
        points.append(points_of(maps["response"], 0, 1))
    return _pack_points(points)


def zoom(context: ExecutionContext) -> Arrays:
    """The points after a zoom pass, and its regions: `regions` (r, 4) x0, y0, x1, y1 input px of all images in a row,
    those of image i at `region_ends[i - 1]:region_ends[i]`."""
    node, inputs = context.node, context.inputs
    frames, number = context.frames(node.split), node.zoom_pass
    proposed = None
    if number == 2:
        proposed = context.candidates(context.main_net("attention"), node.split, inputs.zooming)
    raz = context.raz_net(with_attention=number > 2)
    previous = Node("points", node.split) if number == 2 else Node("zoom", node.split, number - 1)
    before, regions_before = _read_pass(context, previous)

    def raz_map(kind: str, of: Node) -> MapFunction:
        # The next pass proposes regions inside the same crops: their features stay in the memo.
        key = context.keys[of].key
        return lambda pixels, name: raz.maps(pixels, (kind,), context.device, MEMO, f"{key}/{name}")[kind]

    points, regions = [], []
    for i in context.iter_images(frames):
        points_after, chosen = zoom_pass(
            frames, i, number, before[i], regions_before[i], inputs.zooming, inputs.seed,
            proposed[i] if proposed is not None else None,
            raz_map("attention", previous), raz_map("response", node),
        )  # fmt: skip
        points.append(points_after)
        regions.append(chosen)
    ends = np.cumsum([len(r) for r in regions], dtype=np.int64)
    return {**_pack_points(points), "regions": np.concatenate([np.zeros((0, 4)), *regions]), "region_ends": ends}


PREDICTORS: Mapping[str, Callable[[ExecutionContext], Arrays]] = {
    "density": density,
    "points": points,
    "zoom": zoom,
}


def _read_pass(context: ExecutionContext, node: Node) -> tuple[list[Points], list[NDArray[np.float64]]]:
    """The points and the regions of each image after a pass; pass 1 has no regions."""
    with np.load(context.folders[node] / ARRAYS, allow_pickle=False) as arrays:
        points = _unpack_points(arrays)
        if "regions" not in arrays:
            return points, [np.zeros((0, 4)) for _ in points]
        return points, np.split(arrays["regions"], arrays["region_ends"][:-1])


def _pack_points(points: list[Points]) -> Arrays:
    """The points of all images in a row; those of image i are at `ends[i - 1]:ends[i]`."""
    return {
        "xy": np.concatenate([np.zeros((0, 2)), *[p.xy for p in points]]),
        "score": np.concatenate([np.zeros(0, np.float32), *[p.score for p in points]]),
        "network": np.concatenate([np.zeros(0, np.int8), *[p.network for p in points]]),
        "depth": np.concatenate([np.zeros(0, np.int8), *[p.depth for p in points]]),
        "ends": np.cumsum([len(p) for p in points], dtype=np.int64),
    }


def _unpack_points(arrays: NpzFile) -> list[Points]:
    cuts = arrays["ends"][:-1]
    parts = [np.split(arrays[name], cuts) for name in ("xy", "score", "network", "depth")]
    return [Points(*values) for values in zip(*parts, strict=True)]


@lru_cache(maxsize=8)
def _ceiling(name: str, root: Path | None, split: str, scale: float, max_side: int, pack: Path) -> NDArray[np.int64]:
    """`ceiling_counts` of a split, computed once per process: every score of the split contains them."""
    frames = frames_of(name, root, split, scale, max_side, pack)
    return ceiling_counts([frames.heads(i) for i in range(len(frames))], [frames.size(i) for i in range(len(frames))])


def read_predictions(context: ExecutionContext, split: str, *, ceiling: bool = True) -> SplitPredictions:
    """The predictions for a split, from the artifacts that a score needs.

    ceiling: whether to compute `ceiling_counts`, which takes as long as the rest; without it they are zeros.
    """
    inputs, frames = context.stage_inputs["score"], context.frames(split)
    with np.load(context.folders[Node("density", split)] / ARRAYS, allow_pickle=False) as arrays:
        density = [arrays[f"d{i}"] for i in range(len(frames))]
    passes, regions = [_read_pass(context, Node("points", split))[0]], []
    for number in range(2, inputs.depth + 1):
        points, chosen = _read_pass(context, Node("zoom", split, number))
        passes.append(points)
        regions.append(chosen)
    counts = np.zeros(len(frames), dtype=np.int64)
    if ceiling:
        size = inputs.input
        counts = _ceiling(inputs.dataset, context.data_root, split, size.scale, size.max_side, context.paths.packs)
    scales = [frames.scale(i) for i in range(len(frames))]
    stride = context.stage_inputs["counting"].counting.output_stride
    predictions = SplitPredictions(
        frames.ids, [frames.original_heads(i) for i in range(len(frames))],
        [frames.size(i) for i in range(len(frames))], [(1 / x, 1 / y) for x, y in scales],
        density, stride, passes, regions, counts, tuple(item.part for item in frames.items),
    )  # fmt: skip
    return clip_to_roi(predictions, [item.region for item in frames.items])


def score(context: ExecutionContext) -> Scores:
    """The scores of a split. Raises TrialFailure where there are too few validation images to fit thresholds on."""
    name, inputs = context.node.split, context.inputs
    split = read_predictions(context, name)
    val = split if name == "val" else read_predictions(context, "val")
    train = None
    if fits_theta_on_train(inputs):
        train = split if name == "train" else read_predictions(context, "train")
    return score_split(name, split, val, train, inputs.depth, inputs.peaks, inputs.fusion, inputs.metrics)
