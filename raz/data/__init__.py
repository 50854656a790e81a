"""Registry of data sets; `open_dataset(name, root)` opens one.

A new data set is a module with a `Reader` and an entry in `DATASETS`. A custom folder needs no code; it is described by
a YAML file (`raz.data.custom`).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from raz.data import custom, image_memo, jhu, nwpu, shanghaitech, toy, ucf, worldexpo
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
    """Absolute local path of `root` or else RAZ_DATA_ROOT (of the mirror, if it is a bucket); None without either."""
    if root is None and os.environ.get("RAZ_DATA_ROOT"):
        root = Path(os.environ["RAZ_DATA_ROOT"])
    # absolute, since samples are loaded in other processes too
    return s3.mirror(s3.local_mirror_path(root).expanduser().absolute()) if root is not None else None


def readers(root: Path | None = None) -> dict[str, Reader]:
    """Every data set by name: the published ones, and the custom ones in the data root.

    `root` None means the environment's RAZ_DATA_ROOT.
    """
    root = _root(root)
    custom_readers = custom.find_custom_datasets(root) if root is not None else {}
    return {**DATASETS, **{name: reader for name, reader in custom_readers.items() if name not in DATASETS}}


def reader_of(name: str, root: Path | None = None) -> Reader:
    """The reader of a data set. Raises RazError for an unknown name, with the most similar one as hint."""
    if name in DATASETS:
        return DATASETS[name]
    known = readers(root)
    if name in known:
        return known[name]
    folds = [other for other in known if other.startswith(f"{name}@")]
    hint = f"{', '.join(folds)}: one per fold" if folds else did_you_mean(name, known)
    data_root = _root(root)
    if data_root is not None:
        hint += "".join(f"\n  ignored: {fault.where}: {fault.what}" for fault in custom.description_faults(data_root))
    elif not folds:
        hint += "; a custom data set needs --data-root (`raz-sweep data add DIR` describes a folder)"
    raise RazError("data set", f"unknown name {name!r}", hint)


def find_dataset_folder(name: str, root: Path | None = None) -> Path | None:
    """The data set's folder; None for a generated data set.

    `root` None means the environment's RAZ_DATA_ROOT. Raises RazError for an unknown name, and for a data set on disk
    without a root, or whose root lacks its folder.
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
    """The data set's reader, and its scan with all faults. Raises RazError as `find_dataset_folder`."""
    reader = reader_of(name, root)
    return reader, reader.scan(find_dataset_folder(name, root))


def open_dataset(name: str, root: Path | None = None, *, leaks: Literal["drop", "keep"] = "drop") -> Dataset:
    """Open a data set by name: hash its files and read its annotations; images are decoded later.

    A training (or validation) image that is byte-identical to a test image is dropped with a warning, unless `leaks` is
    "keep". If the data set ships no validation split, one is made of training images (24). The result is cached in this
    process as long as the names, sizes and times of the files do not change. Raises RazError naming every fault of the
    data set.
    """
    folder = find_dataset_folder(name, root)
    stamp = _folder_stamp(folder)
    cached = _OPEN_DATASETS.get((name, folder, leaks))
    if cached is None or cached[0] != stamp:
        cached = _OPEN_DATASETS[name, folder, leaks] = (stamp, _open(name, reader_of(name, root), folder, leaks))
    return cached[1]


_OPEN_DATASETS: dict[tuple[str, Path | None, str], tuple[str, Dataset]] = {}


def _folder_stamp(folder: Path | None) -> str:
    """sha256 over names, sizes and times of all files, hexadecimal; takes a hundredth of the time of reading them."""
    total = hashlib.sha256()
    for parent, folders, files in os.walk(folder, followlinks=True) if folder is not None else ():
        folders.sort()
        for file in sorted(files):
            path = os.path.join(parent, file)
            status = os.stat(path, follow_symlinks=os.path.exists(path))
            total.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return total.hexdigest()


def _open(name: str, reader: Reader, folder: Path | None, leaks: Literal["drop", "keep"]) -> Dataset:
    with image_memo.remembered(folder):
        result = reader.scan(folder)
    raise_all(result.faults)
    warnings = list(result.warnings)
    samples: dict[Split, tuple[ScannedSample, ...]] = dict(result.samples)
    if leaks == "drop":
        dropped = {leak.image: leak.twin for leak in find_leaks(samples)}
        for image, twin in dropped.items():
            warnings.append(f"{image} is byte-identical to {twin}: left out of {image.split('/')[0]}")
        samples = {split: tuple(s for s in each if s.sample.id not in dropped) for split, each in samples.items()}
    items: dict[Split, tuple[Sample, ...]] = {split: tuple(s.sample for s in each) for split, each in samples.items()}
    if "val" not in items:
        items["train"], items["val"] = split_validation(items["train"], where=name)
    return Dataset(name, reader.title, {split: items[split] for split in SPLITS}, tuple(warnings))
