"""What goes through Tune leaves no text of itself behind: Tune's encoder remembers `str` of each object it pickles."""

from __future__ import annotations

import json
from pathlib import Path

import ray.util.debug
from ray.tune.utils.serialization import TuneFunctionEncoder

from raz.engine.trial_messages import RunSpec, StepReport, TrialReport, TrialSpec


def test_snapshots_of_a_run_keep_no_text_of_each_trial() -> None:
    before = set(ray.util.debug._logged)
    for i in range(20):
        spec = TrialSpec(RunSpec("module:function", Path("store")), i, {"seed": i}, {})
        json.dumps([spec, TrialReport((StepReport(i, 0.5),))], cls=TuneFunctionEncoder)
    assert len(ray.util.debug._logged - before) <= 2
