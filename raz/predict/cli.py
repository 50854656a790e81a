"""`raz-sweep predict` and `raz-sweep export`: options in, counts and files out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_From = Annotated[
    str | None,
    typer.Option("--from", metavar="STORE[#study[#trial]]", help="A trial of a store; by default the best one."),
]


def predict_command(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images, folders of them, or patterns.")],
    place: _From = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="An exported model instead.")] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Passes, 1 = without zooming. Default: the model's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a picture an image, points.csv and predictions.json here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")] = False,
) -> None:
    """Count and localize the heads in images.

    Exits 1 when some of the images could not be read, 2 when none could.

    \b
    raz-sweep predict photo.jpg --from ./raz-store#fusion
    raz-sweep predict photos/ --weights model.safetensors --out results
    raz-sweep predict 'photos/*.jpg' --weights model.safetensors --json > points.json
    """
    import json

    from raz.predict.images import find_images
    from raz.predict.run import document, predict_images, write_files
    from raz.predict.source import model_of

    paths = find_images(images)
    model = model_of(place, weights)
    seen = []
    wide = min(60, max(len(path.name) for path in paths))
    if not as_json:
        typer.echo(f"{'image':<{wide}}  {'count':>9}  {'density':>9}  {'points':>7}  {'seconds':>7}")
    for one in predict_images(model, paths, depth, out):
        seen.append(one)
        if one.prediction is None:
            typer.echo(str(one.error), err=True)
        elif not as_json:
            p = one.prediction
            typer.echo(f"{one.name:<{wide}}  {p.count:9.1f}  {p.density:9.1f}  {p.localization:7}  {p.seconds:7.2f}")
    given = document(model, seen)
    if out is not None and given["images"]:
        write_files(out, given)
        typer.echo(f"wrote {len(given['images'])} pictures, points.csv and predictions.json to {out}", err=True)
    if as_json:
        typer.echo(json.dumps(given, indent=1))
    if given["failed"]:
        raise typer.Exit(1 if given["images"] else 2)


def export_command(
    place: Annotated[str | None, typer.Argument(metavar="[STORE#study#trial]", help="A trial of a store.")] = None,
    best: Annotated[str | None, typer.Option("--best", metavar="STUDY", help="The best trial of this study.")] = None,
    store: Annotated[Path, typer.Option(envvar="RAZ_STORE", help="For --best: the store.")] = Path("raz-store"),
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("model.safetensors"),
) -> None:
    """Put all that a prediction needs into one file: weights, configuration, fitted thresholds, where it came from.

    \b
    raz-sweep export --best fusion --out model.safetensors
    raz-sweep export ./raz-store#fusion#7 --out model.safetensors
    """
    from raz.errors import RazError
    from raz.pipeline.model import save_model
    from raz.predict.source import model_from_store

    if (place is None) == (best is None):
        raise RazError("export", "the trial comes from STORE#study#trial or from --best STUDY", "give one of them")
    model = model_from_store(place if place is not None else f"{store}#{best}")
    save_model(model, out)
    trial = f"trial {model.about['trial']} of {model.about['study']}, " if "trial" in model.about else ""
    stages = ", ".join(model.trained)
    typer.echo(f"{out}: {trial}{stages}; depth {model.config.depth}, {out.stat().st_size / 1e6:.1f} MB")
