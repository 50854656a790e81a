"""Copy files from a cluster's head node with `ray rsync-down` and `ray exec`."""

from __future__ import annotations

import secrets
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from raz.errors import RazError

RunRay = Callable[[Sequence[str]], None]  # runs `ray ARGUMENTS`


def fetch_from_head(
    file: Path, target: Path, names: Sequence[str], remote_store: str | None, artifacts: bool, run: RunRay
) -> None:
    """Have the head `raz-sweep pull` the studies `names` into a temporary folder, and copy that folder to `target`.

    `there` is the store's path on the head; None takes RAZ_STORE there. `run` runs Ray's command line.
    """
    staging = f"raz-pull-{secrets.token_hex(8)}"
    store = shlex.quote(remote_store) if remote_store else '"${RAZ_STORE:-$HOME/raz-store}"'
    arguments = " ".join(["raz-sweep", "pull", *names, *(["--artifacts"] if artifacts else [])])
    try:
        run(["exec", str(file), f"{arguments} --from {store} --store {staging} >&2"])
        run(["rsync-down", str(file), f"./{staging}/", f"{target}/"])
    finally:
        run(["exec", str(file), f"rm -rf {staging}"])


def run_ray_cli(arguments: Sequence[str]) -> None:
    """Run `ray ARGUMENTS`. Raises RazError with the last line of its output when it fails."""
    from raz.engine.ray_internals import ray_command
    from raz.engine.ray_session import prepare_client

    prepare_client()
    done = subprocess.run(
        ray_command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        output = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise RazError(
            f"ray {arguments[0]} {arguments[1]}", "\n  ".join(output[-3:]) or "failed", f"ray up {arguments[1]}"
        )
