"""What a study says of its trials: TrialRecord, and how a study in the store is found and read.

Readers need no lock: they may read beside the driver that writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.trial import FrozenTrial, TrialState

from raz.config import completed
from raz.errors import FailureReason, RazError
from raz.store.inventory import check_store
from raz.study.journal import journal_path, lock_path, open_journal, study_names
from raz.study.trial_status import TrialStatus
from raz.utils.suggestions import did_you_mean

__all__ = [
    "Outcome",
    "StudyHeader",
    "TrialRecord",
    "TrialStatus",
    "exclusive",
    "is_running",
    "journal_path",
    "load_study",
    "lock_path",
    "read_records",
    "reconstruct_config",
    "record_of",
    "records",
    "study_names",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, as it travels from the trial's process to the driver."""

    state: TrialStatus  # COMPLETE, PRUNED or FAILED
    seconds: float = 0.0
    metrics: Mapping[str, float] | None = None
    stages: Sequence[Mapping[str, Any]] = ()
    reason: str = ""  # of a failure: nan | oom | lost | invalid | error
    message: str = ""
    trace: str = ""
    device: str = ""  # where it ran
    data: Mapping[str, str] = field(default_factory=dict)  # split -> fingerprint of what it read
    seeds: Mapping[str, Mapping[str, float]] | None = None  # of a trial over several seeds: each one's metrics


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study, as reports read it."""

    study: str
    number: int
    state: TrialStatus
    values: Mapping[str, Any]  # what was searched: dotted name -> value, active parameters only
    config: Mapping[str, Any]  # the whole trial: every dotted name -> value
    value: float | None  # the objective; the first of several
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
    objectives: Mapping[str, float] = field(default_factory=dict)  # metric -> value, of a complete trial
    seeds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # seed -> its metrics; the mean is `metrics`
    device: str = ""
    data: Mapping[str, str] = field(default_factory=dict)  # split -> fingerprint

    @property
    def pruned_at(self) -> tuple[int, float] | None:
        """(step, value) at which the pruner stopped it."""
        if self.state != TrialStatus.PRUNED or not self.steps:
            return None
        last = max(self.steps)
        return last, self.steps[last]


def load_study(store: Path, name: str) -> optuna.Study:
    """A study to read. Raises RazError when there is no store, or none of this name in it."""
    path = journal_path(store, name)
    if not path.is_file():
        check_store(store)
        raise RazError(f"study {name}", f"{store} has no such study", _known(store, name))
    try:
        return optuna.load_study(study_name=name, storage=open_journal(path))
    except KeyError:
        raise RazError(str(path), f"the journal holds no study {name!r}", "move the file away and run again") from None


def _known(store: Path, name: str) -> str:
    names = study_names(store)
    return did_you_mean(name, names) if names else "raz-sweep run fusion"


def read_records(store: Path, name: str) -> tuple[TrialRecord, ...]:
    """The trials of a study, in the order of their numbers; reads beside a driver that writes."""
    alive = is_running(store, name)  # asked first: a driver that ends in between leaves nothing running
    return records(load_study(store, name), alive=alive)


def is_running(store: Path, name: str) -> bool:
    """Whether a driver holds the study now."""
    path = journal_path(store, name)
    if not path.exists():
        return False
    lock = filelock.FileLock(lock_path(path))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    except OSError:  # a store that may only be read: the lock cannot be asked
        return False
    lock.release()
    return False


@contextmanager
def exclusive(store: Path, name: str, hint: str) -> Iterator[None]:
    """Held while a study is put into a store: no driver of it can begin meanwhile. Raises RazError when one runs."""
    lock = filelock.FileLock(lock_path(journal_path(store, name)))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RazError(f"study {name}", "is running in this store", hint) from None
    try:
        yield
    finally:
        lock.release()


def records(study: optuna.Study, *, alive: bool = True) -> tuple[TrialRecord, ...]:
    """The study's trials as records. Without a living driver, what is RUNNING was lost."""
    about = StudyHeader.of(study)
    return tuple(record_of(about, trial, alive) for trial in study.get_trials(deepcopy=False))


@dataclass(frozen=True)
class StudyHeader:
    """What the records of a study have in common."""

    study: str
    base: Mapping[str, Any]  # dotted name -> value, as recorded: without fields that came later
    metrics: tuple[str, ...]  # of its objectives

    @staticmethod
    def of(study: optuna.Study) -> StudyHeader:
        told = study.user_attrs.get("meaning", {})
        meaning: Mapping[str, Any] = told if isinstance(told, Mapping) else {}  # a journal of another tool
        base = base_in(meaning)
        first = [meaning["objective.metric"]] if "objective.metric" in meaning else []
        return StudyHeader(
            study.study_name, base, (*first, *(metric for metric, _ in meaning.get("objective.others", ())))
        )


def base_in(meaning: Mapping[str, Any]) -> dict[str, Any]:
    """The base of a study's recorded meaning: dotted name -> value."""
    return {name.removeprefix("base."): value for name, value in meaning.items() if name.startswith("base.")}


def with_later_fields(meaning: Mapping[str, Any]) -> dict[str, Any]:
    """A study's recorded meaning with the later fields that its base lacks, at their values of before. A meaning
    without a base stays without one."""
    base = base_in(meaning)
    return {**meaning, **{f"base.{name}": value for name, value in completed(base).items()}} if base else {**meaning}


STATES = {
    TrialState.COMPLETE: TrialStatus.COMPLETE,
    TrialState.PRUNED: TrialStatus.PRUNED,
    TrialState.FAIL: TrialStatus.FAILED,
    TrialState.RUNNING: TrialStatus.RUNNING,
    TrialState.WAITING: TrialStatus.WAITING,
}


def record_of(about: StudyHeader, trial: FrozenTrial, alive: bool) -> TrialRecord:
    attributes = trial.user_attrs
    state = STATES[trial.state]
    if state == TrialStatus.RUNNING and not alive:
        state = TrialStatus.LOST
    return TrialRecord(
        study=about.study,
        number=trial.number,
        state=state,
        values=attributes.get("values", {}),
        config=reconstruct_config(about.base, attributes),
        value=trial.values[0] if state == TrialStatus.COMPLETE else None,
        metrics=attributes.get("metrics", {}),
        stages=tuple(attributes.get("stages", ())),
        steps=dict(trial.intermediate_values),
        reason=attributes.get("reason", FailureReason.LOST if state == TrialStatus.LOST else ""),
        message=attributes.get("message", ""),
        seconds=float(attributes.get("seconds", 0.0)),
        versions=attributes.get("versions", {}),
        retry_of=attributes.get("retry_of"),
        started=trial.datetime_start,
        finished=trial.datetime_complete,
        objectives=dict(zip(about.metrics, trial.values, strict=False)) if state == TrialStatus.COMPLETE else {},
        seeds=attributes.get("seeds", {}),
        device=attributes.get("device", ""),
        data=attributes.get("data", {}),
    )


def reconstruct_config(base: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters: the base's, what it changed, and fields that came later, at their values of before (a trial
    that could not be configured has none). base: as `About` has it."""
    if "changed" not in attributes:
        full: Mapping[str, Any] = attributes.get("parameters", {})  # as an older raz-sweep wrote them
    else:
        without = attributes.get("without", ())
        full = {n: v for n, v in {**base, **attributes["changed"]}.items() if n not in without}
    return completed(full) if full else {}
