"""A study's journal: the file where Optuna keeps it, one line an operation, as only one process may write it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from raz.errors import RazError
from raz.store.paths import StorePaths
from raz.study.optuna_internals import CREATE_STUDY, SET_STATE, append

# What must survive a machine that stops; what lies before it in the file survives with it.
DURABLE = (CREATE_STUDY, SET_STATE)
LOCK_WAIT = 2.0  # seconds; a reader that looks whether the driver lives holds the lock for an instant


def journal_path(store: Path, study: str) -> Path:
    """STORE/studies/NAME.journal"""
    return StorePaths(store).journal(study)


def study_names(store: Path) -> tuple[str, ...]:
    """The studies of a store."""
    return tuple(sorted(path.stem for path in StorePaths(store).studies.glob("*.journal")))


def lock_path(journal: Path) -> str:
    """The lock that its one writer holds."""
    return str(journal.with_suffix(".lock"))


@contextmanager
def registration_lock(store: Path) -> Iterator[None]:
    """Held by who begins to work in the store while it makes itself known, and by a collection until its end: so what
    begins is either seen by the collection or waits for it. Raises RazError when it is held for long."""
    path = StorePaths(store).registration_lock
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=LOCK_WAIT)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RazError(
            f"store {store}", "it is being cleared up (raz-sweep store gc)", "wait until that is done"
        ) from None
    try:
        yield
    finally:
        lock.release()


class NoLock(JournalFileOpenLock):
    """The journal's own lock, which the ledger's lock makes needless: it would outlive a killed driver."""

    def __init__(self) -> None:
        return None

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class _DurableStateBackend(JournalFileBackend):
    """Optuna's, but only a trial's state is forced to the disk: a step of training is not worth waiting for it.

    What is written is the file's at once, so a killed driver loses nothing; a machine without power loses steps.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=NoLock())
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            if any(log["op_code"] in DURABLE for log in logs):
                os.fsync(file.fileno())


class Journal(optuna.storages.JournalStorage):
    """Optuna's storage, with several values of a trial written at once."""

    def write(
        self, trial_id: int, attributes: Mapping[str, Any] | None = None, steps: Mapping[int, float] | None = None
    ) -> None:
        """User attributes and intermediate values of a running trial, as one append."""
        append(self, trial_id, attributes or {}, steps or {})


def open_journal(path: Path) -> Journal:
    """The journal in the file. Raises RazError when it is damaged."""
    logging.getLogger("optuna").setLevel(logging.ERROR)  # the console tells each event, and once
    try:
        return Journal(_DurableStateBackend(path))
    except (ValueError, KeyError, TypeError) as error:
        raise RazError(str(path), f"the journal is damaged: {error}", "move the file away and run again") from None


def truncate_partial_line(path: Path) -> None:
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
