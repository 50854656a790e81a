"""The common interface of data sets: readers scan files in their native layout into samples.

A reader scans its folder for readable samples and all faults. `raz.data.open_dataset` makes a `Dataset` of a scan
without faults and raises the faults of any other; `raz.data.check` reports both.

Coordinates (27): pixel i covers [i, i+1) and its centre is i + 0.5; a head is (x, y) in pixels of the original
image and inside it when 0 <= x < W, 0 <= y < H.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raz.data.region import Polygon
from raz.errors import RazError

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
Heads = NDArray[np.float64]  # (n, 2) x, y px
Sizes = NDArray[np.float64]  # (n, 2) width, height px

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One image with its heads, loaded lazily.

    The loaders can be pickled, return new arrays, and raise RazError if the file is damaged or has changed since the
    data set was opened.
    """

    id: str  # "train/IMG_1": folder and name of the image, unique in the data set
    scene: str  # images of one scene are never divided between training and validation
    load_pixels: Callable[[], Pixels]  # (H, W, 3) uint8 RGB
    load_heads: Callable[[], Heads]  # (n, 2) float64 original px, inside the image only
    digest: str  # sha256 of all that is read (image, annotation, region), or of a generator's settings
    # Region of interest; () = the whole image. Pixels outside it are painted over, heads outside it are dropped, and
    # density and points outside it are not scored.
    region: Polygon = ()
    # Part of the split that the data set's protocol scores separately (`mae@scene1`); the split's errors are then the
    # means over its parts. "" if the protocol has no parts.
    part: str = ""
    # (n, 2) width and height px of the heads' boxes, in the order of `load_heads`; None if boxes are not annotated.
    load_sizes: Callable[[], Sizes] | None = None
    size: tuple[int, int] | None = None  # (H, W) px of the image, where it is known without decoding it

    def original_size(self) -> tuple[int, int]:
        """(H, W) px of the image; decoded where `size` is not known. Raises RazError as `load_pixels`."""
        if self.size is not None:
            return self.size
        height, width = self.load_pixels().shape[:2]
        return height, width


@dataclass(frozen=True)
class Dataset:
    """The three splits of an opened data set."""

    name: str  # as in DATASETS
    title: str  # as in the header of a table
    items: Mapping[Split, tuple[Sample, ...]]
    warnings: tuple[str, ...] = ()

    def fingerprint(self, split: Split) -> str:
        """sha256 over (id, digest) of the split's samples, in order; hexadecimal."""
        total = hashlib.sha256()
        for item in self.items[split]:
            total.update(f"{item.id}\0{item.digest}\n".encode())
        return total.hexdigest()


@dataclass(frozen=True)
class ScannedSample:
    """A readable sample, and what a scan found out about it."""

    sample: Sample
    image_digest: str  # sha256 of the image's bytes; equal digests in two splits are a leak
    outside: int = 0  # number of annotated heads outside the image or its region, which `sample.load_heads` omits


@dataclass(frozen=True)
class ScanResult:
    """What a reader finds, before leaks are dropped and a validation split is made."""

    samples: Mapping[Split, tuple[ScannedSample, ...]]  # without "val" if the data set ships no validation split
    faults: tuple[RazError, ...] = ()  # each prevents the data set from being opened
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # images without an annotation; each is a fault too
    orphaned: tuple[str, ...] = ()  # annotations without an image
    unreadable: tuple[str, ...] = ()  # damaged files; each is a fault too


@dataclass(frozen=True)
class Reader:
    """How one data set is found and read."""

    title: str
    scan: Callable[[Path | None], ScanResult]  # of the folder that `find` returns; faults are results, not exceptions
    layout: str  # what the data root must hold, for messages
    find: Callable[[Path], Path] | None = None  # data root -> folder of the data set, or RazError; None: generated
    splits: str = "train, val, test"  # for people: which splits are shipped, which are made
    source: str = ""  # for people: origin and terms of use
