"""The bucket behind a store: what one node made, every other finds; and only so much is kept on each.

    PREFIX/stages/<stage>/<key>/<sha256>        a file of an artifact
    PREFIX/stages/<stage>/<key>/manifest.json   written last: which files it has, by their sha256
    PREFIX/chains/<stage>/<chain>/checkpoint.pt the training state, after the sha256 of what follows
    PREFIX/failures/<stage>/<key>.json          why a stage cannot be made
    PREFIX/studies/, PREFIX/tables/             what the drivers noted (raz.study.bucket_sync)

An artifact is in the bucket before it appears in the folder of the node that made it. Two makers of one key leave
files of their own names, and the last manifest wins; both are whole. Leases are the node's own: among the nodes of a
cluster the broker sees to it that a stage is made once, among clusters nobody does.
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

CAP_GB = 50.0  # of artifacts kept on a node; environment RAZ_CACHE_GB
RECENT = 3600.0  # seconds for which what was asked for stays, however full it is
CHECK_INTERVAL = 60.0  # seconds between two looks at how full it is
HEX = 64  # characters of a sha256


class S3Tier:
    """Artifacts and checkpoints of one bucket, for the folder `store` of this machine."""

    def __init__(self, store: Path, bucket: Bucket) -> None:
        self.store, self.bucket = store, bucket
        self.paths = StorePaths(store)
        self._touched: dict[Path, float] = {}
        self._looked = 0.0

    # ------------------------------------------------------------------ artifacts

    def push(self, stage: str, key: str, folder: Path, manifest: Manifest) -> None:
        """Copies a finished artifact into the bucket, its manifest last. Raises OSError as Bucket."""
        prefix = self.paths.relative(self.paths.stage(stage, key))
        for name, sha in manifest.files.items():
            self.bucket.write(f"{prefix}/{sha}", (folder / name).read_bytes())
        self.bucket.write(f"{prefix}/{MANIFEST}", (folder / MANIFEST).read_bytes())

    def fetch(self, stage: str, key: str) -> bool:
        """Brings an artifact into the store; False when the bucket has none, or only a damaged one."""
        final = self.paths.stage(stage, key)
        prefix = self.paths.relative(final)
        found = self.bucket.read(f"{prefix}/{MANIFEST}")
        if found is None:
            return False
        aside = final.parent / f"{ATTEMPT}{uuid.uuid4().hex}"
        try:
            files = Manifest.from_json(parse_object(found)).files
            if any(os.path.basename(name) != name or name == MANIFEST for name in files):
                return False
            aside.mkdir(parents=True)
            for name, sha in files.items():
                data = self.bucket.read(f"{prefix}/{sha}")
                if data is None or hashlib.sha256(data).hexdigest() != sha:
                    return False
                (aside / name).write_bytes(data)
            (aside / MANIFEST).write_bytes(found)
            if final.exists():  # what was asked for is not whole, or another process was quicker
                final.rename(aside.with_name(f"{aside.name}-old"))
            aside.rename(final)
        except ValueError:
            return False
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(aside.with_name(f"{aside.name}-old"), ignore_errors=True)
        self.evict()
        return True

    def mark_used(self, folder: Path) -> bool:
        """Notes that an artifact is in use; False when it is not there any more."""
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
        """Removes the artifacts that were longest unused until the rest is below the cap; returns their bytes. Each
        is in the bucket, and comes again when it is wanted. Looks once in LOOK seconds."""
        if time.monotonic() - self._looked < CHECK_INTERVAL and recent:
            return 0
        self._looked = time.monotonic()
        cap = float(os.environ.get("RAZ_CACHE_GB") or CAP_GB) * 2**30
        kept = []
        for manifest in self.paths.stages.glob(f"*/[0-9a-f]*/{MANIFEST}"):
            try:
                size = sum(entry.stat().st_size for entry in os.scandir(manifest.parent))
                kept.append((manifest.stat().st_atime, size, manifest.parent))
            except FileNotFoundError:  # another process makes room, too
                continue
        total, freed = sum(size for _, size, _ in kept), 0
        for used, size, folder in sorted(kept):
            if total - freed <= cap or time.time() - used < recent:
                break
            aside = folder.with_name(f"{ATTEMPT}{uuid.uuid4().hex}")
            try:
                folder.rename(aside)
            except FileNotFoundError:
                continue
            shutil.rmtree(aside, ignore_errors=True)
            freed += size
        return freed

    # ------------------------------------------------------------------ what is written over

    def save(self, name: str, data: bytes) -> None:
        """Puts what is replaced now and then; its digest goes before it."""
        self.bucket.write(name, hashlib.sha256(data).hexdigest().encode() + data)

    def load(self, name: str) -> bytes | None:
        """The last that `save` put there; None when there is none, or it is damaged."""
        found = self.bucket.read(name)
        if found is None or hashlib.sha256(found[HEX:]).hexdigest().encode() != found[:HEX]:
            return None
        return found[HEX:]


def tier_for(store: Path) -> S3Tier | None:
    """The bucket behind a store; None for a folder of its own."""
    bucket = bucket_for(store)
    return S3Tier(store, bucket) if bucket is not None else None
