"""Data sets behind one contract: `open_dataset(name, root)` and what it returns.

A new data set is a module with a `Reader` and a line in `DATASETS`; a folder of one's own needs no code
(`raz.data.custom`).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from raz.data import custom, jhu, nwpu, shanghaitech, toy, ucf, worldexpo
from raz.data.contract import SPLITS, Dataset, Reader, Sample, ScannedSample, ScanResult, Split
from raz.data.frames import Frames
from raz.data.splits import find_leaks, split_validation
from raz.errors import RazError, raise_all
from raz.store import s3
from raz.utils.suggestions import did_you_mean

__all__ = [
    "DATASETS",
    "Dataset",
    "Frames",
    "Reader",
    "Sample",
    "Split",
    "find_dataset_folder",
    "open_dataset",
    "reader_of",
    "readers",
    "scan",
]  # fmt: skip

DATASETS: dict[str, Reader] = {
    "toy": toy.READER,
    "shanghaitech_a": shanghaitech.READER_A,
    "shanghaitech_b": shanghaitech.READER_B,
    "ucf_qnrf": ucf.READER_QNRF,
    **ucf.READERS_CC_50,
    "worldexpo": worldexpo.READER,
    "jhu_crowd": jhu.READER,
    "nwpu_crowd": nwpu.READER,
}


def _root(root: Path | None) -> Path | None:
    """The root given, else the environment's RAZ_DATA_ROOT."""
    if root is None and os.environ.get("RAZ_DATA_ROOT"):
        root = Path(os.environ["RAZ_DATA_ROOT"])
    # absolute, since items are read in other processes, too
    return s3.mirror(s3.local_mirror_path(root).expanduser().absolute()) if root is not None else None


def readers(root: Path | None = None) -> dict[str, Reader]:
    """Every data set by name: the published ones, and those of one's own that the data root holds.

    `root` None means the environment's RAZ_DATA_ROOT.
    """
    root = _root(root)
    own = custom.find_own(root) if root is not None else {}
    return {**DATASETS, **{name: reader for name, reader in own.items() if name not in DATASETS}}


def reader_of(name: str, root: Path | None = None) -> Reader:
    """The reader of a data set. Raises RazError for an unknown name, with the nearest."""
    if name in DATASETS:
        return DATASETS[name]
    known = readers(root)
    if name in known:
        return known[name]
    folds = [other for other in known if other.startswith(f"{name}@")]
    hint = f"{', '.join(folds)}: a fold each" if folds else did_you_mean(name, known)
    at = _root(root)
    if at is not None:
        hint += "".join(f"\n  not taken: {fault.where}: {fault.what}" for fault in custom.faults_of(at))
    elif not folds:
        hint += "; one of your own needs --data-root (`raz-sweep data add DIR` describes it)"
    raise RazError("data set", f"unknown name {name!r}", hint)


def find_dataset_folder(name: str, root: Path | None = None) -> Path | None:
    """The data set's own folder; None for one that is generated.

    `root` None means the environment's RAZ_DATA_ROOT. Raises RazError for an unknown name, and for a data set
    on disk without a root or whose folder is not there.
    """
    reader = reader_of(name, root)
    if reader.find is None:
        return None
    root = _root(root)
    if root is None:
        raise RazError(
            name, "no folder given to read it from",
            f"--data-root DIR, or set RAZ_DATA_ROOT; the folder holds {reader.layout}",
        )  # fmt: skip
    if not root.is_dir():
        raise RazError(str(root), f"no such folder (data root of {name})", "check --data-root and RAZ_DATA_ROOT")
    return reader.find(root)


def scan(name: str, root: Path | None = None) -> tuple[Reader, ScanResult]:
    """The data set's reader and what it finds, faults included. Raises RazError as `locate` does."""
    reader = reader_of(name, root)
    return reader, reader.scan(find_dataset_folder(name, root))


def open_dataset(name: str, root: Path | None = None, *, leaks: Literal["drop", "keep"] = "drop") -> Dataset:
    """Open a data set by name: its files are hashed and its annotations read, its images decoded later.

    A training (or validation) image that is byte-identical to a test image is left out with a warning, unless
    `leaks` is "keep". Where the data set ships no validation split, one is made of its training images (24). What
    this process has opened before is served again while the names, sizes and times of its files stay as they were.
    Raises RazError naming every fault of the data set at once.
    """
    place = find_dataset_folder(name, root)
    stamp = _folder_stamp(place)
    opened = _OPEN_DATASETS.get((name, place, leaks))
    if opened is None or opened[0] != stamp:
        opened = _OPEN_DATASETS[name, place, leaks] = (stamp, _open(name, reader_of(name, root), place, leaks))
    return opened[1]


_OPEN_DATASETS: dict[tuple[str, Path | None, str], tuple[str, Dataset]] = {}


def _folder_stamp(folder: Path | None) -> str:
    """Changes when a file comes, goes or is written: a hundredth of the time that reading them takes."""
    total = hashlib.sha256()
    for place, folders, files in os.walk(folder, followlinks=True) if folder is not None else ():
        folders.sort()
        for file in sorted(files):
            path = os.path.join(place, file)
            status = os.stat(path, follow_symlinks=os.path.exists(path))
            total.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return total.hexdigest()


def _open(name: str, reader: Reader, place: Path | None, leaks: Literal["drop", "keep"]) -> Dataset:
    seen = reader.scan(place)
    raise_all(seen.faults)
    warnings = list(seen.warnings)
    found: dict[Split, tuple[ScannedSample, ...]] = dict(seen.found)
    if leaks == "drop":
        dropped = {leak.image: leak.twin for leak in find_leaks(found)}
        for image, twin in dropped.items():
            warnings.append(f"{image} is byte-identical to {twin}: left out of {image.split('/')[0]}")
        found = {split: tuple(f for f in each if f.item.id not in dropped) for split, each in found.items()}
    items: dict[Split, tuple[Sample, ...]] = {split: tuple(f.item for f in each) for split, each in found.items()}
    if "val" not in items:
        items["train"], items["val"] = split_validation(items["train"], where=name)
    return Dataset(name, reader.title, {split: items[split] for split in SPLITS}, tuple(warnings))
