"""ShanghaiTech Part A and Part B (Zhang et al., CVPR 2016) in their native layout.

    part_A/{train_data,test_data}/{images/IMG_n.jpg,ground-truth/GT_IMG_n.mat}

The names `part_A_final` and `ground_truth` of other copies are accepted too. An annotation has
`image_info[0,0]["location"][0,0]`, (n, 2) x, y px. The data set ships no validation split.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raz.data.contract import Heads, Reader, ScannedSample, ScanResult, Split
from raz.data.image_pairs import (
    Annotation,
    Pair,
    ScanBuilder,
    files_by_name,
    list_folder,
    list_images,
    note_orphans,
    read_pairs,
    subfolder,
)
from raz.data.matlab import COPY_AGAIN, as_heads, read_variables
from raz.errors import RazError

ANNOTATION_FOLDERS = ("ground-truth", "ground_truth")
_FOLDERS: dict[Split, str] = {"train": "train_data", "test": "test_data"}


@dataclass(frozen=True)
class Part:
    """Published facts about one part."""

    letter: str
    images: tuple[tuple[Split, int], ...]  # as published
    known_faults: tuple[tuple[str, str], ...] = ()  # (id of an image, what is wrong with it)


PART_A = Part("A", (("train", 300), ("test", 182)))
PART_B = Part("B", (("train", 400), ("test", 316)), (("train/IMG_108", "its labels are known to be wrong"),))


def find_part(root: Path, part: Part) -> Path:
    """The folder of a part: `root` itself, or within `root` or `root/ShanghaiTech`.

    Raises RazError if there is none, or if there are two (part_A and part_A_final).
    """
    names = (f"part_{part.letter}", f"part_{part.letter}_final")
    other = "b" if part.letter == "A" else "a"
    is_a_part = any(os.path.isdir(root / folder) for folder in _FOLDERS.values())
    if is_a_part and not root.resolve().name.lower().startswith(f"part_{other}"):
        return root
    for base in (root, root / "ShanghaiTech"):
        folder = subfolder(base, names) if os.path.isdir(base) else None
        if folder is not None:
            return folder
    raise RazError(
        str(root), f"no folder part_{part.letter} or part_{part.letter}_final here, nor in ShanghaiTech below it",
        f"--data-root DIR with DIR/part_{part.letter}/train_data/images in it",
    )  # fmt: skip


def read_locations(data: bytes, where: str) -> tuple[Heads, int | None]:
    """Heads (n, 2) float64 x, y px as annotated, and the count that the file states, if any.

    Raises RazError for bytes that are no MATLAB file, a missing field, and as `as_heads`.
    """
    info = read_variables(data, where, "image_info").get("image_info")
    if info is None:
        raise RazError(where, "has no variable image_info", COPY_AGAIN)
    try:
        record: NDArray[np.void] = info[0, 0]
        location = np.asarray(record["location"][0, 0])
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise RazError(where, "has no field image_info[0,0]['location'][0,0]", COPY_AGAIN) from error
    return as_heads(location, where, "location"), _stated_number(record)


def _stated_number(record: NDArray[np.void]) -> int | None:
    """The count that a file states besides its points, if any."""
    try:
        number = np.asarray(record["number"][0, 0])
    except (IndexError, KeyError, ValueError, TypeError):
        return None
    return int(number.item()) if number.size == 1 and number.dtype.kind in "fiu" else None


def _parse(data: bytes, where: str) -> Annotation:
    heads, stated = read_locations(data, where)
    if stated is None or stated == len(heads):
        return Annotation(heads)
    return Annotation(heads, (f"the annotation states {stated} heads and holds {len(heads)}",))


def scan(part: Part, folder: Path | None) -> ScanResult:
    """Scan the folder of a part: annotations are parsed, files hashed, no image is decoded."""
    assert folder is not None  # the readers below have `find`
    builder = ScanBuilder()
    samples: dict[Split, tuple[ScannedSample, ...]] = {}
    for split, published in part.images:
        pairs = _pairs(split, folder / _FOLDERS[split], builder)
        builder.compare_size(split, len(pairs), published)
        samples[split] = read_pairs(pairs, _parse, builder)
    ids = {s.sample.id for each in samples.values() for s in each}
    builder.warnings += [f"{item_id}: {what}" for item_id, what in part.known_faults if item_id in ids]
    return builder.result(samples)


def _pairs(split: Split, folder: Path, builder: ScanBuilder) -> list[Pair]:
    """The images of a split, each with its annotation."""
    label_folders = [folder / name for name in ANNOTATION_FOLDERS if os.path.isdir(folder / name)]
    if not label_folders:
        builder.fault(folder, f"no folder {' or '.join(ANNOTATION_FOLDERS)}", "expected GT_IMG_1.mat in it")
        list_folder(folder / "images", builder)  # report it too if it is missing
        return []
    labels = files_by_name(list_folder(label_folders[0], builder) or (), ".mat", builder)
    pairs = []
    for picture in list_images(folder / "images", builder, "IMG_1.jpg, IMG_2.jpg, …"):
        name = f"GT_{picture.stem}.mat"
        pairs.append(Pair(f"{split}/{picture.stem}", picture, labels.get(name.lower()), label_folders[0] / name))
    if pairs:
        note_orphans(labels, pairs, builder)
    return pairs


def _layout(part: Part) -> str:
    return f"part_{part.letter}/{{train_data,test_data}}/{{images,ground-truth}}"


def _reader(part: Part) -> Reader:
    return Reader(
        f"ShanghaiTech Part {part.letter}", partial(scan, part), _layout(part), partial(find_part, part=part),
        splits="train, test; val: a tenth of train",
        source="its authors' repository (Zhang et al., CVPR 2016), for research",
    )  # fmt: skip


READER_A, READER_B = _reader(PART_A), _reader(PART_B)
