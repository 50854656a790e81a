"""Scoring points of a whole benchmark's size: seconds and peak memory, in a process of its own.

    python benchmarks/bench_score.py [--check] [--protocol raz] [--heads 1250000] [--json FILE]

The crowd is generated: images whose head counts spread like those of the large public sets (log-normal, a few of
over ten thousand), heads in clusters, 85 % of them found some px off, the rest of the points false. Its memory is part
of the peak. `--check` exits 1 when protocol raz takes more than 6 s of CPU (a busy machine stretches the wall clock) or
500 MB at 1.25 million heads, 1.36 million points and 30 settings.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np

from raz.paper.metrics import SIGMAS, THRESHOLDS
from raz.score import protocols
from raz.score.points import PointSet

TARGET = (6.0, 500.0)  # s of CPU, MB
POINTS_PER_HEAD = 1.36 / 1.25


def crowd(heads: int, seed: int = 0) -> list[tuple[PointSet, PointSet]]:
    """Images of clustered heads with boxes, and predictions for them; `heads` in all."""
    rng = np.random.default_rng(seed)
    images: list[tuple[PointSet, PointSet]] = []
    left, owed = heads, 0.0
    while left:
        m = min(left, int(np.clip(rng.lognormal(6.2, 1.1), 0, 15_000)))
        left -= m
        height, width = (int(side) for side in rng.integers(800, 3200, 2))
        centres = rng.random((max(1, m // 60), 2)) * (width, height)
        spread = rng.uniform(20, 200, len(centres))
        of = rng.integers(0, len(centres), m)
        true = (centres[of] + rng.normal(0, 1, (m, 2)) * spread[of][:, None]) % (width, height)
        owed += m * POINTS_PER_HEAD
        found = true[rng.random(m) < 0.85]
        false = max(0, round(owed) - len(found))
        points = np.concatenate([found + rng.normal(0, 4, found.shape), rng.random((false, 2)) * (width, height)])
        owed -= len(points)
        side = rng.lognormal(2.8, 0.6, m)
        sigma = np.stack([side / 2, side * math.sqrt(0.5)], axis=1)
        score = rng.random(len(points), dtype=np.float32).astype(np.float64)
        images.append((PointSet(points, score), PointSet(true, None, sigma)))
    return images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", default="raz", choices=["raz", "nwpu", "fidtm", "qnrf"])
    parser.add_argument("--heads", type=int, default=1_250_000)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()

    began = time.perf_counter()
    images = crowd(given.heads)
    made = time.perf_counter() - began
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    work = {"raz": lambda: protocols.raz(images, SIGMAS)} | {
        name: lambda name=name: getattr(protocols, name)(images) for name in ("nwpu", "fidtm", "qnrf")
    }
    began, cpu = time.perf_counter(), time.process_time()
    rows = work[given.protocol]()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {
        "protocol": given.protocol, "images": len(images), "heads": sum(len(h) for _, h in images),
        "points": sum(len(p) for p, _ in images), "seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak,
        "mb_before": before, "cores": os.cpu_count(), "load": os.getloadavg()[0], "machine": platform.machine(),
    }  # fmt: skip
    settings = f", {len(SIGMAS) * len(THRESHOLDS)} settings" if given.protocol == "raz" else ""
    print(f"{given.protocol}: {result['images']} images, {result['heads']} heads, {result['points']} points{settings}")
    print(f"  {seconds:.2f} s ({cpu:.2f} s of CPU), generated in {made:.1f} s, load {result['load']:.1f}")
    print(f"  peak memory {peak:.0f} MB ({before:.0f} MB with the data, before scoring)")
    for row in rows:
        print(f"  {row.setting:22} " + " ".join(f"{v:.4f}" for v in (row.ap, row.ar, row.precision, row.recall) if v))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))
    missed = given.protocol == "raz" and (cpu > TARGET[0] or peak > TARGET[1])
    return 1 if given.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
