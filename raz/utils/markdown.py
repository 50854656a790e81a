"""Text from outside in Markdown: escaped, so that it reads as it was written."""

from __future__ import annotations

import re
from collections.abc import Sequence


def printable(value: str) -> str:
    """The text without control characters: a failure's message may hold escape sequences."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", value)


def one_line(value: str) -> str:
    """The printable text on one line."""
    return " ".join(printable(value).split("\n"))


def escape(value: str) -> str:
    """The text on one line, for GitHub-flavoured Markdown, also in a table's cell."""
    value = one_line(value)
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    value = re.sub(r"([\\|*`\[\]~])", r"\\\1", value)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", value)


def table_row(cells: Sequence[str]) -> str:
    """A table's line of escaped cells."""
    return "| " + " | ".join(map(escape, cells)) + " |"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """The lines of a table; columns whose index is in `right` are aligned right."""
    rule = "|" + "|".join("--:" if i in right else ":--" for i in range(len(header))) + "|"
    return [table_row(header), rule, *map(table_row, rows)]
