"""`raz-sweep pull`: copy studies and results from another store, on this machine, in a bucket or on a cluster."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from raz.cli.job import Cluster
from raz.cli.options import DEFAULT_STORE, DataRoot, Json, Store, resolve_store
from raz.remote.cluster_file import cluster_file
from raz.remote.transfer import fetch_from_head, run_ray_cli


def pull_command(
    studies: Annotated[list[str] | None, typer.Argument(metavar="[STUDY]...", help="Default: all of them.")] = None,
    cluster: Cluster = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Another store: a folder, such as one that machines share.")
    ] = None,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Also trained networks and predictions, not only scores.")
    ] = False,
    remote_store: Annotated[
        str | None, typer.Option("--there", help="The store's path on the cluster. Default: RAZ_STORE there.")
    ] = None,
    store: Store = DEFAULT_STORE,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Copy studies, tables and scores into this store, from a running cluster or another folder.

    The same command again copies what is new. Of a study that is still running, what exists so far is copied.

    \b
    raz-sweep pull --cluster cluster/gpu.yaml
    raz-sweep pull fusion --cluster cluster/gpu.yaml --artifacts
    raz-sweep pull --from /mnt/shared/raz-store
    """
    from raz.cli.study import print_result
    from raz.maintenance.pull import pull

    store = resolve_store(store)
    names = tuple(studies or ())
    if source is not None:
        result = pull(resolve_store(source), store, names, artifacts=artifacts, data_root=data_root)
    else:
        file = cluster_file(cluster)
        with tempfile.TemporaryDirectory(prefix="raz-pull-") as folder:
            fetch_from_head(file, Path(folder), names, remote_store, artifacts, run_ray_cli)
            result = replace(pull(Path(folder), store, artifacts=True), source=str(file))
    print_result(result, as_json)
