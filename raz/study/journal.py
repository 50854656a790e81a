"""The journal of a study: the file where Optuna stores it, one JSON line per operation, written by one process."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from raz.errors import RazError
from raz.store.paths import StorePaths
from raz.study.optuna_internals import CREATE_STUDY, SET_STATE, append
from raz.utils.json_types import Json

# Operations that are synced to disk, with all lines before them, so that they survive a power failure.
DURABLE = (CREATE_STUDY, SET_STATE)
LOCK_WAIT = 2.0  # seconds to wait for a lock, since `is_running` holds it for an instant


def journal_path(store: Path, study: str) -> Path:
    """STORE/studies/NAME.journal"""
    return StorePaths(store).journal(study)


def study_names(store: Path) -> tuple[str, ...]:
    """The names of the studies of a store, sorted."""
    return tuple(sorted(path.stem for path in StorePaths(store).studies.glob("*.journal")))


def lock_path(journal: Path) -> str:
    """The lock file that the journal's only writer holds."""
    return str(journal.with_suffix(".lock"))


@contextmanager
def hold_lock(path: Path | str, wait: float, refusal: RazError) -> Iterator[None]:
    """Holds a file lock. Raises `refusal` if it is not free within `wait` seconds."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout:
        raise refusal from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def registration_lock(store: Path) -> Iterator[None]:
    """Store-wide registration lock. Drivers take it briefly on start, garbage collection for its whole run, so that no
    driver starts unseen.

    Raises RazError when it is not free within LOCK_WAIT.
    """
    path = StorePaths(store).registration_lock
    path.parent.mkdir(parents=True, exist_ok=True)
    refusal = RazError(
        f"store {store}", "garbage collection is running (raz-sweep store gc)", "wait until it has ended"
    )
    with hold_lock(path, LOCK_WAIT, refusal):
        yield


class NoLock(JournalFileOpenLock):
    """No lock, in place of Optuna's lock of a journal, which outlives a killed driver. The ledger has its own lock."""

    def __init__(self) -> None:
        return None

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class _DurableStateBackend(JournalFileBackend):
    """Optuna's file backend, which syncs only DURABLE operations to disk.

    Each append reaches the file at once, so a killed driver loses nothing. A power failure loses steps at most.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=NoLock())
        self.path = path

    def append_logs(self, logs: list[dict[str, Json]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            if any(log["op_code"] in DURABLE for log in logs):
                os.fsync(file.fileno())


class Journal(optuna.storages.JournalStorage):
    """Optuna's storage, which can also write several values of a trial at once."""

    def write(
        self, trial_id: int, attributes: Mapping[str, Json] | None = None, steps: Mapping[int, float] | None = None
    ) -> None:
        """Writes user attributes and intermediate values (step -> value) of a running trial in one append."""
        append(self, trial_id, attributes or {}, steps or {})


def open_journal(path: Path) -> Journal:
    """Opens the journal in the file. Raises RazError when it is damaged."""
    logging.getLogger("optuna").setLevel(logging.ERROR)  # the console shows the same events
    try:
        return Journal(_DurableStateBackend(path))
    except (ValueError, KeyError, TypeError) as error:
        raise RazError(str(path), f"the journal is damaged: {error}", "move the file away and run again") from None


def read_journal(path: Path) -> bytes:
    """The journal's complete lines: a driver may be writing the next one."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def truncate_partial_line(path: Path) -> None:
    """Removes an incomplete last line that a killed driver left, so that the next entry starts on its own line."""
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
