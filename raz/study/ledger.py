"""The ledger: one Optuna study a name, in a journal file that Optuna's own tools read.

One process, the driver, writes; a lock says so, and readers need none. COMPLETE, PRUNED and FAIL mean what
they say: a failure carries its reason, and what a killed driver left RUNNING is settled as `lost` by the
next driver and queued again with the same values.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.trial import FrozenTrial, TrialState

from raz.config import nearest, parameters
from raz.errors import RazError
from raz.study.pruning import StepPruner
from raz.study.records import (
    Outcome,
    TrialRecord,
    is_running,
    journal_path,
    load_study,
    lock_path,
    read_records,
    record_of,
    records,
    storage_of,
    study_names,
)  # fmt: skip
from raz.study.space import SearchSpace
from raz.versions import versions

MOST_ATTEMPTS = 3  # of one trial whose process or machine went away
__all__ = [
    "Ledger", "Outcome", "TrialRecord", "is_running", "journal_path", "load_study", "open_ledger", "read_records",
    "records", "study_names",
]  # fmt: skip
LOCK_WAIT = 2.0  # seconds; a reader that looks whether the driver lives holds the lock for an instant


class Ledger:
    """A study open for writing. Get one from `open_ledger`."""

    def __init__(self, space: SearchSpace, study: optuna.Study, path: Path) -> None:
        self.space, self.study, self.path = space, study, path
        self.left = 0  # trials that may still be asked for
        self._live: dict[int, optuna.Trial] = {}

    # ------------------------------------------------------------------ before a run

    def adopt(self, target: int, *, retry: bool = False) -> int:
        """Settles what a killed driver left, queues what is owed, and returns how many trials to run.

        A trial that was lost is queued again with its values, at most MOST_ATTEMPTS times in all; with
        `retry` so is every other failure. Done are complete, pruned and for good failed trials.
        """
        for trial in self._trials():
            if trial.state == TrialState.RUNNING:
                self._attributes(trial.number, reason="lost", message="its driver went away")
                self.study.tell(trial.number, state=TrialState.FAIL)
        trials = self._trials()
        by_number = {trial.number: trial for trial in trials}
        superseded = {trial.user_attrs.get("retry_of") for trial in trials}
        owed, done = 0, 0
        for trial in trials:
            if trial.state == TrialState.WAITING or trial.number in superseded:
                continue
            if trial.state == TrialState.FAIL:
                lost = trial.user_attrs.get("reason") == "lost"
                if retry or (lost and _attempts(trial, by_number) < MOST_ATTEMPTS):
                    self._queue_again(trial)
                    owed += 1
                    continue
            done += 1
        if self.space.sampler == "grid":
            known = {trial.user_attrs.get("grid") for trial in trials}
            for i, point in enumerate(self.space.grid()[:target]):
                if i not in known:
                    self.study.enqueue_trial(self._labels(point), user_attrs={"grid": i})
        self.left = max(0, target - done)
        return self.left

    def _queue_again(self, trial: FrozenTrial) -> None:
        fixed = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        attributes = {"retry_of": trial.number}
        if "grid" in trial.user_attrs:
            attributes["grid"] = trial.user_attrs["grid"]
        self.study.enqueue_trial(fixed, user_attrs=attributes)

    def _labels(self, point: Mapping[str, Any]) -> dict[str, Any]:
        from raz.study.space import label

        choices = {p.name for p in self.space.parameters if p.kind == "choice"}
        return {name: label(value) if name in choices else value for name, value in point.items()}

    # ------------------------------------------------------------------ a trial

    def ask(self) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """The next trial to run: number, searched values, whole configuration. None when none is left.

        A draw whose values cannot go together is written down as FAIL (invalid) and counts.
        """
        while self.left > 0:
            self.left -= 1
            trial = self.study.ask()
            self._live[trial.number] = trial
            values = self.space.suggest(trial)
            try:
                config = parameters(self.space.config(values))
            except RazError as error:
                self._attributes(trial.number, values=values, versions=versions())
                self.tell(trial.number, Outcome("failed", reason="invalid", message=str(error)))
                continue
            self._attributes(trial.number, values=values, parameters=config, versions=versions())
            return trial.number, values, config
        return None

    def report(self, number: int, step: int, value: float, *, shared: bool = False) -> bool:
        """Writes down a step of a running trial and says whether to prune it.

        `shared`: another living trial waits for the same stage, so nobody is pruned in it.

        A step told twice (a trial that was restarted replays its curve) keeps its first value.
        """
        trial = self._live.get(number)
        if trial is None:
            return False
        if step not in self.study._storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, step)
        return not shared and bool(trial.should_prune())

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        """Writes down how a trial ended; telling a finished trial again changes nothing."""
        if self._live.pop(number, None) is None:
            return self.record(number)
        state, value, reason, message = outcome.state, None, outcome.reason, outcome.message
        if state == "complete":
            metrics = outcome.metrics or {}
            value = metrics.get(self.space.metric)
            if value is None:
                state, reason = "failed", "error"
                message = f"the trial gave no {self.space.metric}; {nearest(self.space.metric, metrics)}"
            elif not math.isfinite(value):
                state, reason, message = "failed", "nan", f"{self.space.metric} is {value}"
        known = {
            "metrics": {k: v for k, v in outcome.metrics.items() if math.isfinite(v)} if outcome.metrics else None,
            "stages": [dict(stage) for stage in outcome.stages] or None,
            "reason": reason or None,
            "message": message or None,
            "trace": outcome.trace or None,
            "seconds": outcome.seconds,
        }
        self._attributes(number, **{name: value for name, value in known.items() if value is not None})
        if state == "complete":
            self.study.tell(number, value)
        elif state == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, state=TrialState.FAIL)
        return self.record(number)

    def postpone(self, number: int) -> None:
        """Puts a trial back that a clean stop met: it waits again, with its values and the steps it has told, and is
        the first to be asked for by the next run. That is no attempt lost."""
        trial = self._live.pop(number, None)
        if trial is not None:
            self.study._storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)
            self.left += 1

    def record(self, number: int) -> TrialRecord:
        """The record of one trial."""
        return record_of(self.space.study, self._trials()[number], alive=True)

    def records(self) -> tuple[TrialRecord, ...]:
        """All trials, in the order of their numbers."""
        return records(self.study)

    def best(self) -> TrialRecord | None:
        """The complete trial with the best objective; of equals the earliest."""
        done = [record for record in self.records() if record.state == "complete" and record.value is not None]
        sign = 1 if self.space.direction == "minimize" else -1
        return min(done, key=lambda r: (sign * (r.value or 0.0), r.number), default=None)

    def _trials(self) -> list[FrozenTrial]:
        return list(self.study.get_trials(deepcopy=False))

    def _attributes(self, number: int, **values: Any) -> None:
        trial_id = self._trials()[number]._trial_id
        for name, value in values.items():
            self.study._storage.set_trial_user_attr(trial_id, name, value)


def _attempts(trial: FrozenTrial, by_number: Mapping[int, FrozenTrial]) -> int:
    n = 1
    while (before := trial.user_attrs.get("retry_of")) is not None:
        trial, n = by_number[before], n + 1
    return n


# ------------------------------------------------------------------ opening


@contextmanager
def open_ledger(store: Path, space: SearchSpace) -> Iterator[Ledger]:
    """The study of the space, open for writing while the context lasts.

    Raises RazError when another driver writes it, when the journal is damaged, and when the study was
    made from a file that asked something else (with the difference). OSError goes through.
    """
    path = journal_path(store, space.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(lock_path(path), timeout=LOCK_WAIT)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RazError(
            f"study {space.study}", "another process is running this study", "wait for it, or stop it"
        ) from None
    try:
        _mend(path)
        yield Ledger(space, _open(path, space), path)
    finally:
        lock.release()


def _mend(path: Path) -> None:
    """Cuts a line that a killed driver left half-written, so that the next one starts on its own line."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        position = size
        while position > 0:
            step = min(4096, position)
            position -= step
            file.seek(position)
            newline = file.read(step).rfind(b"\n")
            if newline >= 0:
                position += newline + 1
                break
        if position != size:
            file.truncate(position)
            file.flush()
            os.fsync(file.fileno())


def _open(path: Path, space: SearchSpace) -> optuna.Study:
    storage = storage_of(path)
    study = optuna.create_study(
        storage=storage, study_name=space.study, direction=space.direction, load_if_exists=True,
        pruner=pruner_of(space),
    )  # fmt: skip
    told = study.user_attrs.get("meaning")
    if told is None:
        if study.get_trials(deepcopy=False):
            raise RazError(f"study {space.study}", "its journal was not written by raz-sweep", "use another name")
        study.set_user_attr("meaning", space.meaning())
        study.set_user_attr("digest", space.digest())
    elif told != space.meaning():
        raise RazError(f"study {space.study}", _difference(told, space.meaning()), "give the new question a new name")
    # A resumed search must not draw the values of the first run again.
    study.sampler = sampler_of(space, drawn=len(study.get_trials(deepcopy=False)))
    return study


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    def shown(side: Mapping[str, Any], name: str) -> str:
        return json.dumps(side[name]) if name in side else "nothing"

    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    lines = [f"  {name}: {shown(old, name)} -> {shown(new, name)}" for name in names]
    return "the study of this name asked something else:\n" + "\n".join(lines)


def sampler_of(space: SearchSpace, drawn: int = 0) -> optuna.samplers.BaseSampler:
    """The sampler, seeded by the study's seed and how many trials were drawn before."""
    seed = (space.seed + 1_000_003 * drawn) % 2**32
    if space.sampler == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # group: parameters under one condition are drawn jointly, not each on its own
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)  # a grid's points are queued, none is drawn


def pruner_of(space: SearchSpace) -> optuna.pruners.BasePruner:
    """The pruner, by its name in raz.study.space.PRUNERS."""
    keep = {"median": 0.5, "percentile": 0.25}.get(space.pruner)
    return optuna.pruners.NopPruner() if keep is None else StepPruner(keep, space.warmup_steps)
