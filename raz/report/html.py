"""A report as one HTML file without any other resource: sortable tables, the origin of each number, figures.

The page holds its content as JSON and draws it by `textContent`, so no text of a store can become markup or script; a
content security policy forbids every request. Plotly is included once, compressed, and only where there is a figure.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from functools import lru_cache, partial
from importlib.resources import files

from raz.report.layout import Record, Report, nan_to_none
from raz.utils.json_types import JsonLike

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def page(report: Report) -> str:
    """The report as one HTML document."""
    content: Record = {
        "title": report.title,
        "sheets": [
            {
                "title": sheet.title, "header": sheet.header, "lines": sheet.lines, "left": sorted(sheet.left),
                "cells": {f"{line},{column}": name for (line, column), name in sheet.cells.items()},
            }
            for sheet in report.sheets
        ],
        "notes": report.notes,
        "records": {str(record["name"]): _shown_fields(record) for record in report.records if "name" in record},
        "command": report.facts.get("command") or report.command,
        "missing": bool(report.command),
        "cost": report.cost,
        "figures": [{"title": f.title, "note": f.note, "spec": f.spec} for f in report.figures],
    }  # fmt: skip
    library = f'<script type="text/plain" id="plotly">{_plotly()}</script>' if report.figures else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(report.title)}</title>
<link rel="icon" href="data:,">
<style>{_file("style.css")}</style>
</head>
<body>
<main><noscript>This page needs JavaScript to show its tables. The same report as Markdown:
raz-sweep report --format md</noscript></main>
<script type="application/json" id="page">{_json(content)}</script>
{library}
<script>{_file("script.js")}</script>
</body>
</html>
"""


def _shown_fields(record: Record) -> Record:
    """The fields that the page shows of a number, without those that its name repeats."""
    return {key: value for key, value in record.items() if key not in ("name", "digits", "values", "table")}


def _json(value: JsonLike) -> str:
    """JSON that cannot end the script element around it."""
    dump = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text = dump(value)
    except ValueError:  # a NaN or an infinity: rare, and replacing them first takes longer than dumping
        text = dump(nan_to_none(value))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@lru_cache(maxsize=2)
def _file(name: str) -> str:
    return (files("raz.report") / "page" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
