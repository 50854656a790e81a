"""Figures as picture files, drawn by kaleido in an installed Chromium."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from raz.errors import RazError
from raz.report.layout import Figure

_HINT = "pip install kaleido and a Chromium or Chrome, or open the page of --format html, which needs neither"


def write_pictures(figures: Sequence[Figure], folder: Path, suffix: str) -> list[Path]:
    """Each figure as `folder`/NN-title.`suffix` (png or svg). Raises RazError where they cannot be drawn."""
    if not figures:
        raise RazError(f"--{suffix}", "there is nothing to draw: no cell is filled", "run the table first")
    try:
        import kaleido  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
        import plotly.graph_objects as go
    except ImportError:
        raise RazError(f"--{suffix}", "kaleido is not installed", _HINT) from None
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i, figure in enumerate(figures, 1):
        path = folder / f"{i:02d}-{re.sub(r'[^a-z0-9]+', '-', figure.title.lower()).strip('-')[:60]}.{suffix}"
        drawing = go.Figure(figure.spec)
        drawing.update_layout(title=figure.title, template="plotly_white", margin={"t": 60})
        try:
            drawing.write_image(path, format=suffix, width=900, scale=2)
        except (RuntimeError, ValueError, OSError) as error:  # no browser, or one that does not start
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RazError(f"--{suffix}", f"the figure could not be drawn: {first}", _HINT) from None
        out.append(path)
    return out
