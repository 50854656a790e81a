"""Shared parts of readers: find images and their annotations, read them, and collect every fault.

A reader pairs files (`Pair`) and parses an annotation's bytes. This module reports files that are missing, damaged or
ambiguous and heads outside their image, in the same way for all data sets.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from raz.data import image_memo
from raz.data.contract import Heads, Pixels, Sample, ScannedSample, ScanResult, Sizes, Split
from raz.data.image_memo import KnownImage
from raz.data.images import SUFFIXES, decode, size_of
from raz.data.region import OUTSIDE_COLOUR, Polygon, in_polygon, mask
from raz.errors import RazError, RazErrorGroup


@dataclass(frozen=True)
class Annotation:
    """The content of an image's annotation."""

    heads: Heads  # (n, 2) x, y px as annotated, including heads outside the image
    notes: tuple[str, ...] = ()  # oddities that are no faults
    sizes: Sizes | None = None  # (n, 2) width, height px of each head's box


@dataclass(frozen=True)
class Pair:
    """An image file and its annotation: a file of its own, or `annotation` if one file annotates all images."""

    id: str
    picture: Path
    label: Path | None  # None: not found
    expected: Path  # where `label` was expected, for messages
    scene: str = ""  # "": the image is its own scene
    part: str = ""
    region: Polygon = ()
    annotation: Annotation | None = None


ParseAnnotation = Callable[[bytes, str], Annotation]  # (bytes, file name) of an annotation; raises RazError


@dataclass
class ScanBuilder:
    """Faults and warnings collected while a data set is read."""

    faults: list[RazError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def fault(self, where: Path | str, what: str, hint: str) -> None:
        """Add a fault, which prevents the data set from being opened."""
        self.faults.append(RazError(str(where), what, hint))

    def compare_size(self, split: str, images: int, expected: int) -> None:
        """Warn if a split has another number of images than published."""
        if images != expected:
            self.warnings.append(f"{images} {split} images, {expected} were published: scores are not comparable")

    def result(self, samples: Mapping[Split, tuple[ScannedSample, ...]]) -> ScanResult:
        """The scan of these samples, with warnings of heads outside their image and of unused annotations."""
        outside = [s for each in samples.values() for s in each if s.outside]
        if outside:
            worst = max(outside, key=lambda s: s.outside)
            region = " their image or its region of interest" if any(s.sample.region for s in outside) else ""
            self.warnings.append(
                f"{sum(s.outside for s in outside)} head(s) of {len(outside)} image(s) lie outside{region} and are "
                f"dropped (most in {worst.sample.id}: {worst.outside})"
            )
        if self.orphaned:
            first = self.orphaned[0]
            self.warnings.append(f"{len(self.orphaned)} annotation(s) without an image, the first is {first}")
        return ScanResult(
            samples, tuple(self.faults), tuple(self.warnings), tuple(self.missing), tuple(self.orphaned),
            tuple(self.unreadable),
        )  # fmt: skip


# ------------------------------------------------------------------ finding files


def natural_sort_key(path: Path) -> tuple[object, ...]:
    """Sort key that compares numbers in file names by value: IMG_2 before IMG_10."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name))


def folder_entries(folder: Path) -> list[Path]:
    """The entries of a folder in natural order, without hidden files. Raises RazError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((folder / e.name for e in entries if e.name[0] != "."), key=natural_sort_key)
    except FileNotFoundError:
        raise RazError(str(folder), "no such folder", "copy it, or check the data root") from None
    except NotADirectoryError:
        raise RazError(str(folder), "is a file, expected a folder", "check the data root") from None
    except OSError as error:
        raise RazError(str(folder), f"cannot be read ({error.strerror})", "check its permissions") from error


def list_folder(folder: Path, builder: ScanBuilder) -> list[Path] | None:
    """`folder_entries`, or None with the fault added to `builder`."""
    try:
        return folder_entries(folder)
    except RazError as error:
        builder.faults.append(error)
        return None


def find_folder(root: Path, names: Sequence[str], markers: Sequence[str], layout: str) -> Path:
    """The folder of a data set: `root` if it contains all of `markers`, else its subfolder with one of the names.

    Names are compared without case. `layout` describes the folder in messages. Raises RazError if there is no such
    folder or several, or `root` cannot be read.
    """
    if all(os.path.exists(root / marker) for marker in markers):
        return root
    folder = subfolder(root, names)
    if folder is not None:
        return folder
    raise RazError(str(root), f"no folder {' or '.join(names)} here", f"--data-root DIR with DIR/{layout}")


def subfolder(root: Path, names: Sequence[str]) -> Path | None:
    """The subfolder of `root` with one of the names, compared without case; None if there is none.

    Raises RazError if there are several, or `root` cannot be read.
    """
    lower = {name.lower() for name in names}
    folders = [p for p in folder_entries(root) if p.name.lower() in lower and os.path.isdir(p)]
    if len(folders) > 1:
        found = " and ".join(p.name for p in folders)
        raise RazError(str(root), f"holds {found}, expected one of them", f"--data-root {folders[0]}")
    return folders[0] if folders else None


def list_images(folder: Path, builder: ScanBuilder, example: str) -> list[Path]:
    """The image files of a folder, one per name. No image, and names that clash, are faults added to `builder`."""
    paths = list_folder(folder, builder)
    if paths is None:
        return []
    images = [p for p in paths if p.suffix.lower() in SUFFIXES]
    if not images:
        builder.fault(folder, "holds no image", f"expected {example}")
    return list(drop_name_clashes(images, builder))


def drop_name_clashes(images: Iterable[Path], builder: ScanBuilder) -> Iterator[Path]:
    """The images without those whose name differs from an earlier one in case or suffix only: a fault each.

    Such images would share one annotation and one id.
    """
    first: dict[str, Path] = {}
    for image in images:
        twin = first.setdefault(str(image.with_suffix("")).lower(), image)
        if twin is image:
            yield image
        elif twin.stem == image.stem:
            builder.fault(
                image.with_suffix(""), f"2 images share one annotation: {twin.name}, {image.name}", "keep one"
            )
        else:
            what = f"differs from {twin.name} in case only, so they share one annotation"
            builder.fault(image, what, "rename one of them, or keep one")


def files_by_name(files: Iterable[Path], suffix: str, builder: ScanBuilder) -> dict[str, Path]:
    """The files with this suffix by lower-case name; names that differ in case only are a fault."""
    out: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() == suffix:
            twin = out.setdefault(path.name.lower(), path)
            if twin is not path:
                builder.fault(path, f"differs from {twin.name} in case only", "keep one of them")
    return out


def note_orphans(labels: Mapping[str, Path], pairs: Iterable[Pair], builder: ScanBuilder) -> None:
    """Add the annotation files that no pair uses to `builder.orphaned`."""
    used = {pair.label for pair in pairs}
    builder.orphaned += [str(path) for path in labels.values() if path not in used]


# ------------------------------------------------------------------ reading them


def read_pairs(pairs: Sequence[Pair], parse: ParseAnnotation, builder: ScanBuilder) -> tuple[ScannedSample, ...]:
    """The pairs that can be read: annotations are parsed, files hashed, no image decoded. Faults go to `builder`."""
    samples: list[ScannedSample] = []
    scenes: dict[str, str] = {}  # image digest -> scene: copies of one image belong to one scene
    for pair in pairs:
        if pair.label is None and pair.annotation is None:
            builder.missing.append(str(pair.picture))
            builder.fault(pair.picture, f"no annotation, expected {pair.expected}", "copy it, or remove the image")
            continue
        try:
            sample, notes = _read_one(pair, parse, scenes)
        except RazError as error:
            each = error.faults if isinstance(error, RazErrorGroup) else (error,)
            builder.faults += each
            builder.unreadable += [fault.where for fault in each]
            continue
        samples.append(sample)
        builder.warnings += [f"{pair.id}: {note}" for note in notes]
    return tuple(samples)


def _read_one(pair: Pair, parse: ParseAnnotation, scenes: dict[str, str]) -> tuple[ScannedSample, tuple[str, ...]]:
    """The sample of a pair, and its annotation's notes. Raises RazErrorGroup."""
    faults: list[RazError] = []
    annotation, label_digest = pair.annotation, b""
    if pair.annotation is not None:
        label_digest = hashlib.sha256(np.ascontiguousarray(pair.annotation.heads).tobytes()).digest()
    elif pair.label is not None:
        label_bytes = _read_bytes(pair.label, faults)
        if label_bytes is not None:
            label_digest = hashlib.sha256(label_bytes).digest()
            try:
                annotation = parse(label_bytes, str(pair.label))
            except RazError as error:
                faults += error.faults if isinstance(error, RazErrorGroup) else (error,)
    of_image: list[RazError] = []
    image = _image(pair, label_digest, of_image)
    faults = of_image + faults
    if faults or image is None or annotation is None:
        raise RazErrorGroup(faults)
    height, width = image.height, image.width
    x, y = annotation.heads[:, 0], annotation.heads[:, 1]
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height) & in_polygon(pair.region, annotation.heads)  # (27)
    item = Sample(
        id=pair.id,
        scene=scenes.setdefault(image.image_digest, pair.scene or pair.id),
        load_pixels=partial(load_pixels, pair.picture, image.image_digest, pair.region),
        load_heads=annotation.heads[within].copy,
        digest=image.digest,
        region=pair.region,
        part=pair.part,
        load_sizes=annotation.sizes[within].copy if annotation.sizes is not None else None,
        size=(height, width),
    )
    return ScannedSample(item, image.image_digest, int(len(annotation.heads) - within.sum())), annotation.notes


def _image(pair: Pair, label_digest: bytes, faults: list[RazError]) -> KnownImage | None:
    """Digests and size of a pair's image, as this machine remembers them or from the file; None after a fault."""
    rest = label_digest + (repr((pair.region, pair.part)).encode() if pair.region or pair.part else b"")
    name, memo = hashlib.sha256(rest).hexdigest(), image_memo.current()
    if memo is not None and (known := memo.get(pair.picture, name)):
        return known
    stamp = image_memo.stamp_of(pair.picture)
    data = _read_bytes(pair.picture, faults)
    if data is None:
        return None
    try:
        height, width = size_of(data, str(pair.picture))
    except RazError as error:
        faults.append(error)
        return None
    digest = hashlib.sha256(data)
    image_digest = digest.hexdigest()
    digest.update(rest)
    image = KnownImage(image_digest, digest.hexdigest(), height, width)
    if memo is not None:
        memo.put(pair.picture, name, stamp, image)
    return image


def _read_bytes(path: Path, faults: list[RazError]) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError as error:
        faults.append(RazError(str(path), f"cannot be read ({error.strerror})", "check its permissions"))
        return None


def load_pixels(path: Path, image_digest: str, region: Polygon = ()) -> Pixels:
    """(H, W, 3) uint8 RGB, set to OUTSIDE_COLOUR outside the region of interest.

    Raises RazError if the file is missing or damaged, or its sha256 is not `image_digest`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RazError(str(path), f"cannot be read ({error.strerror})", "open the data set again") from error
    if hashlib.sha256(data).hexdigest() != image_digest:
        raise RazError(str(path), "has changed since the data set was opened", "open the data set again")
    pixels = decode(data, str(path))
    if region:
        pixels[~mask(region, *pixels.shape[:2])] = OUTSIDE_COLOUR
    return pixels
