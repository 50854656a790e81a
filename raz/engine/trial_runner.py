"""One trial in one process: from a configuration to an Outcome, whatever happens on the way."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raz.config import TrialConfig, from_parameters
from raz.engine.broker_protocol import RemoteStageError
from raz.errors import FailureReason, RazError
from raz.pipeline.events import EventCallback, StageEvent, StageUse
from raz.pipeline.failures import classify, fatal_os_error
from raz.study.records import Outcome, TrialStatus
from raz.study.seed_average import run_over_seeds

RunTrial = Callable[..., Any]  # as raz.pipeline.trial.run_trial
Progress = Callable[[int, float], bool]  # (step, value) -> stop?

DEFAULT_RUN_TRIAL = "raz.pipeline.trial:run_trial"  # by dotted name, so that it crosses a process border


def import_function(name: str) -> RunTrial:
    """The function of a dotted name, `package.module:function`."""
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"{name!r} is no dotted name, expected package.module:function")
    found: RunTrial = getattr(importlib.import_module(module), function)
    return found


def run_attempt(
    run_trial: RunTrial,
    config: Mapping[str, Any],
    store: Path,
    *,
    data_root: Path | None = None,
    progress: Progress | None = None,
    log: EventCallback | None = None,
    splits: tuple[str, ...] = ("val",),
    make: Any = None,
    seeds: Sequence[int] = (),
) -> Outcome:
    """Runs one trial and says how it ended. A search scores the validation split only; a table names the test split.

    With `seeds` the trial is run once a seed and judged by the mean (`raz.study.seed_average.run_over_seeds`).
    `make` is handed on: an engine's way to have stages made by other processes (raz.pipeline.executor.StageProvider).
    `config` are the flat parameters of a TrialConfig. A TrialFailure keeps its reason, memory that ran
    out is `oom`, a configuration that cannot be run is `invalid`, anything else is `error` with its
    traceback. An OSError that would meet every trial (HOPELESS) goes through, and so does what is no
    Exception: a stop must reach the caller.
    """
    if seeds:

        def run(one: Mapping[str, Any], told: Progress | None) -> Outcome:
            return run_attempt(
                run_trial, one, store, data_root=data_root, progress=told, log=log, splits=splits, make=make
            )

        return run_over_seeds(run, config, seeds, progress)
    began = time.monotonic()
    stopped = False
    walked: list[StageUse] = []  # stages so far, for a trial that ends early

    def heard(event: StageEvent) -> None:
        if event.kind in ("hit", "finished", "stopped", "failed"):
            walked.append(StageUse(event.stage, event.key, event.kind == "hit", event.seconds, event.spent))
        if log is not None:
            log(event)

    def watched(step: int, value: float) -> bool:
        nonlocal stopped
        stopped = stopped or (progress is not None and progress(step, float(value)))
        return stopped

    def failed(reason: FailureReason, message: str, trace: str = "") -> Outcome:
        seconds = time.monotonic() - began
        return Outcome(TrialStatus.FAILED, seconds, stages=tuple(walked), reason=reason, message=message, trace=trace)

    try:
        trial: TrialConfig = from_parameters(config)
        result = run_trial(trial, store, data_root=data_root, splits=splits, progress=watched, log=heard, make=make)
    except Exception as error:
        if stopped:  # however the trial took the word to stop, stopping is what it did
            return Outcome(TrialStatus.PRUNED, time.monotonic() - began, stages=tuple(walked))
        if (fatal := fatal_os_error(error)) is not None:
            raise fatal from None
        reason = classify(error).reason
        if isinstance(error, RemoteStageError):
            return failed(reason, error.text, error.trace)
        if isinstance(error, RazError) or reason != FailureReason.ERROR:
            return failed(reason, str(error) or type(error).__name__)
        return failed(reason, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
    if stopped:
        return Outcome(TrialStatus.PRUNED, time.monotonic() - began, stages=tuple(walked))
    return Outcome(
        TrialStatus.COMPLETE,
        time.monotonic() - began,
        dict(result.metrics),
        tuple(result.stages),
        device=result.device,
        data=dict(result.data),
    )
