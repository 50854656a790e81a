"""The artifacts of a store with their size and age, their integrity, and disk usage. Changes nothing."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raz.errors import RazError
from raz.store.cache import digest, file_digest
from raz.store.manifest import Manifest, read_manifest
from raz.store.paths import MANIFEST, StorePaths

KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredStage:
    """A finished artifact of the store."""

    stage: str  # zoom
    key: str
    path: Path
    bytes: int
    changed: float  # when its manifest was written, seconds since 1970
    manifest: Manifest | None  # None: damaged

    @property
    def name(self) -> str:
        """The node's name, such as zoom2@val."""
        return self.manifest.stage if self.manifest and self.manifest.stage else self.stage

    @property
    def needs(self) -> dict[str, str]:
        """Node (`zoom2@val`) -> key of each stage it was made from."""
        return self.manifest.needs if self.manifest else {}


def check_store(store: Path) -> None:
    """Raises RazError when there is no such folder."""
    if not store.is_dir():
        raise RazError(f"store {store}", "there is no such folder", "--store DIR, or RAZ_STORE; a first run makes one")


def folders(path: Path) -> Iterator[os.DirEntry[str]]:
    """The folders in a folder, by name; none where it is missing. Links are not followed."""
    yield from (entry for entry in entries(path) if entry.is_dir(follow_symlinks=False))


def entries(path: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name; none where it is missing, or a link."""
    if path.is_symlink() or not path.is_dir():
        return []
    with os.scandir(path) as iterator:
        return sorted(iterator, key=lambda entry: entry.name)


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder. Links are not followed; files that vanish count 0."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size
    return sum(bytes_of(Path(entry.path)) for entry in entries(path))


def stages(store: Path) -> Iterator[StoredStage]:
    """Every finished artifact, by stage and key."""
    for stage in folders(StorePaths(store).stages):
        for entry in folders(Path(stage.path)):
            if KEY.fullmatch(entry.name):
                path = Path(entry.path)
                manifest, changed = _manifest(path)
                yield StoredStage(stage.name, entry.name, path, bytes_of(path), changed, manifest)


def _manifest(folder: Path) -> tuple[Manifest | None, float]:
    """The manifest, None where it is damaged, and when it was written."""
    changed = folder.stat().st_mtime
    try:
        changed = (folder / MANIFEST).stat().st_mtime
        return read_manifest(folder), changed
    except (OSError, ValueError):
        return None, changed


def integrity_errors(artifact: StoredStage) -> list[str]:
    """The faults of an artifact, a line each; empty if it is whole. Checks the digests of its key and of its files."""
    if artifact.manifest is None:
        return [f"{MANIFEST} is missing or damaged"]
    out = []
    if digest(artifact.manifest.key) != artifact.key:
        out.append("the key is not that of its content")
    listed = artifact.manifest.files
    for name, expected in sorted(listed.items()):
        path = artifact.path / name
        if Path(name).name != name:
            out.append(f"{name} is no file's name")
            continue
        try:
            if file_digest(path) != expected:
                out.append(f"{name} is not what was written")
        except OSError as error:
            out.append(f"{name}: {error.strerror or error}")
    unlisted = [e.name for e in entries(artifact.path) if e.name not in listed and e.name != MANIFEST]
    return out + [f"{name} does not belong to it" for name in unlisted]


@dataclass(frozen=True)
class Usage:
    """Disk usage of one kind of content."""

    what: str
    items: int
    bytes: int


def usage(store: Path) -> list[Usage]:
    """Disk usage by stage, and by other folders of the store."""
    out = []
    paths = StorePaths(store)
    by_stage = (paths.stages, paths.chains)
    for folder in by_stage:
        for stage in folders(folder):
            content = entries(Path(stage.path))
            finished = [e for e in content if KEY.fullmatch(e.name)]
            name = paths.relative(folder / stage.name)
            out.append(Usage(name, len(finished), sum(bytes_of(Path(e.path)) for e in content)))
    for entry in entries(store):
        if store / entry.name not in by_stage:
            path = Path(entry.path)
            items = len(entries(path)) if entry.is_dir(follow_symlinks=False) else 1
            out.append(Usage(entry.name, items, bytes_of(path)))
    return out
