"""`raz-sweep data ...`: which data sets there are, whether a copy is right, and what an image looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(
    help="The data sets: list them, check a copy, look at an image.", no_args_is_help=True, rich_markup_mode=None
)

_Root = Annotated[
    Path | None,
    typer.Option("--data-root", "--root", envvar="RAZ_DATA_ROOT", help="The folder that holds the data sets."),
]
_Name = Annotated[str, typer.Argument(help="A data set, as `raz-sweep data list` names it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]


@data_app.command("list")
def list_(data_root: _Root = None, as_json: _Json = False) -> None:
    """Name the data sets, and say where each is found.

    \b
    raz-sweep data list
    raz-sweep data list --data-root ~/data
    """
    import json

    from raz.data import DATASETS, locate
    from raz.errors import RazError

    rows = []
    for name, reader in DATASETS.items():
        try:
            place = locate(name, data_root)
            where, found = str(place) if place else "generated", True
        except RazError as error:
            where, found = f"{error.where}: {error.what}", False
        rows.append({"name": name, "title": reader.title, "found": found, "where": where, "layout": reader.layout})
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    wide = max(len(str(row["name"])) for row in rows), max(len(str(row["title"])) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{wide[0]}}  {row['title']:<{wide[1]}}  {'' if row['found'] else '- '}{row['where']}")


@data_app.command("check")
def check_(name: _Name, data_root: _Root = None, as_json: _Json = False) -> None:
    """Read a whole data set: count it, and name every leak, gap and damaged file.

    Exits 0 with its findings listed, 2 when nothing can be read.

    \b
    raz-sweep data check toy
    raz-sweep data check shanghaitech_a --data-root ~/data
    raz-sweep data check shanghaitech_a --data-root ~/data --json
    """
    import json
    import sys

    from rich.console import Console
    from rich.progress import Progress

    from raz.data.check import check, render

    aside = Console(stderr=True)
    with Progress(console=aside, transient=True, disable=as_json or not sys.stderr.isatty()) as bar:
        task = bar.add_task("reading", total=None)
        report = check(name, data_root, lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=1))
    else:
        render(report, Console(width=None if sys.stdout.isatty() else 120))


@data_app.command("show")
def show_(
    name: _Name,
    data_root: _Root = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    index: Annotated[int, typer.Option(help="Which image of the split, from 0.")] = 0,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("show.png"),
) -> None:
    """Draw one image with its heads, density, attention, and the regions that would be zoomed.

    \b
    raz-sweep data show toy --index 3 --out crowd.png
    raz-sweep data show shanghaitech_a --data-root ~/data --split train --index 7 --out a7.png
    """
    from typing import cast

    from raz.data.contract import Split
    from raz.data.show import show

    panels = show(name, data_root, out, split=cast(Split, split), index=index)
    typer.echo(f"{out}: {panels.title}, {len(panels.heads)} heads, {len(panels.regions)} regions to zoom")
