"""Jobs on a cluster's head: sent, followed and stopped through Ray's job server, which listens on its loopback.

A job is a process of the head, so it goes on when the machine that sent it is switched off.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raz.engine.ray_internals import STOP, ray_command
from raz.engine.ray_session import prepare_client
from raz.errors import RazError

CONNECT_TIMEOUT = 90.0  # seconds until the way to the head is open
LOOK = 2.0  # seconds between two looks at a job
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


class Jobs:
    """The jobs of one Ray. `url` is its job server's, http://HOST:PORT. Raises RazError when none answers there."""

    def __init__(self, url: str) -> None:
        prepare_client()
        from ray.job_submission import JobSubmissionClient

        self.url = url
        with _translate_errors(url):
            self._client = JobSubmissionClient(url)

    def submit(self, folder: Path, entry: str, study: str) -> str:
        """Starts `entry`, a line of shell, beside the files of `folder`. Returns the job's id."""
        with _translate_errors(self.url):
            told = self._client.submit_job(
                entrypoint=entry, submission_id=f"{study}-{secrets.token_hex(4)}", metadata={"study": study},
                runtime_env={"working_dir": str(folder), "env_vars": STOP},
            )  # fmt: skip
        return str(told)

    def state(self, job: str) -> dict[str, Any]:
        """Id, study, state, what it runs, exit code, start and end (seconds since the epoch). Raises RazError for an
        unknown id."""
        with _translate_errors(self.url, job):
            return _document(self._client.get_job_info(job))

    def list_jobs(self) -> list[dict[str, Any]]:
        """Every job that raz-sweep sent, the oldest first."""
        with _translate_errors(self.url):
            found = [_document(job) for job in self._client.list_jobs() if (job.metadata or {}).get("study")]
        return sorted(found, key=lambda job: job["started"] or 0.0)

    def logs(self, job: str) -> str:
        """All that the job has printed."""
        with _translate_errors(self.url, job):
            return str(self._client.get_job_logs(job))

    def stop(self, job: str) -> None:
        """Asks the job to end."""
        with _translate_errors(self.url, job):
            self._client.stop_job(job)

    def follow(self, job: str, write: Callable[[str], object]) -> dict[str, Any]:
        """Writes what the job prints until it is over; returns its last state."""
        shown = 0
        while True:
            state = self.state(job)
            text = self.logs(job)
            if len(text) > shown:
                write(text[shown:])
                shown = len(text)
            if state["state"] in OVER:
                return state
            time.sleep(LOOK)


def _document(job: Any) -> dict[str, Any]:
    def seconds(at: int | None) -> float | None:
        return at / 1000 if at else None

    return {
        "job": job.submission_id, "study": (job.metadata or {}).get("study", ""), "state": str(job.status.value),
        "command": job.entrypoint, "message": job.message or "", "exit_code": job.driver_exit_code,
        "started": seconds(job.start_time), "ended": seconds(job.end_time),
    }  # fmt: skip


@contextmanager
def _translate_errors(url: str, job: str = "") -> Iterator[None]:
    """Ray's refusals and a lost connection as one message."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except (RuntimeError, ConnectionError, AuthenticationError, requests.exceptions.RequestException) as error:
        text = str(error)
        said = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:200]
        if job and ("404" in text or "does not exist" in text):
            raise RazError(f"job {job}", "the cluster knows no such job", "raz-sweep job list") from None
        hint = "is the cluster up, with its dashboard? `raz-sweep cluster check` and `ray up` bring it there"
        if "token" in text.lower() or "401" in text or "403" in text:
            hint = "the cluster asks for its token: ~/.ray/auth_token, the file that its nodes were given"
        raise RazError(url, f"Ray's job server does not serve this: {said}", hint) from None


@contextmanager
def ssh_tunnel(cluster: Path) -> Iterator[str]:
    """The URL on this machine's loopback that leads through SSH to the job server of a cluster that is up.

    Raises RazError when the way cannot be opened.
    """
    prepare_client()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as said:
        ray = ray_command("dashboard", str(cluster), "--port", str(port))
        tunnel = subprocess.Popen(ray, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        try:
            end = time.monotonic() + CONNECT_TIMEOUT
            while not _open(port):
                if tunnel.poll() is not None or time.monotonic() > end:
                    said.seek(0)
                    last = next((line.strip() for line in reversed(said.readlines()) if line.strip()), "no word")
                    raise RazError(str(cluster), f"no way to the cluster's head: {last}", f"ray up {cluster}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(tunnel.pid, signal.SIGTERM)
            tunnel.wait()


def _open(port: int) -> bool:
    """Whether an HTTP server answers: SSH takes connections before there is anybody behind it."""
    import requests

    try:
        requests.get(f"http://127.0.0.1:{port}/api/version", timeout=5)
    except requests.exceptions.RequestException:
        return False
    return True
