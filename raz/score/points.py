"""Files of points: CSV, JSON, and the text files of the public localization benchmarks.

CSV      a header with `image`, `x`, `y`, and for predictions `score`; for true heads the box's `w` and `h`, or
         `sigma_s` and `sigma_l`, and `level`. An image without points is a row that gives its name alone.
JSON     a list of such records, or a mapping from image to a list of [x, y] or [x, y, score], or a list of
         {"image": ..., "points": [[x, y, score], ...]}, also as the value of "images" (`raz-sweep predict --json`).
text     as NWPU-Crowd's and FIDTM's scripts read it, a line an image: `id n x y x y …`, or for true heads
         `id n x y sigma_s sigma_l level …`.

Coordinates are pixels of the original image (27): pixel i covers [i, i+1).
"""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raz.data.pointfiles import DuplicateNameError, reject_duplicates
from raz.errors import RazError, raise_all
from raz.utils.suggestions import did_you_mean

Floats = NDArray[np.float64]
COLUMNS = ("image", "x", "y", "score", "w", "h", "sigma_s", "sigma_l", "level")
SIZES = ("w", "h", "sigma_s", "sigma_l")
PIXELS = ("x", "y", *SIZES)
MAX_COORDINATE = 1e9  # px; beyond it no picture reaches, and squares would leave the numbers' range
LARGE = 1 << 20  # bytes from which on a CSV is first read all at once
MAX_REPORTED = 20  # faults of one file that are told one by one


@dataclass(frozen=True)
class PointSet:
    """One image's points or heads, in original px.

    xy: (n, 2). score: (n,), higher is surer, or None. sigma: (n, 2) sigma_s and sigma_l of each head, or None.
    level: (n,) 0 to 5 by the head's area, or None.
    """

    xy: Floats
    score: Floats | None = None
    sigma: Floats | None = None
    level: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.xy)


def box_sigmas(w: Floats, h: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """((n, 2) sigma_s and sigma_l, (n,) level) of head boxes, as NWPU-Crowd defines them.

    sigma_s = min(w, h) / 2, sigma_l = sqrt(w² + h²) / 2. Level l holds the areas in (10^l, 10^(l+1)], 0 also those
    below, 5 all above.
    """
    sigma = np.stack([np.minimum(w, h) / 2, np.sqrt(w * w + h * h) / 2], axis=1)
    # against the powers themselves: a logarithm would round 1000 to either side
    return sigma, np.searchsorted(10.0 ** np.arange(1, 6), w * h, side="left").astype(np.int64)


@dataclass
class _Parser:
    """The rows of a file as they are read, and its faults."""

    path: Path
    faults: list[RazError] = field(default_factory=list)
    more: int = 0
    names: dict[str, int] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    owner: Any = field(default_factory=lambda: array("q"))  # of each point, the number of its image
    values: dict[str, Any] = field(default_factory=dict)  # column -> a number a point; arrays that can grow, or numpy's

    def fault(self, line: int | str, what: str, hint: str = "") -> None:
        if len(self.faults) < MAX_REPORTED:
            where = f"{self.path}:{line}" if isinstance(line, int) else f"{self.path}: {line}"
            self.faults.append(RazError(where, what, hint))
        else:
            self.more += 1

    def begin(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.values = {name: array("d") for name in columns}

    def image(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))

    def row(self, line: int | str, image: str, numbers: Sequence[Any]) -> None:
        """Keep one point; `numbers` follow `columns`. What is wrong with it is a fault."""
        taken: list[float] = []
        for column, given in zip(self.columns, numbers, strict=True):
            try:
                number = float(given) if not isinstance(given, bool) else math.nan
            except (TypeError, ValueError):
                self.fault(line, f"{column} is {str(given)[:40]!r}, expected a number")
                return
            if not math.isfinite(number):
                self.fault(line, f"{column} is {given}, expected a finite number")
                return
            if column in PIXELS and abs(number) > MAX_COORDINATE:
                self.fault(line, f"{column} is {number:g}, expected pixels")
                return
            if column in SIZES and number < 0:
                self.fault(line, f"{column} is {number:g}, expected 0 or more pixels")
                return
            if column == "level" and (number != int(number) or not 0 <= number <= 5):
                self.fault(line, f"level is {number:g}, expected 0 to 5")
                return
            taken.append(number)
        self.owner.append(self.image(image))
        for column, number in zip(self.columns, taken, strict=True):
            self.values[column].append(number)

    def settle(self) -> dict[str, PointSet]:
        """All faults at once, or the images."""
        if self.more:
            self.faults.append(RazError(str(self.path), f"and {self.more} more faults"))
        if not self.faults and not self.names:
            self.faults.append(RazError(str(self.path), "holds no image", "one row a point: image,x,y,score"))
        raise_all(self.faults)
        owner = np.asarray(self.owner, dtype=np.int64)
        table = {name: np.asarray(column, dtype=np.float64) for name, column in self.values.items()}
        order = np.argsort(owner, kind="stable")
        cuts = np.searchsorted(owner[order], np.arange(1, len(self.names)))
        split = {name: np.split(column[order], cuts) for name, column in table.items()}
        out = {}
        for name, i in self.names.items():
            own = {column: parts[i] for column, parts in split.items()}
            sigma, level = None, None
            if "sigma_s" in own and "sigma_l" in own:
                sigma = np.stack([own["sigma_s"], own["sigma_l"]], axis=1)
            elif "w" in own and "h" in own:
                sigma, level = box_sigmas(own["w"], own["h"])
            if "level" in own:
                level = own["level"].astype(np.int64)
            xy = np.stack([own["x"], own["y"]], axis=1) if "x" in own else np.zeros((0, 2))
            out[name] = PointSet(xy, own.get("score"), sigma, level)
        return out


def read_points(path: Path) -> dict[str, PointSet]:
    """The images of a file of points, in its order: name -> Marks.

    Raises RazError naming every fault of the file with its line (the first 20 of them, and how many more).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RazError(str(path), f"cannot be read ({error.strerror or error})", "check the path") from error
    parser = _Parser(path)
    if path.suffix.lower() == ".csv" and len(data) >= LARGE and _plain_csv(parser, data):
        del data
        return parser.settle()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RazError(str(path), f"is no text in UTF-8 (byte {error.start})", "a CSV, JSON or text file") from error
    del data
    kind = path.suffix.lower()
    if kind == ".json" or (kind not in (".csv", ".txt") and text.lstrip()[:1] in ("[", "{")):
        _json(parser, text)
    elif kind == ".txt" and "," not in text[:4096]:
        _benchmark_text(parser, text)
    else:
        _csv(parser, text)
    return parser.settle()


def _csv(parser: _Parser, text: str) -> None:
    rows = csv.reader(text.splitlines(), skipinitialspace=True, strict=True)
    try:
        header = next(rows, None)
        if not header:
            parser.fault(1, "the file is empty", "begin with a header: image,x,y,score")
            return
        columns = [name.strip().lower() for name in header]
        for name in columns:
            if columns.count(name) > 1:
                parser.fault(1, f"column {name!r} stands there twice")
                return
        for needed in ("image", "x", "y"):
            if needed not in columns:
                shown = ",".join(header)[:60]
                parser.fault(1, f"the header is {shown!r}, without a column {needed!r}", "image,x,y,score")
        for name in columns:
            if name not in COLUMNS:
                parser.fault(1, f"unknown column {name!r}", did_you_mean(name, COLUMNS))
        if parser.faults:
            return
        at = columns.index("image")
        parser.begin([name for name in columns if name != "image"])
        for row in rows:
            if not row:
                continue
            if len(row) != len(columns):
                parser.fault(rows.line_num, f"{len(row)} values, expected {len(columns)} as in the header")
                continue
            name = row.pop(at).strip()
            if not name:
                parser.fault(rows.line_num, "no image named")
            elif any(row):
                parser.row(rows.line_num, name, row)
            else:
                parser.image(name)
    except csv.Error as error:
        parser.fault(rows.line_num, f"is no CSV ({error})")


def _plain_csv(parser: _Parser, data: bytes) -> bool:
    """Read a large file without a fault all at once, ten times as fast. False: read it line by line, to say why not."""
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow import csv as table_csv

    header = data[: max(0, data.find(b"\n"))].decode("utf-8-sig", errors="replace")
    columns = [name.strip().lower() for name in header.split(",")]
    if len(set(columns)) < len(columns) or not {"image", "x", "y"} <= set(columns) <= set(COLUMNS):
        return False
    numbers = [name for name in columns if name != "image"]
    try:
        table = table_csv.read_csv(
            pa.BufferReader(data),
            read_options=table_csv.ReadOptions(column_names=columns, skip_rows=1),
            convert_options=table_csv.ConvertOptions(
                column_types={"image": pa.string(), **dict.fromkeys(numbers, pa.float64())}, null_values=[""]
            ),
            memory_pool=pa.system_memory_pool(),  # gives back what it no longer needs
        )
    except pa.ArrowInvalid:
        return False
    names = table.column("image").combine_chunks()
    if compute.any(compute.not_equal(names, compute.utf8_trim_whitespace(names))).as_py() or not len(names):
        return False
    values = np.stack([table.column(name).to_numpy() for name in numbers])  # an empty field is nan
    empty = np.stack([table.column(name).is_null().to_numpy() for name in numbers]).all(axis=0)
    sound = np.isfinite(values) | empty
    for row, name in enumerate(numbers):
        if name in PIXELS:
            least = 0.0 if name in SIZES else -MAX_COORDINATE
            sound[row] &= ((values[row] >= least) & (values[row] <= MAX_COORDINATE)) | empty
        elif name == "level":
            sound[row] &= np.isin(values[row], range(6)) | empty
    coded = names.dictionary_encode()
    images = coded.dictionary.to_pylist()
    if not sound.all() or "" in images:
        return False
    parser.begin(numbers)
    parser.names = {image: i for i, image in enumerate(images)}
    parser.owner = coded.indices.to_numpy()[~empty]
    parser.values = dict(zip(numbers, values[:, ~empty], strict=True))
    return True


def _json(parser: _Parser, text: str) -> None:
    try:
        data = json.loads(text, object_pairs_hook=reject_duplicates)
    except json.JSONDecodeError as error:
        parser.fault(error.lineno, f"is no JSON ({error.msg})")
        return
    except DuplicateNameError as twice:
        parser.fault(1, str(twice), "one list of points an image")
        return
    except RecursionError:
        parser.fault(1, "is nested too deeply to be a list of points")
        return
    if isinstance(data, dict) and isinstance(data.get("images"), list):
        data = data["images"]
    if isinstance(data, dict):
        data = [{"image": name, "points": points} for name, points in data.items()]
    if not isinstance(data, list):
        parser.fault(1, f"holds a {type(data).__name__}, expected a list of points or of images")
        return
    if any(isinstance(entry, dict) and "points" in entry for entry in data):
        _json_images(parser, data)
    else:
        _json_records(parser, data)


def _json_records(parser: _Parser, data: list[Any]) -> None:
    first = next((entry for entry in data if isinstance(entry, dict) and "x" in entry), {})
    parser.begin([name for name in COLUMNS[1:] if name in first])
    for number, entry in enumerate(data):
        place = f"[{number}]"
        if not isinstance(entry, dict):
            parser.fault(place, f"is a {type(entry).__name__}, expected {{image, x, y, score}}")
        elif not isinstance(entry.get("image"), (str, int)):
            parser.fault(place, f"image is {entry.get('image')!r}, expected a name")
        elif set(entry) == {"image"}:
            parser.image(str(entry["image"]))
        elif missing := [name for name in ("x", "y", *parser.columns) if name not in entry]:
            parser.fault(place, f"{missing[0]} is missing")
        else:
            parser.row(place, str(entry["image"]), [entry[name] for name in parser.columns])


def _lists(entry: Mapping[str, Any]) -> Iterator[Any]:
    """An image's points, each with its score and box where they stand in lists of their own."""
    points = entry["points"]
    beside = [entry[name] for name in ("scores", "sizes") if isinstance(entry.get(name), list)]
    if not beside or any(len(other) != len(points) for other in beside):
        yield from points
        return
    for point, *more in zip(points, *beside, strict=True):
        flat = list(point) if isinstance(point, list) else [point]
        for value in more:
            flat += value if isinstance(value, list) else [value]
        yield flat


def _json_images(parser: _Parser, data: list[Any]) -> None:
    """Points [x, y], [x, y, score], or with `sizes` [x, y, w, h]; one form a file."""
    seen: set[str] = set()
    for number, entry in enumerate(data):
        place = f"[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), (str, int)):
            parser.fault(place, "names no image, expected {image, points}")
            continue
        name = str(entry["image"])
        if name in seen:
            parser.fault(place, f"image {name!r} stands there twice")
            continue
        seen.add(name)
        if not isinstance(entry.get("points"), list):
            parser.fault(place, f"points is {type(entry.get('points')).__name__}, expected a list")
            continue
        for other in ("scores", "sizes"):
            if isinstance(entry.get(other), list) and len(entry[other]) != len(entry["points"]):
                parser.fault(place, f"{len(entry[other])} {other} for {len(entry['points'])} points")
        parser.image(name)
        sized = isinstance(entry.get("sizes"), list)
        forms = {2: ["x", "y"], 3: ["x", "y", "score"], 4: ["x", "y", "w", "h"]}
        for i, point in enumerate(_lists(entry)):
            if not isinstance(point, list) or (len(point) == 4) != sized or len(point) not in forms:
                parser.fault(f"{place} point {i}", f"is {str(point)[:40]}, expected [x, y] or [x, y, score]")
                continue
            if not parser.columns:
                parser.begin(forms[len(point)])
            if len(point) != len(parser.columns):
                parser.fault(f"{place} point {i}", f"has {len(point)} numbers, the first had {len(parser.columns)}")
                continue
            parser.row(f"{place} point {i}", name, point)


def _benchmark_text(parser: _Parser, text: str) -> None:
    forms = {2: ["x", "y"], 5: ["x", "y", "sigma_s", "sigma_l", "level"]}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        count = int(words[1]) if len(words) > 1 and words[1].isdigit() else -1
        rest = words[2:]
        each = len(rest) // count if count > 0 and len(rest) % count == 0 else 0
        if count < 0 or (count == 0 and rest) or (count > 0 and each not in forms):
            expected = "`id n`, then n times `x y`, or n times `x y sigma_s sigma_l level`"
            parser.fault(number, f"{len(words)} numbers for n = {words[1] if len(words) > 1 else '-'}", expected)
            continue
        if words[0] in parser.names:
            parser.fault(number, f"image {words[0]!r} stands there twice")
            continue
        parser.image(words[0])
        if count and not parser.columns:
            parser.begin(forms[each])
        if count and each != len(parser.columns):
            parser.fault(number, f"{each} numbers a point, the lines before have {len(parser.columns)}")
            continue
        for i in range(count):
            parser.row(number, words[0], rest[each * i : each * (i + 1)])


def pair_images(
    pred: Mapping[str, PointSet], true: Mapping[str, PointSet], where: str
) -> tuple[dict[str, PointSet], list[str]]:
    """The predictions by the names of the true images, and what should be said about it.

    A name is looked up as it is, then by its last part without suffix where that is unique: `IMG_1.jpg` finds
    `test/IMG_1`. A true image without a prediction has no points. Raises RazError for images that are not there,
    and for two that mean the same one.
    """
    short: dict[str, list[str]] = {}
    for name in true:
        short.setdefault(_stem(name), []).append(name)
    faults: list[RazError] = []
    out: dict[str, PointSet] = {}
    source: dict[str, str] = {}
    for name, marks in pred.items():
        meant = [name] if name in true else short.get(_stem(name), [])
        if len(meant) != 1:
            what = "names several of the true images" if meant else "is not among the true images"
            faults.append(RazError(where, f"{name!r} {what}", did_you_mean(name, meant or true)))
        elif meant[0] in out:
            faults.append(RazError(where, f"{source[meant[0]]!r} and {name!r} are one true image, {meant[0]!r}"))
        else:
            out[meant[0]], source[meant[0]] = marks, name
    if len(faults) > MAX_REPORTED:
        faults[MAX_REPORTED:] = [RazError(where, f"and {len(faults) - MAX_REPORTED} more images")]
    raise_all(faults)
    missing = [name for name in true if name not in out]
    notes = []
    if missing:
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        notes.append(f"{len(missing)} of {len(true)} images have no prediction and count as empty: {shown}")
        empty = PointSet(np.zeros((0, 2)), np.zeros(0))
        out |= dict.fromkeys(missing, empty)
    return out, notes


def _stem(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    head, dot, suffix = last.rpartition(".")
    return head if dot and suffix.lower() in ("jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp", "gif") else last
