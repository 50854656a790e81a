"""`raz-sweep pull`: studies and results out of another store, on this machine, in a bucket or on a cluster."""

from __future__ import annotations

import secrets
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from raz.data.option import HERE, DataRoot, Json, Store, folder_of
from raz.errors import RazError
from raz.remote.submit import Cluster, cluster_file

Run = Callable[[Sequence[str]], None]  # `ray WORDS`


def pull_command(
    studies: Annotated[list[str] | None, typer.Argument(metavar="[STUDY]...", help="Default: all of them.")] = None,
    cluster: Cluster = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Another store: a folder, such as one that machines share.")
    ] = None,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="With the trained networks and predictions, not only scores.")
    ] = False,
    there: Annotated[
        str | None, typer.Option("--there", help="The store, as the cluster sees it. Default: RAZ_STORE there.")
    ] = None,
    store: Store = HERE,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Bring studies, tables and scores into this store, from a cluster that is up or from another folder.

    The same again brings what is new. A study that runs there comes as far as it is.

    \b
    raz-sweep pull --cluster cluster/gpu.yaml
    raz-sweep pull fusion --cluster cluster/gpu.yaml --artifacts
    raz-sweep pull --from /mnt/shared/raz-store
    """
    from raz.study.cli import tell
    from raz.study.pull import pull, pull_lines

    store = folder_of(store)
    names = tuple(studies or ())
    if source is not None:
        told = pull(folder_of(source), store, names, artifacts=artifacts, data_root=data_root)
    else:
        file = cluster_file(cluster)
        with tempfile.TemporaryDirectory(prefix="raz-pull-") as place:
            fetch(file, Path(place), names, there, artifacts, ray)
            told = {**pull(Path(place), store, artifacts=True), "from": str(file)}
    tell(told, pull_lines(told), as_json)


def fetch(file: Path, place: Path, names: Sequence[str], there: str | None, artifacts: bool, run: Run) -> None:
    """Has the head lay out what is wanted in a folder of its own, and brings that folder here."""
    laid = f"raz-pull-{secrets.token_hex(8)}"
    store = shlex.quote(there) if there else '"${RAZ_STORE:-$HOME/raz-store}"'
    words = " ".join(["raz-sweep", "pull", *names, *(["--artifacts"] if artifacts else [])])
    try:
        run(["exec", str(file), f"{words} --from {store} --store {laid} >&2"])
        run(["rsync-down", str(file), f"./{laid}/", f"{place}/"])
    finally:
        run(["exec", str(file), f"rm -rf {laid}"])


def ray(words: Sequence[str]) -> None:
    """Ray's command line. Raises RazError with its last words when it fails."""
    from raz.engine.ray_internals import ray_command
    from raz.engine.session import prepare_client

    prepare_client()
    done = subprocess.run(
        ray_command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise RazError(f"ray {words[0]} {words[1]}", "\n  ".join(said[-3:]) or "failed", f"ray up {words[1]}")
