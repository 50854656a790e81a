"""ShanghaiTech Part A and Part B (Zhang et al., CVPR 2016) in their native layout.

    part_A/{train_data,test_data}/{images/IMG_n.jpg,ground-truth/GT_IMG_n.mat}

Other copies write `part_A_final` and `ground_truth`; both are accepted. An annotation's
`image_info[0,0]["location"][0,0]` is (n, 2) x, y px. The data set ships no validation split.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raz.data.contract import Found, Heads, Item, Pixels, Reader, Split, Survey
from raz.data.images import SUFFIXES, decode, size_of
from raz.errors import RazError, RazErrors

ANNOTATION_FOLDERS = ("ground-truth", "ground_truth")
_FOLDERS: dict[Split, str] = {"train": "train_data", "test": "test_data"}


@dataclass(frozen=True)
class Part:
    """What is known of one part before reading it."""

    letter: str
    images: tuple[tuple[Split, int], ...]  # as published
    known_faults: tuple[tuple[str, str], ...] = ()  # (id, what is wrong with it)


PART_A = Part("A", (("train", 300), ("test", 182)))
PART_B = Part("B", (("train", 400), ("test", 316)), (("train/IMG_108", "its labels are known to be wrong"),))


def find_part(root: Path, part: Part) -> Path:
    """The folder of a part: `root` itself, or within `root` or `root/ShanghaiTech`.

    Raises RazError when there is none, or when there are two (part_A beside part_A_final).
    """
    names = {f"part_{part.letter}".lower(), f"part_{part.letter}_final".lower()}
    other = "b" if part.letter == "A" else "a"
    is_a_part = any((root / folder).is_dir() for folder in _FOLDERS.values())
    if is_a_part and not root.resolve().name.lower().startswith(f"part_{other}"):
        return root
    for base in (root, root / "ShanghaiTech"):
        here = sorted(p for p in base.iterdir() if p.name.lower() in names and p.is_dir()) if base.is_dir() else []
        if len(here) > 1:
            raise RazError(
                str(base), f"holds {' and '.join(p.name for p in here)}, expected one of them",
                f"--data-root {here[0]}",
            )  # fmt: skip
        if here:
            return here[0]
    raise RazError(
        str(root), f"no folder part_{part.letter} or part_{part.letter}_final here, nor in ShanghaiTech below it",
        f"--data-root DIR with DIR/part_{part.letter}/train_data/images in it",
    )  # fmt: skip


def read_locations(data: bytes, where: str) -> tuple[Heads, int | None]:
    """Heads (n, 2) float64 as annotated, in x, y px of the image, and the number the file itself states.

    Raises RazError for bytes that are no MATLAB 5 file, a missing field, text instead of numbers, NaN or
    infinite points, and any shape but (n, 2).
    """
    from scipy.io import loadmat  # takes longer to import than a reader that is not used should

    again = "copy the annotation again"
    try:
        # the stubs leave out that a file object will do
        content = loadmat(io.BytesIO(data), variable_names=["image_info"])  # type: ignore[arg-type]
    except NotImplementedError as error:
        raise RazError(where, "is a MATLAB 7.3 (HDF5) file, expected MATLAB 5", "save it with -v7") from error
    except Exception as error:  # scipy raises many kinds on damaged bytes, struct.error and zlib.error among them
        raise RazError(where, f"is no MATLAB file that can be read ({error})", again) from error
    info: Any = content.get("image_info")
    if info is None:
        raise RazError(where, "has no variable image_info", again)
    try:
        record = info[0, 0]
        location = np.asarray(record["location"][0, 0])
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise RazError(where, "has no field image_info[0,0]['location'][0,0]", again) from error
    stated = _stated_number(record)
    if location.size == 0 and location.dtype.kind not in "OSU":
        return np.zeros((0, 2)), stated
    if location.dtype.kind not in "fiu":
        kind = "text" if location.dtype.kind in "SU" else f"{location.dtype}"
        raise RazError(where, f"location holds {kind}, expected numbers", again)
    if location.ndim != 2 or location.shape[1] != 2:
        raise RazError(where, f"location has the shape {location.shape}, expected (n, 2): x, y in pixels", again)
    heads = location.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(heads).all(axis=1))
    if len(bad):
        raise RazError(where, f"{len(bad)} point(s) are not finite, the first at row {bad[0] + 1}", again)
    return heads, stated


def _stated_number(record: Any) -> int | None:
    """The count a file states beside its points, where it states one."""
    try:
        number = np.asarray(record["number"][0, 0])
    except (IndexError, KeyError, ValueError, TypeError):
        return None
    return int(number.item()) if number.size == 1 and number.dtype.kind in "fiu" else None


@dataclass
class _Findings:
    """What is noted while a part is read."""

    faults: list[RazError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def survey(part: Part, folder: Path | None) -> Survey:
    """Read every annotation and hash every file of a part's folder; no image is decoded."""
    assert folder is not None  # the readers below have a `find`
    notes = _Findings()
    found: dict[Split, tuple[Found, ...]] = {}
    for split, published in part.images:
        pictures, found[split] = _survey_split(split, folder / _FOLDERS[split], notes)
        if pictures != published:
            notes.warnings.append(f"{pictures} {split} images, {published} were published: scores do not compare")
    everything = [f for each in found.values() for f in each]
    outside = [f for f in everything if f.outside]
    if outside:
        worst = max(outside, key=lambda f: f.outside)
        notes.warnings.append(
            f"{sum(f.outside for f in outside)} head(s) of {len(outside)} image(s) lie outside and are left out "
            f"(most in {worst.item.id}: {worst.outside})"
        )
    if notes.orphaned:
        notes.warnings.append(f"{len(notes.orphaned)} annotation(s) without an image, the first is {notes.orphaned[0]}")
    ids = {f.item.id for f in everything}
    notes.warnings += [f"{item_id}: {what}" for item_id, what in part.known_faults if item_id in ids]
    return Survey(
        found,
        tuple(notes.faults),
        tuple(notes.warnings),
        tuple(notes.missing),
        tuple(notes.orphaned),
        tuple(notes.unreadable),
    )


def _survey_split(split: Split, folder: Path, notes: _Findings) -> tuple[int, tuple[Found, ...]]:
    """The number of image files of a split, and the images that can be read."""
    images, labels = _folders(folder, notes.faults)
    if images is None or labels is None:
        return 0, ()
    pictures = sorted((p for p in images.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "."), key=_natural)
    annotations = {p.name.lower(): p for p in labels.iterdir() if p.suffix.lower() == ".mat" and p.name[0] != "."}
    if not pictures:
        notes.faults.append(RazError(str(images), "holds no image", "expected IMG_1.jpg, IMG_2.jpg, …"))
    for stem, times in Counter(p.stem for p in pictures).items():
        if times > 1:
            fault = RazError(str(images / stem), f"{times} images share one annotation", "keep one of them")
            notes.faults.append(fault)
    found: list[Found] = []
    first: dict[str, str] = {}  # image digest -> id: copies of one picture are one scene
    used: set[str] = set()
    for picture in pictures:
        name = f"GT_{picture.stem}.mat"
        label = annotations.get(name.lower())
        if label is None:
            hint = "copy it, or remove the image"
            notes.missing.append(str(picture))
            notes.faults.append(RazError(str(picture), f"no annotation, expected {labels / name}", hint))
            continue
        used.add(name.lower())
        try:
            one, warnings = _read_one(f"{split}/{picture.stem}", picture, label, first)
        except RazError as error:
            each = error.faults if isinstance(error, RazErrors) else (error,)
            notes.faults += each
            notes.unreadable += [fault.where for fault in each]
            continue
        found.append(one)
        notes.warnings += warnings
    notes.orphaned += [str(p) for name, p in sorted(annotations.items()) if name not in used]
    return len(pictures), tuple(found)


def _folders(folder: Path, faults: list[RazError]) -> tuple[Path | None, Path | None]:
    images = folder / "images"
    labels = [folder / name for name in ANNOTATION_FOLDERS if (folder / name).is_dir()]
    if not images.is_dir():
        faults.append(RazError(str(images), "no such folder", "expected the images here"))
    if not labels:
        faults.append(
            RazError(str(folder), f"no folder {' or '.join(ANNOTATION_FOLDERS)}", "expected GT_IMG_1.mat in it")
        )
    return images if images.is_dir() else None, labels[0] if labels else None


def _natural(path: Path) -> tuple[object, ...]:
    """IMG_2 before IMG_10: the order of the numbers in a name."""
    return tuple(int(bit) if bit.isdigit() else bit for bit in re.split(r"(\d+)", path.name))


def _read_one(item_id: str, picture: Path, label: Path, first: dict[str, str]) -> tuple[Found, list[str]]:
    faults: list[RazError] = []
    notes: list[str] = []
    image_bytes, label_bytes = _bytes(picture, faults), _bytes(label, faults)
    size: tuple[int, int] | None = None
    heads: NDArray[np.float64] | None = None
    if image_bytes is not None:
        try:
            size = size_of(image_bytes, str(picture))
        except RazError as error:
            faults.append(error)
    if label_bytes is not None:
        try:
            heads, stated = read_locations(label_bytes, str(label))
            if stated is not None and stated != len(heads):
                notes.append(f"{item_id}: the annotation states {stated} heads and holds {len(heads)}")
        except RazError as error:
            faults.append(error)
    if faults or image_bytes is None or label_bytes is None or size is None or heads is None:
        raise RazErrors(faults)
    height, width = size
    x, y = heads[:, 0], heads[:, 1]
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height)  # (27)
    image_digest = hashlib.sha256(image_bytes).hexdigest()
    digest = hashlib.sha256(image_bytes)
    digest.update(hashlib.sha256(label_bytes).digest())
    item = Item(
        id=item_id,
        scene=first.setdefault(image_digest, item_id),
        load_pixels=partial(load_pixels, picture, image_digest),
        load_heads=heads[within].copy,
        digest=digest.hexdigest(),
    )
    return Found(item, image_digest, int(len(heads) - within.sum())), notes


def _bytes(path: Path, faults: list[RazError]) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError as error:
        faults.append(RazError(str(path), f"cannot be read ({error.strerror})", "check its permissions"))
        return None


def load_pixels(path: Path, image_digest: str) -> Pixels:
    """(H, W, 3) uint8 RGB. Raises RazError when the file is gone, damaged, or not the one that was opened."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RazError(str(path), f"cannot be read ({error.strerror})", "open the data set again") from error
    if hashlib.sha256(data).hexdigest() != image_digest:
        raise RazError(str(path), "has changed since the data set was opened", "open the data set again")
    return decode(data, str(path))


def _layout(part: Part) -> str:
    return f"part_{part.letter}/{{train_data,test_data}}/{{images,ground-truth}}"


def _reader(part: Part) -> Reader:
    return Reader(
        f"ShanghaiTech Part {part.letter}", partial(survey, part), _layout(part), partial(find_part, part=part)
    )


READER_A, READER_B = _reader(PART_A), _reader(PART_B)
