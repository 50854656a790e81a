"""Ray Tune <-> a source of trials: Tune places the trials, the source draws them and decides which are pruned.

Tune's own Optuna search never prunes and records an early-stopped trial as COMPLETE. Here SourceSearch takes trials
from the source and returns how they ended, and SourceScheduler reports each step before it asks whether to stop. A Tune
experiment is never restored: a run is resumed by a new experiment over the same study.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raz.config import BackboneConfig, TrialConfig, from_parameters
from raz.engine.events import TrialEvents
from raz.engine.interrupt import StopRequest
from raz.engine.ray_internals import out_of_memory, searcher_of
from raz.engine.trial_messages import REPORT, SPEC, RunSpec, TrialReport, TrialSpec
from raz.engine.trial_source import TrialSource
from raz.errors import FailureReason, RazError
from raz.pipeline.keys import weights_identity
from raz.planning.cost_model import CostModel
from raz.planning.work_order import expected_seconds
from raz.study.records import Outcome
from raz.study.trial_status import TrialStatus

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


class SourceSearch(Searcher):
    """Gives Tune the next trial of a source, and reports to the source how each one ended."""

    def __init__(
        self,
        source: TrialSource,
        events: TrialEvents,
        run: RunSpec,
        costs: CostModel,
        stop: StopRequest | None = None,
        first: int | None = None,
    ) -> None:
        """first: trials that begin before one of them has reported something. Their processes start at the same time
        as the process of the first stage; more of them would make it wait."""
        super().__init__()  # without a metric, since a trial's last result need not carry one
        self.source, self.events, self.run, self.costs = source, events, run, costs
        self.numbers: dict[str, int] = {}  # Tune's id of a trial -> its number in the source
        self.pruned: set[str] = set()
        self.out_of_memory: set[str] = set()  # killed by Ray's memory monitor
        self.stop = stop or StopRequest()
        self.postponed: set[str] = set()  # ids of trials that `stop` ended
        self.busy: set[str] = set()  # ids of trials of which a stage is being built
        self.fatal: OSError | None = None  # an error that every trial would meet
        self.first = first  # None once a trial has reported

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # the source has its metric and its space

    def suggest(  # type: ignore[override]  # Ray's own FINISHED, which it may return, is a text
        self, trial_id: str
    ) -> dict[str, TrialSpec] | str | None:
        if self.first is not None and len(self.numbers) >= self.first:
            return None  # Tune asks again
        with self._remember_os_error():
            trial = None if self.stop.requested else self.source.ask()
        if trial is None:
            return str(Searcher.FINISHED)
        self.numbers[trial_id] = trial.number
        self.events.started(trial.number, trial.labels)
        config = from_parameters(trial.config)
        seconds = expected_seconds(config, self.source.splits, self.costs)
        return {SPEC: TrialSpec(self.run, trial.number, trial.config, seconds, _weights_of(config))}

    def report(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Records a result of Tune. Returns whether to end the trial: it is pruned, or the run stops."""
        report = _report_of(result)
        self.first = None
        if report.fatal is not None:
            self.fatal = report.fatal
            self.source.close()
            return False
        number = self.numbers.get(trial_id)
        if number is None or trial_id in self.pruned or trial_id in self.postponed:
            return False
        for event in report.events:
            self.events.stage(number, event)
            if event.kind in ("started", "epoch", "images"):
                self.busy.add(trial_id)
            elif event.kind not in ("note", "warning"):
                self.busy.discard(trial_id)
        for step in report.steps:
            self.events.step(number, step.step, step.value)
        for shared, steps in itertools.groupby(report.steps, key=lambda step: step.shared):
            with self._remember_os_error():
                if self.source.report(number, [(step.step, step.value) for step in steps], shared=shared):
                    self.pruned.add(trial_id)
                    return True
        may_end = trial_id not in self.busy or report.steps  # a running epoch is finished first
        if self.stop.requested and may_end and report.outcome is None:
            self.postponed.add(trial_id)
            return True
        return False

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: Tune calls the scheduler first, which has recorded the result."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.first = None
        number = self.numbers.pop(trial_id, None)
        if number is None:
            return
        result = result or {}
        report = _report_of(result)
        seconds = float(result.get("time_total_s", 0.0))
        if trial_id in self.postponed:
            with self._remember_os_error():
                self.source.requeue(number, self.events)
            return
        if trial_id in self.pruned:
            outcome = Outcome(TrialStatus.PRUNED, seconds)
        elif report.fatal is not None:
            return  # stays RUNNING, so the next run queues it again
        elif report.outcome is not None:
            outcome = report.outcome
        else:
            outcome = _lost(seconds, error, trial_id in self.out_of_memory)
        with self._remember_os_error():
            self.source.finish(number, outcome, self.events)

    @contextmanager
    def _remember_os_error(self) -> Iterator[None]:
        """Tune turns exceptions raised here into text; `fatal` keeps the OSError itself for the caller."""
        try:
            yield
        except OSError as error:
            self.fatal = error
            raise

    def save(self, checkpoint_path: str) -> None:
        """Called for Tune's snapshots; all state is in the study or the store."""
        Path(checkpoint_path).write_text(self.source.name)

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a Tune experiment is not restored: run the study again")

    def __getstate__(self) -> dict[str, str]:
        return {"source": self.source.name}


def _report_of(result: Mapping[str, Any]) -> TrialReport:
    """The report in a result of Tune; an empty one where the trial had not reported yet."""
    report = result.get(REPORT, TrialReport())
    assert isinstance(report, TrialReport)
    return report


def _lost(seconds: float, died: bool, out_of_memory: bool) -> Outcome:
    """The outcome of a trial whose process ended without one, each time that Tune started it."""
    reason = FailureReason.OOM if out_of_memory else FailureReason.LOST
    how = "its process died" if died else "its process ended without a result"
    because = " because the machine ran out of memory" if out_of_memory else ""
    return Outcome(TrialStatus.FAILED, seconds, reason=reason, message=f"{how}{because}, again after each restart")


class SourceScheduler(FIFOScheduler):
    """Gives each result to the source and stops the trials that it prunes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray gives it no types

    @property
    def supports_buffered_results(self) -> bool:
        return False  # each step must reach the pruner before the next one is trained

    def on_trial_result(self, controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        search = _search_of(controller)
        if search.report(trial.trial_id, result):
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, controller: TuneController, trial: Trial) -> None:
        if out_of_memory(trial):
            _search_of(controller).out_of_memory.add(trial.trial_id)

    def debug_string(self) -> str:
        return "SourceScheduler"


def _search_of(controller: TuneController) -> SourceSearch:
    search = searcher_of(controller)
    assert isinstance(search, SourceSearch)
    return search


def _weights_of(config: TrialConfig) -> tuple[BackboneConfig, str] | None:
    """The backbone of a trial and the identity of its pretrained weights."""
    backbone = config.resolved().backbone
    if backbone.weights == "none":
        return None
    try:
        return backbone, weights_identity(backbone)
    except RazError:  # the trial meets the same error, and fails with it
        return None
