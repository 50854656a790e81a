"""`raz-sweep doctor`: check this machine, or every node of a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from raz.cli.options import DEFAULT_STORE, DataRoot, Json, Store, resolve_store
from raz.cli.study import print_result
from raz.errors import RazError
from raz.inspection.doctor import run_checks
from raz.remote.cluster_doctor import cluster_json, cluster_lines, examine_cluster


def doctor_command(
    store: Store = DEFAULT_STORE,
    data_root: DataRoot = None,
    weights: Annotated[
        str | None, typer.Option("--backbone-weights", help="A file of weights, as `backbone.weights` takes it.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="The network that is checked: vgg16, or timm's name of one.",
            show_default="those of the presets",
        ),
    ] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Check every node of the running Ray cluster.")] = False,
    address: Annotated[
        str | None,
        typer.Option(help="With --cluster: the Ray cluster at HOST:PORT, or this machine's.", show_default="auto"),
    ] = None,
    with_json: Json = False,
) -> None:
    """Check this machine, or every node of a cluster, and say how to fix what is missing.

    The last lines are on photographs: packages, pretrained weights (here, to be fetched, or neither), a data set.

    Exits 1 when something fails.

    \b
    raz-sweep doctor
    raz-sweep doctor --store /scratch/store --data-root ~/data --backbone-weights vgg16.pt --json
    raz-sweep doctor --backbone resnet18                     another network of timm
    raz-sweep doctor --cluster --store /shared/raz-store     on a node of it, such as its head
    """
    import json

    store = resolve_store(store)
    if address is not None and not cluster:
        raise RazError("--address", "only this machine is checked", "--cluster, or leave it out")
    if not cluster:
        report = run_checks(store, data_root, weights, backbone)
        print_result(report, with_json)
        raise typer.Exit(0 if report.ok else 1)
    for option, value in (("--backbone-weights", weights), ("--backbone", backbone)):
        if value is not None:
            raise RazError(option, "is checked on this machine only", "leave out --cluster")
    from raz.engine.ray_session import connected

    with connected(address or "auto"):
        reports = examine_cluster(store.absolute(), data_root and data_root.expanduser().absolute())
    document = cluster_json(reports)
    typer.echo(json.dumps(document, indent=1) if with_json else "\n".join(cluster_lines(reports)))
    raise typer.Exit(0 if document["ok"] else 1)
