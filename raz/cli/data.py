"""`raz-sweep data ...`: which data sets there are, whether a copy is right, and what an image looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raz.cli.options import DataRoot, Json

data_app = typer.Typer(
    help="The data sets: list them, check a copy, look at one, add one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Name = Annotated[str, typer.Argument(help="A data set, as `raz-sweep data list` names it.")]


@data_app.command("list")
def list_(data_root: DataRoot = None, as_json: Json = False) -> None:
    """Name the data sets, and say where each is found.

    \b
    raz-sweep data list
    raz-sweep data list --data-root ~/data
    """
    import json

    from raz.data import DATASETS, find_dataset_folder, readers
    from raz.data.custom import FILE, description_faults
    from raz.errors import RazError

    if data_root is not None and not data_root.expanduser().is_dir():
        raise RazError(str(data_root), "no such folder", "check --data-root and RAZ_DATA_ROOT")
    rows = []
    for name, reader in readers(data_root).items():
        try:
            place = find_dataset_folder(name, data_root)
            where, found = str(place) if place else "generated", True
        except RazError as error:
            where, found = f"{error.where}: {error.what}", False
        rows.append(
            {
                "name": name, "title": reader.title, "found": found, "where": where, "layout": reader.layout,
                "splits": reader.splits, "source": reader.source, "own": name not in DATASETS,
            }
        )  # fmt: skip
    faults = [str(fault) for fault in description_faults(data_root.expanduser())] if data_root is not None else []
    for fault in faults:
        typer.echo(f"not taken: {fault}", err=True)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    wide = max(len(str(row["name"])) for row in rows), max(len(str(row["title"])) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{wide[0]}}  {row['title']:<{wide[1]}}  {'' if row['found'] else '- '}{row['where']}")
        told = "; ".join(str(row[key]) for key in ("layout", "splits", "source") if row[key])
        typer.echo(f"{'':<{wide[0]}}  {told}")
    if not any(row["own"] for row in rows):
        typer.echo(
            f"A folder of your own: `raz-sweep data add DIR` writes DIR/{FILE}, and its parent is the data root."
        )


@data_app.command("check")
def check_(name: _Name, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Read a whole data set: count it, name every leak and gap.

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
    data_root: DataRoot = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    index: Annotated[int, typer.Option(help="Which image of the split, from 0.")] = 0,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("show.png"),
) -> None:
    """Draw one image with its heads, maps and zoomed regions.

    \b
    raz-sweep data show toy --index 3 --out crowd.png
    raz-sweep data show shanghaitech_a --data-root ~/data --split train --index 7 --out a7.png
    """
    from typing import cast

    from raz.data.contract import Split
    from raz.data.show import show

    panels = show(name, data_root, out, split=cast(Split, split), index=index)
    typer.echo(f"{out}: {panels.title}, {len(panels.heads)} heads, {len(panels.regions)} regions to zoom")


@data_app.command("add")
def add_(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the images and their points.")],
    name: Annotated[str | None, typer.Option(help="Its name in commands and files. Default: the folder's.")] = None,
    title: Annotated[str | None, typer.Option(help="Its name in tables. Default: the folder's.")] = None,
    objects: Annotated[str | None, typer.Option(help="What is counted: cells, cars, heads.")] = None,
    images: Annotated[str | None, typer.Option(help="The folder of images, below FOLDER.")] = None,
    points: Annotated[
        str | None, typer.Option(help="The file of all points (CSV, JSON), or the folder with a file an image.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns of a CSV: IMAGE,X,Y (of a file an image: X,Y).")] = None,
    offset: Annotated[
        float | None, typer.Option(help="Added to x and y: 0.5 for pixel numbers from 0, -0.5 from 1.")
    ] = None,
    unlisted: Annotated[str | None, typer.Option(help="An image without points is a `fault`, or `empty`.")] = None,
    splits: Annotated[
        str | None, typer.Option(help="folders, column=NAME, test=0.2, or train=FILE,test=FILE[,val=FILE].")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Take every guess, ask nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over an earlier description.")] = False,
    as_json: Json = False,
) -> None:
    """Make a folder of your own a data set like the published ones.

    What cannot be guessed is asked for; with --yes, or without a terminal, it is an error that names its option. The
    description is FOLDER/raz-dataset.yaml, a file to read and to edit. Images: PNG, JPEG, TIFF, BMP, WebP, of one page.
    Exits 1 when it is written and faults are left to put right, 2 when nothing is written.

    \b
    raz-sweep data add cells
    raz-sweep data add cells --points labels --objects cells --splits test=0.25 --yes
    raz-sweep data add cars --points annotations.json --unlisted empty
    """
    import json
    import shlex
    import sys

    from raz.data import describe_folder

    ask = None if yes or as_json or not sys.stdin.isatty() else lambda text, guess: str(typer.prompt(text, guess))
    given = describe_folder.FolderOptions(name, title, objects, images, points, columns, offset, unlisted, splits)
    spec = describe_folder.describe(folder, given, ask)
    seen = describe_folder.scan(spec)
    path = describe_folder.write(spec, force)
    counts = {split: len(found) for split, found in seen.samples.items()}
    heads = sum(len(f.sample.load_heads()) for found in seen.samples.values() for f in found)
    root = spec.folder.parent
    at = shlex.quote(str(root))
    if as_json:
        document = {
            "file": str(path), "name": spec.name, "images": counts, "points": heads, "data_root": str(root),
            "faults": [str(fault) for fault in seen.faults], "warnings": list(seen.warnings),
        }  # fmt: skip
        typer.echo(json.dumps(document, indent=1))
        raise typer.Exit(1 if seen.faults else 0)
    told = ", ".join(f"{count} {split}" for split, count in counts.items())
    typer.echo(f"{path}: {told} images, {heads:,} {spec.objects}")
    for line in (*seen.warnings, *map(str, seen.faults)):
        typer.echo(f"- {line}")
    if seen.faults:
        typer.echo(f"{len(seen.faults)} fault(s) to put right before it can be used (in the files, or in {path.name})")
        typer.echo(f"raz-sweep data check {spec.name} --data-root {at}")
        raise typer.Exit(1)
    typer.echo(f"raz-sweep run search_spaces/fusion --set dataset={spec.name} --data-root {at}")
    typer.echo(f"raz-sweep init --dataset {spec.name} --data-root {at} --out {spec.name}.yaml   (a search to edit)")
