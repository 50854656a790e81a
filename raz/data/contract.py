"""What every data set looks like to the rest of the program, whatever its files look like.

A reader *surveys* its folder: what is there and readable, and every fault. `raz.data.open_dataset` refuses a scan
with faults and makes a `Dataset` of one without; `raz.data.check` reports both.

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
    """One image with its heads, read when asked for.

    Both loaders can be pickled, return arrays of their own, and raise RazError when the file is damaged or
    has changed since the data set was opened.
    """

    id: str  # "train/IMG_1": the folder it came from and its name, unique in the data set
    scene: str  # images of one scene never lie on both sides of a train/val split
    load_pixels: Callable[[], Pixels]  # (H, W, 3) uint8 RGB
    load_heads: Callable[[], Heads]  # (n, 2) float64 original px, inside the image only
    digest: str  # sha256 of all that is read of it (image, annotation, region), or of a generator's settings
    # The region of interest: () = the whole image. What lies outside it is painted over in the pixels and is left out
    # of the heads, and whoever scores leaves out density and points there.
    region: Polygon = ()
    # A named part of its split that the data set's protocol scores by itself (`mae@scene1`); the split's errors are
    # then the means of its parts'. "" where the protocol has none.
    part: str = ""
    # Of the heads' boxes, in the order of `load_heads`; None where they are not annotated. Some protocols score by it.
    load_sizes: Callable[[], Sizes] | None = None


@dataclass(frozen=True)
class Dataset:
    """The three splits of a data set that can be read."""

    name: str  # as in DATASETS
    title: str  # as in a table's header
    items: Mapping[Split, tuple[Sample, ...]]
    warnings: tuple[str, ...] = ()

    def fingerprint(self, split: Split) -> str:
        """sha256 over the (id, digest) of the split's items, in order."""
        total = hashlib.sha256()
        for item in self.items[split]:
            total.update(f"{item.id}\0{item.digest}\n".encode())
        return total.hexdigest()


@dataclass(frozen=True)
class ScannedSample:
    """A readable image with its annotation, as a scan reports it."""

    item: Sample
    image_digest: str  # sha256 of the image's bytes alone: equal ones in two splits are a leak
    outside: int = 0  # annotated heads beyond the image or its region, which `item.load_heads` leaves out


@dataclass(frozen=True)
class ScanResult:
    """What a reader found on disk, before leaks are dropped and a validation split is made."""

    found: Mapping[Split, tuple[ScannedSample, ...]]  # without "val" where the data set ships none
    faults: tuple[RazError, ...] = ()  # each a reason not to open the data set
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # images without an annotation (a fault each)
    orphaned: tuple[str, ...] = ()  # annotations without an image
    unreadable: tuple[str, ...] = ()  # damaged files (a fault each)


@dataclass(frozen=True)
class Reader:
    """How one data set is found and read."""

    title: str
    scan: Callable[[Path | None], ScanResult]  # of the folder that `find` gave; never raises for what is in it
    layout: str  # what the data root must hold
    find: Callable[[Path], Path] | None = None  # data root -> the data set's own folder, or RazError; None: generated
    splits: str = "train, val, test"  # in words: which are shipped, which are made
    source: str = ""  # in words: where it comes from and what it may be used for
