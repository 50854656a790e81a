"""A program for a process of its own: studies of the smallest real pipeline on a Ray with two GPUs that are none.

    python -m tests.gpu.fake_study CASE STORE DATA

Prints one JSON document: the trials of the study.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raz.engine.ray_session import set_ray_environment
from tests.gpu.fake_cuda import PIPELINE

CASES: Mapping[str, Mapping[str, Any]] = {
    "whole": {},  # a stage holds a GPU unless its file says otherwise
    "mixed": {"resources": {"all": {"gpus": 0.5}, "density": {"gpus": 0}, "points": {"gpus": 0}}},
    "no cuda": {},  # the real probe, which finds none
    "on cpus": {"resources": {"all": {"gpus": 0}}},
}


def main(case: str, store: Path, data: Path) -> None:
    set_ray_environment()
    import ray

    from raz.engine.study_runner import run_study
    from raz.engine.trial_runner import DEFAULT_RUN_TRIAL
    from raz.study.records import read_records
    from tests.test_broker import grid

    folder = tempfile.mkdtemp(dir="/tmp")
    ray.init(
        num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=100 * 2**20, _temp_dir=folder,
    )  # fmt: skip
    try:
        space = grid({"seed": [0, 1], "fusion.rule": ["density", "average"]}, CASES[case], depth=1)
        run_trial = DEFAULT_RUN_TRIAL if case == "no cuda" else PIPELINE
        run_study(space, store, data_root=data, jobs=4, run_trial=run_trial)
        records = read_records(store, "grid")
        shown = [{"state": r.state, "metrics": r.metrics, "reason": r.reason, "message": r.message} for r in records]
        print(json.dumps(shown))
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
