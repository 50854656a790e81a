"""Render a report as terminal text, Markdown, CSV, JSON, LaTeX or HTML. Each format escapes the texts it holds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

from raz.report.layout import Report, TextTable, nan_to_none
from raz.utils.json_types import JsonLike
from raz.utils.markdown import escape, one_line, printable, table_row

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "−": r"$-$", '"': "''",
}  # fmt: skip


def terminal(report: Report, width: int | None = None) -> str:
    """Text for a terminal of `width` columns; None: as wide as the tables need, without line breaks in cells."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def text(value: str) -> Text:  # Rich reads [brackets] in a str as markup
        return Text(one_line(value))

    tables = []
    for sheet in report.sheets:
        table = Table(box=box.SIMPLE_HEAD, title=text(sheet.title), title_justify="left", pad_edge=False)
        for i, name in enumerate(sheet.header):
            table.add_column(text(name), justify="left" if i in sheet.left else "right", no_wrap=width is None)
        for line in sheet.lines:
            table.add_row(*map(text, line))
        tables.append(table)
    out = io.StringIO()
    console = Console(file=out, width=width or 10_000, color_system=None, legacy_windows=False)
    console.print(text(report.title))
    for table in tables:
        console.print()
        console.print(table)
    notes = [*report.notes]
    if report.command:
        notes += [*([report.cost] if report.cost else []), f"Fill the empty cells with:\n  {report.command}"]
    body = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    return body.rstrip() + "\n\n" + "\n".join(map(printable, notes)) + "\n"


def markdown(report: Report) -> str:
    """GitHub-flavoured Markdown."""
    out = [f"## {escape(report.title)}", ""]
    for sheet in report.sheets:
        out += [f"### {escape(sheet.title)}", "", table_row(sheet.header)]
        out.append("|" + "|".join(":--" if i in sheet.left else "--:" for i in range(len(sheet.header))) + "|")
        out += [*map(table_row, sheet.lines), ""]
    out += [f"- {escape(note)}" for note in report.notes]
    if report.command:
        cost = f" {report.cost}" if report.cost else ""
        out += ["", f"Fill the empty cells with the command below.{cost}", "", "```", one_line(report.command), "```"]
    return "\n".join(out).rstrip() + "\n"


def latex(report: Report) -> str:
    r"""One `table` environment for each table of the report; needs `\usepackage{booktabs}`."""
    out = [r"% needs \usepackage{booktabs}"]
    for i, sheet in enumerate(report.sheets):
        last = i == len(report.sheets) - 1
        out += _latex_sheet(sheet, report, last)
    if report.command:
        out += ["", "% fill the empty cells with: " + one_line(report.command)]
    return "\n".join(out) + "\n"


def _latex_sheet(sheet: TextTable, report: Report, last: bool) -> list[str]:
    columns = "".join("l" if i in sheet.left else "r" for i in range(len(sheet.header)))
    out = [
        "", r"\begin{table}", r"\centering", rf"\caption{{{_tex(f'{report.title}, {sheet.title}')}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _tex_line(sheet.header), r"\midrule",
        *map(_tex_line, sheet.lines), r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    if last:
        out += [rf"\par\footnotesize {_tex(note)}" for note in report.notes]
    return [*out, r"\end{table}"]


def csv_text(report: Report) -> str:
    """The records, one a line; mappings and lists as JSON, missing values as empty fields."""
    names = list(dict.fromkeys(name for record in report.records for name in record))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for record in report.records:
        writer.writerow([_csv_value(record.get(name)) for name in names])
    return out.getvalue()


def json_text(report: Report) -> str:
    """One document: facts, records, notes, and the command that fills empty cells (`fill`)."""
    document: dict[str, JsonLike] = {
        **report.facts,
        "records": report.records,
        "notes": report.notes,
        "fill": report.command or None,
    }
    return json.dumps(nan_to_none(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _html(report: Report) -> str:
    from raz.report.html import page

    return page(report)


FORMATS: dict[str, Callable[[Report], str]] = {
    "terminal": terminal,
    "md": markdown,
    "csv": csv_text,
    "json": json_text,
    "latex": latex,
    "html": _html,
}
SUFFIXES = {".html": "html", ".md": "md", ".csv": "csv", ".json": "json", ".tex": "latex", ".txt": "terminal"}


def _tex(value: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in one_line(value))


def _tex_line(cells: tuple[str, ...]) -> str:
    # TeX reads an opening bracket at the start of a line as the argument of the \\ before it
    return " & ".join(f"{{{text}}}" if text.startswith("[") else text for text in map(_tex, cells)) + r" \\"


def _csv_value(value: JsonLike) -> JsonLike:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else value
