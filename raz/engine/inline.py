"""Trials one after the other in this process, without Ray."""

from __future__ import annotations

from pathlib import Path

from raz.engine.events import TrialEvents
from raz.engine.interrupt import StopRequest
from raz.engine.trial_runner import import_function, run_attempt
from raz.engine.trial_source import NextTrial, TrialSource
from raz.pipeline.events import StageEvent
from raz.study.trial_status import TrialStatus


def run_inline(
    source: TrialSource,
    store: Path,
    *,
    data_root: Path | None = None,
    run_trial: str,
    events: TrialEvents,
    stop: StopRequest | None = None,
) -> None:
    """Runs the trials that the source has left, until a stop is requested. The trial that the stop ends goes back into
    the source. Raises OSError as `run_attempt`."""
    function = import_function(run_trial)
    stop = stop or StopRequest()
    while not stop.requested and (trial := source.ask()) is not None:
        events.started(trial.number, trial.labels)
        progress = _StepReports(source, trial, events, stop)
        outcome = run_attempt(
            function, trial.config, store, data_root=data_root, splits=source.splits, progress=progress.step,
            log=progress.stage, seeds=source.seeds,
        )  # fmt: skip
        if outcome.state == TrialStatus.PRUNED and not progress.pruned:
            source.requeue(trial.number, events)
        else:
            source.finish(trial.number, outcome, events)


class _StepReports:
    """Reports the steps and the stages of one trial."""

    def __init__(self, source: TrialSource, trial: NextTrial, events: TrialEvents, stop: StopRequest) -> None:
        self.source, self.number, self.events, self.stop = source, trial.number, events, stop
        self.pruned = False

    def step(self, step: int, value: float) -> bool:
        """Reports a step, and returns whether the trial must end."""
        self.events.step(self.number, step, value)
        self.pruned = self.source.report(self.number, [(step, value)], shared=False)
        return self.pruned or self.stop.requested

    def stage(self, event: StageEvent) -> None:
        self.events.stage(self.number, event)
