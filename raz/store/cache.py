"""The store's cache of stages: content-addressed artifacts, written atomically and verified when read.

`raz.store.paths` has the layout of a store. The folder of a stage or of a chain may also hold temporary files and
folders named `.attempt-TOKEN…`, which a process is writing or a killed process left. TOKEN is the token of the lease
that the process writes under (without a lease: 32 random hexadecimal digits). The holder of a lease may remove the
temporary files of earlier holders.

An artifact appears by one rename, so a partial one is never read. If a file's digest differs from the manifest, the
artifact is a miss.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from raz.errors import RazError, TrialFailure
from raz.store.failures import DETERMINISTIC_FAILURES, Device, RecordedFailure, read_failures, with_failure
from raz.store.late_view import look_again, refresh
from raz.store.lease import ATTEMPT, Lease, acquire
from raz.store.manifest import Manifest, read_manifest
from raz.store.paths import CURVE, MANIFEST, StorePaths
from raz.store.s3_tier import tier_for
from raz.utils.atomic import atomic_write
from raz.utils.json_types import (
    Json,
    JsonLike,
    JsonObject,
    as_float,
    as_list,
    as_object,
    get_int,
    get_object,
    get_str,
    parse_json,
)


def canonical(value: JsonLike) -> str:
    """The canonical text of a JSON value: its keys are sorted. Raises ValueError for nan and infinities."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def digest(value: JsonLike) -> str:
    """sha256 (hex) of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class StageKey:
    """The key of an artifact: sha256 over the stage and its version, its inputs, its needs and its data (I2)."""

    stage: str
    version: int
    inputs: Mapping[str, Json]  # dotted parameter -> value
    needs: Mapping[str, str]  # node -> key, of the stages that it reads
    data: Mapping[str, str]  # split -> fingerprint of the images that it reads

    @property
    def content(self) -> JsonObject:
        """What the key is the digest of, as JSON."""
        return {
            "stage": self.stage,
            "version": self.version,
            "inputs": {**self.inputs},
            "needs": {**self.needs},
            "data": {**self.data},
        }

    @cached_property
    def key(self) -> str:
        """The digest, 64 hexadecimal digits."""
        return digest(self.content)

    def without(self, *names: str) -> StageKey:
        """The key without these inputs: a chain leaves out its number of epochs (I4)."""
        inputs = {name: value for name, value in self.inputs.items() if name not in names}
        return StageKey(self.stage, self.version, inputs, self.needs, self.data)

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> StageKey:
        """The key whose content a manifest holds. Raises ValueError where it has another layout."""
        content = manifest.key
        if content.keys() != {"stage", "version", "inputs", "needs", "data"}:
            raise ValueError(f"a stage's key has {', '.join(sorted(content))}")
        stage, version = get_str(content, "stage"), get_int(content, "version")
        return cls(stage, version, get_object(content, "inputs"), manifest.needs, manifest.data)


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def seconds(self) -> float:
        """Seconds of work to make it, over all attempts."""
        return self.manifest.seconds


Stamp = tuple[tuple[int, int], ...]  # (time of last change in ns, bytes) of the manifest and of each file


def _stamp(folder: Path, manifest: Manifest) -> Stamp:
    stats = [os.stat(folder / name) for name in (MANIFEST, *manifest.files)]
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)


class StageCache:
    """The store's artifacts. Safe for many processes, on one machine or on a shared folder.

    With a bucket behind the store, missing artifacts are fetched from it, and new ones are uploaded first.
    """

    def __init__(self, store: Path) -> None:
        self.store = Path(store)
        self.paths = StorePaths(self.store)
        self.tier = tier_for(self.store)
        self._verified: dict[Path, tuple[Stamp, Artifact]] = {}

    def find(self, key: StageKey) -> Artifact | None:
        """The artifact of a key; None where it is missing or damaged."""
        return self.get(key.stage, key.key)

    def get(self, stage: str, key: str) -> Artifact | None:
        """The artifact of a stage and the digest (hex) of its key; None where it is missing or damaged."""
        folder = self.paths.stage(stage, key)
        artifact = self._verified_artifact(folder)
        if self.tier is None:
            return artifact
        if artifact is None and self.tier.fetch(stage, key):
            artifact = self._verified_artifact(folder)
        if artifact is not None and not self.tier.mark_used(folder):  # evicted meanwhile: fetch again
            return self.get(stage, key)
        return artifact

    def find_fresh(self, key: StageKey) -> Artifact | None:
        """As `find`, by a fresh view of the store's folder if the artifact seems to be missing: a maker that holds the
        stage's lease asks so, since all makers before it have ended."""
        artifact = self.find(key)
        if artifact is None and refresh(self.paths.stage(key.stage, key.key).parent):
            artifact = self.find(key)
        return artifact

    def find_announced(self, key: StageKey) -> Artifact | None:
        """As `find`, for an artifact that another process said it has made: on a shared file system one that is missing
        is looked for until this machine sees it (`raz.store.late_view.look_again`)."""
        folder = self.paths.stage(key.stage, key.key)

        def look() -> tuple[Artifact | None] | None:  # None: not there yet; (None,): there and damaged
            artifact = self.find(key)
            if artifact is None and self.paths.manifest(key.stage, key.key).exists():
                artifact = self.find(key)
            elif artifact is None:
                return None
            return (artifact,)

        artifact = self.find(key)
        if artifact is None:
            seen = look_again(look, folder.parent)
            artifact = seen[0] if seen is not None else None
        return artifact

    def _verified_artifact(self, folder: Path) -> Artifact | None:
        """The artifact in a folder; None where it is missing or damaged. Its files are digested once, and again after
        one of them changed."""
        verified = self._verified.get(folder)
        try:
            if verified is not None and verified[0] == _stamp(folder, verified[1].manifest):
                return verified[1]
            manifest = read_manifest(folder)
            stamp = _stamp(folder, manifest)
            for name, expected in manifest.files.items():
                if file_digest(folder / name) != expected:
                    return None
        except (OSError, ValueError):
            return None
        artifact = Artifact(folder, manifest)
        self._verified[folder] = (stamp, artifact)
        return artifact

    def publish(
        self, key: StageKey, write: Callable[[Path], None], about: Manifest, lease: Lease | None = None,
        *, durable: bool = True,
    ) -> Artifact:  # fmt: skip
        """Call `write` with a temporary folder, then rename it into place.

        about: the manifest without `key` and `files`. durable: flush to the disk; otherwise an artifact may be damaged,
        and so a miss, after a power loss. If another process was first, its artifact stays and is returned. Raises
        RazError when the store cannot be written (full disk, no permission), LeaseLost when `lease` is lost.
        """
        final = self.paths.stage(key.stage, key.key)
        attempt = lease.temp_path(final.parent) if lease else final.parent / f"{ATTEMPT}{uuid.uuid4().hex}"
        move = lease.commit if lease else os.rename
        with store_errors(self.store):
            try:
                attempt.mkdir(parents=True)
                write(attempt)
                files = {p.name: file_digest(p) for p in sorted(attempt.iterdir())}
                manifest = replace(about, key=key.content, files=files)
                write_json(attempt / MANIFEST, manifest.to_json())
                for path in attempt.iterdir() if durable else ():
                    _sync(path)
                if self.tier is not None:
                    self.tier.push(key.stage, key.key, attempt, manifest)
                refresh(final.parent)  # another machine may have published it just now
                if final.exists() and self._verified_artifact(final) is None:
                    self._displace_damaged(key, final, move)
                try:
                    move(attempt, final)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                if durable:
                    _sync(final.parent)
            except FileNotFoundError:
                if lease is not None:
                    lease.check()  # the holder that took over the lease removed the files
                raise
            finally:
                shutil.rmtree(attempt, ignore_errors=True)
        artifact = self.find_announced(key)
        if self.tier is not None:
            self.tier.evict()
        if artifact is None:
            raise RazError(str(final), "the artifact cannot be read back after writing", "check the disk")
        return artifact

    def _displace_damaged(self, key: StageKey, final: Path, move: Callable[[Path, Path], None]) -> None:
        """Remove a damaged artifact. One that another process repaired meanwhile is put back."""
        damaged = final.parent / f"{ATTEMPT}{uuid.uuid4().hex}"
        move(final, damaged)
        if self._verified_artifact(damaged) is not None and not final.exists():
            os.rename(damaged, final)
        shutil.rmtree(damaged, ignore_errors=True)

    # ------------------------------------------------------------------ failures

    def failure(self, key: StageKey, device: Device | None) -> TrialFailure | None:
        """The recorded failure of a stage that counts on a device (`RecordedFailure.counts_on`), or None."""
        known = [each.failure for each in self._failures(key) if each.counts_on(device)]
        return known[0] if known else None

    def record_failure(self, key: StageKey, failure: TrialFailure, device: Device) -> None:
        """Record a failure for one of DETERMINISTIC_FAILURES. Other failures are ignored."""
        if failure.reason not in DETERMINISTIC_FAILURES:
            return
        path = self._failure_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        failures = with_failure(self._failures(key), RecordedFailure(failure, device))
        write_json(path, {"failures": [each.to_json() for each in failures], "key": key.content})
        if self.tier is not None:
            self.tier.bucket.write(self._failure_name(key), path.read_bytes())

    def clear_failure(self, key: StageKey) -> bool:
        """Delete the recorded failure of a stage, so that it is tried again. Returns whether there was one."""
        if self.tier is not None:
            self.tier.bucket.remove(self._failure_name(key))
        try:
            self._failure_path(key).unlink()
        except FileNotFoundError:
            return False
        return True

    def _failures(self, key: StageKey) -> list[RecordedFailure]:
        """The recorded failures of a stage; those that cannot be read are none."""
        try:
            return read_failures(self._failure_path(key).read_bytes())
        except FileNotFoundError:
            stored = self.tier.bucket.read(self._failure_name(key)) if self.tier is not None else None
            return read_failures(stored) if stored is not None else []
        except OSError:
            return []

    def _failure_path(self, key: StageKey) -> Path:
        return self.paths.failure(key.stage, key.key)

    def _failure_name(self, key: StageKey) -> str:
        """The name of the record's object in the bucket."""
        return self.paths.relative(self._failure_path(key))

    # ------------------------------------------------------------------ leases

    @contextmanager
    def lease(
        self, name: str, folders: Sequence[Path] = (), waiting: Callable[[], None] | None = None
    ) -> Iterator[Lease]:
        """Hold the lease `name` for writing in these folders. `waiting` is called while another process holds it.
        Raises RazError when the store cannot be written."""
        with ExitStack() as stack:
            with store_errors(self.store):
                lease = stack.enter_context(acquire(self.paths.leases, name, folders, waiting=waiting))
            yield lease


@contextmanager
def store_errors(store: Path) -> Iterator[None]:
    """Raise RazError with a hint for an OSError that says that the store cannot be written."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space, or choose another place with --store",
            errno.EDQUOT: "your quota is used up: free some space, or choose another place with --store",
            errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another place with --store",
            errno.EACCES: "choose a folder you may write with --store",
            errno.EPERM: "choose a folder you may write with --store",
            errno.EROFS: "choose a folder you may write with --store",
            errno.ENOTDIR: "a part of the path is a file: choose another with --store",
        }
        if error.errno in hints:
            raise RazError(f"store {store}", str(error.strerror), hints[error.errno]) from error
        raise


def write_json(path: Path, value: JsonLike) -> None:
    """Write JSON atomically. Raises OSError as the file system, ValueError for nan and infinities."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False), encoding="utf-8")


def stored_curve(folder: Path) -> list[dict[str, float]]:
    """The learning curve in a trained stage's folder, a point per epoch: epoch, loss, value, seconds. Empty where it
    cannot be read."""
    try:
        points = as_list(parse_json((folder / CURVE).read_text(encoding="utf-8")), CURVE)
        fields = ("epoch", "loss", "value", "seconds")
        return [{name: as_float(as_object(point, CURVE).get(name), name) for name in fields} for point in points]
    except (OSError, ValueError):
        return []


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
