"""Write figures as image files, drawn by kaleido in an installed Chromium, and the data of each as CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from raz.errors import RazError
from raz.report.layout import Figure
from raz.utils.json_types import JsonLike

WIDTH = 900  # px of a figure in the page; an image file has twice as many
_HINT = "pip install 'raz-sweep[images]' and a Chromium or Chrome, or open the page of --format html"


def write_figures(figures: Sequence[Figure], folder: Path, suffix: str) -> list[Path]:
    """Write each figure to `folder`/NN-title.`suffix` (png or svg) and its rows to NN-title.csv; the image files.

    Raises RazError where there is no figure, where kaleido is not installed, and where the browser fails.
    """
    if not figures:
        raise RazError(f"--{suffix}", "there is nothing to draw: no cell is filled", "run the table first")
    try:
        import kaleido  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise RazError(f"--{suffix}", "kaleido is not installed", _HINT) from None
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, figure in enumerate(figures, 1):
        name = re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-")[:60]
        paths.append(folder / f"{i:02d}-{name}.{suffix}")
    drawings = [
        {"fig": _print_spec(figure), "path": path, "opts": {"format": suffix, "width": WIDTH, "scale": 2}}
        for figure, path in zip(figures, paths, strict=True)
    ]
    try:  # one browser for all figures; without formulas, so MathJax need not be fetched
        kaleido.write_fig_from_object_sync(drawings, kopts={"mathjax": False})
    except (RuntimeError, ValueError, OSError) as error:  # no browser, or one that does not start
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RazError(f"--{suffix}", f"the figures could not be drawn: {first}", _HINT) from None
    for figure, path in zip(figures, paths, strict=True):
        _write_rows(figure, path.with_suffix(".csv"))
    return paths


def _print_spec(figure: Figure) -> dict[str, JsonLike]:
    """The plotly specification on a white background, with its title."""
    layout = dict(figure.layout)
    margin, height = _mapping(layout.get("margin")), layout.get("height", 420)
    layout |= {"title": {"text": figure.title, "font": {"size": 15}}, "width": WIDTH}
    layout["margin"] = {**margin, "t": 60 + _px(margin.get("t", 0))}
    layout |= {"paper_bgcolor": "#fff", "plot_bgcolor": "#fff", "height": _px(height) + 40}
    for name in [name for name in layout if re.fullmatch(r"[xy]axis\d*", name)]:
        layout[name] = {"gridcolor": "#d1d9e0", "zerolinecolor": "#d1d9e0", **_mapping(layout[name])}
    return {"data": figure.traces, "layout": layout}


def _mapping(value: JsonLike) -> Mapping[str, JsonLike]:
    return value if isinstance(value, Mapping) else {}


def _px(value: JsonLike) -> int:
    return int(value) if isinstance(value, (int, float)) else 0


def _write_rows(figure: Figure, path: Path) -> None:
    names = list(dict.fromkeys(name for row in figure.rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(figure.rows)
