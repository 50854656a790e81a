"""One worker against two, for real: a grid of seeds, so a tree of chains that share nothing, through Ray.

    python benchmarks/bench_workers.py [--pairs 3] [--seeds 4] [--epochs 8]

Sides alternate, each in a store and a Ray session of its own, whose start is not timed; printed is the wall
time of both, their ratio in each pair, and the median. Each stage takes one thread. First both stores are compared: the
same numbers. On a machine that others use the ratio says nothing: the load is printed. 1.5 or more is wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from raz.engine.ray_session import session
from raz.engine.study_runner import run_study
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import parse_space
from raz.study.records import read_records
from raz.utils.yamlfile import parse

WANTED = 1.5


def space_of(seeds: int, epochs: int) -> SearchSpace:
    document = {
        "study": "seeds",
        "base": {"preset": "tiny", "set": {
            "dataset": "toy", "depth": 1, "counting.train.epochs": epochs, "localization.train.epochs": epochs,
        }},
        "design": {"sampler": "grid"},
        "parameters": {"seed": {"choice": list(range(seeds))}},
    }  # fmt: skip
    return parse_space(parse(json.dumps(document), "seeds.yaml"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--pairs", type=int, default=3)
    options.add_argument("--seeds", type=int, default=4)
    options.add_argument("--epochs", type=int, default=8)
    given = options.parse_args()
    if given.pairs < 1 or (os.cpu_count() or 1) < 2:
        sys.exit("it takes a pair, and two cores for two workers")
    space = space_of(given.seeds, given.epochs)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    ratios = []
    with tempfile.TemporaryDirectory(prefix="raz-bench-") as folder:

        def run(workers: int, pair: int | str) -> float:
            store = Path(folder) / f"{pair}-{workers}"
            with session(workers):
                began = time.monotonic()
                run_study(space, store, jobs=workers)
                return time.monotonic() - began

        run(1, "warm")
        run(2, "warm")
        alone, both = (read_records(Path(folder) / f"warm-{n}", "seeds") for n in (1, 2))
        key = lambda record: str(record.values)  # noqa: E731
        if [(r.values, r.metrics) for r in sorted(alone, key=key)] != [
            (r.values, r.metrics) for r in sorted(both, key=key)
        ]:
            sys.exit("one worker and two gave other numbers")
        print("proved  one worker and two give the same numbers", flush=True)
        for pair in range(given.pairs):
            order = (1, 2) if pair % 2 == 0 else (2, 1)
            seconds = {workers: run(workers, pair) for workers in order}
            ratios.append(seconds[1] / seconds[2])
            print(f"one worker {seconds[1]:.1f} s, two {seconds[2]:.1f} s: {ratios[-1]:.2f} times", flush=True)
    print(f"median {statistics.median(ratios):.2f} times (wanted: {WANTED}), load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
