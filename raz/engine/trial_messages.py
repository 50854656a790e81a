"""What the driver and the processes of trials send each other through Ray Tune: frozen dataclasses, pickled by Ray.

Tune's own dicts have one entry each: SPEC in a trial's config, REPORT in a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raz.config import BackboneConfig
from raz.pipeline.events import StageEvent
from raz.spec.stage_resources import Resources
from raz.study.records import Outcome
from raz.utils.json_types import Json

SPEC = "trial"
REPORT = "report"


@dataclass(frozen=True)
class RunSpec:
    """What all trials of a run have in common."""

    run_trial: str  # dotted name of a function as raz.pipeline.trial.run_trial
    store: Path
    data_root: Path | None = None
    splits: tuple[str, ...] = ("val",)  # that each trial scores
    seeds: tuple[int, ...] = ()  # that each trial runs one after the other; (): the seed of its configuration
    prunes: bool = False
    resources: Mapping[str, Resources] | None = None  # by stage


@dataclass(frozen=True)
class TrialSpec:
    """One trial to run."""

    run: RunSpec
    number: int  # in the study, or in the table
    config: Mapping[str, Json]  # flat parameters of a TrialConfig
    seconds: Mapping[str, float]  # stage name -> seconds that it is expected to take
    # The backbone with pretrained weights and their identity (raz.pipeline.keys.weights_identity), which the driver has
    # found for all trials; None where there are no such weights, or none that can be read.
    weights: tuple[BackboneConfig, str] | None = None

    def __str__(self) -> str:
        return type(self).__name__  # short: Tune's encoder keeps the text of each object that it pickles


@dataclass(frozen=True)
class StepReport:
    """A validation value of a trial. `shared`: another living trial needs the stage, so nothing is pruned at it."""

    step: int
    value: float
    shared: bool = False


@dataclass(frozen=True)
class TrialReport:
    """What happened to a trial since its last report. `outcome` ends it; `fatal` is an error that every trial would
    meet, and ends the run."""

    steps: tuple[StepReport, ...] = ()
    events: tuple[StageEvent, ...] = ()
    outcome: Outcome | None = None
    fatal: OSError | None = None

    def __str__(self) -> str:
        return type(self).__name__  # as TrialSpec
