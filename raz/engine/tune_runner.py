"""Trials under Ray Tune: light coordinators in reused processes, that hold no CPU while the broker has stages made."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from raz.engine.broker import BrokerClient
from raz.engine.events import TrialEvents
from raz.engine.interrupt import StopRequest, handle_signals
from raz.engine.ray_session import coordinator_resources, session
from raz.engine.trial_runner import import_function, run_attempt
from raz.engine.tune_bridge import EVENTS, HOPELESS, OUTCOME, POINTS, OptunaPruner, StudySearch
from raz.pipeline.events import StageEvent
from raz.planning.cost_model import CostModel
from raz.planning.schedule import max_live_trials
from raz.spec.stage_resources import Resources
from raz.study.ledger import Ledger

MOST_RESTARTS = 2  # of a trial whose process died, within one run
HEARTBEAT_SECONDS = 2.0  # seconds between two words of a trial that waits


class TrialReporter:
    """What a trial's process tells Tune: steps, what happens to its stages, how it ended.

    When Tune stops the trial, `tune.report` raises SystemExit. The trial hears it as the word to stop, so that what
    it asked for is given up; then the exit goes on its way.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.stopped: SystemExit | None = None
        self.asking = BrokerClient(
            Path(given["store"]), tune.get_context().get_trial_id(),
            {stage: Resources(*asked) for stage, asked in json.loads(given["resources"]).items()},
            seconds=json.loads(given["seconds"]), seeds=json.loads(given["seeds"]),
            before=self._before, beat=self._beat, log=self.add_event,
        )  # fmt: skip
        self._points: list[tuple[int, float, str | bool]] = []  # step, value, whether shared or the key of a stage
        self._events: list[StageEvent] = []
        self._replayed = ""  # key of the stage in the store whose curve is told now
        self._last = time.monotonic()

    def progress(self, step: int, value: float) -> bool:
        """A step of a trial. Those of a stage out of the store are told together."""
        if self.asking.live or not self._replayed:
            self._points.append((step, value, self.asking.live and self.asking.shared))
            self.flush()
        else:
            self._points.append((step, value, self._replayed))
        return self.stopped is not None

    def log(self, event: StageEvent) -> None:
        self._replayed = event.key if event.kind == "hit" else ""
        self.add_event(event)

    def add_event(self, event: StageEvent) -> None:
        self._events.append(event)

    def _before(self) -> None:
        """Before anything is made for it: is it worth it?"""
        if self.given["prunes"] and self._points:
            self.flush()
            if self.stopped is not None:
                raise RuntimeError("stopped before its next stage")

    def _beat(self) -> None:
        if time.monotonic() - self._last > HEARTBEAT_SECONDS:
            self.flush()
            if self.stopped is not None:
                raise RuntimeError("stopped while it waited")

    def flush(self, **last: str) -> None:
        """All that was not told yet."""
        if self.stopped is not None:
            return
        if any(isinstance(mark, str) for _, _, mark in self._points):
            shared = self.asking.shared_now() if self.given["prunes"] else frozenset()
            self._points = [(s, v, mark in shared if isinstance(mark, str) else mark) for s, v, mark in self._points]
        told = {POINTS: json.dumps(self._points), EVENTS: json.dumps([asdict(event) for event in self._events]), **last}
        self._points, self._events, self._last = [], [], time.monotonic()
        try:
            tune.report(told)
        except SystemExit as stop:
            self.stopped = stop


def coordinate(given: dict[str, Any]) -> None:
    """A trial's process."""
    trial = TrialReporter(given)
    try:
        outcome = run_attempt(
            import_function(given["run_trial"]), json.loads(given["config"]), Path(given["store"]),
            data_root=Path(given["data_root"]) if given["data_root"] else None, progress=trial.progress, log=trial.log,
            make=trial.asking,
            seeds=json.loads(given["seeds"]),
        )  # fmt: skip
    except OSError as error:
        last = {HOPELESS: json.dumps([error.errno, error.strerror, _text(error.filename)])}
    else:
        last = {OUTCOME: json.dumps(asdict(outcome))}
    finally:
        trial.asking.leave()
    trial.flush(**last)
    if trial.stopped is not None:
        raise trial.stopped


def _text(name: Any) -> str | None:
    return None if name is None else str(name)


def run_tuned(
    ledger: Ledger,
    store: Path,
    *,
    data_root: Path | None = None,
    run_trial: str,
    events: TrialEvents,
    jobs: int,
    threads: int,
    stop: StopRequest | None = None,
) -> None:
    """Runs what the ledger still has to ask for. `jobs` stages of `threads` CPUs run at a time on this machine; a
    running Ray cluster (RAY_ADDRESS) has its own. Raises OSError as `attempt`.
    """
    space = ledger.space
    constants = {
        "run_trial": run_trial,
        "store": str(store.resolve()),
        "seeds": json.dumps(ledger.space.averaged_seeds),
        "data_root": str(data_root.expanduser().resolve()) if data_root else "",
        "prunes": space.pruning.name != "none",
        "resources": json.dumps({stage: [asked.cpus, asked.gpus] for stage, asked in space.resources.items()}),
    }
    search = StudySearch(ledger, events, constants, CostModel(store, data_root), stop)
    trials = max_live_trials(jobs, eager=space.overcommits)
    with session(jobs * threads) as folder, handle_signals(stop):  # after Ray, which sets handlers of its own
        tuner = tune.Tuner(
            tune.with_resources(coordinate, coordinator_resources()),
            tune_config=tune.TuneConfig(
                search_alg=search, scheduler=OptunaPruner(), num_samples=ledger.left,
                max_concurrent_trials=min(trials, ledger.left), reuse_actors=True, trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=space.study, storage_path=str(folder / "tune"), verbose=0,
                failure_config=tune.FailureConfig(max_failures=MOST_RESTARTS),
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        except tune.TuneError:
            if search.hopeless is None:
                raise
    if search.hopeless is not None:
        raise search.hopeless


def _name(trial: Any) -> str:
    return f"trial-{trial.config['number']}-{trial.trial_id}"
