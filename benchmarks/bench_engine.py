"""What the engine itself costs: trials that only score, over predictions that the store holds.

    python benchmarks/bench_engine.py [--inline 1000] [--tune 1000] [--memory 2000]

Prints seconds a trial inline and through Ray Tune, of these the seconds of the score itself (the same scores, computed
without the engine), and by how much the driver's memory grows a trial. A smallest crowd keeps the score small.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from raz.config import PRESETS, configure
from raz.engine.study_runner import run_study
from raz.pipeline.trial import run_trial
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import parse_space
from raz.utils.json_types import JsonLike
from raz.utils.yamlfile import parse

BASE: dict[str, JsonLike] = {
    "dataset": "toy", "backbone.width": 0.0625, "counting.channels": [8], "localization.channels": [8],
    "localization.upsample": [8, 6, 4], "attention.channels": 4, "depth": 1, "fusion.rule": "density",
    "counting.train.epochs": 1, "localization.train.epochs": 1, "input.scale": 0.25, "counting.train.crop": 32,
    "localization.train.crop": 32,
}  # fmt: skip


def rss() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def space_of(name: str, trials: int, base: dict[str, JsonLike]) -> SearchSpace:
    document = {
        "study": name, "base": {"preset": "tiny", "set": base},
        "design": {"sampler": "random", "trials": trials},
        "parameters": {"peaks.threshold": {"float": [0.1, 0.9]}},
    }  # fmt: skip
    return parse_space(parse(json.dumps(document), f"{name}.yaml"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--inline", type=int, default=1000, help="trials without Ray (0: none)")
    options.add_argument("--tune", type=int, default=1000, help="trials through Ray Tune (0: none)")
    options.add_argument("--memory", type=int, default=2000, help="trials over which memory is measured (0: none)")
    options.add_argument("--jobs", type=int, default=2)
    given = options.parse_args()
    known = dict(BASE)
    config = configure(PRESETS["tiny"], known)
    with tempfile.TemporaryDirectory(prefix="raz-bench-") as folder:
        store = Path(folder)
        run_trial(config, store, splits=("val", "test"))
        began = time.monotonic()
        for i in range(20):
            run_trial(configure(config, {"peaks.threshold": 0.001 * (i + 1)}), store)
        alone = (time.monotonic() - began) / 20
        print(f"a trial without the engine: {1000 * alone:.1f} ms", flush=True)
        for name, trials, inline in (("inline", given.inline, True), ("tune", given.tune, False)):
            if trials:
                began, cpu = time.monotonic(), time.process_time()
                run_study(space_of(name, trials, known), store, inline=inline, jobs=given.jobs)
                wall, cpu = time.monotonic() - began, time.process_time() - cpu
                print(
                    f"{name}: {trials} trials in {wall:.1f} s, {1000 * wall / trials:.1f} ms each, "
                    f"driver CPU {1000 * cpu / trials:.1f} ms each", flush=True,
                )  # fmt: skip
        if given.memory:
            half = given.memory // 2
            run_study(space_of("memory", half, known), store, inline=True)
            before = rss()
            run_study(space_of("memory", given.memory, known), store, inline=True)
            print(f"memory: {(rss() - before) / (given.memory - half) / 1024:.1f} KiB a trial")


if __name__ == "__main__":
    main()
