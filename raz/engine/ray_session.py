"""A Ray session for one run: small, quiet, on the loopback, gone afterwards."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raz.engine.interrupt import RunInterrupted
from raz.engine.ray_internals import LOCAL_ONLY, QUIET, start_local
from raz.errors import RazError

COORDINATOR = "coordinator"
AUTOSCALER_LIMITS = {
    "CPU": "most_cpus",
    "GPU": "most_gpus",
}  # the head of a cluster that grows offers as many as it may have
PREFIX = "raz-ray-"  # then the driver's process id
OBJECT_STORE = 100 * 2**20  # bytes; arrays and weights travel by path, not through Ray


def set_ray_environment() -> None:
    """Sets the environment that Ray reads. To be called before Ray is imported, which keeps what it read."""
    os.environ.update(QUIET)
    if "ray" in sys.modules or "RAY_ADDRESS" in os.environ:
        return  # its owner, or the cluster, has decided how processes prove who they are
    for name, value in LOCAL_ONLY.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    given = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if os.environ["RAY_AUTH_MODE"] == "token" and not any(name in os.environ for name in given):
        # for this session only: the file that Ray would write outlives it, and others may read it
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def prepare_client() -> None:
    """Sets the environment for reaching a Ray that others started: with the token in this user's home, if it is there.
    To be called before Ray is imported."""
    os.environ.update(QUIET)
    if "RAY_AUTH_MODE" not in os.environ and (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_MODE"] = "token"


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connected to the Ray at `auto` or HOST:PORT, which every `session` within then uses. Does nothing without an
    address. Raises RazError when none answers there, or refuses this process."""
    if address is None:
        yield
        return
    if address != "auto" and not re.fullmatch(r"[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", address):
        raise RazError("--address", f"{address!r} is neither auto nor HOST:PORT", "--address 10.0.0.1:6379")
    if address == "auto":  # a job is told its own cluster; by itself Ray would take any that it finds on this machine
        address = os.environ.get("RAY_ADDRESS") or address
    os.environ["RAY_ADDRESS"] = address
    prepare_client()
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray's own kinds differ with what is wrong: nobody listens, the token, the version
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        hint = "`ray status` on that machine; run it on a node of the cluster, with its ~/.ray/auth_token"
        raise RazError("--address", f"no Ray at {address} that takes this process: {said}", hint) from None
    try:
        yield
    finally:
        ray.shutdown()


def capacity() -> dict[str, float]:
    """CPUs and GPUs that stages may count on: those there are, or those the cluster may grow to, which its head says
    (`resources: {"most_cpus": 32, "most_gpus": 8}`). Asked for, they make Ray's autoscaler start machines; from what is
    there alone, a cluster of no workers would never be asked for one."""
    import ray

    there = ray.cluster_resources()
    return {name: max(there.get(name, 0.0), there.get(most, 0.0)) for name, most in AUTOSCALER_LIMITS.items()}


def cluster_jobs(threads: int) -> int | None:
    """Stages of `threads` CPUs, and a GPU each where there are any, that may run at a time on the cluster this process
    has joined; None when it is its own machine that counts."""
    ray = sys.modules.get("ray")
    if ray is None or "RAY_ADDRESS" not in os.environ or not ray.is_initialized():
        return None
    room = capacity()
    by_cpus = int(room["CPU"]) // threads
    return max(1, min(by_cpus, int(room["GPU"])) if room["GPU"] >= 1 else by_cpus)


def coordinator_affinity() -> dict[str, float]:
    """A place, however small, on a node where coordinators belong; empty when the cluster has none."""
    import ray

    return {COORDINATOR: 0.001} if ray.cluster_resources().get(COORDINATOR, 0.0) >= 1 else {}


def coordinator_resources() -> dict[str, float]:
    """What a trial's own process holds: no CPU, since it waits. On a cluster a place where coordinators belong, if it
    has nodes that offer some (`resources: {"coordinator": 64}`), so that a spot node's end takes none along; else a
    little memory, since Tune places nothing that holds nothing."""
    import ray

    offered = ray.cluster_resources().get(COORDINATOR, 0.0)
    return {COORDINATOR: 1} if offered >= 1 else {"memory": 2.0**20}


@contextmanager
def session(cpus: int) -> Iterator[Path]:
    """Ray is up within it; gives a folder that may be thrown away.

    A session that its caller began is used and left alone, and with RAY_ADDRESS set the cluster there
    is joined; else a local one with `cpus` logical CPUs is started and ended.
    """
    set_ray_environment()
    import ray

    # A worker that died is an outcome of its trial, and told as such.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        with tempfile.TemporaryDirectory(prefix="raz-", dir=_short_tmpdir()) as name:
            yield Path(name)
        return
    _remove_stale_sessions()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_short_tmpdir()))
    paths = os.environ.get("PYTHONPATH")
    try:
        if "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            # The workers import what the driver can import, also from a checkout that is not installed.
            os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
            start_local(cpus, OBJECT_STORE, folder)
        yield folder
    except SystemExit as error:  # while it starts, Ray answers SIGTERM itself
        if error.code != signal.SIGTERM:
            raise
        raise RunInterrupted(signal.SIGTERM) from None
    finally:
        ray.shutdown()
        if paths is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = paths
        _remove(folder)


def _remove(folder: Path) -> None:
    """Processes that are just ending may still write their last line into it."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.2)


def _remove_stale_sessions() -> None:
    """Removes what drivers that were killed have left: folders of ours whose process is gone."""
    for folder in Path(_short_tmpdir() or tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        try:
            if pid.isdigit() and folder.stat().st_uid == os.getuid():
                os.kill(int(pid), 0)
        except ProcessLookupError:
            _remove(folder)
        except OSError:  # gone meanwhile, or its process is another user's
            continue


def _short_tmpdir() -> str | None:
    """Ray's sockets lie below it, and a socket's path may not be longer than 107 bytes."""
    return "/tmp" if os.path.isdir("/tmp") and len(tempfile.gettempdir()) > 20 else None
