"""The ledger: one Optuna study a name, in a journal file that Optuna's own tools read.

One process, the driver, writes; a lock says so, and readers need none. COMPLETE, PRUNED and FAIL mean what
they say: a failure carries its reason, and what a killed driver left RUNNING is settled as `lost` by the
next driver and queued again with the same values.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from raz.config import nearest, parameters
from raz.errors import RazError
from raz.study.pruning import StepPruner
from raz.study.space import SearchSpace
from raz.versions import versions

MOST_ATTEMPTS = 3  # of one trial whose process or machine went away
LOCK_WAIT = 2.0  # seconds; a reader that looks whether the driver lives holds the lock for an instant


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, as it travels from the trial's process to the driver."""

    state: str  # complete | pruned | failed
    seconds: float = 0.0
    metrics: Mapping[str, float] | None = None
    stages: Sequence[Mapping[str, Any]] = ()
    reason: str = ""  # of a failure: nan | oom | lost | invalid | error
    message: str = ""
    trace: str = ""


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study, as reports read it."""

    study: str
    number: int
    state: str  # complete | pruned | failed | running | waiting | lost (running, and its driver is gone)
    values: Mapping[str, Any]  # what was searched: dotted name -> value, active parameters only
    config: Mapping[str, Any]  # the whole trial: every dotted name -> value
    value: float | None  # the objective
    metrics: Mapping[str, float]
    stages: Sequence[Mapping[str, Any]]  # {stage, key, hit, seconds}
    steps: Mapping[int, float]  # what the pruner saw
    reason: str
    message: str
    seconds: float
    versions: Mapping[str, str]
    retry_of: int | None
    started: datetime | None
    finished: datetime | None

    @property
    def pruned_at(self) -> tuple[int, float] | None:
        """(step, value) at which the pruner stopped it."""
        if self.state != "pruned" or not self.steps:
            return None
        last = max(self.steps)
        return last, self.steps[last]


class _Held(JournalFileOpenLock):  # type: ignore[misc]
    """The journal's own lock, which the ledger's lock makes needless: it would outlive a killed driver."""

    def __init__(self) -> None:
        return None

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


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

    def report(self, number: int, step: int, value: float) -> bool:
        """Writes down a step of a running trial and says whether to prune it.

        A step told twice (a trial that was restarted replays its curve) keeps its first value.
        """
        trial = self._live.get(number)
        if trial is None:
            return False
        if step not in self.study._storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, step)
        return bool(trial.should_prune())

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

    def record(self, number: int) -> TrialRecord:
        """The record of one trial."""
        return _record(self.space.study, self._trials()[number], alive=True)

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


def journal_path(store: Path, study: str) -> Path:
    """STORE/studies/NAME.journal"""
    return store / "studies" / f"{study}.journal"


def study_names(store: Path) -> tuple[str, ...]:
    """The studies of a store."""
    return tuple(sorted(path.stem for path in (store / "studies").glob("*.journal")))


@contextmanager
def open_ledger(store: Path, space: SearchSpace) -> Iterator[Ledger]:
    """The study of the space, open for writing while the context lasts.

    Raises RazError when another driver writes it, when the journal is damaged, and when the study was
    made from a file that asked something else (with the difference). OSError goes through.
    """
    path = journal_path(store, space.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(_lock_path(path), timeout=LOCK_WAIT)
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


def _lock_path(journal: Path) -> str:
    return str(journal.with_suffix(".lock"))


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


def _storage(path: Path) -> optuna.storages.JournalStorage:
    logging.getLogger("optuna").setLevel(logging.ERROR)  # the console tells each event, and once
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=_Held()))
    except (ValueError, KeyError, TypeError) as error:
        raise RazError(str(path), f"the journal is damaged: {error}", "move the file away and run again") from None


def _open(path: Path, space: SearchSpace) -> optuna.Study:
    storage = _storage(path)
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


# ------------------------------------------------------------------ reading


def load_study(store: Path, name: str) -> optuna.Study:
    """A study to read. Raises RazError when the store has none of this name."""
    path = journal_path(store, name)
    if not path.is_file():
        raise RazError(f"study {name}", f"{store} has no such study", _known(store, name))
    try:
        return optuna.load_study(study_name=name, storage=_storage(path))
    except KeyError:
        raise RazError(str(path), f"the journal holds no study {name!r}", "move the file away and run again") from None


def _known(store: Path, name: str) -> str:
    names = study_names(store)
    return nearest(name, names) if names else "raz-sweep run fusion"


def read_records(store: Path, name: str) -> tuple[TrialRecord, ...]:
    """The trials of a study, in the order of their numbers; reads beside a driver that writes."""
    alive = is_running(store, name)  # asked first: a driver that ends in between leaves nothing running
    return records(load_study(store, name), alive=alive)


def is_running(store: Path, name: str) -> bool:
    """Whether a driver holds the study now."""
    path = journal_path(store, name)
    if not path.exists():
        return False
    lock = filelock.FileLock(_lock_path(path))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    except OSError:  # a store that may only be read: the lock cannot be asked
        return False
    lock.release()
    return False


def records(study: optuna.Study, *, alive: bool = True) -> tuple[TrialRecord, ...]:
    """The study's trials as records. Without a living driver, what is RUNNING was lost."""
    return tuple(_record(study.study_name, trial, alive) for trial in study.get_trials(deepcopy=False))


STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def _record(study: str, trial: FrozenTrial, alive: bool) -> TrialRecord:
    attributes = trial.user_attrs
    state = STATES[trial.state]
    if state == "running" and not alive:
        state = "lost"
    return TrialRecord(
        study=study,
        number=trial.number,
        state=state,
        values=attributes.get("values", {}),
        config=attributes.get("parameters", {}),
        value=trial.value if state == "complete" else None,
        metrics=attributes.get("metrics", {}),
        stages=tuple(attributes.get("stages", ())),
        steps=dict(trial.intermediate_values),
        reason=attributes.get("reason", "lost" if state == "lost" else ""),
        message=attributes.get("message", ""),
        seconds=float(attributes.get("seconds", 0.0)),
        versions=attributes.get("versions", {}),
        retry_of=attributes.get("retry_of"),
        started=trial.datetime_start,
        finished=trial.datetime_complete,
    )
