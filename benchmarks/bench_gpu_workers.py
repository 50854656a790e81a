"""What a short stage on a GPU costs: a fresh process for each, or one worker that keeps its GPU and PyTorch loaded.

    python benchmarks/bench_gpu_workers.py [--rounds 5]

The GPU is a resource of Ray without a device, so a CUDA context (0.5 s and more for each fresh process) is not counted.
Both sides run in turns in one Ray session; the stage loads PyTorch and multiplies two small matrices.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
import tempfile
import time
from typing import Any

from raz.engine.ray_session import set_ray_environment


def stage() -> float:
    """The work of a stage in the process that holds the GPU."""
    import torch

    return float((torch.ones(8, 8) @ torch.ones(8, 8)).sum())


class Worker:
    """An actor that holds the GPU for its life."""

    def build(self) -> float:
        return stage()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    set_ray_environment()
    import ray

    folder = tempfile.mkdtemp(dir="/tmp")
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
             object_store_memory=100 * 2**20, _temp_dir=folder)  # fmt: skip
    try:
        fresh = ray.remote(max_calls=1)(stage).options(num_cpus=1, num_gpus=1)
        worker: Any = ray.remote(Worker).options(num_cpus=1, num_gpus=1).remote()
        began = time.perf_counter()
        ray.get(worker.build.remote())
        first = time.perf_counter() - began
        seconds: dict[str, list[float]] = {"fresh process": [], "kept worker": []}
        for _ in range(rounds):
            for name, call in (("fresh process", fresh.remote), ("kept worker", worker.build.remote)):
                began = time.perf_counter()
                ray.get(call())
                seconds[name].append(time.perf_counter() - began)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"first stage of a kept worker {first:.2f} s")
    for name, median in medians.items():
        print(f"{name}: median {median:.3f} s a stage, {min(seconds[name]):.3f} to {max(seconds[name]):.3f}")
    print(f"ratio {medians['fresh process'] / medians['kept worker']:.0f}")


if __name__ == "__main__":
    main()
