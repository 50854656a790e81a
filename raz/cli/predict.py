"""`raz-sweep predict`, `export` and `train`: options in, counts and files out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from raz.cli.options import (
    DEFAULT_STORE,
    DataRoot,
    Json,
    OutFolder,
    Settings,
    Store,
    expand_folder,
    nearest_existing,
    out_folder,
    resolve_store,
)
from raz.store.paths import StorePaths

_From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="STORE[#study[#trial]]",
        help="A trial of a store, by default the best one; or STORE#KEY of a score.",
    ),
]


def predict_command(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images, folders of them, or patterns.")],
    place: _From = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="A file that `raz-sweep export` wrote.")] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Passes, 1 = without zooming. Default: the model's own.")
    ] = None,
    out: OutFolder = None,
    as_json: Json = False,
) -> None:
    """Count and localize the heads in images.

    Exits 1 when some of the images could not be read, 2 when none could.

    \b
    raz-sweep predict photo.jpg --from ./raz-store#fusion
    raz-sweep predict photo.jpg --from ./raz-store#3cad2310     a table's row (report --table T --out t.csv)
    raz-sweep predict photos/ --weights model.safetensors --out results
    raz-sweep predict 'photos/*.jpg' --weights model.safetensors --json > points.json
    """
    import json

    from raz.predict.batch import predict_images, to_json, write_files
    from raz.predict.image_files import find_images
    from raz.predict.model_source import load_model_of

    out = None if out is None else out_folder(out)
    paths = find_images(images)
    model = load_model_of(place, weights)
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
    given = to_json(model, seen)
    if out is not None and given["images"]:
        write_files(out, given)
        typer.echo(f"wrote {len(given['images'])} pictures, points.csv and predictions.json to {out}", err=True)
    if as_json:
        typer.echo(json.dumps(given, indent=1))
    if given["failed"]:
        raise typer.Exit(1 if given["images"] else 2)


def export_command(
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY[#TRIAL] | STORE#study#trial | STORE#KEY]", help="A study (its best trial), or a trial."
        ),
    ] = None,
    best: Annotated[str | None, typer.Option("--best", metavar="STUDY", help="The best trial of this study.")] = None,
    store: Store = DEFAULT_STORE,
    out: Annotated[Path, typer.Option("--out", help="The file to write; its suffix says what.")] = Path(
        "model.safetensors"
    ),
    with_stages: Annotated[
        bool, typer.Option("--with-stages", help="With FILE.zip: the trained and predicted stages of its trials, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a model, or a whole study, into one file.

    FILE.safetensors: all that a prediction needs (weights, configuration, fitted thresholds, where it came from).
    FILE.zip: a study, for `raz-sweep import` elsewhere. FILE.csv, FILE.parquet: a study's trials, a row each.

    \b
    raz-sweep export --best fusion --out model.safetensors
    raz-sweep export fusion#7 --out model.safetensors
    raz-sweep export elsewhere/raz-store#fusion#7 --out model.safetensors
    raz-sweep export ./raz-store#3cad2310 --out model.safetensors    of a table's row: see predict
    raz-sweep export fusion --out fusion.zip --with-stages
    raz-sweep export fusion --out trials.csv
    """
    import json
    import shlex

    from raz.cli.study import print_result
    from raz.errors import RazError
    from raz.maintenance.archive import SUFFIXES, export_study

    store = resolve_store(store)
    if out.suffix not in (*SUFFIXES, ".safetensors"):
        known = ", ".join((".safetensors", *SUFFIXES))
        raise RazError(
            "--out", f"{out} ends with {out.suffix or 'nothing'}, expected {known}", "--out FILE.safetensors"
        )

    if out.suffix in SUFFIXES or with_stages:
        if place is None or best is not None:
            raise RazError("export", f"{out} holds a study, expected its name", f"raz-sweep export fusion --out {out}")
        print_result(export_study(store, place, out.expanduser(), with_stages=with_stages), as_json)
        return
    path = _writable(out)
    from raz.pipeline.model import save_model
    from raz.predict.model_source import model_from_store
    from raz.spec.search_space import STUDY_NAME
    from raz.study.journal import study_names

    if (place is None) == (best is None):
        raise RazError("export", "the trial comes from STUDY#TRIAL or from --best STUDY", "give one of them")
    if best is not None and "#" in best:
        raise RazError("--best", f"{best!r}, expected a study", f"raz-sweep export {shlex.quote(best)} --out {out}")
    named = place if place is not None else str(best)
    first = named.partition("#")[0]
    # a study of the store comes before a folder of the same name, such as that of the images it was searched on
    study = best is not None or first in study_names(store)
    if study or (STUDY_NAME.fullmatch(first) and not StorePaths(Path(first)).stages.is_dir()):
        named = f"{store}#{named}"
    model = model_from_store(named)
    save_model(model, path)
    size = path.stat().st_size
    if as_json:
        about = dict(model.about)
        given = {"out": str(out), "bytes": size, "depth": model.config.depth, "about": about}
        typer.echo(json.dumps(given, indent=1, default=str))
        return
    trial = f"trial {model.about['trial']} of {model.about['study']}, " if "trial" in model.about else ""
    stages = ", ".join(model.trained)
    typer.echo(f"{out}: {trial}{stages}; depth {model.config.depth}, {size / 1e6:.1f} MB")


def _writable(out: Path) -> Path:
    """The path with `~` opened. Raises RazError where the file cannot be, before what goes into it is made."""
    from raz.errors import RazError

    path = out.expanduser()
    if path.is_dir():
        raise RazError(f"--out {out}", "is a folder, expected a file", f"--out {out / 'model.safetensors'}")
    expand_folder(path.parent, f"--out {out}", "another --out")
    if not os.access(nearest_existing(path), os.W_OK):
        raise RazError(f"--out {out}", f"{nearest_existing(path)} may not be written", "another --out")
    return path


def train_command(
    file: Annotated[str, typer.Argument(help="A search space: your own path, or a shipped name.")],
    final: Annotated[
        bool, typer.Option("--final", help="The study's best trial, again, on training and validation images.")
    ] = False,
    store: Store = DEFAULT_STORE,
    settings: Settings = None,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --final: the file to write.", show_default="model.safetensors")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a search's base once, or its best trial for good (--final).

    --final takes the best trial of the file's study, and all images but the test split's.
    It trains each network for as many epochs as the search found best, keeps the thresholds that the search
    fitted, and exports the result. The validation images are trained on then: its quality is what the search measured.

    \b
    raz-sweep train fusion --store ./raz-store
    raz-sweep train fusion --final --out model.safetensors
    """
    import json

    from raz.errors import RazError
    from raz.pipeline.model import save_model
    from raz.predict.retrain import train_final, train_once
    from raz.spec.base_config import parse_settings
    from raz.spec.space_yaml import load_space
    from raz.utils.shipped import find_shipped

    store = resolve_store(store)
    if final and settings:
        raise RazError("--set", "the best trial of a study is what it is", "leave out --set, or --final")
    if out is not None and not final:
        raise RazError("--out", "only --final writes a file", "--final, or raz-sweep export of what is trained here")
    out = out or Path("model.safetensors")
    written = _writable(out) if final else out
    own = Path(file).expanduser().is_file()
    path = find_shipped(file, ("search_spaces",))
    space = load_space(path, file if own else str(path), parse_settings(settings or []), data_root=data_root)

    def log(event: object) -> None:
        typer.echo(str(event), err=True)

    if final:
        model, about = train_final(space, store, data_root, log)
        save_model(model, written)
        lines = [
            f"{out}: trial {about['trial']} of {about['study']}, on {about['images']} training and validation images",
            "epochs: " + ", ".join(f"{stage} {n}" for stage, n in about["epochs"].items()),
            "thresholds are those of the search; its validation score is not this model's, and this one has none",
        ]
        given: dict[str, Any] = {"out": str(out), "about": about}
    else:
        given = train_once(space.base, store, data_root, log)
        lines = [f"{name} {value:.4g}" for name, value in given["metrics"].items() if "rmse" in name or "mae" in name]
        lines.append(f"to predict: raz-sweep predict IMAGE --from {store}#{given['score'][:12]}")
    typer.echo(json.dumps(given, indent=1, default=str) if as_json else "\n".join(lines))
