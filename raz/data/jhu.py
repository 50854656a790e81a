"""JHU-Crowd++ (Sindagi, Yasarla, Patel, 2020) in its native layout.

    jhu_crowd_v2.0/{train,val,test}/{images/0001.jpg,gt/0001.txt}, image_labels.txt

Each line of gt/*.txt is a head: `x y w h o b` with the head's centre x, y px, its approximate width and height,
occlusion (1 visible, 2 partly, 3 fully occluded) and blur (0, 1), as in the data set's readme and FIDTM
(data/fidt_generate_jhu.py, where column 0 is x). An empty file is an image without heads. image_labels.txt has a line
per image: name, count, scene, weather, distractor; the count is compared with the number of heads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raz.data.contract import SPLITS, Reader, ScannedSample, ScanResult, Split
from raz.data.image_pairs import (
    Annotation,
    Pair,
    ScanBuilder,
    files_by_name,
    find_folder,
    list_folder,
    list_images,
    note_orphans,
    read_pairs,
)
from raz.errors import RazError

PUBLISHED: dict[Split, int] = {"train": 2272, "val": 500, "test": 1600}
_COPY_AGAIN = "copy the annotation again"


def parse(data: bytes, where: str) -> Annotation:
    """The heads of a gt file. Raises RazError naming the first invalid line and the number of such lines."""
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RazError(where, "is not UTF-8 text, expected lines of `x y w h o b`", _COPY_AGAIN) from error
    heads: list[tuple[float, float]] = []
    invalid: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            values = [float(text) for text in fields]
        except ValueError:
            invalid.append((number, f"{line.strip()[:40]!r} is not six numbers"))
            continue
        if len(values) != 6:
            invalid.append((number, f"{len(values)} numbers, expected six"))
        elif not np.isfinite(values).all():
            invalid.append((number, "a number that is not finite"))
        else:
            heads.append((values[0], values[1]))
    if invalid:
        number, what = invalid[0]
        more = f" ({len(invalid)} such lines)" if len(invalid) > 1 else ""
        raise RazError(f"{where}:{number}", f"{what}: x y w h o b{more}", _COPY_AGAIN)
    return Annotation(np.array(heads, dtype=np.float64).reshape(-1, 2))


def scan(folder: Path | None) -> ScanResult:
    """Scan the folder: annotations are parsed, files hashed, no image is decoded."""
    assert folder is not None
    builder = ScanBuilder()
    samples: dict[Split, tuple[ScannedSample, ...]] = {}
    for split in SPLITS:
        base = folder / split
        labels = files_by_name(list_folder(base / "gt", builder) or (), ".txt", builder)
        pairs = []
        for picture in list_images(base / "images", builder, "0001.jpg, …"):
            name = f"{picture.stem}.txt"
            pairs.append(Pair(f"{split}/{picture.stem}", picture, labels.get(name.lower()), base / "gt" / name))
        if pairs:
            note_orphans(labels, pairs, builder)
        builder.compare_size(split, len(pairs), PUBLISHED[split])
        samples[split] = read_pairs(pairs, parse, builder)
        _compare_counts(base / "image_labels.txt", split, samples[split], builder)
    return builder.result(samples)


def _compare_counts(path: Path, split: Split, samples: tuple[ScannedSample, ...], builder: ScanBuilder) -> None:
    """Warn of images whose number of heads differs from image_labels.txt, if that file exists."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        builder.warnings.append(f"{path} cannot be read ({error}): its counts were not checked")
        return
    stated = {}
    for line in lines:
        name, _, rest = line.partition(",")
        count = rest.partition(",")[0].strip()
        if count.isdigit():
            stated[f"{split}/{name.strip()}"] = int(count)
    counts = {s.sample.id: len(s.sample.load_heads()) + s.outside for s in samples}
    differ = [image for image, count in counts.items() if stated.get(image, count) != count]
    if differ:
        first = differ[0]
        builder.warnings.append(
            f"{len(differ)} {split} image(s) have another number of heads than stated in image_labels.txt "
            f"(first {first}: {counts[first]}, stated {stated[first]})"
        )


def _find(root: Path) -> Path:
    names = ("jhu_crowd_v2.0", "jhu_crowd_plusplus", "jhu_crowd++", "JHU-CROWD++")
    return find_folder(root, names, ("train/gt", "val/gt", "test/gt"), "jhu_crowd_v2.0/train/images in it")


READER = Reader(
    "JHU-Crowd++", scan, "jhu_crowd_v2.0/{train,val,test}/{images/0001.jpg,gt/0001.txt}", _find,
    splits="train, val, test", source="www.crowd-counting.com; for research, not commercial",
)  # fmt: skip
