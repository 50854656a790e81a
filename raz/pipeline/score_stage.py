"""The computed stage: the scores of a split, from what the inferred stages found. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raz.pipeline.gflop import Cost, ForwardCost, cost_name, image_gflop
from raz.pipeline.graph import Node, fits_theta_on_train
from raz.pipeline.passes import read_passes
from raz.pipeline.scoring import Scores, SplitPredictions, ceiling_counts, clip_to_roi, score_split
from raz.pipeline.stage_context import StageContext, frames_of
from raz.store.manifest import read_manifest
from raz.store.paths import ARRAYS


@lru_cache(maxsize=8)
def _ceiling(name: str, root: Path | None, split: str, scale: float, max_side: int, pack: Path) -> NDArray[np.int64]:
    """`ceiling_counts` of a split, computed once per process: every score of the split contains them."""
    frames = frames_of(name, root, split, scale, max_side, pack)
    return ceiling_counts([frames.heads(i) for i in range(len(frames))], [frames.size(i) for i in range(len(frames))])


def read_predictions(context: StageContext, split: str, *, ceiling: bool = True) -> SplitPredictions:
    """The predictions for a split, from the artifacts that a score needs.

    ceiling: whether to compute `ceiling_counts`, which takes as long as the rest; without it they are zeros.
    """
    inputs, scale = context.stage_inputs["score"], context.stage_inputs["density"].predict.scale
    frames = context.frames(split, scale)
    with np.load(context.folders[Node("density", split)] / ARRAYS, allow_pickle=False) as arrays:
        density = [arrays[f"d{i}"] for i in range(len(frames))]
    numbers = range(2, inputs.depth + 1)
    found = [
        read_passes(context.folders[node])
        for node in (Node("points", split), *(Node("zoom", split, n) for n in numbers))
    ]
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


def score(context: StageContext) -> Scores:
    """The scores of a split. Raises TrialFailure where there are too few validation images to fit thresholds on."""
    name, inputs = context.node.split, context.inputs
    split = read_predictions(context, name)
    regions = [[found.regions for found in of_pass] for of_pass in split.passes[1:]]
    split = replace(split, gflop=_gflop(context, split.sizes, regions))
    val = split if name == "val" else read_predictions(context, "val")
    train = None
    if fits_theta_on_train(inputs):
        train = split if name == "train" else read_predictions(context, "train")
    return score_split(name, split, val, train, inputs.depth, inputs.peaks, inputs.fusion, inputs.metrics)


def _gflop(
    context: StageContext, sizes: Sequence[tuple[int, int]], regions: Sequence[Sequence[NDArray[np.float64]]]
) -> NDArray[np.float64]:
    """GFLOP of predicting each image of the split, (images,), from the costs that the manifests keep. Where they keep
    none (stages of earlier versions, layers without a formula) they are counted, which imports torch."""
    depth, split = context.inputs.depth, context.node.split
    node = Node("points", split) if depth == 1 else Node("zoom", split, 2)
    recorded = read_manifest(context.folders[node]).flop

    def cost(raz: bool, wanted: tuple[str, ...]) -> Cost:
        numbers = recorded.get(cost_name(raz, wanted))
        if numbers is not None:
            return ForwardCost.from_numbers(numbers)
        from raz.pipeline.flops import forward_flop

        return forward_flop(context.stage_inputs, raz=raz, wanted=wanted)

    factor = context.stage_inputs["zoom"].zooming.factor if depth > 1 else 1
    return image_gflop(cost, factor, depth, sizes, regions)
