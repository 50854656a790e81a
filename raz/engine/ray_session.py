"""A Ray session for one run, on a cluster or local. A local session is small and quiet, listens on the loopback only,
and is removed at its end."""

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from raz.engine.interrupt import RunInterrupted
from raz.engine.ray_internals import LOCAL_ONLY, QUIET, gpus_of_this_machine, start_local
from raz.engine.stage_slots import stage_slots
from raz.errors import RazError
from raz.spec.stage_resources import Resources
from raz.utils.formatting import first_line
from raz.utils.machine import available_cpus

COORDINATOR = "coordinator"
# Custom resources of the head of an autoscaling cluster: the CPUs and GPUs that its workers may have in total.
AUTOSCALER_LIMITS = {"CPU": "most_cpus", "GPU": "most_gpus"}
PREFIX = "raz-ray-"  # of a session's folder; the driver's process id follows
GPU_DEVICES = (*(f"/dev/nvidia{i}" for i in range(16)), "/dev/dxg")  # the last one under Windows' Linux
OBJECT_STORE = 100 * 2**20  # bytes: arrays and weights are passed by path, not through Ray


def set_ray_environment() -> None:
    """Sets the environment variables that Ray reads when it is imported; call it before."""
    os.environ.update(QUIET)
    if "ray" in sys.modules or "RAY_ADDRESS" in os.environ:
        return  # the caller or the cluster decides how processes authenticate
    for name, value in LOCAL_ONLY.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    tokens = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if os.environ["RAY_AUTH_MODE"] == "token" and not any(name in os.environ for name in tokens):
        # A token for this session only: Ray would write it to a file that stays and that other users may read.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def prepare_client() -> None:
    """Sets the environment variables for joining a Ray cluster that is already up, with the token in this user's home
    if there is one. Call it before Ray is imported."""
    os.environ.update(QUIET)
    if "RAY_AUTH_MODE" not in os.environ and (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_MODE"] = "token"


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Joins the Ray cluster at `auto` or HOST:PORT; every `session` within the context uses it. Does nothing without an
    address. Raises RazError when no Ray answers at it, or when it refuses this process."""
    if address is None:
        yield
        return
    if address != "auto" and not re.fullmatch(r"[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", address):
        raise RazError("--address", f"{address!r} is neither auto nor HOST:PORT", "--address 10.0.0.1:6379")
    if address == "auto":  # a job's cluster is in RAY_ADDRESS; Ray itself would take any cluster on this machine
        address = os.environ.get("RAY_ADDRESS") or address
    os.environ["RAY_ADDRESS"] = address
    prepare_client()
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray's classes differ by cause: no process listens, the token, the version
        hint = "`ray status` on that machine; run it on a node of the cluster, with its ~/.ray/auth_token"
        raise RazError("--address", f"no Ray at {address} that takes this process: {first_line(error)}", hint) from None
    try:
        yield
    finally:
        ray.shutdown()


def capacity() -> dict[str, float]:
    """CPUs and GPUs that stages may request: those of the cluster, or those that it may grow to, which its head offers
    as custom resources (`resources: {"most_cpus": 32, "most_gpus": 8}`). Requests beyond the present nodes make Ray's
    autoscaler start machines, also where there are no workers yet."""
    import ray

    present = ray.cluster_resources()
    return {name: max(present.get(name, 0.0), present.get(limit, 0.0)) for name, limit in AUTOSCALER_LIMITS.items()}


def in_cluster() -> bool:
    """Whether this process has joined a cluster."""
    ray = sys.modules.get("ray")
    return ray is not None and "RAY_ADDRESS" in os.environ and ray.is_initialized()


def cluster_jobs(threads: int, resources: Mapping[str, Resources]) -> int | None:
    """Number of stages that run at a time on the cluster that this process has joined (`stage_slots`). None if it has
    joined no cluster."""
    return stage_slots(capacity(), resources, threads) if in_cluster() else None


def local_gpus() -> int:
    """GPUs that a local session has. Ray is loaded only if the system has a device of NVIDIA's."""
    if not any(Path(path).exists() for path in GPU_DEVICES):
        return 0
    set_ray_environment()
    return gpus_of_this_machine()


def parallel_slots(threads: int, resources: Mapping[str, Resources] | None = None) -> int:
    """Stages that may run at a time on the cluster that this process has joined, else on this machine (`stage_slots`).

    resources: of the file, by stage.
    """
    joined = cluster_jobs(threads, resources or {})
    if joined is not None:
        return joined
    return stage_slots({"CPU": available_cpus(), "GPU": local_gpus()}, resources or {}, threads)


def coordinator_affinity() -> dict[str, float]:
    """Ray resources that pin an actor to a coordinator node; {} if the cluster defines none."""
    import ray

    return {COORDINATOR: 0.001} if ray.cluster_resources().get(COORDINATOR, 0.0) >= 1 else {}


def coordinator_resources() -> dict[str, float]:
    """Ray resources of a trial's process. It holds no CPU, since it only waits: one unit of `coordinator` where nodes
    offer it (`resources: {"coordinator": 64}`), so that the loss of a spot node loses no trial; else one MiB of
    memory, since Tune places no trial without resources."""
    import ray

    offered = ray.cluster_resources().get(COORDINATOR, 0.0)
    return {COORDINATOR: 1} if offered >= 1 else {"memory": 2.0**20}


@contextmanager
def session(cpus: int) -> Iterator[Path]:
    """Yields a temporary folder; Ray is up within the context.

    A session that the caller has started is used and kept. Else the cluster at RAY_ADDRESS is joined, or without it a
    local session of `cpus` logical CPUs is started, and ended with the context. Raises RunInterrupted on SIGTERM while
    Ray starts.
    """
    set_ray_environment()
    import ray

    # The loss of a worker is reported as its trial's outcome.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        with tempfile.TemporaryDirectory(prefix="raz-", dir=_short_tmpdir()) as name:
            yield Path(name)
        return
    _remove_stale_sessions()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_short_tmpdir()))
    pythonpath = os.environ.get("PYTHONPATH")
    try:
        if "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            # Workers import the same modules, also from a checkout that is not installed.
            os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
            start_local(cpus, OBJECT_STORE, folder)
        yield folder
    except SystemExit as error:  # while Ray starts, it handles SIGTERM itself
        if error.code != signal.SIGTERM:
            raise
        raise RunInterrupted(signal.SIGTERM) from None
    finally:
        ray.shutdown()
        if pythonpath is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = pythonpath
        _remove(folder)


def _remove(folder: Path) -> None:
    """Deletes a folder into which ending processes may still write: up to ten tries in two seconds."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.2)


def _remove_stale_sessions() -> None:
    """Deletes the session folders of this user whose driver is gone, as a killed driver leaves them."""
    for folder in Path(_short_tmpdir() or tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        try:
            if pid.isdigit() and folder.stat().st_uid == os.getuid():
                os.kill(int(pid), 0)
        except ProcessLookupError:
            _remove(folder)
        except OSError:  # deleted meanwhile, or the process is another user's
            continue


def _short_tmpdir() -> str | None:
    """`/tmp` where the usual temporary folder has a long path, else None. Ray's sockets are below it, and the path of a
    socket has at most 107 bytes."""
    return "/tmp" if os.path.isdir("/tmp") and len(tempfile.gettempdir()) > 20 else None
