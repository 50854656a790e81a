"""Content-addressed artifacts in a local folder: written aside, renamed into place, verified when read.

    STORE/stages/<stage>/<key>/      manifest.json beside the files it names with their sha256
    STORE/chains/<stage>/<chain>/    the training state of an unfinished or extendable chain of epochs
    STORE/locks/                     one lock a chain or key; the operating system frees a dead owner's

Nothing half-written is ever read: an artifact appears by one rename, and a file whose digest is not its
manifest's makes the artifact a miss.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raz.errors import RazError

MANIFEST = "manifest.json"


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class StageKey:
    """What an artifact is: sha256 over the stage's meaning, its inputs, its needs and the data it reads (I2)."""

    stage: str
    version: int
    inputs: Mapping[str, Any]  # dotted parameter -> value
    needs: Mapping[str, str]  # stage (or stage@split) -> its key
    data: Mapping[str, str]  # what is read -> fingerprint

    @property
    def content(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": self.version,
            "inputs": dict(self.inputs),
            "needs": dict(self.needs),
            "data": dict(self.data),
        }

    @property
    def key(self) -> str:
        return digest(self.content)

    def without(self, *names: str) -> StageKey:
        """The same key with inputs left out: a chain leaves out its number of epochs (I4)."""
        kept = {name: value for name, value in self.inputs.items() if name not in names}
        return StageKey(self.stage, self.version, kept, self.needs, self.data)


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        return float(self.manifest["seconds"])


class StageCache:
    """The store's artifacts. Safe for many processes on one machine or on a shared folder with locks."""

    def __init__(self, store: Path) -> None:
        self.store = Path(store)
        self._verified: dict[Path, int] = {}

    def folder(self, stage: str, key: str) -> Path:
        return self.store / "stages" / stage / key

    def chain_folder(self, stage: str, chain: str) -> Path:
        return self.store / "chains" / stage / chain

    def find(self, key: StageKey) -> Artifact | None:
        """The artifact, if it is there and whole. Damage is a miss."""
        folder = self.folder(key.stage, key.key)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            stamp = (folder / MANIFEST).stat().st_mtime_ns
            if self._verified.get(folder) != stamp:
                for name, expected in manifest["files"].items():
                    if file_digest(folder / name) != expected:
                        return None
                self._verified[folder] = stamp
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Artifact(folder, manifest)

    def publish(self, key: StageKey, write: Callable[[Path], None], about: Mapping[str, Any]) -> Artifact:
        """Write the files in a folder of this attempt alone, then rename it into place.

        Where another writer was first its artifact stays and is returned. Raises RazError when the
        store cannot be written (full disk, no permission).
        """
        final = self.folder(key.stage, key.key)
        attempt = final.parent / f".attempt-{uuid.uuid4().hex}"
        with writing(self.store):
            try:
                attempt.mkdir(parents=True)
                write(attempt)
                files = {p.name: file_digest(p) for p in sorted(attempt.iterdir())}
                manifest = {**about, "key": key.content, "files": files}
                write_json(attempt / MANIFEST, manifest)
                for path in attempt.iterdir():
                    _sync(path)
                if final.exists():
                    whole = self.find(key)
                    if whole is not None:
                        return whole
                    shutil.rmtree(final, ignore_errors=True)  # damaged: make room
                try:
                    attempt.rename(final)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                _sync(final.parent)
            finally:
                shutil.rmtree(attempt, ignore_errors=True)
        found = self.find(key)
        if found is None:
            raise RazError(str(final), "the artifact cannot be read back after writing", "check the disk")
        return found

    @contextmanager
    def lock(self, name: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lock `name`. `waiting` is called about once a second while another process holds it."""
        with writing(self.store):
            folder = self.store / "locks"
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{name}.lock")
            while True:
                try:
                    lock.acquire(timeout=1.0)
                    break
                except Timeout:
                    if waiting is not None:
                        waiting()
        try:
            yield
        finally:
            lock.release()


@contextmanager
def writing(store: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one clear message."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space, or choose another place with --store",
            errno.EDQUOT: "your quota is used up: free some space, or choose another place with --store",
            errno.EACCES: "choose a folder you may write with --store",
            errno.EPERM: "choose a folder you may write with --store",
            errno.EROFS: "choose a folder you may write with --store",
            errno.ENOTDIR: "a part of the path is a file: choose another with --store",
        }
        if error.errno in hints:
            raise RazError(f"store {store}", str(error.strerror), hints[error.errno]) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """JSON, written aside and renamed."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        aside.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False), encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
