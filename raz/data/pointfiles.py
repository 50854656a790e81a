"""Points in CSV, JSON and text, as people export them: one file for all images, or one an image.

One file for all:  CSV with a header (comma, semicolon or tab): `image,x,y` and any other columns; a row with an empty x
and y says that its image holds nothing. JSON: `{"a.png": [[x, y], …]}`, `[{"image": "a.png", "points": [[x, y], …]}]`,
or COCO's `images` and `annotations`, whose boxes count by their centres.
One an image:      CSV with a header (`x,y`) or two columns of numbers; JSON `[[x, y], …]` or `{"points": …}`; text with
x and y first in each line. A file without a line holds nothing, and an empty one is taken for damaged.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raz.data.contract import Heads
from raz.errors import RazError, raise_all

SUFFIXES = (".csv", ".json", ".txt", ".tsv")
# Names of columns as they are met, the first of them as they are asked for.
COLUMN_ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image", "file", "filename", "file_name", "image_name", "image_id", "img", "name", "slice"),
    "x": ("x", "cx", "xc", "center_x", "x_center", "centroid_x", "x_px", "col", "column"),
    "y": ("y", "cy", "yc", "center_y", "y_center", "centroid_y", "y_px", "row"),
}
_SAVE = "save the points as CSV with the header image,x,y"


class DuplicateNameError(ValueError):
    """A name that stands twice in one JSON object, of which Python would keep the last and lose the others' points."""


def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(…, object_pairs_hook=once_each)`. Raises DuplicateNameError."""
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateNameError(f"{next(name for name in out if names.count(name) > 1)!r} occurs twice in one object")
    return out


@dataclass
class PointTable:
    """The points of many images, by the image's name as the file writes it."""

    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)  # of a column that says so

    def heads(self, name: str) -> Heads:
        """(n, 2) x, y."""
        return np.array(self.points[name], dtype=np.float64).reshape(-1, 2)


def read_header(data: bytes, where: str) -> list[str]:
    """The column names of a CSV file with a header. Raises RazError."""
    return _rows(data, where)[0]


def find_column(header: Sequence[str], what: str) -> str | None:
    """The column that `what` (image, x or y) is called in a header, if there is one."""
    lower = {name.strip().lower(): name for name in reversed(header)}
    return next((lower[alias] for alias in COLUMN_ALIASES[what] if alias in lower), None)


def read_table(
    data: bytes, where: str, columns: Mapping[str, str] | None = None, split: str | None = None
) -> PointTable:
    """The points of all images of a CSV or, by its name, a JSON file; `split` names the column of the splits.

    Raises RazError naming every kind of fault once, with its first line and how often it is met.
    """
    if where.lower().endswith(".json"):
        return _from_json(_json(data, where), where)
    header, rows = _rows(data, where)
    chosen = {what: (columns or {}).get(what) or find_column(header, what) for what in ("image", "x", "y")}
    wrong = [f"{what} ({name or 'none found'})" for what, name in chosen.items() if name not in header]
    if split is not None and split not in header:
        wrong.append(f"split ({split})")
    if wrong:
        raise RazError(
            f"{where}:1", f"no column for {', '.join(wrong)} among {', '.join(header)}",
            "name them: columns: {image: …, x: …, y: …}",
        )  # fmt: skip
    at = {what: header.index(str(name)) for what, name in chosen.items()}
    table, faults = PointTable(), _LineFaults(where)
    for line, row in rows:
        if len(row) != len(header):
            faults.add(line, f"{len(row)} fields, the header has {len(header)}")
            continue
        name, x, y = (row[at[what]].strip() for what in ("image", "x", "y"))
        if not name:
            faults.add(line, "no image is named")
            continue
        listed = table.points.setdefault(name, [])
        if split is not None:
            told = row[header.index(split)].strip()
            if table.splits.setdefault(name, told) != told:
                faults.add(line, f"{name} is in {table.splits[name]} and in {told}")
        if x or y:
            listed += faults.parse_point(line, x, y)
    faults.raise_if_any()
    return table


def read_image_points(data: bytes, where: str, columns: Mapping[str, str] | None = None) -> Heads:
    """The points (n, 2) of one image's own file. Raises RazError as `read_table`."""
    if not data:
        raise RazError(where, "is empty (0 bytes)", "write a header line x,y for an image without points")
    faults, out = _LineFaults(where), []
    if where.lower().endswith(".json"):
        content = _json(data, where)
        values = content.get("points") if isinstance(content, dict) else content
        if not isinstance(values, list):
            raise RazError(where, "has no list of points", "write [[x, y], …]")
        for number, value in enumerate(values, start=1):
            out += faults.parse_pair(number, value)
    elif where.lower().endswith(".txt"):
        for line, text in enumerate(_text(data, where).splitlines(), start=1):
            fields = text.replace(",", " ").split()
            if fields:
                out += faults.parse_point(line, fields[0], fields[1] if len(fields) > 1 else "")
    else:
        header, rows = _rows(data, where)
        if _number(header[0]) is None:
            names = [(columns or {}).get(what) or find_column(header, what) for what in ("x", "y")]
            if not set(names) <= set(header):
                raise RazError(
                    f"{where}:1", f"no column for x and y among {', '.join(header)}", "columns: {x: …, y: …}"
                )
            x_at, y_at = (header.index(str(name)) for name in names)
        else:  # two columns of numbers
            x_at, y_at, rows = 0, 1, [(1, header), *rows]
        for line, row in rows:
            fields = [*row, "", ""]
            out += faults.parse_point(line, fields[x_at], fields[y_at])
    faults.raise_if_any()
    return np.array(out, dtype=np.float64).reshape(-1, 2)


class _LineFaults:
    """Faults of many lines: each kind is told once, with its first line and how many there are."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: dict[str, list[tuple[int, str]]] = {}

    def add(self, line: int, what: str, sort: str = "") -> None:
        self.found.setdefault(sort or what, []).append((line, what))

    def parse_point(self, line: int, x: str, y: str) -> list[tuple[float, float]]:
        values = [_number(text) for text in (x, y)]
        if None in values:
            self.add(line, f"x, y are {x!r}, {y!r}, expected numbers", "text")
            return []
        return self._finite(line, float(values[0] or 0), float(values[1] or 0))

    def parse_pair(self, line: int, value: Any) -> list[tuple[float, float]]:
        if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_number(v) for v in value)):
            self.add(line, f"point {line} is {json.dumps(value)[:40]}, expected [x, y] in numbers", "pair")
            return []
        return self._finite(line, float(value[0]), float(value[1]))

    def _finite(self, line: int, x: float, y: float) -> list[tuple[float, float]]:
        if not (math.isfinite(x) and math.isfinite(y)):
            self.add(line, f"x, y are {x}, {y}, expected finite numbers", "finite")
            return []
        return [(x, y)]

    def raise_if_any(self) -> None:
        faults = []
        for each in self.found.values():
            line, what = each[0]
            more = f" ({len(each)} such)" if len(each) > 1 else ""
            faults.append(RazError(f"{self.where}:{line}", what + more, "put it right, or take it out"))
        raise_all(faults)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RazError(where, f"byte {data[error.start]:#04x} is not UTF-8", "save the file as UTF-8") from error


def _rows(data: bytes, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and every other row that is not blank with its line."""
    text = _text(data, where)
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise RazError(where, f"is not valid CSV ({error})", _SAVE) from error
    if not rows:
        raise RazError(where, "is empty, expected a header line", _SAVE)
    return [name.strip() for name in rows[0][1]], rows[1:]


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(_text(data, where), object_pairs_hook=reject_duplicates)
    except (ValueError, RecursionError) as error:
        raise RazError(where, f"is not valid JSON ({error})", _SAVE) from error


def _from_json(content: Any, where: str) -> PointTable:
    table, faults = PointTable(), _LineFaults(where)
    entries: list[tuple[Any, Any, Any]] = []  # image, points, split
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _from_coco(content, where)
    if isinstance(content, dict):
        for name, value in content.items():
            inner = value if isinstance(value, dict) else {"points": value}
            entries.append((name, inner.get("points"), inner.get("split")))
    elif isinstance(content, list):
        for number, value in enumerate(content, start=1):
            key = find_column(list(value), "image") if isinstance(value, dict) else None
            if key is None:
                faults.add(number, f"entry {number} names no image", "image")
            else:
                entries.append((value[key], value.get("points"), value.get("split")))
    for number, (name, points, split) in enumerate(entries, start=1):
        if not isinstance(points, list):
            faults.add(number, f"{name} has no list of points", "points")
            continue
        listed = table.points.setdefault(str(name), [])
        for value in points:
            listed += faults.parse_pair(number, value)
        if split is not None:
            table.splits[str(name)] = str(split)
    faults.raise_if_any()
    if not entries:
        raise RazError(where, "names no image", 'write {"a.png": [[x, y], …], …}')
    return table


def _from_coco(content: Mapping[str, Any], where: str) -> PointTable:
    """COCO's layout: an image of `images` without annotation holds nothing."""
    table, faults = PointTable(), _LineFaults(where)
    names: dict[Any, str] = {}
    for number, image in enumerate(content.get("images") or (), start=1):
        if isinstance(image, dict) and isinstance(image.get("file_name"), str) and "id" in image:
            names[image["id"]] = image["file_name"]
            table.points[image["file_name"]] = []
        else:
            faults.add(number, f"image {number} lacks id or file_name", "image")
    for number, one in enumerate(content["annotations"], start=1):
        box = one.get("bbox") if isinstance(one, dict) else None
        if not isinstance(one, dict) or one.get("image_id") not in names:
            faults.add(number, f"annotation {number} is of no image in images", "annotation")
        elif not (isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box)):
            faults.add(
                number, f"annotation {number} has the bbox {json.dumps(box)[:40]}, expected [x, y, w, h]", "bbox"
            )
        else:
            centre = [box[0] + box[2] / 2, box[1] + box[3] / 2]
            table.points[names[one["image_id"]]] += faults.parse_pair(number, centre)
    faults.raise_if_any()
    return table
