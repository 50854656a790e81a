"""Scores as the store holds them: metrics with where they come from, read through one index.

    STORE/reports/scores.parquet      a row a score

Opening ten thousand artifacts takes a minute, reading the index a fraction of a second. It is derived: an artifact
that is newer than its row, or has none, is read (and verified) and its row written. A store that may only be read is
read without.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raz.errors import RazError
from raz.pipeline.graph import Node
from raz.store.cache import StageCache
from raz.store.manifest import Manifest, read_manifest
from raz.store.paths import MANIFEST, METRICS, PER_IMAGE, StorePaths
from raz.utils.atomic import atomic_write
from raz.utils.json_types import JsonLike

LAYOUT = 2  # raise it when the same scores would give another index


@dataclass(frozen=True)
class TrialScores:
    """A trial's scores: metrics by dotted name, and of each split the key, the folder and what made it."""

    metrics: Mapping[str, float]
    keys: Mapping[str, str]  # split -> key of the score
    about: Mapping[str, Mapping[str, Any]]  # split -> device, versions, seconds, data, config, made (`Makers`)
    folders: Mapping[str, Path]

    def per_image(self, split: str) -> dict[str, NDArray[Any]]:
        """What the score keeps of each image. Raises RazError when the artifact cannot be read."""
        if split not in self.folders:
            raise RazError(f"score of {split}", "no artifact is known", "run the table again")
        path = self.folders[split] / PER_IMAGE
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, KeyError) as error:
            raise RazError(str(path), f"cannot be read: {error}", "delete its folder and run the table again") from None


@dataclass(frozen=True)
class StoredScore:
    """A score that the store has, whoever asks for it: the trial it was made for."""

    key: str
    split: str
    config: Mapping[str, Any]  # dotted name -> value


def manifest_of(store: Path, node: str, key: str) -> Manifest | None:
    """The manifest of a stage's artifact (`zoom2@test`); None where it cannot be read."""
    try:
        return read_manifest(StorePaths(store).stage(Node.parse(node).stage, key))
    except (OSError, ValueError):
        return None


class ProvenanceIndex:
    """What made an artifact and everything that went into it: sets of commits, kinds of device and torch versions."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._known: dict[str, Mapping[str, frozenset[str]]] = {}

    def of(self, manifest: Manifest) -> Mapping[str, frozenset[str]]:
        """kind (code, device, torch) -> values; of needs that are no longer in the store nothing is known."""
        versions = manifest.versions
        own = {
            "code": versions.get("commit") or versions.get("raz-sweep"), "device": manifest.device,
            "torch": versions.get("torch"),
        }  # fmt: skip
        out = {kind: frozenset([str(value)]) if value else frozenset() for kind, value in own.items()}
        for node, key in manifest.needs.items():
            if key not in self._known:
                needed = manifest_of(self.store, node, key)
                self._known[key] = self.of(needed) if needed is not None else {}
            for kind, values in self._known[key].items():
                out[kind] = out[kind] | values
        return out


class ScoreIndex:
    """The scores of one store."""

    def __init__(self, store: Path) -> None:
        self.store = Path(store)
        self.damaged: list[Path] = []  # folders of scores that were asked for and are not whole

    @cached_property
    def _stamps(self) -> dict[str, int]:
        """Key -> time of its manifest, of every score there is."""
        out = {}
        try:
            with os.scandir(StorePaths(self.store).stages / "score") as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        try:
                            out[entry.name] = os.stat(os.path.join(entry.path, MANIFEST)).st_mtime_ns
                        except OSError:  # no manifest: not whole
                            out[entry.name] = -1
        except OSError:
            return {}
        return out

    @cached_property
    def _rows(self) -> dict[str, tuple[str, str]]:
        """Key -> (metrics, about) as JSON, of every whole score; what is new is read, and the index written again."""
        known = self._read()
        rows = {key: known[key][1:] for key, stamp in self._stamps.items() if key in known and known[key][0] == stamp}
        fresh = [key for key in self._stamps if key not in rows]
        cache, makers = StageCache(self.store), ProvenanceIndex(self.store)
        for key in fresh:
            artifact = cache.get("score", key)
            if artifact is None:
                continue
            try:
                metrics = (artifact.folder / METRICS).read_text(encoding="utf-8")
                manifest = artifact.manifest
                about: dict[str, JsonLike] = {
                    "device": manifest.device, "versions": manifest.versions, "seconds": manifest.seconds,
                    "config": manifest.config, "data": manifest.data,
                    "made": {kind: sorted(values) for kind, values in makers.of(manifest).items()},
                }  # fmt: skip
                rows[key] = (json.dumps(json.loads(metrics)), json.dumps(about))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        if len(fresh) > len(self._stamps) - len(rows) or len(known) != len(rows):
            self._write(rows)
        return rows

    def find(self, keys: Mapping[str, str]) -> TrialScores | None:
        """The scores under these keys, split -> key; None when one is missing, or damaged (see `damaged`)."""
        metrics: dict[str, float] = {}
        about = {}
        folders = {split: StorePaths(self.store).stage("score", key) for split, key in keys.items()}
        for split, key in keys.items():
            row = self._rows.get(key)
            if row is None:
                if key in self._stamps:
                    self.damaged.append(folders[split])
                return None
            metrics |= {f"{split}.{name}": float(value) for name, value in json.loads(row[0]).items()}
            about[split] = json.loads(row[1])
        return TrialScores(metrics, keys, about, folders)

    def all_scores(self) -> tuple[StoredScore, ...]:
        """Every whole score there is."""
        out = []
        for key, (_, about) in self._rows.items():
            told = json.loads(about)
            out.append(StoredScore(key, next(iter(told.get("data") or {}), ""), told.get("config") or {}))
        return tuple(out)

    @property
    def _path(self) -> Path:
        return StorePaths(self.store).score_index

    def _read(self) -> dict[str, tuple[int, str, str]]:
        try:
            table = pq.read_table(self._path, use_threads=False, partitioning=None)
            if (table.schema.metadata or {}).get(b"layout") != str(LAYOUT).encode():
                return {}
            columns = [table.column(name).to_pylist() for name in ("key", "stamp", "metrics", "about")]
        except (OSError, KeyError, pa.ArrowException):
            return {}
        return {key: (stamp, metrics, about) for key, stamp, metrics, about in zip(*columns, strict=True)}

    def _write(self, rows: Mapping[str, tuple[str, str]]) -> None:
        """Aside and renamed. A store that cannot be written is read all the same, only slower."""
        table = pa.table(
            {
                "key": pa.array(rows, pa.string()),
                "stamp": pa.array([self._stamps[key] for key in rows], pa.int64()),
                "metrics": pa.array([row[0] for row in rows.values()], pa.string()),
                "about": pa.array([row[1] for row in rows.values()], pa.string()),
            }
        ).replace_schema_metadata({"layout": str(LAYOUT)})
        with suppress(OSError), atomic_write(self._path) as aside:
            pq.write_table(table, aside)
