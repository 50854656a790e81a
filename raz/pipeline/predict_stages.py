"""The inferred stages (density maps, points, zoom passes) and the computed stage (scores)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from raz.paper.zoom import Points
from raz.pipeline.context import MEMO, ExecutionContext, frames_of, memo_name
from raz.pipeline.flops import image_gflop
from raz.pipeline.graph import Node, fits_theta_on_train
from raz.pipeline.regions import MapFunction, PassResult, first_pass, zoom_pass
from raz.pipeline.scoring import Scores, SplitPredictions, ceiling_counts, clip_to_roi, score_split
from raz.store.paths import ARRAYS

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]  # what an inferred stage stores, by name


def density(context: ExecutionContext) -> Arrays:
    """`d0`, `d1`, ...: the density map of each image, (ceil(H/s), ceil(W/s)) float32 persons per cell."""
    size = context.inputs.predict.scale
    network, frames = context.main_net("counting"), context.frames(context.node.split, size)
    out = {}
    for i in context.iter_images(frames):
        maps = network.maps(frames.pixels(i), ("density",), context.device, MEMO, memo_name(frames.ids[i], size))
        out[f"d{i}"] = maps["density"]
    return out


def points(context: ExecutionContext) -> Arrays:
    """What pass 1 finds on each image (see `_pack_points`)."""
    size = context.inputs.predict.scale
    network, frames = context.main_net("localization"), context.frames(context.node.split, size)
    gamma = context.stage_inputs["localization"].localization.gamma
    found = []
    for i in context.iter_images(frames):
        maps = network.maps(frames.pixels(i), ("response",), context.device, MEMO, memo_name(frames.ids[i], size))
        found.append(first_pass(maps["response"], context.inputs.peaks.count, gamma))
    return _pack_points(found)


def zoom(context: ExecutionContext) -> Arrays:
    """What is found on each image up to a zoom pass (see `_pack_points`), and `regions` (r, 4) x0, y0, x1, y1 input px
    of all images in a row, those of image i at `region_ends[i - 1]:region_ends[i]`."""
    node, inputs = context.node, context.inputs
    size, number = inputs.predict.scale, node.zoom_pass
    frames = context.frames(node.split, size)
    proposed = None
    if number == 2:
        proposed = context.candidates(context.main_net("attention"), node.split, inputs.zooming, size)
    raz = context.raz_net(with_attention=number > 2)
    previous = Node("points", node.split) if number == 2 else Node("zoom", node.split, number - 1)
    before = _read_pass(context, previous)
    gamma = context.stage_inputs["localization"].localization.gamma  # RAZ-Net is trained with Main-Net's

    def raz_map(kind: str, of: Node) -> MapFunction:
        # The next pass proposes regions inside the same crops: their features stay in the memo.
        key = context.keys[of].key
        return lambda pixels, name: raz.maps(pixels, (kind,), context.device, MEMO, f"{key}/{name}")[kind]

    found = [
        zoom_pass(
            frames, i, number, before[i], inputs.zooming, inputs.seed,
            proposed[i] if proposed is not None else None,
            raz_map("attention", previous), raz_map("response", node), gamma,
        )
        for i in context.iter_images(frames)
    ]  # fmt: skip
    regions = [f.regions for f in found]
    ends = np.cumsum([len(r) for r in regions], dtype=np.int64)
    return {**_pack_points(found), "regions": np.concatenate([np.zeros((0, 4)), *regions]), "region_ends": ends}


PREDICTORS: Mapping[str, Callable[[ExecutionContext], Arrays]] = {
    "density": density,
    "points": points,
    "zoom": zoom,
}


def _read_pass(context: ExecutionContext, node: Node) -> list[PassResult]:
    """What was found on each image up to a pass."""
    with np.load(context.folders[node] / ARRAYS, allow_pickle=False) as arrays:
        cuts = arrays["ends"][:-1]
        parts = [np.split(arrays[name], cuts) for name in ("xy", "score", "network", "depth")]
        points = [Points(*values) for values in zip(*parts, strict=True)]
        regions = [np.zeros((0, 4)) for _ in points]
        if "regions" in arrays:
            regions = np.split(arrays["regions"], arrays["region_ends"][:-1])
        expected = [arrays.get(f"e{i}") for i in range(len(points))]
    return [PassResult(*found) for found in zip(points, regions, expected, strict=True)]


def _pack_points(found: list[PassResult]) -> Arrays:
    """The points of all images in a row, those of image i at `ends[i - 1]:ends[i]`; and `e0`, `e1`, ...: the heads that
    the maps of each image expect, where `peaks.count: expected` asks for them."""
    points = [f.points for f in found]
    return {
        "xy": np.concatenate([np.zeros((0, 2)), *[p.xy for p in points]]),
        "score": np.concatenate([np.zeros(0, np.float32), *[p.score for p in points]]),
        "network": np.concatenate([np.zeros(0, np.int8), *[p.network for p in points]]),
        "depth": np.concatenate([np.zeros(0, np.int8), *[p.depth for p in points]]),
        "ends": np.cumsum([len(p) for p in points], dtype=np.int64),
        **{f"e{i}": f.expected for i, f in enumerate(found) if f.expected is not None},
    }


@lru_cache(maxsize=8)
def _ceiling(name: str, root: Path | None, split: str, scale: float, max_side: int, pack: Path) -> NDArray[np.int64]:
    """`ceiling_counts` of a split, computed once per process: every score of the split contains them."""
    frames = frames_of(name, root, split, scale, max_side, pack)
    return ceiling_counts([frames.heads(i) for i in range(len(frames))], [frames.size(i) for i in range(len(frames))])


def read_predictions(context: ExecutionContext, split: str, *, ceiling: bool = True) -> SplitPredictions:
    """The predictions for a split, from the artifacts that a score needs.

    ceiling: whether to compute `ceiling_counts`, which takes as long as the rest; without it they are zeros.
    """
    inputs, scale = context.stage_inputs["score"], context.stage_inputs["density"].predict.scale
    frames = context.frames(split, scale)
    with np.load(context.folders[Node("density", split)] / ARRAYS, allow_pickle=False) as arrays:
        density = [arrays[f"d{i}"] for i in range(len(frames))]
    numbers = range(2, inputs.depth + 1)
    found = [_read_pass(context, node) for node in (Node("points", split), *(Node("zoom", split, n) for n in numbers))]
    counts = np.zeros(len(frames), dtype=np.int64)
    if ceiling:
        size = inputs.input.times(scale)
        counts = _ceiling(inputs.dataset, context.data_root, split, size.scale, size.max_side, context.paths.packs)
    scales = [frames.scale(i) for i in range(len(frames))]
    stride = context.stage_inputs["counting"].counting.output_stride
    predictions = SplitPredictions(
        frames.ids, [frames.original_heads(i) for i in range(len(frames))],
        [frames.size(i) for i in range(len(frames))], [(1 / x, 1 / y) for x, y in scales],
        density, stride, found, counts, tuple(item.part for item in frames.items),
    )  # fmt: skip
    return clip_to_roi(predictions, [item.region for item in frames.items])


def score(context: ExecutionContext) -> Scores:
    """The scores of a split. Raises TrialFailure where there are too few validation images to fit thresholds on."""
    name, inputs = context.node.split, context.inputs
    split = read_predictions(context, name)
    regions = [[found.regions for found in of_pass] for of_pass in split.passes[1:]]
    split = replace(split, gflop=image_gflop(context.stage_inputs, inputs.depth, split.sizes, regions))
    val = split if name == "val" else read_predictions(context, "val")
    train = None
    if fits_theta_on_train(inputs):
        train = split if name == "train" else read_predictions(context, "train")
    return score_split(name, split, val, train, inputs.depth, inputs.peaks, inputs.fusion, inputs.metrics)
