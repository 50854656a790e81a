"""The ledger: one Optuna study a name, in a journal file that Optuna's own tools read.

One process, the driver, writes; a lock says so, and readers need none. COMPLETE, PRUNED and FAIL mean what
they say: a failure carries its reason, and what a killed driver left RUNNING is settled as `lost` by the
next driver and queued again with the same values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from raz.config import completed, parameters
from raz.errors import FailureReason, RazError
from raz.spec.parameter import optuna_label
from raz.spec.search_space import SearchSpace
from raz.study.journal import (
    LOCK_WAIT,
    Journal,
    journal_path,
    lock_path,
    open_journal,
    registration_lock,
    study_names,
    truncate_partial_line,
)
from raz.study.optuna_internals import fixed_values, set_state, trial_id, trial_in, trial_numbered
from raz.study.records import (
    Outcome,
    StudyHeader,  # fmt: skip
    TrialRecord,
    TrialStatus,
    is_running,
    load_study,
    read_records,
    reconstruct_config,
    record_of,
    records,
    with_later_fields,
)
from raz.study.remaining import RecordedTrial, queue_order, study_progress
from raz.study.samplers import make_sampler
from raz.study.stage_pruner import StagePruner
from raz.utils.provenance import environment_versions
from raz.utils.suggestions import did_you_mean

__all__ = [
    "Ledger", "Outcome", "TrialRecord", "is_running", "journal_path", "load_study", "open_ledger", "read_records",
    "records", "study_names",
]  # fmt: skip


class Ledger:
    """A study open for writing. Get one from `open_ledger`."""

    def __init__(
        self, space: SearchSpace, study: optuna.Study, journal: Journal, path: Path, pruner: StagePruner
    ) -> None:
        self.space, self.study, self.path = space, study, path
        self.left = 0  # trials that may still be asked for
        self._journal, self._pruner = journal, pruner
        self._about = StudyHeader.of(study)
        self._turn: list[int] = []  # ids of waiting trials, the next to be asked for at the end
        self._live: dict[int, optuna.Trial] = {}
        self._steps: dict[int, set[int]] = {}  # of living trials: the steps that are written down

    # ------------------------------------------------------------------ before a run

    def recover(self, target: int, *, retry: bool = False) -> int:
        """Records the trials that a killed driver left running as lost, queues what is to be run again, and returns how
        many trials to run until `target` are finished (`study_progress` says which are)."""
        for trial in self._trials():
            if trial.state == TrialState.RUNNING:
                self._journal.write(trial_id(trial), {"reason": "lost", "message": "its driver went away"})
                self.study.tell(trial.number, state=TrialState.FAIL)
        trials = self._trials()
        progress = study_progress([RecordedTrial.of(trial) for trial in trials], retry=retry)
        by_number = {trial.number: trial for trial in trials}
        for number in progress.retried:
            self._queue_again(by_number[number])
        known = {trial.user_attrs.get("point") for trial in trials}
        for i, point in enumerate(self.space.points[:target]):
            if i not in known:
                self.study.enqueue_trial(self._labels(point), user_attrs={"point": i})
        self.left = progress.left(target)
        return self.left

    def order_queue(self) -> None:
        """Has the trials of a fixed design asked for in the order in which several slots have most to do at once. Those
        that had begun come first. Numbers and what is asked stay as they are."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        over = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        order = queue_order(
            self.space,
            [trial.user_attrs.get("point") for trial in waiting],
            [bool(trial.intermediate_values) for trial in waiting],
            [trial.user_attrs.get("point") for trial in over],
        )
        self._turn = [trial_id(waiting[i]) for i in reversed(order)]

    def _queue_again(self, trial: FrozenTrial) -> None:
        fixed = {**fixed_values(trial), **trial.params}
        attributes = {"retry_of": trial.number}
        if "point" in trial.user_attrs:
            attributes["point"] = trial.user_attrs["point"]
        self.study.enqueue_trial(fixed, user_attrs=attributes)

    def _labels(self, point: Mapping[str, Any]) -> dict[str, Any]:
        choices = {p.name for p in self.space.sampled_parameters if p.kind == "choice"}
        return {name: optuna_label(value) if name in choices else value for name, value in point.items()}

    # ------------------------------------------------------------------ a trial

    def ask(self) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """The next trial to run: number, searched values, whole configuration. None when none is left.

        A draw whose values cannot go together is written down as FAIL (invalid) and counts.
        """
        while self.left > 0:
            self.left -= 1
            trial = self._ask()
            self._live[trial.number], self._steps[trial.number] = trial, set()
            values = self.space.suggest(trial)
            about: dict[str, Any] = {"values": values, "versions": environment_versions()}
            try:
                config = parameters(self.space.config(values))
            except RazError as error:
                self._journal.write(trial_id(trial), about)
                self.tell(trial.number, Outcome(TrialStatus.FAILED, reason=FailureReason.INVALID, message=str(error)))
                continue
            base = completed(self._about.base)
            about["changed"] = {n: v for n, v in config.items() if n not in base or base[n] != v}
            if without := [name for name in base if name not in config]:
                about["without"] = without
            self._journal.write(trial_id(trial), about)
            self._pruner.begin(trial.number, config)
            return trial.number, values, config
        return None

    def _ask(self) -> optuna.Trial:
        if not self._turn:
            return self.study.ask()
        waiting = self._turn.pop()
        set_state(self._journal, waiting, TrialState.RUNNING)
        return trial_in(self.study, waiting)

    def report(self, number: int, step: int, value: float, *, shared: bool = False) -> bool:
        """Writes down a step of a running trial and says whether to prune it.

        `shared`: another living trial waits for the same stage, so nobody is pruned in it. A step told twice (a
        trial that was restarted replays its curve) keeps its first value, and nothing is decided on it again.
        """
        return self.report_many(number, [(step, value)], shared=shared)

    def report_many(self, number: int, steps: Iterable[tuple[int, float]], *, shared: bool = False) -> bool:
        """Several steps at once, such as the curve of a stage that the store held; as `report` of each in turn.

        What comes after the step that prunes it is not written down.
        """
        if number not in self._live:
            return False
        told, stop = {}, False
        for step, value in steps:
            if step in self._steps[number]:
                continue
            self._steps[number].add(step)
            told[step] = float(value)
            stop = self._pruner.report(number, step, float(value), ask=not shared)
            if stop:
                break
        self._journal.write(trial_id(self._live[number]), steps=told)
        return stop

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        """Writes down how a trial ended; telling a finished trial again changes nothing."""
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
        known = {
            "metrics": _finite(outcome.metrics or {}),
            "seeds": {seed: _finite(metrics) for seed, metrics in (outcome.seeds or {}).items()},
            "stages": [dict(stage) for stage in outcome.stages],
            "device": outcome.device,
            "data": dict(outcome.data),
            "reason": reason,
            "message": message,
            "trace": outcome.trace,
            "rungs": self._pruner.end(number, final),
            "seconds": outcome.seconds,
        }
        self._journal.write(trial_id(trial), {name: value for name, value in known.items() if value or value == 0})
        self.study.tell(trial, values if final == TrialState.COMPLETE else None, state=final)
        return self.record(number)

    def _objectives(self, metrics: Mapping[str, float]) -> tuple[list[float], str, str]:
        """The values of the objectives; or the reason why there are none, and the message."""
        values = []
        for objective in self.space.objectives:
            value = metrics.get(objective.metric)
            if value is None:
                return [], "error", f"the trial gave no {objective.metric}; {did_you_mean(objective.metric, metrics)}"
            if not math.isfinite(value):
                return [], "nan", f"{objective.metric} is {value}"
            values.append(value)
        return values, "", ""

    def requeue(self, number: int) -> None:
        """Puts a trial back that a clean stop met: it waits again, with its values and the steps it has told, and is
        the first to be asked for by the next run. That is no attempt lost."""
        trial = self._live.pop(number, None)
        if trial is not None:
            self._steps.pop(number)
            self._pruner.pause(number)
            set_state(self._journal, trial_id(trial), TrialState.WAITING)
            self.left += 1

    def record(self, number: int) -> TrialRecord:
        """The record of one trial."""
        return record_of(self._about, trial_numbered(self.study, number), alive=True)

    def records(self) -> tuple[TrialRecord, ...]:
        """All trials, in the order of their numbers."""
        return records(self.study)

    def iter_records(self) -> Iterator[TrialRecord]:
        """As `records`, one at a time: a whole configuration takes more memory than what the study keeps of it."""
        return (record_of(self._about, trial, alive=True) for trial in self._trials())

    def best(self) -> TrialRecord | None:
        """The complete trial with the best objective, of equals the earliest; of several objectives, the first's."""
        sign = 1 if self.space.direction == "minimize" else -1
        return min(self.front(), key=lambda r: (sign * (r.value or 0.0), r.number), default=None)

    def front(self) -> tuple[TrialRecord, ...]:
        """The complete trials that none beats in every objective (Pareto): of one objective, the best."""
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


# ------------------------------------------------------------------ opening


@contextmanager
def open_ledger(store: Path, space: SearchSpace) -> Iterator[Ledger]:
    """The study of the space, open for writing while the context lasts.

    Raises RazError when another driver writes it, when the store is being cleared up, when the journal is damaged,
    and when the study was made from a file that asked something else (with the difference). OSError goes through.
    """
    path = journal_path(store, space.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(lock_path(path), timeout=LOCK_WAIT)
    try:
        with registration_lock(store):
            lock.acquire()
    except filelock.Timeout:
        raise RazError(
            f"study {space.study}", "another process is running this study", "wait for it, or stop it"
        ) from None
    try:
        truncate_partial_line(path)
        journal, pruner = open_journal(path), StagePruner(space)
        study = _open(journal, space, pruner)
        yield Ledger(space, study, journal, path, pruner)
    finally:
        lock.release()


def _open(journal: Journal, space: SearchSpace, pruner: StagePruner) -> optuna.Study:
    directions = [StudyDirection[objective.direction.upper()] for objective in space.objectives]
    study = optuna.create_study(
        storage=journal, study_name=space.study, directions=directions, load_if_exists=True, pruner=pruner.on_study,
    )  # fmt: skip
    trials = study.get_trials(deepcopy=False)
    told = study.user_attrs.get("meaning")
    if told is None:
        if trials:
            raise RazError(f"study {space.study}", "its journal was not written by raz-sweep", "use another name")
        study.set_user_attr("meaning", space.meaning())
        study.set_user_attr("digest", space.digest())
    elif told != space.meaning():
        raise RazError(
            f"study {space.study}",
            _difference(with_later_fields(told), with_later_fields(space.meaning())),
            "give the new question a new name",
        )
    base = StudyHeader.of(study).base
    for trial in trials:
        config = reconstruct_config(base, trial.user_attrs)
        if config:
            pruner.remember(trial, config, trial.user_attrs.get("rungs", {}))
    # A resumed search must not draw the values of the first run again.
    study.sampler = make_sampler(space, drawn=len(trials))
    return study


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    def shown(side: Mapping[str, Any], name: str) -> str:
        return json.dumps(side[name]) if name in side else "nothing"

    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    lines = [f"  {name}: {shown(old, name)} -> {shown(new, name)}" for name in names]
    return "the study of this name asked something else:\n" + "\n".join(lines)
