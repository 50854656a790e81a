"""`store gc`: deletes what no study and no table reaches. It refuses to run while a process works in the store.

It deletes unreachable artifacts, training chains and failure notes, the remains of attempts and imports whose process
died, packs and features that no kept artifact was made from, and indexes without a journal. It deletes only files of
the store's layout, inside the store, and follows no link.
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
from raz.store.inventory import KEY, StoredStage, bytes_of, entries, folders
from raz.store.lease import ATTEMPT, HEARTBEATS, heartbeat, holder_alive, lease_seconds
from raz.store.paths import LEASE_SUFFIX, TEMPORARY_IMPORT, StorePaths
from raz.study.journal import journal_path, lock_path, registration_lock, study_names
from raz.utils import formatting
from raz.utils.json_types import JsonLike

TRASH = ".trash-"


@dataclass(frozen=True)
class Garbage:
    """A file or folder to delete."""

    path: Path
    why: str  # the reason, in words for people
    bytes: int


@dataclass(frozen=True)
class CollectionPlan:
    """What a collection deletes."""

    garbage: tuple[Garbage, ...]
    notes: tuple[str, ...]  # on what is kept because it is unknown whether something reaches it
    kept: int  # number of artifacts

    @property
    def bytes(self) -> int:
        """Size of all garbage."""
        return sum(item.bytes for item in self.garbage)


@dataclass(frozen=True)
class CollectionResult:
    """A collection that has run, or its plan with `dry_run`."""

    store: Path
    plan: CollectionPlan
    freed: int  # bytes
    dry_run: bool

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        deleted: list[JsonLike] = [{"path": self._name(g), "why": g.why, "bytes": g.bytes} for g in self.plan.garbage]
        return {
            "deleted": deleted, "bytes": self.freed, "kept": self.plan.kept, "notes": self.plan.notes,
            "dry_run": self.dry_run,
        }  # fmt: skip

    def to_text(self) -> str:
        """A table of the garbage, the notes, then the totals."""
        rows = [(_shortened(self._name(g)), formatting.size(g.bytes), g.why) for g in self.plan.garbage]
        table = formatting.columns(("what", "size", "why"), rows, right=(1,)) if rows else []
        verb = "would be freed" if self.dry_run else "freed"
        totals = f"{formatting.size(self.freed)} {verb}, {len(rows)} things; {self.plan.kept} stages kept"
        return "\n".join([*table, *self.plan.notes, totals])

    def _name(self, garbage: Garbage) -> str:
        return str(garbage.path.relative_to(self.store))


def _shortened(name: str) -> str:
    return name if len(name) < 60 else f"{name[:56]}…"


# ------------------------------------------------------------------ processes in the store


def held_leases(store: Path) -> list[str]:
    """A text for each stage that a process is making in the store.

    Whether a holder on another machine is alive is not known, so its lease is watched for the longest time between two
    heartbeats of a living holder.
    """
    out: list[str] = []
    unknown: dict[Path, str] = {}  # lease -> its heartbeat
    for entry in entries(StorePaths(store).leases):
        path = Path(entry.path)
        if path.suffix == LEASE_SUFFIX and entry.is_file(follow_symlinks=False):
            alive = holder_alive(path)
            if alive:
                out.append(f"{path.stem[:40]} is being made")
            elif alive is None:
                unknown[path] = heartbeat(path)
    deadline = time.monotonic() + lease_seconds()
    while unknown and not out and time.monotonic() < deadline:
        time.sleep(min(lease_seconds() / HEARTBEATS, 1.0))
        out += [
            f"{p.stem[:40]} is being made on another machine" for p, before in unknown.items() if heartbeat(p) != before
        ]
    return out


@contextmanager
def locked_store(store: Path) -> Iterator[None]:
    """Keeps drivers of studies, also of new ones, from starting while the context lasts.

    Raises RazError when a process works in the store.
    """
    with ExitStack() as stack:
        stack.enter_context(registration_lock(store))
        starting = (path.stem for path in StorePaths(store).studies.glob("[!.]*.lock"))  # may have no journal yet
        for name in sorted({*study_names(store), *starting}):
            lock = filelock.FileLock(lock_path(journal_path(store, name)))
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except filelock.Timeout:
                raise _refusal(store, [f"study {name} has a driver"]) from None
        if working := held_leases(store):
            raise _refusal(store, working)
        yield


def _refusal(store: Path, working: Sequence[str]) -> RazError:
    shown = ", ".join(working[:3]) + (f" and {len(working) - 3} more" if len(working) > 3 else "")
    return RazError(f"store {store}", f"is in use: {shown}", "wait for it, or stop it; --dry-run shows")


# ------------------------------------------------------------------ plan


def plan(store: Path, artifacts: Sequence[StoredStage], reached: Reachability) -> CollectionPlan:
    """What a collection deletes, and notes on what it keeps because it is unknown whether something reaches it."""
    garbage: list[Garbage] = []
    notes = [f"everything of data set {name} is kept, since it cannot be opened: {why}" for name, why in
             sorted(reached.unreadable.items())]  # fmt: skip
    paths = StorePaths(store)

    def drop(path: Path, why: str) -> None:
        garbage.append(Garbage(path, why, bytes_of(path)))

    kept: list[StoredStage] = []
    for artifact in artifacts:
        dataset = artifact.manifest.config.get("dataset") if artifact.manifest else None
        if artifact.manifest is None:
            drop(artifact.path, "damaged")
        elif (artifact.stage, artifact.key) in reached.users or dataset in reached.unreadable:
            kept.append(artifact)
        else:
            drop(artifact.path, "no study and no table reaches it")
    for stage in folders(paths.stages):
        for entry in entries(Path(stage.path)):
            if entry.name.startswith(ATTEMPT):
                drop(Path(entry.path), "an attempt that died")
    _chains(store, reached, drop)
    _caches(store, kept, notes, drop)
    for stage in folders(paths.failures):
        for entry in entries(Path(stage.path)):
            key = entry.name.removesuffix(".json")
            if KEY.fullmatch(key) and (stage.name, key) not in reached.users and not reached.unreadable:
                drop(Path(entry.path), "no study and no table reaches it")
    for entry in entries(paths.leases):
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
    """Unreached training chains, and in the others attempts that died and damaged checkpoints."""
    for stage in folders(StorePaths(store).chains):
        for entry in folders(Path(stage.path)):
            if not KEY.fullmatch(entry.name):
                continue
            if (stage.name, entry.name) not in reached.chains and not reached.unreadable:
                drop(Path(entry.path), "no study and no table reaches it")
                continue
            for inner in entries(Path(entry.path)):
                if inner.name.startswith(ATTEMPT):
                    drop(Path(inner.path), "an attempt that died")
                elif inner.name.endswith(".damaged"):
                    drop(Path(inner.path), "damaged")


def _caches(store: Path, kept: Sequence[StoredStage], notes: list[str], drop: Callable[[Path, str], None]) -> None:
    """Packs and features. Artifacts of earlier versions do not name what they read; if there is one, all are kept."""
    unnamed = [a for a in kept if a.manifest is not None and a.manifest.read is None]
    if unnamed:
        notes.append(
            f"all packs and features are kept: {len(unnamed)} artifacts of an earlier version use some of them"
        )
        return
    named = {name for artifact in kept if artifact.manifest for name in artifact.manifest.read or ()}
    paths = StorePaths(store)
    for folder in (paths.packs, paths.features):
        for entry in entries(folder):
            if not entry.is_symlink() and paths.relative(folder / entry.name) not in named:
                drop(Path(entry.path), "no artifact that is kept was made from it")


# ------------------------------------------------------------------ deletion


def collect(store: Path, garbage: Iterable[Garbage]) -> int:
    """Deletes the garbage and empty folders. Returns the bytes freed.

    Each item is first moved away by one rename, so that no reader sees a part of it.
    """
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
    """Raises RazError where the path leads out of the store or through a link; such a path is never deleted."""
    parts = path.relative_to(store).parts
    folder = store
    for part in parts[:-1]:
        folder = folder / part
        if folder.is_symlink():
            raise RazError(str(path), "lies behind a link, and is left alone", "delete it by hand")
    if not parts or any(part in ("..", ".") for part in parts):
        raise RazError(str(path), "lies outside the store")
