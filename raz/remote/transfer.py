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
    file: Path, place: Path, names: Sequence[str], there: str | None, artifacts: bool, run: RunRay
) -> None:
    """Have the head `raz-sweep pull` the studies `names` into a temporary folder, and copy that folder to `place`.

    `there` is the store's path on the head; None takes RAZ_STORE there. `run` runs Ray's command line.
    """
    laid = f"raz-pull-{secrets.token_hex(8)}"
    store = shlex.quote(there) if there else '"${RAZ_STORE:-$HOME/raz-store}"'
    words = " ".join(["raz-sweep", "pull", *names, *(["--artifacts"] if artifacts else [])])
    try:
        run(["exec", str(file), f"{words} --from {store} --store {laid} >&2"])
        run(["rsync-down", str(file), f"./{laid}/", f"{place}/"])
    finally:
        run(["exec", str(file), f"rm -rf {laid}"])


def run_ray_cli(words: Sequence[str]) -> None:
    """Run `ray ARGUMENTS`. Raises RazError with the last line of its output when it fails."""
    from raz.engine.ray_internals import ray_command
    from raz.engine.ray_session import prepare_client

    prepare_client()
    done = subprocess.run(
        ray_command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        output = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise RazError(f"ray {words[0]} {words[1]}", "\n  ".join(output[-3:]) or "failed", f"ray up {words[1]}")
