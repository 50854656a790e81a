"""Images with an annotation each, as most data sets come: found by name, read, and every fault noted.

A reader says which file belongs to which (`Pair`) and how an annotation's bytes are parsed; what is missing, damaged,
outside or twice is told here, the same way for all data sets.
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

from raz.data.contract import Heads, Pixels, Sample, ScannedSample, ScanResult, Sizes, Split
from raz.data.images import SUFFIXES, decode, size_of
from raz.data.region import OUTSIDE_COLOUR, Polygon, in_polygon, mask
from raz.errors import RazError, RazErrorGroup


@dataclass(frozen=True)
class Annotation:
    """What an image's annotation holds."""

    heads: Heads  # (n, 2) x, y px as annotated, those outside the image among them
    notes: tuple[str, ...] = ()  # what is odd but legal
    sizes: Sizes | None = None  # (n, 2) width, height px of each head's box


@dataclass(frozen=True)
class Pair:
    """An image file and where its heads come from: a file of its own, or `given` out of a file for all."""

    id: str
    picture: Path
    label: Path | None  # None: there is none
    expected: Path  # where `label` is looked for
    scene: str = ""  # "": a scene of its own
    part: str = ""
    region: Polygon = ()
    given: Annotation | None = None


ParseAnnotation = Callable[[bytes, str], Annotation]  # an annotation's bytes and name; raises RazError


@dataclass
class ScanBuilder:
    """What is noted while a data set is read."""

    faults: list[RazError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def fault(self, where: Path | str, what: str, hint: str) -> None:
        self.faults.append(RazError(str(where), what, hint))

    def compare_size(self, split: str, images: int, expected: int) -> None:
        """Tell that a copy is not as large as published."""
        if images != expected:
            self.warnings.append(f"{images} {split} images, {expected} were published: scores do not compare")

    def scan(self, found: Mapping[Split, tuple[ScannedSample, ...]]) -> ScanResult:
        """All of it, with a line each for heads left out and annotations left over."""
        outside = [f for each in found.values() for f in each if f.outside]
        if outside:
            worst = max(outside, key=lambda f: f.outside)
            region = " their image or its region of interest" if any(f.item.region for f in outside) else ""
            self.warnings.append(
                f"{sum(f.outside for f in outside)} head(s) of {len(outside)} image(s) lie outside{region} and are "
                f"left out (most in {worst.item.id}: {worst.outside})"
            )
        if self.orphaned:
            first = self.orphaned[0]
            self.warnings.append(f"{len(self.orphaned)} annotation(s) without an image, the first is {first}")
        return ScanResult(
            found, tuple(self.faults), tuple(self.warnings), tuple(self.missing), tuple(self.orphaned),
            tuple(self.unreadable),
        )  # fmt: skip


# ------------------------------------------------------------------ finding files


def natural_sort_key(path: Path) -> tuple[object, ...]:
    """IMG_2 before IMG_10: the order of the numbers in a name."""
    return tuple(int(bit) if bit.isdigit() else bit for bit in re.split(r"(\d+)", path.name))


def folder_entries(folder: Path) -> list[Path]:
    """What a folder holds, hidden files left out, in the order of the numbers in the names. Raises RazError."""
    try:
        with os.scandir(folder) as found:
            return sorted((folder / e.name for e in found if e.name[0] != "."), key=natural_sort_key)
    except FileNotFoundError:
        raise RazError(str(folder), "no such folder", "copy it, or check the data root") from None
    except NotADirectoryError:
        raise RazError(str(folder), "is a file, expected a folder", "check the data root") from None
    except OSError as error:
        raise RazError(str(folder), f"cannot be read ({error.strerror})", "check its permissions") from error


def list_folder(folder: Path, notes: ScanBuilder) -> list[Path] | None:
    """`entries`, or None with the fault noted."""
    try:
        return folder_entries(folder)
    except RazError as error:
        notes.faults.append(error)
        return None


def find_folder(root: Path, names: Sequence[str], markers: Sequence[str], layout: str) -> Path:
    """The folder of a data set: `root` itself when it holds all of `markers`, else the one in it of these names.

    Case does not matter. Raises RazError when there is none, when there are two, and when `root` cannot be read.
    """
    if all(os.path.exists(root / marker) for marker in markers):
        return root
    wanted = {name.lower() for name in names}
    here = [p for p in folder_entries(root) if p.name.lower() in wanted and os.path.isdir(p)]
    if len(here) > 1:
        raise RazError(
            str(root), f"holds {' and '.join(p.name for p in here)}, expected one of them", f"--data-root {here[0]}"
        )
    if here:
        return here[0]
    raise RazError(str(root), f"no folder {' or '.join(names)} here", f"--data-root DIR with DIR/{layout}")


def list_images(folder: Path, notes: ScanBuilder, example: str) -> list[Path]:
    """The image files of a folder, one of each name; none at all, and names that clash, are faults."""
    found = list_folder(folder, notes)
    if found is None:
        return []
    images = [p for p in found if p.suffix.lower() in SUFFIXES]
    if not images:
        notes.fault(folder, "holds no image", f"expected {example}")
    return list(drop_name_clashes(images, notes))


def drop_name_clashes(images: Iterable[Path], notes: ScanBuilder) -> Iterator[Path]:
    """The first of those whose names differ in case or ending only: they would share one annotation and one id."""
    first: dict[str, Path] = {}
    for image in images:
        twin = first.setdefault(str(image.with_suffix("")).lower(), image)
        if twin is image:
            yield image
        elif twin.stem == image.stem:
            notes.fault(image.with_suffix(""), f"2 images share one annotation: {twin.name}, {image.name}", "keep one")
        else:
            what = f"differs from {twin.name} in case only, so they share one annotation"
            notes.fault(image, what, "rename one of them, or keep one")


def files_by_name(files: Iterable[Path], suffix: str, notes: ScanBuilder) -> dict[str, Path]:
    """Annotation files by their lower-case name; names that differ in case only are a fault."""
    out: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() == suffix:
            twin = out.setdefault(path.name.lower(), path)
            if twin is not path:
                notes.fault(path, f"differs from {twin.name} in case only", "keep one of them")
    return out


def note_orphans(labels: Mapping[str, Path], pairs: Iterable[Pair], notes: ScanBuilder) -> None:
    """Note the annotations that no image uses."""
    used = {pair.label for pair in pairs}
    notes.orphaned += [str(path) for path in labels.values() if path not in used]


# ------------------------------------------------------------------ reading them


def read_pairs(pairs: Sequence[Pair], parse: ParseAnnotation, notes: ScanBuilder) -> tuple[ScannedSample, ...]:
    """Read every annotation and hash every file; no image is decoded. Faults are noted, the good part returned."""
    found: list[ScannedSample] = []
    first: dict[str, str] = {}  # image digest -> scene: copies of one picture are one scene
    for pair in pairs:
        if pair.label is None and pair.given is None:
            notes.missing.append(str(pair.picture))
            notes.fault(pair.picture, f"no annotation, expected {pair.expected}", "copy it, or remove the image")
            continue
        try:
            one, told = _read_one(pair, parse, first)
        except RazError as error:
            each = error.faults if isinstance(error, RazErrorGroup) else (error,)
            notes.faults += each
            notes.unreadable += [fault.where for fault in each]
            continue
        found.append(one)
        notes.warnings += [f"{pair.id}: {note}" for note in told]
    return tuple(found)


def _read_one(pair: Pair, parse: ParseAnnotation, first: dict[str, str]) -> tuple[ScannedSample, tuple[str, ...]]:
    faults: list[RazError] = []
    image_bytes = _read_bytes(pair.picture, faults)
    size: tuple[int, int] | None = None
    if image_bytes is not None:
        try:
            size = size_of(image_bytes, str(pair.picture))
        except RazError as error:
            faults.append(error)
    annotation, label_digest = pair.given, b""
    if pair.given is not None:
        label_digest = hashlib.sha256(np.ascontiguousarray(pair.given.heads).tobytes()).digest()
    elif pair.label is not None:
        label_bytes = _read_bytes(pair.label, faults)
        if label_bytes is not None:
            label_digest = hashlib.sha256(label_bytes).digest()
            try:
                annotation = parse(label_bytes, str(pair.label))
            except RazError as error:
                faults += error.faults if isinstance(error, RazErrorGroup) else (error,)
    if faults or image_bytes is None or size is None or annotation is None:
        raise RazErrorGroup(faults)
    height, width = size
    x, y = annotation.heads[:, 0], annotation.heads[:, 1]
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height) & in_polygon(pair.region, annotation.heads)  # (27)
    image_digest = hashlib.sha256(image_bytes).hexdigest()
    digest = hashlib.sha256(image_bytes)
    digest.update(label_digest)
    if pair.region or pair.part:
        digest.update(repr((pair.region, pair.part)).encode())
    item = Sample(
        id=pair.id,
        scene=first.setdefault(image_digest, pair.scene or pair.id),
        load_pixels=partial(load_pixels, pair.picture, image_digest, pair.region),
        load_heads=annotation.heads[within].copy,
        digest=digest.hexdigest(),
        region=pair.region,
        part=pair.part,
        load_sizes=annotation.sizes[within].copy if annotation.sizes is not None else None,
    )
    return ScannedSample(item, image_digest, int(len(annotation.heads) - within.sum())), annotation.notes


def _read_bytes(path: Path, faults: list[RazError]) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError as error:
        faults.append(RazError(str(path), f"cannot be read ({error.strerror})", "check its permissions"))
        return None


def load_pixels(path: Path, image_digest: str, region: Polygon = ()) -> Pixels:
    """(H, W, 3) uint8 RGB, painted over outside the region of interest.

    Raises RazError when the file is gone, damaged, or not the one that was opened.
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
