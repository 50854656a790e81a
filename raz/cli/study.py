"""`raz-sweep studies`, `show`, `diff`, `import`, `rerun`, `dashboard` and `status`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Protocol

import typer

from raz.cli.options import DEFAULT_STORE, DataRoot, Json, Store, resolve_store
from raz.utils.json_types import JsonLike


class Printable(Protocol):
    """A result that has a JSON document and a text."""

    def to_dict(self) -> Mapping[str, JsonLike]: ...
    def to_text(self) -> str: ...


def print_result(result: Printable, as_json: bool) -> None:
    """Prints the JSON document of a result, or its text."""
    typer.echo(json.dumps(result.to_dict(), indent=1) if as_json else result.to_text())


def studies_command(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """List the studies of a store: trials by state, the best value, the time of the last change.

    \b
    raz-sweep studies
    raz-sweep studies --store photographs --json
    """
    from raz.inspection.study_list import list_studies

    studies = list_studies(resolve_store(store))
    typer.echo(json.dumps(studies.to_list(), indent=1) if as_json else studies.to_text())


def show_command(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="STUDY[#TRIAL] | FILE.safetensors", help="A study, one of its trials, or an exported model."
        ),
    ],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show a study, a trial, or an exported model.

    A study: question, trials by state, best trial. A trial: configuration, stages, curves, failure, provenance. A
    model: its card.

    \b
    raz-sweep show fusion
    raz-sweep show fusion#7
    raz-sweep show fusion#7 --json
    raz-sweep show model.safetensors
    """
    if reference.endswith(".safetensors"):
        from raz.pipeline.model import load_model
        from raz.predict.model_card import model_card

        path = Path(reference).expanduser()
        model = load_model(path)
        card = model.card or model_card(model, path.name)  # earlier versions wrote none
        typer.echo(json.dumps({"card": card, "about": dict(model.about)}, indent=1) if as_json else card, nl=as_json)
        return
    from raz.inspection.study_details import describe_study
    from raz.inspection.trial_details import describe_trial
    from raz.study.index import parse_reference, read_study

    store = resolve_store(store)
    name, number = parse_reference(reference)
    study = read_study(store, name)
    print_result(describe_study(study) if number is None else describe_trial(study, number), as_json)


def diff_command(
    a: Annotated[str, typer.Argument(metavar="A", help="A study, or a trial: fusion or fusion#3.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another of the same kind.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Compare two studies, or two trials.

    Of studies the search spaces and best trials, of trials the configurations and metrics.

    \b
    raz-sweep diff fusion#3 fusion#7
    raz-sweep diff fusion recurrence
    """
    from raz.inspection.compare import compare

    print_result(compare(resolve_store(store), a, b), as_json)


def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="A file that `raz-sweep export` wrote.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Import an exported study into the store.

    A study of the same name is never overwritten.

    \b
    raz-sweep import fusion.zip
    raz-sweep import fusion.zip --store elsewhere
    """
    from raz.maintenance.archive import import_study

    print_result(import_study(resolve_store(store), file.expanduser()), as_json)


def rerun_command(
    reference: Annotated[str, typer.Argument(metavar="STUDY#TRIAL", help="A trial, such as fusion#7.")],
    from_store: Annotated[
        bool, typer.Option("--from-store", help="Reuse its trained networks; predict and score again.")
    ] = False,
    store: Store = DEFAULT_STORE,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Run a trial again and compare every number bit for bit.

    It runs without Ray in a temporary store. Exits 0 when all numbers agree, else 1. The store is not changed.

    \b
    raz-sweep rerun fusion#7
    raz-sweep rerun fusion#7 --from-store
    """
    import sys
    from contextlib import redirect_stdout

    from raz.errors import RazError
    from raz.inspection.rerun import rerun
    from raz.study.index import parse_reference, read_study

    store = resolve_store(store)
    name, number = parse_reference(reference)
    if number is None:
        raise RazError(reference, "expected a trial of a study", f"{name}#0")
    study = read_study(store, name)
    with redirect_stdout(sys.stderr):  # stdout is for the result; libraries may print too
        result = rerun(
            study, number, data_root=data_root and data_root.expanduser(), from_store=from_store,
            log=lambda event: typer.echo(str(event), err=True),
        )  # fmt: skip
    print_result(result, as_json)
    raise typer.Exit(0 if result.agrees else 1)


def dashboard_command(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="One study. Default: all.")] = None,
    store: Store = DEFAULT_STORE,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
) -> None:
    """Serve Optuna's dashboard for the studies of a store, live and read-only.

    It listens on this machine only, unless --host says otherwise.
    Needs optuna-dashboard: pip install 'raz-sweep[dashboard]'

    \b
    raz-sweep dashboard
    raz-sweep dashboard fusion --port 0
    """
    from raz.inspection.dashboard import LOOPBACK, server
    from raz.study.index import split_study

    store = resolve_store(store)
    with server(store, study and split_study(study), host, port) as serving:
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"http://{shown}:{serving.server_port}/dashboard  (read-only; Ctrl-C stops it)")
        if host not in LOOPBACK:
            typer.echo("anyone who can reach this machine can read the studies", err=True)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            typer.echo("")


def status_command(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Show what is running in a store now: studies with a driver, and the stages being made with their progress.

    \b
    raz-sweep status
    raz-sweep status --store /mnt/shared/raz-store --json
    """
    from raz.inspection.status import store_status

    print_result(store_status(resolve_store(store)), as_json)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("studies")(studies_command)
    app.command("show")(show_command)
    app.command("diff")(diff_command)
    app.command("import")(import_command)
    app.command("rerun")(rerun_command)
    app.command("dashboard")(dashboard_command)
    app.command("status")(status_command)
