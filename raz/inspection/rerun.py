"""Computes a recorded trial again, without Ray and in a temporary store, and compares the numbers bit for bit."""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from raz.config import from_parameters
from raz.errors import FailureReason, RazError, TrialFailure
from raz.inspection.study_details import UNKNOWN
from raz.pipeline.events import EventCallback, StageUse
from raz.pipeline.signatures import RunTrial
from raz.store.cache import StageCache
from raz.study.index import StudySnapshot, trial_index
from raz.study.records import TrialRecord
from raz.study.trial_status import TrialStatus
from raz.utils import formatting
from raz.utils.json_types import JsonLike
from raz.utils.provenance import environment_versions

COMPARABLE = (TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.FAILED)
NOT_REPRODUCIBLE = (FailureReason.LOST, FailureReason.ERROR, FailureReason.OOM)  # failures that a rerun need not repeat


@dataclass(frozen=True)
class NumberDifference:
    """A number of the record and its value now; `now` is None where the rerun has no such finite number."""

    recorded: float
    now: float | None


@dataclass(frozen=True)
class TextDifference:
    """A text of the record (a state, a version) and its value now."""

    recorded: str
    now: str

    @property
    def differs(self) -> bool:
        """Whether the text is another one now."""
        return self.recorded != self.now

    def to_dict(self) -> dict[str, str]:
        """The JSON document."""
        return {"recorded": self.recorded, "now": self.now}


@dataclass(frozen=True)
class RerunResult:
    """The comparison of a trial's record with its rerun."""

    trial: str  # STUDY#NUMBER
    state: TextDifference
    reason: TextDifference  # of a failure
    message: str  # of the rerun's failure
    metrics: int  # number of metrics compared
    steps: int  # number of steps compared
    differences: Mapping[str, NumberDifference]  # metric, or `step N`
    keys: tuple[str, ...]  # stages whose keys have changed
    versions: Mapping[str, TextDifference]  # packages whose versions have changed

    @property
    def agrees(self) -> bool:
        """Whether state, reason and all numbers are equal, the numbers in all 64 bits."""
        return not (self.state.differs or self.reason.differs or self.differences)

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "trial": self.trial,
            "agrees": self.agrees,
            "state": self.state.to_dict(),
            "reason": self.reason.to_dict(),
            "message": self.message,
            "compared": {"metrics": self.metrics, "steps": self.steps},
            "differences": {name: {"recorded": d.recorded, "now": d.now} for name, d in self.differences.items()},
            "keys": self.keys,
            "versions": {name: version.to_dict() for name, version in self.versions.items()},
        }

    def to_text(self) -> str:
        """The verdict and the differences, for a terminal."""
        compared = f"{self.metrics} metrics and {self.steps} steps"
        if self.agrees:
            reason = f", {self.reason.now}" if self.reason.now else ""
            return f"{self.trial} agrees bit for bit: {compared} compared ({self.state.now}{reason})"
        out = [f"{self.trial} does not agree: {len(self.differences)} of {compared} differ"]
        if self.state.differs or self.reason.differs:
            recorded = " ".join(filter(None, (self.state.recorded, self.reason.recorded)))
            now = " ".join(filter(None, (self.state.now, self.reason.now)))
            out.append(f"it was {recorded}, and is {now} now{': ' + self.message if self.message else ''}")
        if self.differences:
            lines = []
            for name, d in self.differences.items():
                now, change = ("-", "-") if d.now is None else (repr(d.now), f"{d.now - d.recorded:.3g}")
                lines.append((name, repr(d.recorded), now, change))
            out += formatting.columns(("number", "recorded", "now", "difference"), lines, right=(1, 2, 3))
        if self.keys:
            out.append(
                f"stages with other keys than recorded (the data or a stage's meaning changed): {', '.join(self.keys)}"
            )
        out += [f"{name} was {version.recorded}, is {version.now}" for name, version in self.versions.items()]
        return "\n".join(out)


@dataclass(frozen=True)
class _Rerun:
    """How the rerun ended."""

    state: str
    reason: str = ""
    message: str = ""
    metrics: Mapping[str, float] | None = None
    stages: tuple[StageUse, ...] = ()


def rerun(
    study: StudySnapshot,
    number: int,
    *,
    data_root: Path | None = None,
    from_store: bool = False,
    log: EventCallback | None = None,
    run_trial: RunTrial | None = None,
) -> RerunResult:
    """Runs a recorded trial again and compares the results.

    A complete trial is compared by its metrics and its curve, a pruned one by its curve up to the step at which it was
    stopped, a failed one by its reason. With `from_store`, trained networks are copied from the study's store, and only
    predictions and scores are computed again. Raises RazError for a trial whose result cannot be reproduced, and for an
    error that would meet every trial, such as a missing data set.
    """
    trial = study.trials[trial_index(study, number)]
    name = f"{study.name}#{number}"
    _check_comparable(trial, name)
    steps: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="raz-rerun-") as folder:
        if from_store:
            _copy_trained_stages(study.store, Path(folder), trial.stages)
        result = _run(trial, Path(folder), steps, run_trial or _pipeline(), data_root, log)
    differences = {
        **_differences("", trial.metrics, result.metrics or {}),
        **_differences("step ", {str(s): v for s, v in trial.steps.items()}, {str(s): v for s, v in steps.items()}),
    }
    state = result.state
    if trial.pruned_at is not None and state == TrialStatus.COMPLETE:
        state = "complete (it was not stopped)"
    recorded_keys = {stage.stage: stage.key for stage in trial.stages}
    keys = {stage.stage: stage.key for stage in result.stages}
    versions = environment_versions()
    return RerunResult(
        trial=name,
        state=TextDifference(trial.state, state),
        reason=TextDifference(trial.reason, result.reason),
        message=result.message,
        metrics=len(trial.metrics),
        steps=len(trial.steps),
        differences=differences,
        keys=tuple(sorted(s for s in recorded_keys.keys() & keys.keys() if recorded_keys[s] != keys[s])),
        versions={
            package: TextDifference(trial.versions.get(package, UNKNOWN), versions.get(package, UNKNOWN))
            for package in sorted(trial.versions.keys() | versions.keys())
            if trial.versions.get(package) != versions.get(package)
        },
    )


def _check_comparable(trial: TrialRecord, name: str) -> None:
    if trial.state not in COMPARABLE or (trial.state == TrialStatus.FAILED and trial.reason in NOT_REPRODUCIBLE):
        shown = trial.state + (f" ({trial.reason})" if trial.reason else "")
        raise RazError(name, f"is {shown}, so there is no number to compare with", "rerun a complete or a pruned one")
    if not trial.config:
        raise RazError(name, "its configuration was not recorded", "rerun another trial")


def _run(
    trial: TrialRecord,
    store: Path,
    steps: dict[int, float],
    run_trial: RunTrial,
    data_root: Path | None,
    log: EventCallback | None,
) -> _Rerun:
    """Runs the trial's configuration in `store`, records its steps in `steps`, and stops it where it was pruned."""
    stop_at = trial.pruned_at[0] if trial.pruned_at else None

    def progress(step: int, value: float) -> bool:
        steps.setdefault(step, float(value))
        return step == stop_at

    try:
        config = from_parameters(trial.config)
        result = run_trial(config, store, data_root=data_root, splits=("val",), progress=progress, log=log)
    except Exception as error:
        if stop_at is not None and stop_at in steps:  # a stopped trial may end in any exception
            return _Rerun(TrialStatus.PRUNED)
        if isinstance(error, TrialFailure):
            return _Rerun(TrialStatus.FAILED, error.reason, str(error))
        if isinstance(error, RazError) and trial.reason == FailureReason.INVALID:
            return _Rerun(TrialStatus.FAILED, FailureReason.INVALID, str(error))
        raise
    return _Rerun(TrialStatus.COMPLETE, metrics=dict(result.metrics), stages=tuple(result.stages))


def _pipeline() -> RunTrial:
    from raz.pipeline.trial import run_trial  # imports torch

    return run_trial


def _copy_trained_stages(store: Path, target: Path, stages: Iterable[StageUse]) -> None:
    """Copies a trial's trained stages from the store; one that the store lacks is trained again."""
    from raz.pipeline.graph import TRAINED
    from raz.store.inventory import KEY

    source, copy = StageCache(store), StageCache(target)
    for use in stages:
        if use.stage in TRAINED and KEY.fullmatch(use.key) and source.paths.stage(use.stage, use.key).is_dir():
            shutil.copytree(source.paths.stage(use.stage, use.key), copy.paths.stage(use.stage, use.key))


def _differences(prefix: str, recorded: Mapping[str, float], now: Mapping[str, float]) -> dict[str, NumberDifference]:
    """Recorded numbers that are not the same 64 bits now.

    Not compared are numbers that are not recorded: non-finite ones, and steps of stages that several trials shared.
    """
    out = {}
    for name, before in sorted(recorded.items()):
        value = now.get(name)
        if value is None or not math.isfinite(value):
            out[f"{prefix}{name}"] = NumberDifference(before, None)
        elif struct.pack("<d", before) != struct.pack("<d", value):
            out[f"{prefix}{name}"] = NumberDifference(before, float(value))
    return out
