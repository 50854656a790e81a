"""Ray Tune <-> the ledger: Tune places the trials, the Optuna study says which, and when one is pruned.

Tune's own Optuna search never prunes and calls an early-stopped trial COMPLETE. Here both halves go
through the one ledger: StudySearch asks and tells, OptunaPruner reports a step before it asks whether to
stop. A Tune experiment is disposable, so neither is ever restored; a run is resumed by a new one over
the same study.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raz.config import from_parameters
from raz.engine.events import TrialEvents
from raz.engine.interrupt import StopRequest
from raz.engine.ray_internals import out_of_memory, searcher_of
from raz.errors import FailureReason
from raz.pipeline.events import StageEvent
from raz.planning.cost_model import CostModel
from raz.planning.work_order import expected_seconds
from raz.spec.search_space import SPLITS
from raz.study.ledger import Ledger
from raz.study.records import Outcome, TrialStatus

# Keys of what a trial reports: [step, value, shared] each, stage events, how it ended, an error of all trials.
POINTS, EVENTS, OUTCOME, HOPELESS = "points", "events", "outcome", "hopeless"


class StudySearch(Searcher):
    """Gives Tune the ledger's next trial, and the ledger how each one ended."""

    def __init__(
        self,
        ledger: Ledger,
        events: TrialEvents,
        constants: Mapping[str, Any],
        prices: CostModel,
        stop: StopRequest | None = None,
    ) -> None:
        super().__init__()  # without a metric: a trial's last word need not carry one
        self.ledger, self.events, self.constants, self.prices = ledger, events, dict(constants), prices
        self.numbers: dict[str, int] = {}  # Tune's trial -> the study's
        self.pruned: set[str] = set()
        self.starved: set[str] = set()  # killed for their machine's memory
        self.stop = stop or StopRequest()
        self.postponed: set[str] = set()  # met by a clean stop
        self.busy: set[str] = set()  # a stage is being made for them
        self.hopeless: OSError | None = None  # what would meet every trial

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # the study knows its metric and its space

    def suggest(  # type: ignore[override]  # Ray's own FINISHED, which it may return, is a text
        self, trial_id: str
    ) -> dict[str, Any] | str:
        with self._remember_os_error():
            asked = None if self.stop.asked else self.ledger.ask()
        if asked is None:
            return str(Searcher.FINISHED)
        number, values, config = asked
        self.numbers[trial_id] = number
        self.events.started(number, values)
        seconds = expected_seconds(from_parameters(config), SPLITS, self.prices)
        return {**self.constants, "number": number, "config": json.dumps(config), "seconds": json.dumps(seconds)}

    def report(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Writes steps down; whether to end the trial, because it is pruned or all are stopped."""
        if HOPELESS in result:
            code, text, filename = json.loads(result[HOPELESS])
            self.hopeless = OSError(code, text, filename)
            self.ledger.left = 0  # no trial after it would fare better
            return False
        number = self.numbers.get(trial_id)
        if number is None or trial_id in self.pruned or trial_id in self.postponed:
            return False
        for event in (StageEvent(**told) for told in json.loads(result.get(EVENTS, "[]"))):
            self.events.stage(number, event)
            if event.kind in ("started", "epoch", "images"):
                self.busy.add(trial_id)
            elif event.kind != "note":
                self.busy.discard(trial_id)
        points = json.loads(result.get(POINTS, "[]"))
        for step, value, _ in points:
            self.events.step(number, step, value)
        for shared, told in itertools.groupby(points, key=lambda point: bool(point[2])):
            with self._remember_os_error():
                if self.ledger.report_many(number, [(int(s), float(v)) for s, v, _ in told], shared=shared):
                    self.pruned.add(trial_id)
                    return True
        rests = trial_id not in self.busy or points  # a running epoch may end
        if self.stop.asked and rests and OUTCOME not in result:
            self.postponed.add(trial_id)
            return True
        return False

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler, which Tune asks first, has reported the step."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self.numbers.pop(trial_id, None)
        if number is None:
            return
        result = result or {}
        seconds = float(result.get("time_total_s", 0.0))
        if trial_id in self.postponed:
            with self._remember_os_error():
                self.ledger.requeue(number)
            self.events.done(number, f"trial {number}: stopped, and queued again")
            return
        if trial_id in self.pruned:
            outcome = Outcome(TrialStatus.PRUNED, seconds)
        elif HOPELESS in result:
            return  # stays RUNNING, so the next command queues it again
        elif OUTCOME in result:
            outcome = Outcome.from_dict(json.loads(result[OUTCOME]))
        else:
            reason = FailureReason.OOM if trial_id in self.starved else FailureReason.LOST
            how = "its process died" if error else "its process ended without a word"
            what = " because the machine ran out of memory" if reason is FailureReason.OOM else ""
            outcome = Outcome(
                TrialStatus.FAILED, seconds, reason=reason, message=f"{how}{what}, again after each restart"
            )
        with self._remember_os_error():
            self.events.finished(self.ledger.tell(number, outcome))

    @contextmanager
    def _remember_os_error(self) -> Iterator[None]:
        """Tune turns what is raised here into a text; the caller wants the error of a full disk itself."""
        try:
            yield
        except OSError as error:
            self.hopeless = error
            raise

    def save(self, checkpoint_path: str) -> None:
        """Tune takes snapshots; the study is the only state there is."""
        Path(checkpoint_path).write_text(self.ledger.space.study)

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a Tune experiment is not restored: run the study again")

    def __getstate__(self) -> dict[str, Any]:
        return {"study": self.ledger.space.study}


class OptunaPruner(FIFOScheduler):
    """Asks the study at every step whether the trial is worth going on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray gives it no types

    @property
    def supports_buffered_results(self) -> bool:
        return False  # each step must reach the pruner before the next one is trained

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        search = _search_of(controller)
        if search.report(trial.trial_id, result):
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        if out_of_memory(trial):
            _search_of(controller).starved.add(trial.trial_id)

    def debug_string(self) -> str:
        return "OptunaPruner"


def _search_of(controller: Any) -> StudySearch:
    search = searcher_of(controller)
    assert isinstance(search, StudySearch)
    return search
