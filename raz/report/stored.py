"""Scores as the store holds them: metrics with where they come from, read through one index.

    STORE/reports/scores.parquet      a row a score

Opening ten thousand artifacts takes a minute, reading the index a fraction of a second. It is derived: an artifact
that is newer than its row, or has none, is read (and verified) and its row written. A store that may only be read is
read without.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raz.errors import RazError
from raz.pipeline.cache import MANIFEST, StageCache

LAYOUT = 1


@dataclass(frozen=True)
class Found:
    """A trial's scores: metrics by dotted name, and of each split the key, the folder and what made it."""

    metrics: Mapping[str, float]
    keys: Mapping[str, str]  # split -> key of the score
    about: Mapping[str, Mapping[str, Any]]  # split -> device, versions, seconds, data, config
    folders: Mapping[str, Path]

    def per_image(self, split: str) -> dict[str, NDArray[Any]]:
        """What the score keeps of each image. Raises RazError when the artifact cannot be read."""
        if split not in self.folders:
            raise RazError(f"score of {split}", "no artifact is known", "run the table again")
        path = self.folders[split] / "per_image.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, KeyError) as error:
            raise RazError(str(path), f"cannot be read: {error}", "delete its folder and run the table again") from None


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
            with os.scandir(self.store / "stages" / "score") as entries:
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
        cache = StageCache(self.store)
        for key in fresh:
            artifact = cache.read("score", key)
            if artifact is None:
                continue
            try:
                metrics = (artifact.folder / "metrics.json").read_text(encoding="utf-8")
                manifest = artifact.manifest
                about = {name: manifest.get(name) for name in ("device", "versions", "seconds", "config")}
                about["data"] = manifest["key"]["data"]
                rows[key] = (json.dumps(json.loads(metrics)), json.dumps(about))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        if len(fresh) > len(self._stamps) - len(rows) or len(known) != len(rows):
            self._write(rows)
        return rows

    def find(self, keys: Mapping[str, str]) -> Found | None:
        """The scores under these keys, split -> key; None when one is missing, or damaged (see `damaged`)."""
        metrics: dict[str, float] = {}
        about = {}
        folders = {split: self.store / "stages" / "score" / key for split, key in keys.items()}
        for split, key in keys.items():
            row = self._rows.get(key)
            if row is None:
                if key in self._stamps:
                    self.damaged.append(folders[split])
                return None
            metrics |= {f"{split}.{name}": float(value) for name, value in json.loads(row[0]).items()}
            about[split] = json.loads(row[1])
        return Found(metrics, keys, about, folders)

    @property
    def _path(self) -> Path:
        return self.store / "reports" / "scores.parquet"

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
        aside = self._path.with_name(f".{self._path.name}-{uuid.uuid4().hex}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, aside)
            aside.replace(self._path)
        except OSError:
            return
        finally:
            aside.unlink(missing_ok=True)
