"""How many regions cost what a larger input costs: GFLOP per image by k_z, and by scale.

    python benchmarks/bench_zoom_or_scale.py --data-root DIR [--dataset shanghaitech_a] [--preset small]

Nothing is trained. Regions are chosen on the true attention maps of the validation images, so no test image is seen;
a trained attention map differs, and the table `ablations/zoom_or_scale.yaml` prints what its regions cost.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from raz.config import PRESETS, configure
from raz.data import open_dataset
from raz.data.frames import Frames, input_size
from raz.paper.attention import attention_map
from raz.pipeline.flops import image_gflop
from raz.pipeline.graph import Node, inputs_for
from raz.pipeline.regions import image_candidates, select_candidates

ANCHORS = "small"
SCALES = (1.5, 2.0)
COUNTS = (4, 8, 16, 24, 30, 36, 40, 48, 64, 72, 78, 84, 96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--dataset", default="shanghaitech_a")
    parser.add_argument("--preset", default="small", choices=sorted(PRESETS))
    options = parser.parse_args()
    base = configure(PRESETS[options.preset], {"dataset": options.dataset, "zooming.anchors": ANCHORS})
    frames = Frames(open_dataset(base.dataset, options.data_root).items["val"], scale=base.input.scale)
    sizes = [frames.size(i) for i in range(len(frames))]

    def gflop(depth: int, at: list[tuple[int, int]], regions: list[list[np.ndarray]]) -> float:
        inputs = inputs_for(configure(base, {"depth": depth}), Node("score", "val"))
        return float(image_gflop(inputs, depth, at, regions).mean())

    print(f"{options.preset} on {len(frames)} validation images of {options.dataset}, GFLOP per image")
    print(f"one pass {gflop(1, sizes, []):.1f}")
    of_scale = {scale: gflop(1, [input_size(*size, scale, 0) for size in sizes], []) for scale in SCALES}
    for scale, cost in of_scale.items():
        print(f"one pass at scale {scale:g} {cost:.1f}")
    proposed = [
        image_candidates(
            attention_map(frames.heads(i), *sizes[i], base.attention.sigma_z), base.zooming, 0, frames.content(i), 2
        )
        for i in range(len(frames))
    ]
    for k_z in COUNTS:
        zooming = replace(base.zooming, k_z=k_z)
        regions = [select_candidates(candidates, zooming)[0] for candidates in proposed]
        cost = gflop(2, sizes, [regions])
        compared = ", ".join(f"{cost / other - 1:+.0%} of scale {scale:g}" for scale, other in of_scale.items())
        print(f"two passes, k_z {k_z} {cost:.1f} ({np.mean([len(r) for r in regions]):.1f} regions; {compared})")


if __name__ == "__main__":
    main()
