"""Runs one trial in this process: from a configuration to an Outcome, also when it fails."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raz.config import TrialConfig, from_parameters
from raz.engine.broker_protocol import RemoteStageError
from raz.errors import FailureReason, RazError
from raz.pipeline.events import EventCallback, StageEvent, StageUse
from raz.pipeline.failures import classify, fatal_os_error
from raz.pipeline.signatures import BuildStages, RunTrial
from raz.study.records import Outcome
from raz.study.seed_average import Progress, run_over_seeds
from raz.study.trial_status import TrialStatus
from raz.utils.json_types import Json

if TYPE_CHECKING:  # imports torch
    from raz.pipeline.executor import StageProvider

# Functions are passed between processes by dotted names.
DEFAULT_RUN_TRIAL = "raz.pipeline.trial:run_trial"
STORED_TRIAL = "raz.pipeline.trial:stored_trial"  # of a trial whose scores are in the store


def import_function(name: str) -> RunTrial:
    """The trial function of a dotted name, `package.module:function`. Raises ValueError for a name without a colon,
    ImportError and AttributeError where there is no such function."""
    function: RunTrial = _attribute(name)
    return function


def import_builder(name: str) -> BuildStages:
    """The building function of a dotted name; raises as `import_function`."""
    function: BuildStages = _attribute(name)
    return function


def _attribute(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"{name!r} is no dotted name, expected package.module:function")
    return getattr(importlib.import_module(module), attribute)


def run_attempt(
    run_trial: RunTrial,
    config: Mapping[str, Json],
    store: Path,
    *,
    data_root: Path | None = None,
    progress: Progress | None = None,
    log: EventCallback | None = None,
    splits: tuple[str, ...] = ("val",),
    make: StageProvider | None = None,
    seeds: Sequence[int] = (),
) -> Outcome:
    """Runs one trial and returns how it ended. `config`: the flat parameters of a TrialConfig.

    `splits`: those to score; a search scores validation images only, a table the test images too. `make`: has other
    processes build stages. With `seeds` the trial is run once for each and judged by the mean
    (raz.study.seed_average.run_over_seeds).

    A trial that raises has the reason of raz.pipeline.failures.classify. An OSError that every trial would meet
    (raz.pipeline.failures.fatal_os_error) is raised, and so is KeyboardInterrupt.
    """
    if seeds:

        def run(config: Mapping[str, Json], progress: Progress | None) -> Outcome:
            return run_attempt(
                run_trial, config, store, data_root=data_root, progress=progress, log=log, splits=splits, make=make
            )

        return run_over_seeds(run, config, seeds, progress)
    began = time.monotonic()
    stopped = False
    uses: list[StageUse] = []  # stages so far, for a trial that ends early

    def add_use(event: StageEvent) -> None:
        if event.kind in ("hit", "finished", "stopped", "failed"):
            uses.append(StageUse(event.stage, event.key, event.kind == "hit", event.seconds, event.spent))
        if log is not None:
            log(event)

    def report(step: int, value: float) -> bool:
        nonlocal stopped
        stopped = stopped or (progress is not None and progress(step, float(value)))
        return stopped

    def failed(reason: FailureReason, message: str, trace: str = "") -> Outcome:
        seconds = time.monotonic() - began
        return Outcome(TrialStatus.FAILED, seconds, stages=tuple(uses), reason=reason, message=message, trace=trace)

    try:
        trial: TrialConfig = from_parameters(config)
        result = run_trial(trial, store, data_root=data_root, splits=splits, progress=report, log=add_use, make=make)
    except Exception as error:
        if stopped:  # whatever a stopped trial raises, it was stopped
            return Outcome(TrialStatus.PRUNED, time.monotonic() - began, stages=tuple(uses))
        if (fatal := fatal_os_error(error)) is not None:
            raise fatal from None
        reason = classify(error).reason
        if isinstance(error, RemoteStageError):
            return failed(reason, error.text, error.trace)
        if isinstance(error, RazError) or reason != FailureReason.ERROR:
            return failed(reason, str(error) or type(error).__name__)
        return failed(reason, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
    if stopped:
        return Outcome(TrialStatus.PRUNED, time.monotonic() - began, stages=tuple(uses))
    return Outcome(
        TrialStatus.COMPLETE,
        time.monotonic() - began,
        dict(result.metrics),
        tuple(result.stages),
        device=result.device,
        data=dict(result.data),
    )
