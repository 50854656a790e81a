"""The layout of a store. Every path below a store's folder is built here.

STORE/stages/<stage>/<key>/               a finished stage: manifest.json and the files that it lists
STORE/chains/<stage>/<chain>/             checkpoint.pt: the training state of a chain of epochs
STORE/failures/<stage>/<key>.json         why a stage cannot be made
STORE/leases/<stage>-<key or chain>.lease the process that makes it now (raz.store.lease)
STORE/packs/, STORE/features/             decoded images and features of frozen networks; made again where missing
STORE/studies/NAME.journal, .lock, .parquet  a study: Optuna's journal, its writer's lock, the index of its trials
STORE/tables/NAME-DIGEST.json             a table that was run
STORE/reports/scores.parquet              the index of all scores
STORE/locks/                              of earlier versions
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

# Files of an artifact.
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"  # of a trained stage
CURVE = "curve.json"  # of a trained stage
ARRAYS = "arrays.npz"  # of an inferred stage
METRICS = "metrics.json"  # of a score
FITTED = "fitted.json"  # of a score
PER_IMAGE = "per_image.npz"  # of a score

CHECKPOINT = "checkpoint.pt"  # in a chain's folder
CANDIDATES = "candidates.npz"  # in a folder of features
LEASE_SUFFIX = ".lease"
TEMPORARY_IMPORT = ".import-"  # in the folder of studies: an import that is not finished


@dataclass(frozen=True)
class StorePaths:
    """The paths of one store. Nothing is read or made."""

    root: Path

    def relative(self, path: Path) -> str:
        """The path below the root with forward slashes: the name of the same thing in a bucket or an archive."""
        return path.relative_to(self.root).as_posix()

    # ------------------------------------------------------------------ stages

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    def stage(self, stage: str, key: str) -> Path:
        """The folder of a finished stage."""
        return self.stages / stage / key

    def manifest(self, stage: str, key: str) -> Path:
        """The manifest of a finished stage; the stage is there when this file is."""
        return self.stage(stage, key) / MANIFEST

    @property
    def chains(self) -> Path:
        return self.root / "chains"

    def chain(self, stage: str, chain: str) -> Path:
        """The folder of a chain of epochs (`raz.pipeline.graph.chain_key`)."""
        return self.chains / stage / chain

    def checkpoint(self, stage: str, chain: str) -> Path:
        return self.chain(stage, chain) / CHECKPOINT

    @property
    def failures(self) -> Path:
        return self.root / "failures"

    def failure(self, stage: str, key: str) -> Path:
        return self.failures / stage / f"{key}.json"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    # ------------------------------------------------------------------ caches

    @property
    def packs(self) -> Path:
        return self.root / "packs"

    @property
    def features(self) -> Path:
        return self.root / "features"

    # ------------------------------------------------------------------ studies, tables, reports

    @property
    def studies(self) -> Path:
        return self.root / "studies"

    def journal(self, study: str) -> Path:
        return self.studies / f"{study}.journal"

    @property
    def registration_lock(self) -> Path:
        return self.studies / ".entrance.lock"

    def temporary_import(self) -> Path:
        """A new name for the folder in which an import is checked before it is moved into place."""
        return self.studies / f"{TEMPORARY_IMPORT}{uuid.uuid4().hex}"

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    def table(self, table: str, digest: str) -> Path:
        """The note of a table that was run; `digest` is that of its trials."""
        return self.tables / f"{table}-{digest}.json"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def score_index(self) -> Path:
        return self.reports / "scores.parquet"
