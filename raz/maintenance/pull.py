"""`pull`: copies studies, notes of tables, scores and, on request, trained stages from another store into this one.

A second pull copies only what is new. Everything is written to a temporary folder and checked before it is moved into
place. A study that has diverged in the two stores is refused, not merged.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raz.errors import RazError
from raz.maintenance.reachability import compute_reachability
from raz.store.cache import StageCache, store_errors
from raz.store.inventory import KEY, StoredStage, check_store, integrity_errors, stages
from raz.store.manifest import read_manifest
from raz.store.paths import MANIFEST, StorePaths
from raz.store.s3 import bucket_for
from raz.study.journal import journal_path, read_journal, registration_lock, study_names
from raz.study.records import load_optuna_study, locked_study
from raz.utils import formatting
from raz.utils.json_types import JsonLike
from raz.utils.suggestions import did_you_mean

ALWAYS_PULLED = "score"  # the stage whose artifacts are always copied, because reports of tables need them
StudyState = Literal["new", "gone on", "as it was", "this store's is newer"]


@dataclass(frozen=True)
class PulledStudy:
    """A study, its number of trials in the source, and what the pull did with it."""

    name: str
    trials: int
    state: StudyState


@dataclass
class PulledStages:
    """The artifacts that a pull has copied so far."""

    count: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)  # STAGE/KEY of artifacts that were left out


@dataclass(frozen=True)
class PullResult:
    """What a pull brought into the store."""

    source: str
    studies: tuple[PulledStudy, ...]
    tables: int  # new notes of tables
    stages: int  # new artifacts
    bytes: int  # of the new artifacts
    damaged: tuple[str, ...]  # STAGE/KEY of artifacts that were left out

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "from": self.source,
            "studies": [{"study": s.name, "trials": s.trials, "state": s.state} for s in self.studies],
            "tables": self.tables,
            "stages": self.stages,
            "bytes": self.bytes,
            "damaged": self.damaged,
        }

    def to_text(self) -> str:
        """Lines for a terminal."""
        out = [f"study {study.name}: {study.trials} trials, {study.state}" for study in self.studies]
        size = f" ({formatting.size(self.bytes)})" if self.stages else ""
        out.append(f"{self.tables} new tables, {self.stages} new stages{size}")
        return "\n".join(out + [f"left there, since it is damaged: {name}" for name in self.damaged])


def pull(
    source: Path, store: Path, names: Sequence[str] = (), *, artifacts: bool = False, data_root: Path | None = None
) -> PullResult:
    """Copies the studies `names` (default: all) of the store `source` into `store`, with their scores.

    Without names the notes of tables are copied, too; `artifacts` copies also networks and predictions. Raises RazError
    when there is no such store or study, when a study runs in `store` or has diverged in the two stores, and when a
    journal or a note arrives damaged.
    """
    check_store(source)
    if bucket_for(store) is not None:
        raise RazError("--store", f"{bucket_for(store)} is filled by runs, not by copying", "pull into a folder")
    known = study_names(source)
    for name in names:
        if name not in known:
            raise RazError(f"study {name}", f"{source} has no such study", did_you_mean(name, known) if known else "")
    _download_wanted(source, artifacts)
    copied = PulledStages()
    with store_errors(store):
        StorePaths(store).studies.mkdir(parents=True, exist_ok=True)
        with registration_lock(store):  # no garbage collection meanwhile: it would delete stages of these studies
            folder = StorePaths(store).temporary_import()
            folder.mkdir()
            try:
                studies = tuple(_pull_study(source, store, name, folder) for name in names or known)
                tables = 0 if names else _pull_tables(source, store, folder)
                for artifact in _wanted(source, names, artifacts, data_root):
                    _pull_artifact(artifact, store, folder, copied)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return PullResult(str(source), studies, tables, copied.count, copied.bytes, tuple(copied.damaged))


def _download_wanted(source: Path, every: bool) -> None:
    """Where `source` mirrors a bucket: downloads the wanted artifacts into the mirror."""
    cache = StageCache(source)
    if cache.tier is not None:
        for name in cache.tier.bucket.names(cache.paths.relative(cache.paths.stages)):
            parts = Path(name).parts
            if parts[3:] == (MANIFEST,) and KEY.fullmatch(parts[2]) and (every or parts[1] == ALWAYS_PULLED):
                cache.get(parts[1], parts[2])


def _pull_study(source: Path, store: Path, name: str, folder: Path) -> PulledStudy:
    """Copies a study's journal. Journals only grow: if one begins with the other, the longer one is newer."""
    data = read_journal(journal_path(source, name))
    final = journal_path(store, name)
    checked = journal_path(folder, name)
    checked.parent.mkdir(exist_ok=True)
    checked.write_bytes(data)
    trials = len(load_optuna_study(folder, name).get_trials(deepcopy=False))  # raises for a damaged journal
    with locked_study(store, name, "pull into another --store"):
        mine = final.read_bytes() if final.exists() else b""
        if mine.startswith(data):
            return PulledStudy(name, trials, "as it was" if mine == data else "this store's is newer")
        if not data.startswith(mine):
            raise RazError(
                f"study {name}", f"has diverged: {store} and {source} each have records that the other lacks",
                "pull into another --store",
            )  # fmt: skip
        with checked.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(checked, final)
        return PulledStudy(name, trials, "gone on" if mine else "new")


def _pull_tables(source: Path, store: Path, folder: Path) -> int:
    """Copies the notes of tables that the store lacks; equal names have equal contents. Returns their number."""
    count = 0
    for path in sorted(StorePaths(source).tables.glob("*.json")):
        final = StorePaths(store).tables / path.name
        if path.is_symlink() or final.exists():
            continue
        data = path.read_bytes()
        try:
            json.loads(data)
        except ValueError:
            raise RazError(str(path), "is not valid JSON, expected the note of a table", "pull again") from None
        final.parent.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(data)
        os.replace(folder / path.name, final)
        count += 1
    return count


def _wanted(source: Path, names: Sequence[str], every: bool, data_root: Path | None) -> Iterator[StoredStage]:
    """The artifacts to copy: scores, or with `every` all stages; with `names`, only those that these studies reach."""
    artifacts = list(stages(source))
    if names:
        users = compute_reachability(source, artifacts, data_root=data_root).users
        artifacts = [a for a in artifacts if users.get((a.stage, a.key), set()) & set(names)]
    yield from (artifact for artifact in artifacts if every or artifact.stage == ALWAYS_PULLED)


def _pull_artifact(artifact: StoredStage, store: Path, folder: Path, copied: PulledStages) -> None:
    """Copies an artifact that the store lacks, and checks the copy before it is moved into place."""
    final = StorePaths(store).stage(artifact.stage, artifact.key)
    name = f"{artifact.stage}/{artifact.key}"
    if artifact.manifest is None:
        copied.damaged.append(name)
        return
    if (final / MANIFEST).exists():
        return
    copy = folder / artifact.key
    copy.mkdir()
    for file in (MANIFEST, *artifact.manifest.files):
        if os.path.basename(file) != file:
            break
        shutil.copyfile(artifact.path / file, copy / file, follow_symlinks=False)
    manifest = read_manifest(copy)
    if integrity_errors(StoredStage(artifact.stage, artifact.key, copy, 0, 0.0, manifest)):
        copied.damaged.append(name)
        shutil.rmtree(copy)
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    copy.rename(final)
    copied.count += 1
    copied.bytes += artifact.bytes
