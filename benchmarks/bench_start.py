"""Seconds from `raz-sweep run` until its first stage begins, and until the whole small study has ended.

    python benchmarks/bench_start.py [--rounds 3] [--other CHECKOUT]

A grid of eight small trials on the generated crowd, two slots, each time in an empty store. A stage has begun when its
lease is there. With --other the same command of another checkout runs in turns, and the ratio is printed. The load of
the machine is printed too: on a busy one all seconds are upper bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPACE = {
    "study": "start",
    "base": {"preset": "tiny", "set": {"dataset": "toy", "depth": 1, "counting.train.epochs": 2,
                                       "localization.train.epochs": 2, "fusion.rule": "average"}},
    "design": {"sampler": "grid"},
    "parameters": {"localization.gamma": {"choice": [10, 100]}, "counting.beta": {"choice": [0.2, 0.3]},
                   "seed": {"choice": [0, 1]}},
}  # fmt: skip


def run(checkout: Path) -> tuple[float, float]:
    """Seconds until the first stage has begun, and until the command has ended."""
    with tempfile.TemporaryDirectory(prefix="raz-bench-") as folder:
        space, store = Path(folder) / "start.yaml", Path(folder) / "store"
        space.write_text(json.dumps(SPACE))  # JSON is YAML
        command = [sys.executable, "-m", "raz.cli", "run", str(space), "--store", str(store), "--jobs", "2"]
        began = time.monotonic()
        with subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            cwd=folder,  # not in a checkout: it would win
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            first = 0.0
            while process.poll() is None:
                if not first and any((store / "leases").glob("*.lease")):
                    first = time.monotonic() - began
                time.sleep(0.02)
            if process.returncode:
                sys.exit(f"{checkout}: {process.stderr.read().decode() if process.stderr else ''}")
        return first, time.monotonic() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--other", type=Path, help="another checkout, to compare with")
    given = options.parse_args()
    sides = {"this": Path(__file__).resolve().parents[1], **({"other": given.other.resolve()} if given.other else {})}
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(given.rounds):
        for name, checkout in sides.items():
            seconds[name].append(run(checkout))
            first, whole = seconds[name][-1]
            print(f"round {number + 1}, {name}: first stage {first:.1f} s, whole {whole:.1f} s", flush=True)
    medians = {
        name: [statistics.median(values) for values in zip(*each, strict=True)] for name, each in seconds.items()
    }
    for name, (first, whole) in medians.items():
        print(f"{name}: median first stage {first:.1f} s, whole {whole:.1f} s")
    if "other" in medians:
        ratios = [other / this for this, other in zip(medians["this"], medians["other"], strict=True)]
        print(f"other over this: first stage {ratios[0]:.2f}, whole {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
