"""A real Ray head in processes of its own: on the loopback, with token authentication, ended with all it began."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass(frozen=True)
class Head:
    """Where it listens, and what a client needs to be served."""

    port: int
    token: str
    url: str = ""  # of its job server, if it has one

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """This process's, with the token and without what it knows of other clusters."""
        return {**bare(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


def bare() -> dict[str, str]:
    """This process's environment without Ray's variables and with this tree's package."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PYTHONPATH": str(HERE), "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


def raz(*words: object, env: dict[str, str], timeout: float = 280.0) -> subprocess.CompletedProcess[str]:
    """`raz-sweep WORDS` in a process of its own."""
    command = [sys.executable, "-m", "raz.cli", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def family(pid: int) -> dict[int, str]:
    """The process's descendants and how they are called."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: names.get(child, "") for child in found - {pid}}


@contextmanager
def head(cpus: int = 1, *, dashboard: bool = False, **environment: str) -> Iterator[Head]:
    """Up within it. `dashboard`: with its job server, which needs ray[default]."""
    port, board, agent = free_ports(3)
    up = Head(port, secrets.token_hex(32), f"http://127.0.0.1:{board}" if dashboard else "")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="raz-head-", ignore_cleanup_errors=True) as folder:
        words = [
            "start", "--head", "--block", f"--port={port}", f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1",
            f"--include-dashboard={str(dashboard).lower()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={board}",
            f"--dashboard-agent-listen-port={agent}", "--object-store-memory=100000000", f"--temp-dir={folder}",
            "--disable-usage-stats",
        ]  # fmt: skip
        with (Path(folder) / "said").open("w+") as said:
            process = subprocess.Popen(
                [*RAY, *words], env={**up.environment, "PATH": path, **environment}, start_new_session=True,
                stdout=said, stderr=said,
            )  # fmt: skip
            try:
                end = time.monotonic() + 240
                while "Ray runtime started" not in (Path(folder) / "said").read_text():
                    told = (Path(folder) / "said").read_text()
                    assert process.poll() is None, told
                    assert time.monotonic() < end, told
                    time.sleep(0.2)
                yield up
            finally:
                began = family(process.pid)  # asked to end, they would take half a minute
                process.kill()
                for pid in began:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait(60)
