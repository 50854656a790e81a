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
from optuna.storages.journal._storage import JournalOperation

from raz.errors import RazError

# What must survive a machine that stops; what lies before it in the file survives with it.
DURABLE = (JournalOperation.CREATE_STUDY, JournalOperation.SET_TRIAL_STATE_VALUES)
LOCK_WAIT = 2.0  # seconds; a reader that looks whether the driver lives holds the lock for an instant


def journal_path(store: Path, study: str) -> Path:
    """STORE/studies/NAME.journal"""
    return store / "studies" / f"{study}.journal"


def study_names(store: Path) -> tuple[str, ...]:
    """The studies of a store."""
    return tuple(sorted(path.stem for path in (store / "studies").glob("*.journal")))


def lock_path(journal: Path) -> str:
    """The lock that its one writer holds."""
    return str(journal.with_suffix(".lock"))


@contextmanager
def entrance(store: Path) -> Iterator[None]:
    """Held by who begins to work in the store while it makes itself known, and by a collection until its end: so what
    begins is either seen by the collection or waits for it. Raises RazError when it is held for long."""
    path = store / "studies" / ".entrance.lock"
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


class Held(JournalFileOpenLock):  # type: ignore[misc]
    """The journal's own lock, which the ledger's lock makes needless: it would outlive a killed driver."""

    def __init__(self) -> None:
        return None

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class _Backend(JournalFileBackend):  # type: ignore[misc]
    """Optuna's, but only a trial's state is forced to the disk: a step of training is not worth waiting for it.

    What is written is the file's at once, so a killed driver loses nothing; a machine without power loses steps.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with open(self._file_path, "ab") as file:
            file.write(text.encode())
            file.flush()
            if any(log["op_code"] in DURABLE for log in logs):
                os.fsync(file.fileno())


class Journal(optuna.storages.JournalStorage):  # type: ignore[misc]
    """Optuna's storage, with several values of a trial written at once."""

    def write(
        self, trial_id: int, attributes: Mapping[str, Any] | None = None, steps: Mapping[int, float] | None = None
    ) -> None:
        """User attributes and intermediate values of a running trial, as one append."""
        me = {"worker_id": self._replay_result.worker_id, "trial_id": trial_id}
        attribute, step_of = JournalOperation.SET_TRIAL_USER_ATTR, JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE
        logs = [{"op_code": attribute, **me, "user_attr": {n: value}} for n, value in (attributes or {}).items()]
        logs += [{"op_code": step_of, **me, "step": s, "intermediate_value": v} for s, v in (steps or {}).items()]
        if logs:
            with self._thread_lock:
                self._backend.append_logs(logs)
                self._sync_with_backend()


def open_journal(path: Path) -> Journal:
    """The journal in the file. Raises RazError when it is damaged."""
    logging.getLogger("optuna").setLevel(logging.ERROR)  # the console tells each event, and once
    try:
        return Journal(_Backend(str(path), lock_obj=Held()))
    except (ValueError, KeyError, TypeError) as error:
        raise RazError(str(path), f"the journal is damaged: {error}", "move the file away and run again") from None


def mend(path: Path) -> None:
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
