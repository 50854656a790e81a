"""The commands `raz-sweep data list`, `check`, `show` and `add`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raz.cli.options import DataRoot, Json

data_app = typer.Typer(
    help="List data sets, check a copy, draw an image, add a custom data set.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Name = Annotated[str, typer.Argument(help="Name of a data set, as in `raz-sweep data list`.")]


@data_app.command("list")
def list_(data_root: DataRoot = None, as_json: Json = False) -> None:
    """List the data sets, and where each was found.

    \b
    raz-sweep data list
    raz-sweep data list --data-root ~/data
    """
    import json

    from raz.data import DATASETS, find_dataset_folder, readers
    from raz.data.custom import description_faults
    from raz.data.dataset_file import FILE
    from raz.errors import RazError

    if data_root is not None and not data_root.expanduser().is_dir():
        raise RazError(str(data_root), "no such folder", "check --data-root and RAZ_DATA_ROOT")
    rows = []
    for name, reader in readers(data_root).items():
        try:
            folder = find_dataset_folder(name, data_root)
            where, found = str(folder) if folder else "generated", True
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
        typer.echo(f"ignored: {fault}", err=True)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    widths = max(len(str(row["name"])) for row in rows), max(len(str(row["title"])) for row in rows)
    for row in rows:
        typer.echo(
            f"{row['name']:<{widths[0]}}  {row['title']:<{widths[1]}}  {'' if row['found'] else '- '}{row['where']}"
        )
        details = "; ".join(str(row[key]) for key in ("layout", "splits", "source") if row[key])
        typer.echo(f"{'':<{widths[0]}}  {details}")
    if not any(row["own"] for row in rows):
        typer.echo(
            f"For a custom folder, `raz-sweep data add DIR` writes DIR/{FILE}; the data root is the parent of DIR."
        )


@data_app.command("check")
def check_(name: _Name, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Count a data set's images and heads, and report faults.

    Every image is decoded and every annotation read. Exits 0 with the faults listed, 2 if nothing can be read.

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

    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=as_json or not sys.stderr.isatty()) as bar:
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
    index: Annotated[int, typer.Option(help="Index of the image in the split, from 0.")] = 0,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("show.png"),
) -> None:
    """Draw one image and its ground truth.

    Four panels: the heads, the density, the attention and the regions to zoom.

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
    folder: Annotated[Path, typer.Argument(help="The folder with the images and their points.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the data set in commands and files. Default: the folder's.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Name of the data set in tables. Default: the folder's.")] = None,
    objects: Annotated[str | None, typer.Option(help="What is counted, such as cells or cars.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder of images, below FOLDER.")] = None,
    points: Annotated[
        str | None, typer.Option(help="File of all points (CSV, JSON), or folder with one file per image.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns of a CSV file: IMAGE,X,Y (of one file per image: X,Y).")
    ] = None,
    offset: Annotated[
        float | None, typer.Option(help="Added to x and y: 0.5 for pixel indices from 0, -0.5 from 1.")
    ] = None,
    unlisted: Annotated[str | None, typer.Option(help="An image without points is a `fault`, or `empty`.")] = None,
    splits: Annotated[
        str | None, typer.Option(help="folders, column=NAME, test=0.2, or train=FILE,test=FILE[,val=FILE].")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Accept every guess without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing description.")] = False,
    as_json: Json = False,
) -> None:
    """Describe a custom folder as a data set.

    Values that cannot be guessed are asked for; with --yes, or without a terminal, they are errors that name an option.
    The description is written to FOLDER/raz-dataset.yaml, which can be edited. Images: PNG, JPEG, TIFF, BMP, WebP.
    Exits 1 if it is written and the data set has faults, 2 if nothing is written.

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
    options = describe_folder.FolderOptions(name, title, objects, images, points, columns, offset, unlisted, splits)
    spec = describe_folder.describe(folder, options, ask)
    result = describe_folder.scan(spec)
    path = describe_folder.write(spec, force)
    counts = {split: len(samples) for split, samples in result.samples.items()}
    heads = sum(len(s.sample.load_heads()) for samples in result.samples.values() for s in samples)
    root = spec.folder.parent
    quoted_root = shlex.quote(str(root))
    if as_json:
        document = {
            "file": str(path), "name": spec.name, "images": counts, "points": heads, "data_root": str(root),
            "faults": [str(fault) for fault in result.faults], "warnings": list(result.warnings),
        }  # fmt: skip
        typer.echo(json.dumps(document, indent=1))
        raise typer.Exit(1 if result.faults else 0)
    images_text = ", ".join(f"{count} {split}" for split, count in counts.items())
    typer.echo(f"{path}: {images_text} images, {heads:,} {spec.objects}")
    for line in (*result.warnings, *map(str, result.faults)):
        typer.echo(f"- {line}")
    if result.faults:
        typer.echo(f"{len(result.faults)} fault(s) to fix before it can be used (in the files, or in {path.name})")
        typer.echo(f"raz-sweep data check {spec.name} --data-root {quoted_root}")
        raise typer.Exit(1)
    typer.echo(f"raz-sweep run search_spaces/fusion --set dataset={spec.name} --data-root {quoted_root}")
    typer.echo(
        f"raz-sweep init --dataset {spec.name} --data-root {quoted_root} --out {spec.name}.yaml   (a search to edit)"
    )
