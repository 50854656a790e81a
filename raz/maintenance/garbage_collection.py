"""`store gc`: deletes what nobody can ask for any more, and nothing while somebody works in the store.

Deleted are artifacts that no study and no table reaches, chains of training likewise, what dead attempts left, notes
of failures of stages that nobody asks for, packs and features that no kept artifact was made from, and indexes without
a journal. Only names of the store's own layout are touched, inside the store, and never through a link.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from raz.errors import RazError
from raz.maintenance.reachability import Reachability
from raz.store.cache import store_errors
from raz.store.inventory import KEY, StoredStage, bytes_of, check_store, entries, folders, stages
from raz.store.lease import ATTEMPT, HEARTBEATS, heartbeat, holder_alive, lease_seconds
from raz.store.paths import LEASE_SUFFIX, TEMPORARY_IMPORT, StorePaths
from raz.study.journal import journal_path, lock_path, registration_lock, study_names

TRASH = ".trash-"


@dataclass(frozen=True)
class Garbage:
    """One thing to delete."""

    path: Path
    why: str
    bytes: int


@dataclass(frozen=True)
class CollectionPlan:
    """What a collection deletes, and what it keeps only because it cannot know better."""

    garbage: tuple[Garbage, ...]
    notes: tuple[str, ...]
    kept: int  # artifacts

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.garbage)


# ------------------------------------------------------------------ who works here?


def held_leases(store: Path) -> list[str]:
    """What is being made in the store now. Another machine's lease is watched as long as its holder may be silent."""
    out: list[str] = []
    doubtful: dict[Path, str] = {}
    for entry in entries(StorePaths(store).leases):
        path = Path(entry.path)
        if path.suffix == LEASE_SUFFIX and entry.is_file(follow_symlinks=False):
            alive = holder_alive(path)
            if alive:
                out.append(f"{path.stem[:40]} is being made")
            elif alive is None:
                doubtful[path] = heartbeat(path)
    deadline = time.monotonic() + lease_seconds()
    while doubtful and not out and time.monotonic() < deadline:
        time.sleep(min(lease_seconds() / HEARTBEATS, 1.0))
        out += [
            f"{p.stem[:40]} is being made on another machine" for p, seen in doubtful.items() if heartbeat(p) != seen
        ]
    return out


@contextmanager
def exclusive(store: Path) -> Iterator[None]:
    """No driver of a study, also of a new one, can start while the context lasts. Raises RazError when somebody works
    here."""
    with ExitStack() as stack:
        stack.enter_context(registration_lock(store))
        begun = (path.stem for path in StorePaths(store).studies.glob("[!.]*.lock"))  # may have no journal yet
        for name in sorted({*study_names(store), *begun}):
            lock = filelock.FileLock(lock_path(journal_path(store, name)))
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except filelock.Timeout:
                raise _refusal(store, [f"study {name} has a driver"]) from None
        if at_work := held_leases(store):
            raise _refusal(store, at_work)
        yield


def _refusal(store: Path, at_work: Sequence[str]) -> RazError:
    shown = ", ".join(at_work[:3]) + (f" and {len(at_work) - 3} more" if len(at_work) > 3 else "")
    return RazError(f"store {store}", f"somebody works in it: {shown}", "wait for it, or stop it; --dry-run shows")


# ------------------------------------------------------------------ what goes?


def plan(store: Path, artifacts: Sequence[StoredStage], reached: Reachability) -> CollectionPlan:
    """What a collection would delete."""
    garbage: list[Garbage] = []
    notes = [f"everything of data set {name} is kept, since it cannot be opened: {why}" for name, why in
             sorted(reached.closed.items())]  # fmt: skip

    paths = StorePaths(store)

    def drop(path: Path, why: str) -> None:
        garbage.append(Garbage(path, why, bytes_of(path)))

    kept: list[StoredStage] = []
    for artifact in artifacts:
        dataset = artifact.manifest.config.get("dataset") if artifact.manifest else None
        if artifact.manifest is None:
            drop(artifact.path, "damaged")
        elif (artifact.stage, artifact.key) in reached.users or dataset in reached.closed:
            kept.append(artifact)
        else:
            drop(artifact.path, "no study and no table asks for it")
    for stage in folders(paths.stages):
        for entry in entries(Path(stage.path)):
            if entry.name.startswith(ATTEMPT):
                drop(Path(entry.path), "an attempt that died")
    _chains(store, reached, drop)
    _caches(store, kept, notes, drop)
    for stage in folders(paths.failures):
        for entry in entries(Path(stage.path)):
            key = entry.name.removesuffix(".json")
            if KEY.fullmatch(key) and (stage.name, key) not in reached.users and not reached.closed:
                drop(Path(entry.path), "no study and no table asks for it")
    for entry in entries(StorePaths(store).leases):
        dead = entry.name.startswith(".") or (
            entry.name.endswith(LEASE_SUFFIX) and holder_alive(Path(entry.path)) is False
        )
        if dead and entry.is_file(follow_symlinks=False):
            drop(Path(entry.path), "its holder is gone")
    for entry in entries(paths.locks):
        if entry.name.endswith(".lock"):
            drop(Path(entry.path), "a lock of an earlier version")
    for entry in entries(paths.studies):
        path = Path(entry.path)
        if path.suffix == ".parquet" and not path.with_suffix(".journal").exists():
            drop(path, "an index without a journal")
        elif entry.name.startswith(TEMPORARY_IMPORT):
            drop(path, "an import that died")
    for entry in entries(store):
        if entry.name.startswith(TRASH):
            drop(Path(entry.path), "a collection that was interrupted")
    return CollectionPlan(tuple(garbage), tuple(notes), len(kept))


def _chains(store: Path, reached: Reachability, drop: Callable[[Path, str], None]) -> None:
    for stage in folders(StorePaths(store).chains):
        for entry in folders(Path(stage.path)):
            if not KEY.fullmatch(entry.name):
                continue
            if (stage.name, entry.name) not in reached.chains and not reached.closed:
                drop(Path(entry.path), "no study and no table asks for it")
                continue
            for inner in entries(Path(entry.path)):
                if inner.name.startswith(ATTEMPT):
                    drop(Path(inner.path), "an attempt that died")
                elif inner.name.endswith(".damaged"):
                    drop(Path(inner.path), "damaged")


def _caches(store: Path, kept: Sequence[StoredStage], notes: list[str], drop: Callable[[Path, str], None]) -> None:
    """Packs and features. An artifact of an earlier version does not tell what it read: then all are kept."""
    silent = [a for a in kept if a.manifest is not None and a.manifest.read is None]
    if silent:
        notes.append(f"all packs and features are kept: {len(silent)} artifacts of an earlier version use some of them")
        return
    named = {name for artifact in kept if artifact.manifest for name in artifact.manifest.read or ()}
    paths = StorePaths(store)
    for folder in (paths.packs, paths.features):
        for entry in entries(folder):
            if not entry.is_symlink() and paths.relative(folder / entry.name) not in named:
                drop(Path(entry.path), "no artifact that is kept was made from it")


# ------------------------------------------------------------------ away with it


def collect(store: Path, garbage: Iterable[Garbage]) -> int:
    """Deletes; returns the bytes. Each goes out of sight by one rename first, so that no reader sees a half."""
    trash = store / f"{TRASH}{uuid.uuid4().hex}"
    freed = 0
    with store_errors(store):
        trash.mkdir()
        try:
            for i, item in enumerate(garbage):
                _assert_inside_store(store, item.path)
                try:
                    os.rename(item.path, trash / str(i))
                except FileNotFoundError:
                    continue
                freed += item.bytes
        finally:
            shutil.rmtree(trash)
    paths = StorePaths(store)
    for kind in (paths.stages, paths.chains, paths.failures, paths.locks):
        for folder in [*map(Path, folders(kind)), kind]:
            if folder.is_dir() and not folder.is_symlink() and not entries(folder):
                folder.rmdir()
    return freed


def _assert_inside_store(store: Path, path: Path) -> None:
    """Raises RazError when the path leads out of the store or through a link: such a thing is never deleted."""
    parts = path.relative_to(store).parts
    place = store
    for part in parts[:-1]:
        place = place / part
        if place.is_symlink():
            raise RazError(str(path), "lies behind a link, and is left alone", "delete it by hand")
    if not parts or any(part in ("..", ".") for part in parts):
        raise RazError(str(path), "lies outside the store")


def list_artifacts(store: Path) -> list[StoredStage]:
    """The artifacts of a store that is there."""
    check_store(store)
    return list(stages(store))
