"""Check a copy of a data set: decode every image, count what is readable and report all faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raz.data import scan
from raz.data.contract import SPLITS, Heads, ScannedSample, Split
from raz.data.splits import Leak, find_leaks
from raz.errors import RazError, raise_all
from raz.utils.json_types import JsonObject


@dataclass(frozen=True)
class SplitReport:
    """Counts of a split's readable images as shipped, before leaks are dropped and a validation split is made."""

    split: Split
    images: int
    heads: int  # inside their images
    least: int  # minimum of heads per image
    mean: float  # mean of heads per image
    most: int  # maximum of heads per image
    smallest: tuple[int, int]  # (H, W) px of the image with the fewest pixels
    largest: tuple[int, int]  # (H, W) px of the image with the most pixels
    outside: int  # annotated heads outside their image
    shared_pixels: int  # heads in the same pixel as an earlier head of the image


@dataclass(frozen=True)
class DatasetReport:
    """The result of `check`."""

    name: str
    title: str
    splits: tuple[SplitReport, ...]
    leaks: tuple[Leak, ...]  # byte-identical images in two splits
    missing: tuple[str, ...]  # images without an annotation
    orphaned: tuple[str, ...]  # annotations without an image
    unreadable: tuple[str, ...]  # damaged files
    faults: tuple[str, ...]  # reasons why the data set cannot be opened
    warnings: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether the data set can be opened and every image can be read."""
        return not self.faults

    def as_json(self) -> JsonObject:
        """The document of `--json`."""
        return {**asdict(self), "sound": self.sound}


def shared_pixels(heads: Heads) -> int:
    """Number of heads (n, 2) in the same pixel as another head, not counting the first one of each pixel (27)."""
    return len(heads) - len(np.unique(np.floor(heads), axis=0)) if len(heads) else 0


def check(name: str, root: Path | None = None, progress: Callable[[int, int], None] | None = None) -> DatasetReport:
    """Read a whole data set, and report its counts and faults.

    `progress(done, total)` is called after each image. Raises RazError for an unknown name, a missing folder, and if no
    image can be read.
    """
    reader, result = scan(name, root)
    faults = list(result.faults)
    unreadable = list(result.unreadable)
    splits: list[SplitReport] = []
    total, done = sum(map(len, result.samples.values())), 0
    for split in SPLITS:
        readable: list[tuple[ScannedSample, tuple[int, int], Heads]] = []
        for scanned in result.samples.get(split, ()):
            try:
                height, width = scanned.sample.load_pixels().shape[:2]
                readable.append((scanned, (height, width), scanned.sample.load_heads()))
            except RazError as error:
                faults.append(error)
                unreadable.append(error.where)
            done += 1
            if progress is not None:
                progress(done, total)
        if readable:
            splits.append(_split_report(split, readable))
    if not splits:
        raise_all(faults)
        raise RazError(name, "contains no image", f"the folder holds {reader.layout}")
    return DatasetReport(
        name=name,
        title=reader.title,
        splits=tuple(splits),
        leaks=find_leaks(result.samples),
        missing=result.missing,
        orphaned=result.orphaned,
        unreadable=tuple(unreadable),
        faults=tuple(str(fault) for fault in faults),
        warnings=result.warnings,
    )


def _split_report(split: Split, readable: list[tuple[ScannedSample, tuple[int, int], Heads]]) -> SplitReport:
    counts = [len(heads) for _, _, heads in readable]
    sizes = sorted((size for _, size, _ in readable), key=lambda size: (size[0] * size[1], size))
    return SplitReport(
        split=split,
        images=len(readable),
        heads=sum(counts),
        least=min(counts),
        mean=sum(counts) / len(counts),
        most=max(counts),
        smallest=sizes[0],
        largest=sizes[-1],
        outside=sum(scanned.outside for scanned, _, _ in readable),
        shared_pixels=sum(shared_pixels(heads) for _, _, heads in readable),
    )


def render(report: DatasetReport, console: Console) -> None:
    """Print a report: a table of the splits, then a line per finding."""
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
            f"{leak.image} and {leak.twin} are the same file: the first is dropped when the data set is opened"
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
            f"{len(report.faults)} fault(s): the data set cannot be opened until they are fixed.", highlight=False
        )
