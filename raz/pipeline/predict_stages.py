"""The inferred stages: density maps, points, zoom passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from raz.pipeline.context import MEMO, ExecutionContext, memo_name
from raz.pipeline.graph import Node
from raz.pipeline.passes import Arrays, pack_passes, read_passes
from raz.pipeline.regions import MapFunction, first_pass, zoom_pass
from raz.pipeline.tiling import tile_pixels


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
    """What pass 1 finds on each image (see `pack_passes`)."""
    size = context.inputs.predict.scale
    network, frames = context.main_net("localization"), context.frames(context.node.split, size)
    gamma = context.stage_inputs["localization"].localization.gamma
    found = []
    for i in context.iter_images(frames):
        maps = network.maps(frames.pixels(i), ("response",), context.device, MEMO, memo_name(frames.ids[i], size))
        found.append(first_pass(maps["response"], context.inputs.peaks.count, gamma))
    return pack_passes(found)


def zoom(context: ExecutionContext) -> Arrays:
    """What is found on each image up to a zoom pass (see `pack_passes`), and `regions` (r, 4) x0, y0, x1, y1 input px
    of all images in a row, those of image i at `region_ends[i - 1]:region_ends[i]`."""
    node, inputs = context.node, context.inputs
    size, number = inputs.predict.scale, node.zoom_pass
    frames = context.frames(node.split, size)
    proposed = None
    if number == 2:
        proposed = context.candidates(context.main_net("attention"), node.split, inputs.zooming, size)
    raz = context.raz_net(with_attention=number > 2)
    previous = Node("points", node.split) if number == 2 else Node("zoom", node.split, number - 1)
    before = read_passes(context.folders[previous])
    gamma = context.stage_inputs["localization"].localization.gamma  # RAZ-Net is trained with Main-Net's

    def raz_map(kind: str, of: Node, limit: int) -> MapFunction:
        # The next pass proposes regions inside the same crops: their features stay in the memo.
        key = context.keys[of].key
        return lambda pixels, name: raz.maps(pixels, (kind,), context.device, MEMO, f"{key}/{name}", limit)[kind]

    found = []
    for i in context.iter_images(frames):
        limit = tile_pixels(*frames.size(i))  # of the image, as in `predict`
        of_image = zoom_pass(
            frames, i, number, before[i], inputs.zooming, inputs.seed,
            proposed[i] if proposed is not None else None,
            raz_map("attention", previous, limit), raz_map("response", node, limit), gamma,
        )  # fmt: skip
        found.append(of_image)
    regions = [f.regions for f in found]
    ends = np.cumsum([len(r) for r in regions], dtype=np.int64)
    return {**pack_passes(found), "regions": np.concatenate([np.zeros((0, 4)), *regions]), "region_ends": ends}


PREDICTORS: Mapping[str, Callable[[ExecutionContext], Arrays]] = {
    "density": density,
    "points": points,
    "zoom": zoom,
}
