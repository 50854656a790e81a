"""The commands `raz-sweep predict`, `export` and `train`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raz.cli.options import (
    DEFAULT_STORE,
    DataRoot,
    Json,
    OutFolder,
    Profile,
    Settings,
    Store,
    expand_folder,
    nearest_existing,
    out_folder,
    resolve_store,
)
from raz.store.paths import StorePaths
from raz.utils.json_types import JsonLike

if TYPE_CHECKING:
    from raz.pipeline.events import EventCallback
    from raz.pipeline.executor import StageProvider
    from raz.spec.stage_resources import Resources

_From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="STORE[#study[#trial]]",
        help="A trial in a store, by default the best one; or STORE#KEY of a score.",
    ),
]


def predict_command(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images, folders of images, or patterns.")],
    source: _From = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="A file written by `raz-sweep export`.")] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Number of passes; 1 is without zooming. Default: the model's.")
    ] = None,
    out: OutFolder = None,
    as_json: Json = False,
) -> None:
    """Count and localize the heads in images.

    Beside each count stands its interval: 90 % of images like the validation images have their true count in it.

    Exits 1 if some images could not be read, 2 if none could.

    \b
    raz-sweep predict photo.jpg --from ./raz-store#fusion
    raz-sweep predict photo.jpg --from ./raz-store#3cad2310     key in a table (report --table T --out t.csv)
    raz-sweep predict photos/ --weights model.safetensors --out results
    raz-sweep predict 'photos/*.jpg' --weights model.safetensors --json > points.json
    """
    import json

    from raz.predict.batch import predict_images, to_json, write_files
    from raz.predict.image_files import find_images
    from raz.predict.model_source import load_model_of

    out = None if out is None else out_folder(out)
    paths = find_images(images)
    model = load_model_of(source, weights)
    predicted = []
    width = min(60, max(len(path.name) for path in paths))
    if not as_json:
        heading = f"{'image':<{width}}  {'count':>9}  {'interval':>19}  {'density':>9}  {'points':>7}  {'seconds':>7}"
        typer.echo(heading)
    for image in predict_images(model, paths, depth, out):
        predicted.append(image)
        if image.prediction is None:
            typer.echo(str(image.error), err=True)
        elif not as_json:
            p = image.prediction
            interval = "-" if p.interval is None else f"{p.interval[0]:.1f} to {p.interval[1]:.1f}"
            numbers = f"{p.count:9.1f}  {interval:>19}  {p.density:9.1f}  {p.localization:7}  {p.seconds:7.2f}"
            typer.echo(f"{image.name:<{width}}  {numbers}")
    readable = sum(image.prediction is not None for image in predicted)
    if readable and not as_json:
        typer.echo(model.about_intervals(depth))
    if out is not None and readable:
        write_files(out, model, predicted, depth)
        typer.echo(f"wrote {readable} pictures, counts.csv, points.csv and predictions.json to {out}", err=True)
    if as_json:
        typer.echo(json.dumps(to_json(model, predicted, depth), indent=1))
    if readable < len(predicted):
        raise typer.Exit(1 if readable else 2)


def export_command(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY[#TRIAL] | STORE#study#trial | STORE#KEY]", help="A study (for its best trial), or a trial."
        ),
    ] = None,
    best: Annotated[str | None, typer.Option("--best", metavar="STUDY", help="The best trial of this study.")] = None,
    store: Store = DEFAULT_STORE,
    out: Annotated[Path, typer.Option("--out", help="The file to write; its suffix selects the format.")] = Path(
        "model.safetensors"
    ),
    with_stages: Annotated[
        bool,
        typer.Option("--with-stages", help="With FILE.zip: include the trained and predicted stages of the trials."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a model, or a whole study, to one file.

    FILE.safetensors: a model with weights, configuration, fitted thresholds and provenance. Its model card says what it
    is and how good it was found to be; it goes into FILE.card.md, and `raz-sweep show FILE.safetensors` prints it.
    FILE.zip: a study, for `raz-sweep import`. FILE.csv, FILE.parquet: a table of the study's trials.

    \b
    raz-sweep export --best fusion --out model.safetensors
    raz-sweep export fusion#7 --out model.safetensors
    raz-sweep export elsewhere/raz-store#fusion#7 --out model.safetensors
    raz-sweep export ./raz-store#3cad2310 --out model.safetensors    key in a table, as in predict
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
        if source is None or best is not None:
            raise RazError("export", f"{out} is for a study, expected its name", f"raz-sweep export fusion --out {out}")
        print_result(export_study(store, source, out.expanduser(), with_stages=with_stages), as_json)
        return
    path = _writable(out)
    from raz.predict.model_card import with_measurements, write_with_card
    from raz.predict.model_source import model_from_store
    from raz.spec.search_space import STUDY_NAME
    from raz.study.journal import study_names

    if (source is None) == (best is None):
        raise RazError("export", "the trial comes from STUDY#TRIAL or from --best STUDY", "give one of them")
    if best is not None and "#" in best:
        raise RazError("--best", f"{best!r}, expected a study", f"raz-sweep export {shlex.quote(best)} --out {out}")
    name = source if source is not None else str(best)
    first = name.partition("#")[0]
    # a study of the store takes precedence over a folder of the same name, such as its data set's
    study = best is not None or first in study_names(store)
    if study or (STUDY_NAME.fullmatch(first) and not StorePaths(Path(first)).stages.is_dir()):
        name = f"{store}#{name}"
    model = with_measurements(model_from_store(name), Path(name.partition("#")[0] or ".").expanduser())
    card = write_with_card(model, path)
    size = path.stat().st_size
    if as_json:
        document = {
            "out": str(out), "card": str(card), "bytes": size, "depth": model.config.depth, "about": dict(model.about),
        }  # fmt: skip
        typer.echo(json.dumps(document, indent=1, default=str))
        return
    trial = f"trial {model.about['trial']} of {model.about['study']}, " if "trial" in model.about else ""
    stages = ", ".join(model.trained)
    typer.echo(f"{out}: {trial}{stages}; depth {model.config.depth}, {size / 1e6:.1f} MB; model card: {card}")


def _writable(out: Path) -> Path:
    """The path with `~` expanded. Raises RazError if it cannot be written, before time is spent on its content."""
    from raz.errors import RazError

    path = out.expanduser()
    if path.is_dir():
        raise RazError(f"--out {out}", "is a folder, expected a file", f"--out {out / 'model.safetensors'}")
    expand_folder(path.parent, f"--out {out}", "another --out")
    if not os.access(nearest_existing(path), os.W_OK):
        raise RazError(f"--out {out}", f"{nearest_existing(path)} is not writable", "another --out")
    return path


def train_command(
    file: Annotated[str, typer.Argument(help="A search space: the path of a file, or a shipped name.")],
    final: Annotated[
        bool, typer.Option("--final", help="Retrain the study's best trial on training and validation images.")
    ] = False,
    store: Store = DEFAULT_STORE,
    settings: Settings = None,
    data_root: DataRoot = None,
    profile: Profile = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --final: the file to write.", show_default="model.safetensors")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Train on the Ray cluster at HOST:PORT, or on this machine's (auto)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train the base configuration of a search once, or retrain its best trial (--final).

    --final retrains the best trial of the file's study on training and validation images. Each network is trained for
    its best number of epochs in the search, thresholds that the search fitted are kept, and the model is exported.
    It has no validation score of its own, since the validation images are used for training.

    \b
    raz-sweep train fusion --store ./raz-store
    raz-sweep train fusion --final --out model.safetensors
    raz-sweep train fusion --profile small --data-root ~/data --final --out model.safetensors
    raz-sweep train fusion --final --address auto     on the GPUs of the cluster that this machine belongs to
    """
    import json

    from raz.errors import RazError
    from raz.predict.model_card import with_measurements, write_with_card
    from raz.predict.retrain import train_final, train_once
    from raz.spec.base_config import parse_settings
    from raz.spec.space_yaml import load_space
    from raz.utils.shipped import find_shipped

    store = resolve_store(store)
    if final and settings:
        raise RazError("--set", "--final uses the configuration of the best trial", "omit --set, or --final")
    if out is not None and not final:
        raise RazError("--out", "only --final writes a file", "add --final, or run raz-sweep export after this command")
    out = out or Path("model.safetensors")
    written = _writable(out) if final else out
    own = Path(file).expanduser().is_file()
    path = find_shipped(file, ("search_spaces",))
    space = load_space(path, file if own else str(path), parse_settings(settings or []), profile, data_root=data_root)

    def log(event: object) -> None:
        typer.echo(str(event), err=True)

    if final:
        with _provider(address, store, space.resources, log) as make:
            trained = train_final(space, store, data_root, log, make)
        model = with_measurements(trained.model, store)
        card = write_with_card(model, written)
        lines = [
            f"{out}: trial {trained.trial} of {trained.study}, on {trained.images} training and validation images",
            "epochs: " + ", ".join(f"{stage} {n}" for stage, n in trained.epochs.items()),
            "thresholds are those of the search; its validation score does not apply to this model, which has none",
            f"model card: {card}",
        ]
        document: dict[str, JsonLike] = {"out": str(out), "card": str(card), "about": dict(model.about)}
    else:
        with _provider(address, store, space.resources, log) as make:
            trial = train_once(space.base, store, data_root, log, make)
        lines = [f"{name} {value:.4g}" for name, value in trial.metrics.items() if "rmse" in name or "mae" in name]
        lines.append(f"to predict: raz-sweep predict IMAGE --from {store}#{trial.score[:12]}")
        document = {**trial.as_json()}
    typer.echo(json.dumps(document, indent=1, default=str) if as_json else "\n".join(lines))


@contextmanager
def _provider(
    address: str | None, store: Path, resources: Mapping[str, Resources], log: EventCallback
) -> Iterator[StageProvider | None]:
    """What makes stages on the Ray cluster at an address; None without one: this process makes them."""
    if address is None:
        yield None
        return
    from raz.engine.ray_session import connected

    with connected(address):
        from raz.engine.broker_client import own_stages

        with own_stages(store, resources, log=log) as client:
            yield client
