"""A builder for Ray sessions with GPUs that are none: its processes believe in CUDA, compute on the CPU, and write down
what they were given. Importing this module replaces the CUDA probe of the process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ray

from raz.config import TrialConfig
from raz.pipeline import device, trial

BUILDER = "tests.gpu.fake_cuda:build_stages"
PIPELINE = "tests.gpu.fake_cuda:run_trial"
device.cuda_problem = lambda: ""


def run_trial(config: TrialConfig, store: Path, *, make: Any = None, **options: Any) -> Any:
    if make is not None:
        make.builder = BUILDER
    return trial.run_trial(config, store, make=make, **options)


def build_stages(config: TrialConfig, store: Path, nodes: Any, **options: Any) -> None:
    """Builds the stages, and appends a line to STORE/devices.jsonl. The first process that finds STORE/kill dies."""
    line = {
        "stages": [str(node) for node in nodes], "pid": os.getpid(), "ids": [str(n) for n in ray.get_gpu_ids()],
        "visible": os.environ.get(device.VISIBLE), "splits": sorted({node.split for node in nodes}),
    }  # fmt: skip
    with (store / "devices.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    kill = store / "kill"
    if kill.exists():  # once
        kill.unlink()
        os.kill(os.getpid(), 9)
    trial.build_stages(config, store, nodes, **options)
