"""Two ways of doing one thing, timed in turn: the ratio is what a benchmark claims, not the milliseconds.

A benchmark first proves its result (`Bench.exact`), then times (`Bench.compare`). The sides alternate within one run,
so a machine that slows down slows both. Ratios are of CPU time, since a busy machine stretches the wall clock.

    python benchmarks/bench_NAME.py [--check] [--json FILE] [--reps N] [--only WORD]

`--check` exits 1 when a ratio is below 0.6 of its target; the slack is for other machines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy

Call = Callable[[], object]
SLACK = 0.6
SHORTEST = 0.004  # s of one measurement; quicker calls are repeated within it


def _once(call: Call, number: int) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(number):
        call()
    return (time.perf_counter() - wall) / number, (time.process_time() - cpu) / number


def _warm(call: Call) -> int:
    """Run once, and say how many calls make a measurement long enough."""
    call()  # pages, caches, imports
    seconds, _ = _once(call, 1)
    return max(1, min(1000, round(SHORTEST / max(seconds, 1e-7))))


class Bench:
    """The command line, the proofs and the comparisons of one benchmark."""

    def __init__(self, title: str, parser: argparse.ArgumentParser | None = None) -> None:
        """parser: with options of the benchmark's own, which `options` then holds."""
        parser = parser or argparse.ArgumentParser(description=title)
        parser.add_argument("--check", action="store_true", help=f"exit 1 below {SLACK} of a target")
        parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
        parser.add_argument("--reps", type=int, default=7, help="pairs of measurements (5 to 9)")
        parser.add_argument("--only", default="", metavar="WORD", help="only comparisons whose label has this word")
        self.options = parser.parse_args()
        self.machine = {
            "title": title,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
            "load": [round(load, 2) for load in os.getloadavg()],
        }
        self.proofs: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        print(title)
        print("  " + ", ".join(f"{name} {value}" for name, value in self.machine.items() if name != "title"))

    def exact(self, label: str, error: float, bound: float) -> None:
        """State an error and end the run when it exceeds its bound: a wrong result has no speed."""
        self.proofs.append({"label": label, "error": float(error), "bound": bound})
        print(f"  proved  {label}: error {error:.2g} <= {bound:.2g}")
        if not error <= bound:
            sys.exit(f"{label}: the error {error:.3g} exceeds {bound:.3g}")

    def compare(
        self,
        label: str,
        ours: Call,
        baseline: Call,
        *,
        against: str,
        target: float | None = None,
        scale: float = 1.0,
        reps: int | None = None,
        floor: Call | None = None,
        work: str = "",
    ) -> None:
        """Time both sides in turn and print the ratio.

        `scale`: how many times the baseline's sample goes into the whole; above 1 its time is extrapolated, and says
        so. `floor`: the least that has to be done in any case (filling or copying the output). `work`: bytes or FLOP.
        """
        if self.options.only not in label:
            return
        reps = reps or self.options.reps
        # A slow baseline is not warmed up by a full extra call: it is far from the scale on which warming shows.
        number, slow = _warm(ours), _warm(baseline) if scale == 1.0 else 1
        pairs = []
        for i in range(reps):
            first = i % 2 == 0
            a = _once(ours, number) if first else None
            b = _once(baseline, slow)
            pairs.append((a or _once(ours, number), b))
        wall, cpu = (statistics.median(a[i] for a, _ in pairs) for i in (0, 1))
        base_wall, base_cpu = (statistics.median(b[i] for _, b in pairs) * scale for i in (0, 1))
        ratios = [b[1] * scale / max(a[1], 1e-9) for a, b in pairs]
        ratio = statistics.median(ratios)
        row: dict[str, Any] = {
            "label": label,
            "against": against,
            "ms": wall * 1e3,
            "cpu_ms": cpu * 1e3,
            "baseline_ms": base_wall * 1e3,
            "baseline_cpu_ms": base_cpu * 1e3,
            "ratio": ratio,
            "least": min(ratios),
            "most": max(ratios),
            "extrapolated": scale != 1.0,
            "target": target,
            "reps": reps,
        }
        line = (
            f"  {label}: {wall * 1e3:.3g} ms (cpu {cpu * 1e3:.3g}), {against} {'~' if scale != 1 else ''}"
            f"{base_wall * 1e3:.4g} ms -> {ratio:,.1f}x ({min(ratios):,.1f} to {max(ratios):,.1f})"
        )
        if scale != 1.0:
            line += f", extrapolated {scale:.4g}x from a sample"
        if target is not None:
            line += f", target {target:,g}x" + ("" if ratio >= target else " MISSED")
        if floor is not None:
            count = _warm(floor)
            row["floor_ms"] = statistics.median(_once(floor, count)[1] for _ in range(reps)) * 1e3
            line += f", {cpu * 1e3 / max(row['floor_ms'], 1e-9):.1f}x the floor"
        if work:
            row["work"] = work
            line += f", {work}"
        print(line, flush=True)
        self.results.append(row)

    def done(self) -> int:
        """Write the JSON and return the exit code."""
        if self.options.json:
            document = {"machine": self.machine, "proofs": self.proofs, "results": self.results}
            self.options.json.write_text(json.dumps(document, indent=1) + "\n")
        low = [r["label"] for r in self.results if r["target"] is not None and r["ratio"] < SLACK * r["target"]]
        if low:
            print(f"  below {SLACK} of the target: " + "; ".join(low))
        return 1 if low and self.options.check else 0
