"""The bucket behind a store: artifacts that one node made are found by all others, and each node caches some of them.

    PREFIX/stages/<stage>/<key>/<sha256>        a file of an artifact
    PREFIX/stages/<stage>/<key>/manifest.json   written last: which files it has, by their sha256
    PREFIX/chains/<stage>/<chain>/checkpoint.pt the training state, preceded by its sha256
    PREFIX/failures/<stage>/<key>.json          why a stage cannot be made
    PREFIX/studies/, PREFIX/tables/             journals and tables (raz.study.bucket_sync)

An artifact is uploaded before it appears in the folder of the node that made it. If two nodes make the same key, their
files have different names and the last manifest wins; either artifact is complete. Leases do not extend beyond a node:
within a cluster the broker has each stage made once; two clusters may make the same stage twice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path

from raz.store.lease import ATTEMPT
from raz.store.manifest import Manifest
from raz.store.paths import MANIFEST, StorePaths
from raz.store.s3 import Bucket, bucket_for
from raz.utils.json_types import parse_object

CAP_GB = 50.0  # GiB of artifacts that a node caches; environment RAZ_CACHE_GB
RECENT = 3600.0  # seconds since its last use before an artifact may be evicted
CHECK_INTERVAL = 60.0  # seconds between two checks of the size
HEX = 64  # characters of a sha256


class S3Tier:
    """Artifacts and checkpoints of one bucket, for the folder `store` of this machine."""

    def __init__(self, store: Path, bucket: Bucket) -> None:
        self.store, self.bucket = store, bucket
        self.paths = StorePaths(store)
        self._touched: dict[Path, float] = {}
        self._last_check = 0.0

    # ------------------------------------------------------------------ artifacts

    def push(self, stage: str, key: str, folder: Path, manifest: Manifest) -> None:
        """Upload a finished artifact, its manifest last. Raises OSError as Bucket."""
        prefix = self.paths.relative(self.paths.stage(stage, key))
        for name, sha in manifest.files.items():
            self.bucket.write(f"{prefix}/{sha}", (folder / name).read_bytes())
        self.bucket.write(f"{prefix}/{MANIFEST}", (folder / MANIFEST).read_bytes())

    def fetch(self, stage: str, key: str) -> bool:
        """Download an artifact into the store. False when the bucket has none, or a damaged one."""
        final = self.paths.stage(stage, key)
        prefix = self.paths.relative(final)
        manifest = self.bucket.read(f"{prefix}/{MANIFEST}")
        if manifest is None:
            return False
        temporary = final.parent / f"{ATTEMPT}{uuid.uuid4().hex}"
        try:
            files = Manifest.from_json(parse_object(manifest)).files
            if any(os.path.basename(name) != name or name == MANIFEST for name in files):
                return False
            temporary.mkdir(parents=True)
            for name, sha in files.items():
                data = self.bucket.read(f"{prefix}/{sha}")
                if data is None or hashlib.sha256(data).hexdigest() != sha:
                    return False
                (temporary / name).write_bytes(data)
            (temporary / MANIFEST).write_bytes(manifest)
            if final.exists():  # the local artifact is damaged, or another process was faster
                final.rename(temporary.with_name(f"{temporary.name}-old"))
            temporary.rename(final)
        except ValueError:
            return False
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(temporary.with_name(f"{temporary.name}-old"), ignore_errors=True)
        self.evict()
        return True

    def mark_used(self, folder: Path) -> bool:
        """Record that an artifact is in use. False when it was evicted meanwhile."""
        now = time.time()
        if now - self._touched.get(folder, 0.0) > CHECK_INTERVAL:
            manifest = folder / MANIFEST
            try:
                os.utime(manifest, ns=(time.time_ns(), manifest.stat().st_mtime_ns))
            except FileNotFoundError:
                return False
            self._touched[folder] = now
        return True

    def evict(self, *, recent: float = RECENT) -> int:
        """Remove the least recently used artifacts until the rest is below the cap; return the removed bytes.

        All are in the bucket, and are fetched again when needed. Checks once in CHECK_INTERVAL seconds.
        """
        if time.monotonic() - self._last_check < CHECK_INTERVAL and recent:
            return 0
        self._last_check = time.monotonic()
        cap = float(os.environ.get("RAZ_CACHE_GB") or CAP_GB) * 2**30
        cached = []
        for manifest in self.paths.stages.glob(f"*/[0-9a-f]*/{MANIFEST}"):
            try:
                size = sum(entry.stat().st_size for entry in os.scandir(manifest.parent))
                cached.append((manifest.stat().st_atime, size, manifest.parent))
            except FileNotFoundError:  # another process evicted it
                continue
        total, freed = sum(size for _, size, _ in cached), 0
        for used, size, folder in sorted(cached):
            if total - freed <= cap or time.time() - used < recent:
                break
            temporary = folder.with_name(f"{ATTEMPT}{uuid.uuid4().hex}")
            try:
                folder.rename(temporary)
            except FileNotFoundError:
                continue
            shutil.rmtree(temporary, ignore_errors=True)
            freed += size
        return freed

    # ------------------------------------------------------------------ objects that are overwritten

    def save(self, name: str, data: bytes) -> None:
        """Upload an object that may be overwritten later, with its digest in front."""
        self.bucket.write(name, hashlib.sha256(data).hexdigest().encode() + data)

    def load(self, name: str) -> bytes | None:
        """The object that `save` uploaded last; None when there is none, or it is damaged."""
        stored = self.bucket.read(name)
        if stored is None or hashlib.sha256(stored[HEX:]).hexdigest().encode() != stored[:HEX]:
            return None
        return stored[HEX:]


def tier_for(store: Path) -> S3Tier | None:
    """The bucket behind a store; None for a store without one."""
    bucket = bucket_for(store)
    return S3Tier(store, bucket) if bucket is not None else None
