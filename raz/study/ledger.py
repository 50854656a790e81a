"""The ledger: an Optuna study open for writing, in a journal file that Optuna's own tools can read.

One process, the driver, writes a study, under a lock; readers take none. A failed trial has a reason. Trials that a
killed driver left RUNNING become FAIL with reason `lost`, and the next driver enqueues them again with the same values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from raz.config import completed, parameters
from raz.errors import FailureReason, RazError
from raz.spec.parameter import optuna_label
from raz.spec.search_space import SearchSpace
from raz.store.late_view import refresh
from raz.study.attributes import TrialAttributes
from raz.study.journal import (
    LOCK_WAIT,
    Journal,
    hold_lock,
    journal_path,
    lock_path,
    open_journal,
    registration_lock,
    truncate_partial_line,
)
from raz.study.optuna_internals import fixed_values, set_state, trial_id, trial_in, trial_numbered
from raz.study.records import (
    Outcome,
    StudyHeader,
    TrialRecord,
    config_changes,
    reconstruct_config,
    record_of,
    records,
    with_later_fields,
)
from raz.study.remaining import RecordedTrial, queue_order, study_progress
from raz.study.samplers import make_sampler
from raz.study.stage_pruner import StagePruner
from raz.study.trial_status import TrialStatus
from raz.utils.json_types import Json
from raz.utils.provenance import environment_versions
from raz.utils.suggestions import did_you_mean


class NewTrial(NamedTuple):
    """A trial that has just started."""

    number: int
    values: dict[str, Json]  # searched parameters that are active: dotted name -> value
    config: dict[str, Json]  # all parameters: dotted name -> value


class Ledger:
    """A study open for writing. Get one from `open_ledger`."""

    def __init__(
        self, space: SearchSpace, study: optuna.Study, journal: Journal, path: Path, pruner: StagePruner
    ) -> None:
        self.space, self.study, self.path = space, study, path
        self.left = 0  # trials still to start
        self._journal, self._pruner = journal, pruner
        self._header = StudyHeader.of(study)
        self._queue: list[int] = []  # storage ids of waiting trials, the next one last
        self._live: dict[int, optuna.Trial] = {}
        self._steps: dict[int, set[int]] = {}  # number of a running trial -> recorded steps

    # ------------------------------------------------------------------ before a run

    def recover(self, target: int, *, retry: bool = False) -> int:
        """Ends the trials of a killed driver, enqueues what is missing, and returns how many of `target` trials to run.

        `study_progress` says which trials are finished and which are enqueued again; with `retry`, every failed one is.
        """
        for trial in self._trials():
            if trial.state == TrialState.RUNNING:
                lost = {"reason": FailureReason.LOST, "message": "its driver went away"}
                self._journal.write(trial_id(trial), lost)
                self.study.tell(trial.number, state=TrialState.FAIL)
        trials = self._trials()
        progress = study_progress([RecordedTrial.of(trial) for trial in trials], retry=retry)
        by_number = {trial.number: trial for trial in trials}
        for number in progress.retried:
            self._enqueue_again(by_number[number])
        enqueued = {_point(trial) for trial in trials}
        for i, point in enumerate(self.space.points[:target]):
            if i not in enqueued:
                self.study.enqueue_trial(self._optuna_values(point), user_attrs={"point": i})
        self.left = progress.left(target)
        return self.left

    def order_queue(self) -> None:
        """Orders the waiting trials of a fixed design for parallel slots (`queue_order`). Numbers and values stay."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        order = queue_order(
            self.space,
            [_point(trial) for trial in waiting],
            [bool(trial.intermediate_values) for trial in waiting],
            [_point(trial) for trial in complete],
        )
        self._queue = [trial_id(waiting[i]) for i in reversed(order)]

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        fixed = {**fixed_values(trial), **trial.params}
        attributes = {"retry_of": trial.number}
        if (point := _point(trial)) is not None:
            attributes["point"] = point
        self.study.enqueue_trial(fixed, user_attrs=attributes)

    def _optuna_values(self, point: Mapping[str, Json]) -> dict[str, Json]:
        """The values of a point as Optuna stores them: choices by their labels."""
        choices = {p.name for p in self.space.sampled_parameters if p.kind == "choice"}
        return {name: optuna_label(value) if name in choices else value for name, value in point.items()}

    # ------------------------------------------------------------------ a trial

    def ask(self) -> NewTrial | None:
        """Starts the next trial; None when none is left.

        A trial whose values are invalid together is recorded as failed (`invalid`) and counts.
        """
        while self.left > 0:
            self.left -= 1
            trial = self._ask()
            self._live[trial.number], self._steps[trial.number] = trial, set()
            values = self.space.suggest(trial)
            attributes: dict[str, Json] = {"values": values, "versions": dict(environment_versions())}
            try:
                config = parameters(self.space.config(values))
            except RazError as error:
                self._journal.write(trial_id(trial), attributes)
                self.tell(trial.number, Outcome(TrialStatus.FAILED, reason=FailureReason.INVALID, message=str(error)))
                continue
            attributes["changed"], without = config_changes(completed(self._header.base), config)
            if without:
                attributes["without"] = without
            self._journal.write(trial_id(trial), attributes)
            self._pruner.begin(trial.number, config)
            return NewTrial(trial.number, values, config)
        return None

    def _ask(self) -> optuna.Trial:
        if not self._queue:
            return self.study.ask()
        waiting = self._queue.pop()
        set_state(self._journal, waiting, TrialState.RUNNING)
        return trial_in(self.study, waiting)

    def report(self, number: int, step: int, value: float, *, shared: bool = False) -> bool:
        """Records a step of a running trial. Returns whether to prune the trial.

        `shared`: another running trial waits for the same stage, so the trial is not pruned in it. A step that is
        reported again (a restarted trial replays its curve) keeps its first value and prunes nothing.
        """
        return self.report_many(number, [(step, value)], shared=shared)

    def report_many(self, number: int, steps: Iterable[tuple[int, float]], *, shared: bool = False) -> bool:
        """As `report` for each step in turn, in one append. Used for the curve of a stage found in the store.

        Steps after the one that prunes the trial are not recorded.
        """
        if number not in self._live:
            return False
        recorded: dict[int, float] = {}
        stop = False
        for step, value in steps:
            if step in self._steps[number]:
                continue
            self._steps[number].add(step)
            recorded[step] = float(value)
            stop = self._pruner.report(number, step, float(value), ask=not shared)
            if stop:
                break
        self._journal.write(trial_id(self._live[number]), steps=recorded)
        return stop

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        """Records how a trial ended and returns its record. A trial that has already ended is not changed."""
        trial = self._live.pop(number, None)
        if trial is None:
            return self.record(number)
        self._steps.pop(number)
        state, reason, message = outcome.state, outcome.reason, outcome.message
        values: list[float] = []
        if state == TrialStatus.COMPLETE:
            values, reason, message = self._objectives(outcome.metrics or {})
            state = TrialStatus.FAILED if reason else state
        final = {TrialStatus.COMPLETE: TrialState.COMPLETE, TrialStatus.PRUNED: TrialState.PRUNED}.get(
            state, TrialState.FAIL
        )
        attributes: dict[str, Json] = {
            "metrics": {**_finite(outcome.metrics or {})},
            "seeds": {seed: {**_finite(metrics)} for seed, metrics in (outcome.seeds or {}).items()},
            "stages": [{**use.to_dict()} for use in outcome.stages],
            "device": outcome.device,
            "data": dict(outcome.data),
            "reason": reason,
            "message": message,
            "trace": outcome.trace,
            "rungs": {lane: {**values} for lane, values in self._pruner.end(number, final).items()},
            "seconds": outcome.seconds,
        }
        recorded = {name: value for name, value in attributes.items() if value or value == 0}
        self._journal.write(trial_id(trial), recorded)
        self.study.tell(trial, values if final == TrialState.COMPLETE else None, state=final)
        return self.record(number)

    def _objectives(self, metrics: Mapping[str, float]) -> tuple[list[float], str, str]:
        """Values of the objectives, or [] with the reason of the failure and its message."""
        values = []
        for objective in self.space.objectives:
            value = metrics.get(objective.metric)
            if value is None:
                return (
                    [],
                    FailureReason.ERROR,
                    f"the trial gave no {objective.metric}; {did_you_mean(objective.metric, metrics)}",
                )
            if not math.isfinite(value):
                return [], FailureReason.NAN, f"{objective.metric} is {value}"
            values.append(value)
        return values, "", ""

    def requeue(self, number: int) -> None:
        """Makes a running trial wait again, with its values and steps, when a run stops early.

        The next run starts it first. It does not count as an attempt.
        """
        trial = self._live.pop(number, None)
        if trial is not None:
            self._steps.pop(number)
            self._pruner.pause(number)
            set_state(self._journal, trial_id(trial), TrialState.WAITING)
            self.left += 1

    def record(self, number: int) -> TrialRecord:
        """The record of one trial."""
        return record_of(self._header, trial_numbered(self.study, number), alive=True)

    def records(self) -> tuple[TrialRecord, ...]:
        """All trials, in the order of their numbers."""
        return records(self.study)

    def iter_records(self) -> Iterator[TrialRecord]:
        """As `records`, one at a time: a record with its full configuration takes more memory than the stored trial."""
        return (record_of(self._header, trial, alive=True) for trial in self._trials())

    def best(self) -> TrialRecord | None:
        """The complete trial with the best first objective, the first of several equals; None if there is none."""
        sign = 1 if self.space.direction == "minimize" else -1
        return min(self.front(), key=lambda r: (sign * (r.value or 0.0), r.number), default=None)

    def front(self) -> tuple[TrialRecord, ...]:
        """The Pareto front of the complete trials, by number; for one objective, all trials with the best value."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            return ()
        if len(self.space.objectives) == 1:
            best = self.study.best_value
            return tuple(self.record(trial.number) for trial in complete if trial.value == best)
        return tuple(sorted((self.record(trial.number) for trial in self.study.best_trials), key=lambda r: r.number))

    def _trials(self) -> list[FrozenTrial]:
        return list(self.study.get_trials(deepcopy=False))


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _point(trial: FrozenTrial) -> int | None:
    """Index of the design's point that the trial runs."""
    return TrialAttributes.parse(trial.user_attrs).point


# ------------------------------------------------------------------ opening


@contextmanager
def open_ledger(store: Path, space: SearchSpace) -> Iterator[Ledger]:
    """Opens the study of the space for writing, within the context.

    Raises RazError when another process holds the study, during a garbage collection, when the journal is damaged, and
    when the study was started with another search space (the message lists the differences); OSError as the file system
    does.
    """
    path = journal_path(store, space.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    refusal = RazError(f"study {space.study}", "another process is running this study", "wait for it, or stop it")
    with ExitStack() as locks:
        with registration_lock(store):
            locks.enter_context(hold_lock(lock_path(path), LOCK_WAIT, refusal))
        refresh(path.parent)  # the study may have been written a moment ago on another machine
        truncate_partial_line(path)
        journal, pruner = open_journal(path), StagePruner(space)
        study = _open(journal, space, pruner)
        yield Ledger(space, study, journal, path, pruner)


def _open(journal: Journal, space: SearchSpace, pruner: StagePruner) -> optuna.Study:
    directions = [StudyDirection[objective.direction.upper()] for objective in space.objectives]
    study = optuna.create_study(
        storage=journal, study_name=space.study, directions=directions, load_if_exists=True, pruner=pruner.on_study,
    )  # fmt: skip
    trials = study.get_trials(deepcopy=False)
    meaning = study.user_attrs.get("meaning")
    if meaning is None:
        if trials:
            raise RazError(f"study {space.study}", "its journal was not written by raz-sweep", "use another name")
        study.set_user_attr("meaning", space.meaning())
        study.set_user_attr("digest", space.digest())
    elif meaning != space.meaning():
        raise RazError(
            f"study {space.study}",
            _difference(with_later_fields(meaning), with_later_fields(space.meaning())),
            "use another study name",
        )
    base = StudyHeader.of(study).base
    for trial in trials:
        attributes = TrialAttributes.parse(trial.user_attrs)
        config = reconstruct_config(base, attributes)
        if config:
            pruner.remember(trial, config, attributes.rungs)
    # The seed depends on the number of trials, so that a resumed search does not repeat the values of the first run.
    study.sampler = make_sampler(space, drawn=len(trials))
    return study


def _difference(old: Mapping[str, Json], new: Mapping[str, Json]) -> str:
    def shown(side: Mapping[str, Json], name: str) -> str:
        return json.dumps(side[name]) if name in side else "nothing"

    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    lines = [f"  {name}: {shown(old, name)} -> {shown(new, name)}" for name in names]
    return "the study of this name has another search space:\n" + "\n".join(lines)
