"""TrialRecord, the recorded state of a trial, Outcome, and functions that read the studies of a store.

Readers take no lock: they may read while a driver writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import filelock
import optuna
from optuna.trial import FrozenTrial

from raz.config import completed
from raz.errors import FailureReason, RazError
from raz.pipeline.events import StageUse
from raz.store.inventory import check_store
from raz.store.late_view import exists
from raz.study.attributes import StudyAttributes, TrialAttributes, objectives_in
from raz.study.journal import hold_lock, journal_path, lock_path, open_journal, study_names
from raz.study.trial_status import STATUS_OF_STATE, TrialStatus
from raz.utils.json_types import Json
from raz.utils.suggestions import did_you_mean


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, as its process sends it to the driver."""

    state: TrialStatus  # COMPLETE, PRUNED or FAILED
    seconds: float = 0.0
    metrics: Mapping[str, float] | None = None
    stages: Sequence[StageUse] = ()
    reason: str = ""  # of a failure: a FailureReason
    message: str = ""
    trace: str = ""
    device: str = ""  # where it ran
    data: Mapping[str, str] = field(default_factory=dict)  # split -> fingerprint of what it read
    seeds: Mapping[str, Mapping[str, float]] | None = None  # of a trial over several seeds: seed -> metrics


@dataclass(frozen=True)
class TrialRecord:
    """A trial of a study, as reports read it."""

    study: str
    number: int
    state: TrialStatus
    values: Mapping[str, Json]  # searched parameters that are active: dotted name -> value
    config: Mapping[str, Json]  # all parameters: dotted name -> value; {} where the values are invalid together
    value: float | None  # the (first) objective; None unless complete
    metrics: Mapping[str, float]
    stages: tuple[StageUse, ...]
    steps: Mapping[int, float]  # values reported to the pruner
    reason: str
    message: str
    seconds: float
    versions: Mapping[str, str]
    retry_of: int | None
    started: datetime | None
    finished: datetime | None
    objectives: Mapping[str, float] = field(default_factory=dict)  # metric -> value; {} unless complete
    seeds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # seed -> metrics, whose mean is `metrics`
    device: str = ""
    data: Mapping[str, str] = field(default_factory=dict)  # split -> fingerprint

    @property
    def pruned_at(self) -> tuple[int, float] | None:
        """Last (step, value) before the pruner stopped the trial; None for a trial that was not pruned."""
        if self.state != TrialStatus.PRUNED or not self.steps:
            return None
        last = max(self.steps)
        return last, self.steps[last]


def load_optuna_study(store: Path, name: str) -> optuna.Study:
    """Opens a study for reading. Raises RazError where there is no such store or study, or its journal is damaged."""
    path = journal_path(store, name)
    if not path.is_file():
        check_store(store)
        raise RazError(f"study {name}", f"{store} has no such study", _name_hint(store, name))
    try:
        return optuna.load_study(study_name=name, storage=open_journal(path))
    except KeyError:
        raise RazError(str(path), f"the journal holds no study {name!r}", "move the file away and run again") from None


def _name_hint(store: Path, name: str) -> str:
    names = study_names(store)
    return did_you_mean(name, names) if names else "raz-sweep run fusion"


def read_records(store: Path, name: str) -> tuple[TrialRecord, ...]:
    """The trials of a study by number. Raises RazError as `load_optuna_study`."""
    alive = is_running(store, name)  # before reading: a driver that ends in between leaves no running trial
    return records(load_optuna_study(store, name), alive=alive)


def is_running(store: Path, name: str) -> bool:
    """Whether a driver holds the study's lock; False where the lock file cannot be opened (a read-only store)."""
    path = journal_path(store, name)
    if not exists(path):
        return False
    lock = filelock.FileLock(lock_path(path))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    except OSError:  # read-only store
        return False
    lock.release()
    return False


@contextmanager
def locked_study(store: Path, name: str, hint: str) -> Iterator[None]:
    """Holds the study's lock, so that no driver starts while the study is copied into the store.

    Raises RazError with `hint` when a driver runs.
    """
    with hold_lock(
        lock_path(journal_path(store, name)), 0, RazError(f"study {name}", "is running in this store", hint)
    ):
        yield


def records(study: optuna.Study, *, alive: bool = True) -> tuple[TrialRecord, ...]:
    """The trials of a study by number. Unless `alive` (a driver runs), running trials are LOST."""
    header = StudyHeader.of(study)
    return tuple(record_of(header, trial, alive) for trial in study.get_trials(deepcopy=False))


@dataclass(frozen=True)
class StudyHeader:
    """The part of a study that all its trial records need."""

    study: str
    base: Mapping[str, Json]  # dotted name -> value, as recorded: without fields that were added to raz-sweep later
    metrics: tuple[str, ...]  # of the objectives

    @staticmethod
    def of(study: optuna.Study) -> StudyHeader:
        """The header of an open study; without base and metrics for a journal of another tool."""
        meaning = StudyAttributes.parse(study.user_attrs).meaning or {}
        return StudyHeader(study.study_name, base_in(meaning), objectives_in(meaning))


def base_in(meaning: Mapping[str, Json]) -> dict[str, Json]:
    """The base configuration in a study's recorded meaning: dotted name -> value."""
    return {name.removeprefix("base."): value for name, value in meaning.items() if name.startswith("base.")}


def with_later_fields(meaning: Mapping[str, Json]) -> dict[str, Json]:
    """A study's recorded meaning, with configuration fields that were added to raz-sweep later set to the values that
    stand for their absence (`raz.config.added`). A meaning without a base stays without one."""
    base = base_in(meaning)
    return {**meaning, **{f"base.{name}": value for name, value in completed(base).items()}} if base else {**meaning}


def record_of(header: StudyHeader, trial: FrozenTrial, alive: bool) -> TrialRecord:
    """The record of a trial. Unless `alive` (a driver runs), a running trial is LOST."""
    attributes = TrialAttributes.parse(trial.user_attrs)
    state = STATUS_OF_STATE[trial.state.name]
    if state == TrialStatus.RUNNING and not alive:
        state = TrialStatus.LOST
    complete = state == TrialStatus.COMPLETE
    reason: str = FailureReason.LOST if state == TrialStatus.LOST else ""
    return TrialRecord(
        study=header.study,
        number=trial.number,
        state=state,
        values=attributes.values or {},
        config=reconstruct_config(header.base, attributes),
        value=trial.values[0] if complete else None,
        metrics=attributes.metrics,
        stages=attributes.stages,
        steps=dict(trial.intermediate_values),
        reason=reason if attributes.reason is None else attributes.reason,
        message=attributes.message,
        seconds=attributes.seconds,
        versions=attributes.versions,
        retry_of=attributes.retry_of,
        started=trial.datetime_start,
        finished=trial.datetime_complete,
        objectives=dict(zip(header.metrics, trial.values, strict=False)) if complete else {},
        seeds=attributes.seeds,
        device=attributes.device,
        data=attributes.data,
    )


def config_changes(base: Mapping[str, Json], config: Mapping[str, Json]) -> tuple[dict[str, Json], list[Json]]:
    """The values of `config` that differ from the base, and the names of the base that it does not have."""
    changed = {name: value for name, value in config.items() if name not in base or base[name] != value}
    return changed, [name for name in base if name not in config]


def reconstruct_config(base: Mapping[str, Json], attributes: TrialAttributes) -> dict[str, Json]:
    """All parameters of a trial: the base (as in StudyHeader) with its changes, and later fields as `with_later_fields`
    sets them. {} for a trial whose values are invalid together."""
    if attributes.changed is None:
        full = attributes.parameters or {}
    else:
        full = {n: v for n, v in {**base, **attributes.changed}.items() if n not in attributes.without}
    return completed(full) if full else {}
