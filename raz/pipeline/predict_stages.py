"""What the inferred and the computed stages give: maps of counts, points, regions to zoom, scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from raz.data.contract import Split
from raz.paper.zoom import Points
from raz.pipeline.context import MEMO, ExecutionContext, frames_of
from raz.pipeline.graph import Declared, Node, fits_theta_on_train
from raz.pipeline.regions import points_of, zoom_pass
from raz.pipeline.scoring import Scores, SplitPredictions, ceiling_counts, clip_to_roi, score_split
from raz.store.paths import ARRAYS


def density(w: ExecutionContext, node: Node, given: Declared) -> dict[str, NDArray[Any]]:
    network, frames = w.main(through="counting"), w.frames(node.split)
    out = {}
    for i in w.iter_images(node, frames):
        maps = network.maps(frames.pixels(i), ("density",), w.device, MEMO, frames.ids[i])
        out[f"d{i}"] = maps["density"]
    return out


def points(w: ExecutionContext, node: Node, given: Declared) -> dict[str, NDArray[Any]]:
    network, frames = w.main(through="localization"), w.frames(node.split)
    points = []
    for i in w.iter_images(node, frames):
        maps = network.maps(frames.pixels(i), ("response",), w.device, MEMO, frames.ids[i])
        points.append(points_of(maps["response"], 0, 1))
    return _pack_points(points)


def zoom(w: ExecutionContext, node: Node, given: Declared) -> dict[str, NDArray[Any]]:
    frames, config, number = w.frames(node.split), given.zooming, node.zoom_pass
    proposed = None
    if number == 2:
        data = w.keys[node].data[node.split]
        proposed = w.candidates(node, w.main(through="attention"), node.split, data, given, config)
    raz = w.raz(with_attention=number > 2)
    previous = Node("points", node.split) if number == 2 else Node("zoom", node.split, number - 1)
    before, regions_before = _read_pass(w, previous)

    def raz_map(kind: str, of: Node) -> Callable[[NDArray[np.uint8], str], NDArray[np.float32]]:
        # The next pass looks at the same crops for its proposals: their features are remembered.
        key = w.keys[of].key
        return lambda pixels, name: raz.maps(pixels, (kind,), w.device, MEMO, f"{key}/{name}")[kind]

    points, regions = [], []
    for i in w.iter_images(node, frames):
        found, chosen = zoom_pass(
            frames, i, number, before[i], regions_before[i], config, given.seed,
            proposed[i] if proposed is not None else None,
            raz_map("attention", previous), raz_map("response", node),
        )  # fmt: skip
        points.append(found)
        regions.append(chosen)
    ends = np.cumsum([len(r) for r in regions], dtype=np.int64)
    packed: dict[str, NDArray[Any]] = dict(_pack_points(points))
    return packed | {"regions": np.concatenate([np.zeros((0, 4)), *regions]), "region_ends": ends}


PREDICTORS: Mapping[str, Callable[[ExecutionContext, Node, Declared], dict[str, NDArray[Any]]]] = {
    "density": density,
    "points": points,
    "zoom": zoom,
}


def _read_pass(w: ExecutionContext, node: Node) -> tuple[list[Points], list[NDArray[np.float64]]]:
    with np.load(w.folders[node] / ARRAYS, allow_pickle=False) as arrays:
        points = _unpack_points(arrays)
        if "regions" not in arrays:
            return points, [np.zeros((0, 4)) for _ in points]
        return points, np.split(arrays["regions"], arrays["region_ends"][:-1])


def _pack_points(points: list[Points]) -> dict[str, NDArray[Any]]:
    return {
        "xy": np.concatenate([np.zeros((0, 2)), *[p.xy for p in points]]),
        "score": np.concatenate([np.zeros(0, np.float32), *[p.score for p in points]]),
        "network": np.concatenate([np.zeros(0, np.int8), *[p.network for p in points]]),
        "depth": np.concatenate([np.zeros(0, np.int8), *[p.depth for p in points]]),
        "ends": np.cumsum([len(p) for p in points], dtype=np.int64),
    }


def _unpack_points(arrays: Mapping[str, NDArray[Any]]) -> list[Points]:
    cuts = arrays["ends"][:-1]
    parts = [np.split(arrays[name], cuts) for name in ("xy", "score", "network", "depth")]
    return [Points(*values) for values in zip(*parts, strict=True)]


@lru_cache(maxsize=8)
def _ceiling(name: str, root: Path | None, split: Split, scale: float, max_side: int, pack: Path) -> NDArray[np.int64]:
    """`ceiling_counts` of a split, once a process: every score of it prints them."""
    frames = frames_of(name, root, split, scale, max_side, pack)
    return ceiling_counts([frames.heads(i) for i in range(len(frames))], [frames.size(i) for i in range(len(frames))])


def predicted(w: ExecutionContext, split: str, *, ceiling: bool = True) -> SplitPredictions:
    """What the passes of a trial gave of a split, out of the artifacts that a score needs; without `ceiling`, which
    takes as long as the rest, zeros stand in its place."""
    given, frames = w.inputs["score"], w.frames(split)
    with np.load(w.folders[Node("density", split)] / ARRAYS, allow_pickle=False) as arrays:
        density = [arrays[f"d{i}"] for i in range(len(frames))]
    passes, regions = [_read_pass(w, Node("points", split))[0]], []
    for number in range(2, given.depth + 1):
        points, chosen = _read_pass(w, Node("zoom", split, number))
        passes.append(points)
        regions.append(chosen)
    counts = np.zeros(len(frames), dtype=np.int64)
    if ceiling:
        counts = _ceiling(
            given.dataset, w.data_root, cast(Split, split), given.input.scale, given.input.max_side, w.paths.packs
        )
    scales = [frames.scale(i) for i in range(len(frames))]
    stride = w.inputs["counting"].counting.output_stride
    found = SplitPredictions(
        frames.ids, [frames.original_heads(i) for i in range(len(frames))],
        [frames.size(i) for i in range(len(frames))], [(1 / x, 1 / y) for x, y in scales],
        density, stride, passes, regions, counts, tuple(item.part for item in frames.items),
    )  # fmt: skip
    return clip_to_roi(found, [item.region for item in frames.items])


def score(w: ExecutionContext, node: Node, given: Declared) -> Scores:
    split = predicted(w, node.split)
    val = split if node.split == "val" else predicted(w, "val")
    learned = None
    if fits_theta_on_train(given):
        learned = split if node.split == "train" else predicted(w, "train")
    return score_split(node.split, split, val, learned, given.depth, given.peaks, given.fusion, given.metrics)
