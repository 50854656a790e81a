"""What others have run, brought into this store: studies, notes of tables, scores and, if asked for, trained stages.

A second pull brings only what is new. Everything is written aside and checked before it appears, and a study that
went on in both places is refused, not merged.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raz.errors import RazError
from raz.maintenance.reachability import compute_reachability
from raz.store.cache import StageCache, store_errors
from raz.store.inventory import KEY, StoredStage, check_store, integrity_errors, stages
from raz.store.manifest import read_manifest
from raz.store.paths import MANIFEST, StorePaths
from raz.store.s3 import bucket_for
from raz.study.journal import journal_path, registration_lock, study_names
from raz.study.records import exclusive, load_study
from raz.utils import formatting
from raz.utils.suggestions import did_you_mean

ALWAYS_PULLED = "score"  # the stage whose artifacts always come: reports of tables are made of them


def pull(
    source: Path, store: Path, names: Sequence[str] = (), *, artifacts: bool = False, data_root: Path | None = None
) -> dict[str, Any]:
    """Brings the studies `names` (all, where none is named) of the store `source` into `store`; returns what came.

    With them come the notes of tables that were run, and the scores; with `artifacts` also the networks and
    predictions behind them. Raises RazError when there is no such store or study, when a study is running in `store`
    or has gone on in both places, and when something arrives damaged.
    """
    check_store(source)
    if bucket_for(store) is not None:
        raise RazError("--store", f"{bucket_for(store)} is filled by runs, not by copying", "pull into a folder")
    known = study_names(source)
    for name in names:
        if name not in known:
            raise RazError(f"study {name}", f"{source} has no such study", did_you_mean(name, known) if known else "")
    told: dict[str, Any] = {"from": str(source), "studies": [], "tables": 0, "stages": 0, "bytes": 0, "damaged": []}
    _download_wanted(source, artifacts)
    with store_errors(store):
        StorePaths(store).studies.mkdir(parents=True, exist_ok=True)
        with registration_lock(store):  # a collection that has begun would not know what these studies ask for
            aside = StorePaths(store).temporary_import()
            aside.mkdir()
            try:
                for name in names or known:
                    told["studies"].append({"study": name, **_study(source, store, name, aside)})
                if not names:
                    told["tables"] = _tables(source, store, aside)
                for artifact in _wanted(source, names, artifacts, data_root):
                    _artifact(artifact, store, aside, told)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return told


def pull_lines(told: dict[str, Any]) -> list[str]:
    """What `pull` brought, for people."""
    out = [f"study {s['study']}: {s['trials']} trials, {s['state']}" for s in told["studies"]]
    size = f" ({formatting.size(told['bytes'])})" if told["stages"] else ""
    out.append(f"{told['tables']} new tables, {told['stages']} new stages{size}")
    return out + [f"left there, since it is damaged: {place}" for place in told["damaged"]]


def _download_wanted(source: Path, every: bool) -> None:
    """Of a store in a bucket: what is wanted of it comes to the folder that stands for it."""
    cache = StageCache(source)
    if cache.tier is not None:
        for name in cache.tier.bucket.names(cache.paths.relative(cache.paths.stages)):
            parts = Path(name).parts
            if parts[3:] == (MANIFEST,) and KEY.fullmatch(parts[2]) and (every or parts[1] == ALWAYS_PULLED):
                cache.get(parts[1], parts[2])


def _study(source: Path, store: Path, name: str, aside: Path) -> dict[str, Any]:
    """A journal only grows, so the longer of two that begin alike is the newer."""
    data = journal_path(source, name).read_bytes()
    data = data[: data.rfind(b"\n") + 1]  # its driver may be writing the next line
    final = journal_path(store, name)
    checked = journal_path(aside, name)
    checked.parent.mkdir(exist_ok=True)
    checked.write_bytes(data)
    trials = len(load_study(aside, name).get_trials(deepcopy=False))  # raises RazError for a damaged journal
    with exclusive(store, name, "pull into another --store"):
        mine = final.read_bytes() if final.exists() else b""
        if mine.startswith(data):
            return {"trials": trials, "state": "as it was" if mine == data else "this store's is newer"}
        if not data.startswith(mine):
            raise RazError(
                f"study {name}", f"it has gone on in {store} and in {source}, each in its own way",
                "pull into another --store",
            )  # fmt: skip
        with checked.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(checked, final)
        return {"trials": trials, "state": "gone on" if mine else "new"}


def _tables(source: Path, store: Path, aside: Path) -> int:
    """The notes of tables that were run; their names tell their content, so one that is there stays."""
    count = 0
    for path in sorted(StorePaths(source).tables.glob("*.json")):
        final = StorePaths(store).tables / path.name
        if path.is_symlink() or final.exists():
            continue
        data = path.read_bytes()
        try:
            json.loads(data)
        except ValueError:
            raise RazError(str(path), "the note of a table arrived damaged", "pull again") from None
        final.parent.mkdir(exist_ok=True)
        (aside / path.name).write_bytes(data)
        os.replace(aside / path.name, final)
        count += 1
    return count


def _wanted(source: Path, names: Sequence[str], every: bool, data_root: Path | None) -> Iterator[StoredStage]:
    """The finished stages that are to come. Without names all scores, or all that there is."""
    found = list(stages(source))
    if names:
        users = compute_reachability(source, found, data_root=data_root).users
        found = [a for a in found if users.get((a.stage, a.key), set()) & set(names)]
    yield from (artifact for artifact in found if every or artifact.stage == ALWAYS_PULLED)


def _artifact(artifact: StoredStage, store: Path, aside: Path, told: dict[str, Any]) -> None:
    """Copies one, checks the copy, and puts it into place where there is none."""
    final = StorePaths(store).stage(artifact.stage, artifact.key)
    if (final / MANIFEST).exists() or artifact.manifest is None:
        if artifact.manifest is None:
            told["damaged"].append(f"{artifact.stage}/{artifact.key}")
        return
    copy = aside / artifact.key
    copy.mkdir()
    for name in (MANIFEST, *artifact.manifest.files):
        if os.path.basename(name) != name:
            break
        shutil.copyfile(artifact.path / name, copy / name, follow_symlinks=False)
    manifest = read_manifest(copy)
    if integrity_errors(StoredStage(artifact.stage, artifact.key, copy, 0, 0.0, manifest)):
        told["damaged"].append(f"{artifact.stage}/{artifact.key}")
        shutil.rmtree(copy)
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    copy.rename(final)
    told["stages"] += 1
    told["bytes"] += artifact.bytes
