"""Text for terminals: aligned columns, durations, sizes, sparklines."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence

from raz.utils.json_types import Json

BARS = "▁▂▃▄▅▆▇█"


def columns(header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """The header and the lines as text, columns two spaces apart; columns whose index is in `right` are aligned
    right."""
    rows = [list(header), *map(list, lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    out = []
    for row in rows:
        cells = [cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        out.append("  ".join(cells).rstrip())
    return out


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def joined(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])


def size(n: int) -> str:
    """A number of bytes: `812 B`, `4.2 MB`, `1.3 GB` (powers of 1000)."""
    value, units = float(n), ("B", "kB", "MB", "GB", "TB")
    for unit in units[:-1]:
        if value < 999.95:
            return f"{n} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {units[-1]}"


def first_line(error: BaseException, text: str | None = None) -> str:
    """The first line of an exception's text (or of `text`) that is not blank, else the name of its class."""
    lines = (line.strip() for line in (str(error) if text is None else text).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def number(value: Json) -> str:
    """A float with four significant digits, `-` for None, a text as it is, other values as JSON."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def assignments(values: Mapping[str, Json]) -> str:
    """Names with values: `depth=2 fusion.rule=grid`."""
    return " ".join(f"{name}={number(value)}" for name, value in values.items())


def format_states(counts: Mapping[str, int]) -> str:
    """Counts of trials by status: `38 complete, 2 pruned`."""
    return ", ".join(f"{n} {state}" for state, n in counts.items()) or "no trial yet"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The values as bars between their minimum and maximum, at most `width` of them.

    More values than `width` are averaged over equal parts. A NaN or infinite value is a space.
    """
    values = [float(value) for value in values]
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(part := values[a:b]) / len(part) for a, b in itertools.pairwise(edges)]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return " " * len(values)
    low, high = min(known), max(known)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((value - low) / step)] if math.isfinite(value) else " " for value in values)
