"""Is this copy of a data set right? Every image is decoded, and the good part is counted when parts are broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raz.data import scan
from raz.data.contract import SPLITS, Heads, ScannedSample, Split
from raz.data.splits import Leak, find_leaks
from raz.errors import RazError, raise_all


@dataclass(frozen=True)
class SplitReport:
    """What a split's readable images hold, as the files have it: no image left out, no validation split made."""

    split: Split
    images: int
    heads: int  # inside their images
    least: int  # heads of one image
    mean: float
    most: int
    smallest: tuple[int, int]  # (H, W) px of the image with the fewest pixels
    largest: tuple[int, int]
    outside: int  # annotated heads beyond their image
    shared_pixels: int  # heads in a pixel that an earlier head of the list is already in


@dataclass(frozen=True)
class DatasetReport:
    """What `check` found."""

    name: str
    title: str
    splits: tuple[SplitReport, ...]
    leaks: tuple[Leak, ...]  # byte-identical images in two splits
    missing: tuple[str, ...]  # images without an annotation
    orphaned: tuple[str, ...]  # annotations without an image
    unreadable: tuple[str, ...]  # damaged files
    faults: tuple[str, ...]  # why the data set cannot be opened, if it cannot
    warnings: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """The data set can be opened, and every image read."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {**asdict(self), "sound": self.sound}


def shared_pixels(heads: Heads) -> int:
    """How many of the heads (n, 2) lie in a pixel that another one has taken (27)."""
    return len(heads) - len(np.unique(np.floor(heads), axis=0)) if len(heads) else 0


def check(name: str, root: Path | None = None, progress: Callable[[int, int], None] | None = None) -> DatasetReport:
    """Read a whole data set and report what is there and what is wrong.

    `progress(done, total)` is called after each image. Raises RazError for an unknown name, a missing folder, and
    when not one image can be read.
    """
    reader, seen = scan(name, root)
    faults = list(seen.faults)
    unreadable = list(seen.unreadable)
    splits: list[SplitReport] = []
    total, done = sum(map(len, seen.found.values())), 0
    for split in SPLITS:
        good: list[tuple[ScannedSample, tuple[int, int], Heads]] = []
        for found in seen.found.get(split, ()):
            try:
                height, width = found.item.load_pixels().shape[:2]
                good.append((found, (height, width), found.item.load_heads()))
            except RazError as error:
                faults.append(error)
                unreadable.append(error.where)
            done += 1
            if progress is not None:
                progress(done, total)
        if good:
            splits.append(_split_report(split, good))
    if not splits:
        raise_all(faults)
        raise RazError(name, "not one image in it", f"the folder holds {reader.layout}")
    return DatasetReport(
        name=name,
        title=reader.title,
        splits=tuple(splits),
        leaks=find_leaks(seen.found),
        missing=seen.missing,
        orphaned=seen.orphaned,
        unreadable=tuple(unreadable),
        faults=tuple(str(fault) for fault in faults),
        warnings=seen.warnings,
    )


def _split_report(split: Split, good: list[tuple[ScannedSample, tuple[int, int], Heads]]) -> SplitReport:
    counts = [len(heads) for _, _, heads in good]
    sizes = sorted((size for _, size, _ in good), key=lambda size: (size[0] * size[1], size))
    return SplitReport(
        split=split,
        images=len(good),
        heads=sum(counts),
        least=min(counts),
        mean=sum(counts) / len(counts),
        most=max(counts),
        smallest=sizes[0],
        largest=sizes[-1],
        outside=sum(found.outside for found, _, _ in good),
        shared_pixels=sum(shared_pixels(heads) for _, _, heads in good),
    )


def render(report: DatasetReport, console: Console) -> None:
    """Print a report for a person: a table of the splits, then every finding by name."""
    table = Table(title=f"{report.title} ({report.name})", title_justify="left")
    table.add_column("split")
    columns = ("images", "heads", "min", "mean", "max", "smallest", "largest", "outside", "sharing a pixel")
    for column in columns:
        table.add_column(column, justify="right")
    for s in report.splits:
        sizes = (f"{width} x {height}" for height, width in (s.smallest, s.largest))
        numbers = (f"{s.images:,}", f"{s.heads:,}", f"{s.least:,}", f"{s.mean:,.1f}", f"{s.most:,}")
        table.add_row(s.split, *numbers, *sizes, f"{s.outside:,}", f"{s.shared_pixels:,}")
    console.print(table)
    findings = [
        *(
            f"{leak.image} and {leak.twin} are the same file: the first is left out when opened"
            for leak in report.leaks
        ),
        *report.warnings,
        *(f"annotation without an image: {path}" for path in report.orphaned),
        *report.faults,
    ]
    for finding in findings:
        console.print(f"- {escape(finding)}", highlight=False, soft_wrap=True)
    if report.sound:
        console.print("Every image and every annotation can be read.", highlight=False)
    else:
        console.print(
            f"{len(report.faults)} fault(s): the data set cannot be opened until they are put right.", highlight=False
        )
