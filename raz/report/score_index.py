"""Metrics and provenance of the store's scores, read through an index.

    STORE/reports/scores.parquet      one row a score

Opening ten thousand artifacts takes a minute; reading the index takes a fraction of a second. The index is derived
data: an artifact that has no row, or is newer than its row, is read, verified and indexed. In a read-only store the
index is not written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raz.errors import RazError
from raz.pipeline.graph import Node
from raz.pipeline.weights import weights_text
from raz.report.per_image import PerImage
from raz.store.cache import StageCache
from raz.store.manifest import Manifest, read_manifest
from raz.store.paths import MANIFEST, METRICS, PER_IMAGE, StorePaths
from raz.utils.atomic import atomic_write
from raz.utils.json_types import Json, JsonLike, JsonObject, object_or_empty, parse_json, parse_object

SCHEMA_VERSION = 4  # raise it when the index of the same scores changes


@dataclass(frozen=True)
class ScoreProvenance:
    """What made a score.

    versions: package -> version. data: split -> fingerprint of its images. config: dotted name -> value. made: kind
    (code, device, stage device, torch, weights) -> its values over the score and everything it was computed from.
    Devices are those of the networks: a score uses none, and a device of its own says nothing of it.
    """

    device: str
    versions: Mapping[str, str]
    data: Mapping[str, str]
    config: Mapping[str, Json]
    made: Mapping[str, tuple[str, ...]]

    @classmethod
    def from_json(cls, document: JsonObject) -> ScoreProvenance:
        """From the index's column `about`; fields that it lacks are empty."""
        made = {
            kind: tuple(map(str, values))
            for kind, values in object_or_empty(document.get("made")).items()
            if isinstance(values, list)
        }
        return cls(
            str(document.get("device") or ""), _texts(document.get("versions")), _texts(document.get("data")),
            object_or_empty(document.get("config")), made,
        )  # fmt: skip


def _texts(value: Json) -> dict[str, str]:
    return {name: str(text) for name, text in object_or_empty(value).items() if text is not None}


@dataclass(frozen=True)
class TrialScores:
    """The scores of one trial.

    metrics: dotted name -> value. keys, provenance, folders: split -> the score's key, what made it, its artifact.
    images: split -> per-image part, of scores from a file (`raz.report.score_file`), which have no artifact.
    """

    metrics: Mapping[str, float]
    keys: Mapping[str, str]
    provenance: Mapping[str, ScoreProvenance]
    folders: Mapping[str, Path]
    images: Mapping[str, PerImage] = field(default_factory=dict)

    def per_image(self, split: str) -> PerImage:
        """The per-image part of a split's score. Raises RazError where its artifact is unknown or cannot be read."""
        return self.images[split] if split in self.images else PerImage.load(self.per_image_path(split))

    def per_image_path(self, split: str) -> Path:
        """The file with the per-image part of a split's score. Raises RazError where its artifact is unknown."""
        if split not in self.folders:
            raise RazError(f"score of {split}", "no artifact is known", "run the table again")
        return self.folders[split] / PER_IMAGE


@dataclass(frozen=True)
class StoredScore:
    """A score in the store, and the trial that it was made for (dotted name -> value)."""

    key: str
    split: str
    config: Mapping[str, Json]


def manifest_of(store: Path, node: str, key: str) -> Manifest | None:
    """The manifest of a stage's artifact, node as `zoom2@test`; None where it cannot be read."""
    try:
        manifest = read_manifest(StorePaths(store).stage(Node.parse(node).stage, key))
        _ = manifest.needs  # raises ValueError where the key's content is damaged
        return manifest
    except (OSError, ValueError):
        return None


class ProvenanceIndex:
    """Commits, devices, torch versions and pretrained weights behind an artifact and all that it was made from."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._by_key: dict[str, Mapping[str, frozenset[str]]] = {}

    def of(self, manifest: Manifest) -> Mapping[str, frozenset[str]]:
        """Kind (`ScoreProvenance.made`) -> values. Artifacts that are no longer in the store add nothing."""
        versions = manifest.versions
        devices = {stage: on for stage, on in manifest.devices.items() if on}
        if manifest.device and manifest.key.get("stage") != "score":  # whose device says nothing of the networks
            devices[manifest.stage] = manifest.device
        own = {
            "code": versions.get("commit") or versions.get("raz-sweep"), "torch": versions.get("torch"),
            "weights": weights_text(manifest.weights),
        }  # fmt: skip
        out = {kind: frozenset([value]) if value else frozenset() for kind, value in own.items()}
        out["device"] = frozenset(devices.values())
        out["stage device"] = frozenset(f"{stage}: {on}" for stage, on in devices.items())
        for node, key in manifest.needs.items():
            if key not in self._by_key:
                self._by_key[key] = {}  # ends the recursion where damaged manifests need each other
                needed = manifest_of(self.store, node, key)
                if needed is not None:
                    self._by_key[key] = self.of(needed)
            for kind, values in self._by_key[key].items():
                out[kind] = out[kind] | values
        return out


class ScoreIndex:
    """The scores of one store."""

    def __init__(self, store: Path) -> None:
        self.store = Path(store)
        self.damaged: list[Path] = []  # folders of the damaged scores among those that `find` looked up

    @cached_property
    def _stamps(self) -> dict[str, int]:
        """Key of each score -> modification time of its manifest in ns; -1 without a manifest."""
        out = {}
        try:
            with os.scandir(StorePaths(self.store).stages / "score") as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        try:
                            out[entry.name] = os.stat(os.path.join(entry.path, MANIFEST)).st_mtime_ns
                        except OSError:
                            out[entry.name] = -1
        except OSError:
            return {}
        return out

    @cached_property
    def _rows(self) -> dict[str, tuple[str, str]]:
        """Key -> (metrics, provenance) as JSON, of each whole score. Reads new scores and rewrites the index."""
        indexed = self._read()
        rows = {
            key: indexed[key][1:] for key, stamp in self._stamps.items() if key in indexed and indexed[key][0] == stamp
        }
        new = [key for key in self._stamps if key not in rows]
        cache, provenance = StageCache(self.store), ProvenanceIndex(self.store)
        for key in new:
            artifact = cache.get("score", key)
            if artifact is None:
                continue
            try:
                metrics = (artifact.folder / METRICS).read_text(encoding="utf-8")
                manifest = artifact.manifest
                about: dict[str, JsonLike] = {
                    "device": manifest.device, "versions": manifest.versions, "seconds": manifest.seconds,
                    "config": manifest.config, "data": manifest.data,
                    "made": {kind: sorted(values) for kind, values in provenance.of(manifest).items()},
                }  # fmt: skip
                rows[key] = (json.dumps(parse_json(metrics)), json.dumps(about))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        if len(new) > len(self._stamps) - len(rows) or len(indexed) != len(rows):
            self._write(rows)
        return rows

    def find(self, keys: Mapping[str, str]) -> TrialScores | None:
        """The scores of a trial (split -> key). None where one is missing or damaged; `damaged` lists the latter."""
        metrics: dict[str, float] = {}
        provenance = {}
        folders = {split: StorePaths(self.store).stage("score", key) for split, key in keys.items()}
        for split, key in keys.items():
            row = self._rows.get(key)
            if row is None:
                if key in self._stamps:
                    self.damaged.append(folders[split])
                return None
            metrics |= {f"{split}.{name}": float(value) for name, value in json.loads(row[0]).items()}
            provenance[split] = ScoreProvenance.from_json(parse_object(row[1]))
        return TrialScores(metrics, keys, provenance, folders)

    def all_scores(self) -> tuple[StoredScore, ...]:
        """Every whole score of the store."""
        out = []
        for key, (_, about) in self._rows.items():
            provenance = ScoreProvenance.from_json(parse_object(about))
            out.append(StoredScore(key, next(iter(provenance.data), ""), provenance.config))
        return tuple(out)

    @property
    def _path(self) -> Path:
        return StorePaths(self.store).score_index

    def _read(self) -> dict[str, tuple[int, str, str]]:
        """Key -> (stamp, metrics, about); empty where the index is missing, damaged or of another schema."""
        try:
            table = pq.read_table(self._path, use_threads=False, partitioning=None)
            if (table.schema.metadata or {}).get(b"layout") != str(SCHEMA_VERSION).encode():
                return {}
            columns = [table.column(name).to_pylist() for name in ("key", "stamp", "metrics", "about")]
        except (OSError, KeyError, pa.ArrowException):
            return {}
        return {key: (stamp, metrics, about) for key, stamp, metrics, about in zip(*columns, strict=True)}

    def _write(self, rows: Mapping[str, tuple[str, str]]) -> None:
        """Replace the index atomically. A store that cannot be written keeps none: reports are then slower."""
        table = pa.table(
            {
                "key": pa.array(rows, pa.string()),
                "stamp": pa.array([self._stamps[key] for key in rows], pa.int64()),
                "metrics": pa.array([row[0] for row in rows.values()], pa.string()),
                "about": pa.array([row[1] for row in rows.values()], pa.string()),
            }
        ).replace_schema_metadata({"layout": str(SCHEMA_VERSION)})
        with suppress(OSError), atomic_write(self._path) as temporary:
            pq.write_table(table, temporary)
