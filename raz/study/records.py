"""What a study says of its trials: TrialRecord, and how a study in the store is found and read.

Readers need no lock: they may read beside the driver that writes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from raz.config import nearest
from raz.errors import RazError


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


class Held(JournalFileOpenLock):  # type: ignore[misc]
    """The journal's own lock, which the ledger's lock makes needless: it would outlive a killed driver."""

    def __init__(self) -> None:
        return None

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def journal_path(store: Path, study: str) -> Path:
    """STORE/studies/NAME.journal"""
    return store / "studies" / f"{study}.journal"


def study_names(store: Path) -> tuple[str, ...]:
    """The studies of a store."""
    return tuple(sorted(path.stem for path in (store / "studies").glob("*.journal")))


def lock_path(journal: Path) -> str:
    return str(journal.with_suffix(".lock"))


def storage_of(path: Path) -> optuna.storages.JournalStorage:
    logging.getLogger("optuna").setLevel(logging.ERROR)  # the console tells each event, and once
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=Held()))
    except (ValueError, KeyError, TypeError) as error:
        raise RazError(str(path), f"the journal is damaged: {error}", "move the file away and run again") from None


def load_study(store: Path, name: str) -> optuna.Study:
    """A study to read. Raises RazError when the store has none of this name."""
    path = journal_path(store, name)
    if not path.is_file():
        raise RazError(f"study {name}", f"{store} has no such study", _known(store, name))
    try:
        return optuna.load_study(study_name=name, storage=storage_of(path))
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
    lock = filelock.FileLock(lock_path(path))
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
    return tuple(record_of(study.study_name, trial, alive) for trial in study.get_trials(deepcopy=False))


STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def record_of(study: str, trial: FrozenTrial, alive: bool) -> TrialRecord:
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
