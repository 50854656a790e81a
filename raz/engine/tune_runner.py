"""Trials under Ray Tune: coordinators in reused processes, which hold no CPU while the broker has stages built."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray import tune
from ray.tune.experiment import Trial

from raz.engine.broker import connect
from raz.engine.broker_client import BrokerClient
from raz.engine.events import TrialEvents
from raz.engine.interrupt import StopRequest, handle_signals
from raz.engine.ray_session import coordinator_resources, session
from raz.engine.trial_messages import REPORT, SPEC, RunSpec, StepReport, TrialReport, TrialSpec
from raz.engine.trial_runner import import_function, run_attempt
from raz.engine.trial_source import TrialSource
from raz.engine.tune_bridge import SourceScheduler, SourceSearch
from raz.pipeline.events import StageEvent
from raz.pipeline.keys import give_weights_identity
from raz.planning.cost_model import CostModel
from raz.planning.schedule import max_live_trials
from raz.study.records import Outcome

MAX_TRIAL_RESTARTS = 2  # of a trial whose process died, within one run
HEARTBEAT_SECONDS = 2.0  # seconds between two reports of a waiting trial


class TrialStopped(Exception):
    """Tune has stopped the trial."""


@dataclass(frozen=True)
class _PendingStep:
    """A step that was not reported yet."""

    step: int
    value: float
    shared: bool  # of a stage that is being trained
    stored_key: str = ""  # of a stage from the store, whose sharing is looked up when the step is reported


class TrialReporter:
    """Reports steps, stage events and the outcome of a trial to Tune, from the trial's process.

    When Tune stops the trial, `tune.report` raises SystemExit. It is kept in `stopped`, so that the trial can end and
    leave the broker first; `coordinate` raises it at the end.
    """

    def __init__(self, spec: TrialSpec) -> None:
        self.spec = spec
        self.stopped: SystemExit | None = None
        run = spec.run
        self.client = BrokerClient(
            run.store, tune.get_context().get_trial_id(), run.resources or {}, seconds=spec.seconds, seeds=run.seeds,
            before_request=self._before_request, heartbeat=self._heartbeat, log=self.add_event,
        )  # fmt: skip
        self._steps: list[_PendingStep] = []
        self._events: list[StageEvent] = []
        self._stored_key = ""  # of the stage from the store whose curve is replayed now
        self._last_report = time.monotonic()

    def progress(self, step: int, value: float) -> bool:
        """Adds a step and returns whether the trial is stopped. The curve of a stage from the store is reported at
        once, other steps one by one."""
        if self.client.live or not self._stored_key:
            self._steps.append(_PendingStep(step, value, self.client.live and self.client.shared))
            self.flush()
        else:
            self._steps.append(_PendingStep(step, value, False, self._stored_key))
        return self.stopped is not None

    def log(self, event: StageEvent) -> None:
        """Adds an event of the trial's own process."""
        self._stored_key = event.key if event.kind == "hit" else ""
        self.add_event(event)

    def add_event(self, event: StageEvent) -> None:
        """Adds an event, also of a building process, to the next report."""
        self._events.append(event)

    def _before_request(self) -> None:
        """Reports pending steps before a stage is requested. Raises TrialStopped if the scheduler stopped the trial."""
        if self.spec.run.prunes and self._steps:
            self.flush()
            if self.stopped is not None:
                raise TrialStopped("before its next stage")

    def _heartbeat(self) -> None:
        if time.monotonic() - self._last_report > HEARTBEAT_SECONDS:
            self.flush()
            if self.stopped is not None:
                raise TrialStopped("while it waited for a stage")

    def flush(self, outcome: Outcome | None = None, fatal: OSError | None = None) -> None:
        """Reports all pending steps and events, and how the trial ended. Does nothing once the trial is stopped."""
        if self.stopped is not None:
            return
        shared_keys: frozenset[str] = frozenset()
        if self.spec.run.prunes and any(pending.stored_key for pending in self._steps):
            shared_keys = self.client.shared_now()
        steps = tuple(
            StepReport(pending.step, pending.value, pending.shared or pending.stored_key in shared_keys)
            for pending in self._steps
        )
        report = TrialReport(steps, tuple(self._events), outcome, fatal)
        self._steps, self._events, self._last_report = [], [], time.monotonic()
        try:
            tune.report({REPORT: report})
        except SystemExit as stop:
            self.stopped = stop


def coordinate(config: Mapping[str, TrialSpec]) -> None:
    """The function of a trial's process; `config` is Tune's."""
    spec = config[SPEC]
    if spec.weights is not None:
        give_weights_identity(*spec.weights)
    trial = TrialReporter(spec)
    outcome: Outcome | None = None
    fatal: OSError | None = None
    try:
        outcome = run_attempt(
            import_function(spec.run.run_trial), spec.config, spec.run.store, data_root=spec.run.data_root,
            progress=trial.progress, log=trial.log, splits=spec.run.splits, make=trial.client,
            seeds=spec.run.seeds,
        )  # fmt: skip
    except OSError as error:
        name = None if error.filename is None else str(error.filename)
        fatal = OSError(error.errno, error.strerror, name)
    finally:
        trial.client.leave()
    trial.flush(outcome, fatal)
    if trial.stopped is not None:
        raise trial.stopped


def run_tuned(
    source: TrialSource,
    store: Path,
    *,
    data_root: Path | None = None,
    run_trial: str,
    events: TrialEvents,
    jobs: int,
    threads: int,
    stop: StopRequest | None = None,
) -> None:
    """Runs the trials that the source has left. On this machine `jobs` stages of `threads` CPUs run at a time, on a
    cluster (RAY_ADDRESS) as many as its CPUs allow. Raises OSError as `run_attempt`.
    """
    run = RunSpec(
        run_trial=run_trial, store=store.resolve(),
        data_root=data_root.expanduser().resolve() if data_root else None, splits=source.splits,
        seeds=tuple(source.seeds), prunes=source.prunes, resources=dict(source.resources),
    )  # fmt: skip
    search = SourceSearch(source, events, run, CostModel(store, data_root), stop, first=jobs)
    trials = max_live_trials(jobs, eager=source.eager)
    with session(jobs * threads) as folder, handle_signals(stop):  # after Ray, which sets handlers of its own
        connect(run.store).warm.remote(float(threads))  # broker and a first worker start while trials' processes do
        tuner = tune.Tuner(
            tune.with_resources(coordinate, coordinator_resources()),
            tune_config=tune.TuneConfig(
                search_alg=search, scheduler=SourceScheduler(), num_samples=source.left,
                max_concurrent_trials=min(trials, source.left), reuse_actors=True, trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=source.name, storage_path=str(folder / "tune"), verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_TRIAL_RESTARTS),
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        except tune.TuneError:
            if search.fatal is None:
                raise
    if search.fatal is not None:
        raise search.fatal


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.config[SPEC].number}-{trial.trial_id}"
