"""Figures as picture files, drawn by kaleido in an installed Chromium, and the data of each as CSV beside it."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raz.errors import RazError
from raz.report.layout import Figure

WIDTH = 900  # px of the page's figures; a picture has two for each
_HINT = "pip install 'raz-sweep[images]' and a Chromium or Chrome, or open the page of --format html"


def write_pictures(figures: Sequence[Figure], folder: Path, suffix: str) -> list[Path]:
    """Each figure as `folder`/NN-title.`suffix` (png or svg), with its rows of data as NN-title.csv.

    Raises RazError where they cannot be drawn.
    """
    if not figures:
        raise RazError(f"--{suffix}", "there is nothing to draw: no cell is filled", "run the table first")
    try:
        import kaleido  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise RazError(f"--{suffix}", "kaleido is not installed", _HINT) from None
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i, figure in enumerate(figures, 1):
        name = re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-")[:60]
        out.append(folder / f"{i:02d}-{name}.{suffix}")
    drawings = [
        {"fig": _drawing(figure), "path": path, "opts": {"format": suffix, "width": WIDTH, "scale": 2}}
        for figure, path in zip(figures, out, strict=True)
    ]
    try:  # one browser for all; no formula stands in them, so nothing is fetched
        kaleido.write_fig_from_object_sync(drawings, kopts={"mathjax": False})
    except (RuntimeError, ValueError, OSError) as error:  # no browser, or one that does not start
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RazError(f"--{suffix}", f"the figures could not be drawn: {first}", _HINT) from None
    for figure, path in zip(figures, out, strict=True):
        _write_rows(figure, path.with_suffix(".csv"))
    return out


def _drawing(figure: Figure) -> dict[str, Any]:
    """The specification on white, under its title."""
    layout = dict(figure.spec["layout"])
    margin = {**layout.get("margin", {}), "t": 60 + int(layout.get("margin", {}).get("t", 0))}
    layout |= {"title": {"text": figure.title, "font": {"size": 15}}, "margin": margin, "width": WIDTH}
    layout |= {"paper_bgcolor": "#fff", "plot_bgcolor": "#fff", "height": int(layout.get("height", 420)) + 40}
    for name in [name for name in layout if re.fullmatch(r"[xy]axis\d*", name)]:
        layout[name] = {"gridcolor": "#d1d9e0", "zerolinecolor": "#d1d9e0", **layout[name]}
    return {"data": figure.spec["data"], "layout": layout}


def _write_rows(figure: Figure, path: Path) -> None:
    names = list(dict.fromkeys(name for row in figure.rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(figure.rows)
