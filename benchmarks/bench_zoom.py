"""Zoom proposals against the direct way (draw over all pixels, a mean per box, suppression in a loop), and merging."""

from __future__ import annotations

import math
import sys

import numpy as np
from _alt import Bench
from _crowd import crowd
from numpy.typing import NDArray

from raz.paper.attention import attention_map
from raz.paper.zoom import ANCHOR_SETS, Points, candidate_regions, generator_for, merge_points, select_regions

Floats = NDArray[np.float64]
SETTINGS = {"theta_z": 0.01, "iou": 0.5, "k_z": 10}


def direct_means(attention: NDArray[np.float32], boxes: NDArray[np.int64]) -> Floats:
    return np.array([attention[y0:y1, x0:x1].mean(dtype=np.float64) for x0, y0, x1, y1 in boxes.tolist()])


def suppressed_by_loop(boxes: NDArray[np.int64], means: Floats, theta_z: float, iou: float, k_z: int) -> list[int]:
    """Each box against every better one that was kept."""
    rows, score = boxes.tolist(), means.tolist()
    kept: list[int] = []
    for i in sorted((i for i in range(len(rows)) if score[i] >= theta_z), key=lambda i: (-score[i], *rows[i])):
        ax0, ay0, ax1, ay1 = rows[i]
        for j in kept:
            bx0, by0, bx1, by1 = rows[j]
            common = max(min(ax1, bx1) - max(ax0, bx0), 0) * max(min(ay1, by1) - max(ay0, by0), 0)
            if common > iou * ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - common):
                break
        else:
            kept.append(i)
    return kept[:k_z]


def proposed_directly(attention: NDArray[np.float32], rng: np.random.Generator) -> list[int]:
    height, width = attention.shape
    p = attention.ravel().astype(np.float64)
    drawn = rng.choice(p.size, 200, p=p / p.sum())
    boxes = []
    for r, c in zip((drawn // width).tolist(), (drawn % width).tolist(), strict=True):
        for ratio, scale in ANCHOR_SETS["paper"]:
            h = round(scale * min(height, width) * math.sqrt(ratio))
            w = round(scale * min(height, width) / math.sqrt(ratio))
            x0, y0 = c - (w - 1) // 2, r - (h - 1) // 2
            boxes.append((max(x0, 0), max(y0, 0), min(x0 + w, width), min(y0 + h, height)))
    array = np.array(boxes, dtype=np.int64)
    return suppressed_by_loop(array, direct_means(attention, array), **SETTINGS)  # type: ignore[arg-type]


def proposed(attention: NDArray[np.float32]) -> object:
    boxes, means = candidate_regions(attention, generator_for(0, "image", 2))
    return select_regions(boxes, means, **SETTINGS)  # type: ignore[arg-type]


def merged_by_loop(
    before: Points, regions: Floats, inside: list[Points], height: int, width: int, border: float, seam: float
) -> list[tuple[float, float, float]]:
    """Point by point: who owns it, and is a better point of another owner too near? Lengths in input px."""
    rows = []
    boxes = regions.tolist()
    for source, group in enumerate([before, *inside], start=-1):
        for (x, y), score in zip(group.xy.tolist(), group.score.tolist(), strict=True):
            owner = -1
            for rank, (x0, y0, x1, y1) in enumerate(boxes):
                left, right = (x0 + border if x0 > 0 else x0), (x1 - border if x1 < width else x1)
                top, bottom = (y0 + border if y0 > 0 else y0), (y1 - border if y1 < height else y1)
                if left <= x < right and top <= y < bottom:
                    owner = rank
                    break
            if owner == source:
                rows.append((-score, y, x, source))
    rows.sort()
    grid: dict[tuple[int, int], list[tuple[float, float, int]]] = {}
    out = []
    for negative, y, x, source in rows:
        i, j = int(x // seam), int(y // seam)
        near = (p for a in (i - 1, i, i + 1) for b in (j - 1, j, j + 1) for p in grid.get((a, b), ()))
        if all(o == source or math.hypot(x - u, y - v) >= seam for u, v, o in near):
            grid.setdefault((i, j), []).append((x, y, source))
            out.append((negative, y, x))
    return out


def points(rng: np.random.Generator, xy: Floats, network: int) -> Points:
    n = len(xy)
    scores = rng.random(n, dtype=np.float32)
    return Points(xy, scores, np.full(n, network, np.int8), np.full(n, network + 1, np.int8))


def main() -> int:
    bench = Bench("zooming: proposals, suppression, merging")
    for name, target in (("SHA", 6), ("Q", None), ("Q12k", 12)):
        of = crowd(name)
        print(f"  {of}")
        attention = attention_map(of.heads, of.height, of.width)
        boxes, means = candidate_regions(attention, generator_for(0, "image", 2))
        bench.exact(f"means of {len(boxes)} boxes {name}", np.abs(means - direct_means(attention, boxes)).max(), 1e-12)
        for theta_z in (0.0, 0.01):
            got = boxes[select_regions(boxes, means, theta_z=theta_z, iou=0.5, k_z=10)]
            expected = boxes[suppressed_by_loop(boxes, means, theta_z, 0.5, 10)]
            bench.exact(f"suppression {name}, {len(got)} kept", 0.0 if np.array_equal(got, expected) else 1.0, 0)
        rng = np.random.default_rng(0)
        bench.compare(
            f"proposals {name}",
            lambda attention=attention: proposed(attention),  # type: ignore[misc]
            lambda attention=attention, rng=rng: proposed_directly(attention, rng),  # type: ignore[misc]
            against="directly",
            target=target,
            reps=5,
            floor=lambda attention=attention: attention.astype(np.float64),  # type: ignore[misc]
            work=f"{8 * attention.size / 1e6:.0f} MB integral",
        )
        bench.compare(
            f"suppression {name}",
            lambda b=boxes, m=means: select_regions(b, m, theta_z=0.0, iou=0.5, k_z=10),  # type: ignore[misc]
            lambda b=boxes, m=means: suppressed_by_loop(b, m, 0.0, 0.5, 10),  # type: ignore[misc]
            against="loop",
        )

    of = crowd("SHA")
    rng = np.random.default_rng(1)
    corner = rng.integers(0, [of.width - 200, of.height - 200], (10, 2)).astype(np.float64)
    regions = np.concatenate([corner, corner + rng.integers(100, 200, (10, 2))], axis=1)
    before = points(rng, rng.random((1500, 2)) * [of.width, of.height], 0)
    inside = [points(rng, box[:2] + rng.random((400, 2)) * (box[2:] - box[:2]), 1) for box in regions]
    merged = merge_points(before, regions, inside, of.height, of.width, zoom=2, border=8, seam=3)
    plain = merged_by_loop(before, regions, inside, of.height, of.width, 4.0, 1.5)
    expected = np.array(plain)[:, [2, 1]]
    same = merged.xy.shape == expected.shape and np.array_equal(merged.xy, expected)
    bench.exact(f"merge of 5,500 points to {len(merged)}", 0.0 if same else 1.0, 0)
    bench.compare(
        "merge of 5,500 points, 10 regions",
        lambda: merge_points(before, regions, inside, of.height, of.width, zoom=2, border=8, seam=3),
        lambda: merged_by_loop(before, regions, inside, of.height, of.width, 4.0, 1.5),
        against="loop",
        target=8,
    )
    return bench.done()


if __name__ == "__main__":
    sys.exit(main())
