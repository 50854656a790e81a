"""Submit, follow and stop jobs through Ray's job server, which listens on the loopback of a cluster's head.

A job is a process on the head: it continues when the machine that submitted it is switched off.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raz.engine.ray_internals import STOP, ray_command
from raz.engine.ray_session import prepare_client
from raz.errors import RazError
from raz.utils.formatting import first_line

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

CONNECT_TIMEOUT = 90.0  # seconds until the SSH tunnel to the head must be open
POLL_SECONDS = 2.0  # between two requests for a job's state
FINISHED = ("SUCCEEDED", "FAILED", "STOPPED")  # in Ray's spelling


@dataclass(frozen=True)
class JobState:
    """A job as the job server reports it. Times are seconds since the epoch."""

    job: str  # the id that `raz-sweep submit` printed
    study: str
    state: str  # PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED
    command: str
    message: str  # Ray's explanation of the state; empty if there is none
    exit_code: int | None
    started: float | None
    ended: float | None


class Jobs:
    """Client of one job server at `url` (http://HOST:PORT). Raises RazError when none answers there."""

    def __init__(self, url: str) -> None:
        prepare_client()
        from ray.job_submission import JobSubmissionClient

        self.url = url
        with _translate_errors(url):
            self._client = JobSubmissionClient(url)

    def submit(self, folder: Path, entry: str, study: str) -> str:
        """Start the shell command `entry` in a copy of `folder`. Returns the job's id."""
        with _translate_errors(self.url):
            job = self._client.submit_job(
                entrypoint=entry, submission_id=f"{study}-{secrets.token_hex(4)}", metadata={"study": study},
                runtime_env={"working_dir": str(folder), "env_vars": STOP},
            )  # fmt: skip
        return str(job)

    def state(self, job: str) -> JobState:
        """The job's state. Raises RazError for an unknown id."""
        with _translate_errors(self.url, job):
            return _job_state(self._client.get_job_info(job))

    def list_jobs(self) -> list[JobState]:
        """Every job that raz-sweep submitted, oldest first."""
        with _translate_errors(self.url):
            jobs = [_job_state(job) for job in self._client.list_jobs() if (job.metadata or {}).get("study")]
        return sorted(jobs, key=lambda job: job.started or 0.0)

    def logs(self, job: str) -> str:
        """Everything the job has printed so far."""
        with _translate_errors(self.url, job):
            return str(self._client.get_job_logs(job))

    def stop(self, job: str) -> None:
        """Ask the job to stop; returns at once."""
        with _translate_errors(self.url, job):
            self._client.stop_job(job)

    def follow(self, job: str, write: Callable[[str], object]) -> JobState:
        """Pass what the job prints to `write` until it has finished. Returns its last state."""
        shown = 0
        while True:
            state = self.state(job)
            text = self.logs(job)
            if len(text) > shown:
                write(text[shown:])
                shown = len(text)
            if state.state in FINISHED:
                return state
            time.sleep(POLL_SECONDS)


def _job_state(job: JobDetails) -> JobState:
    def seconds(milliseconds: int | None) -> float | None:
        return milliseconds / 1000 if milliseconds else None

    return JobState(
        job=str(job.submission_id), study=(job.metadata or {}).get("study", ""), state=str(job.status.value),
        command=str(job.entrypoint), message=job.message or "", exit_code=job.driver_exit_code,
        started=seconds(job.start_time), ended=seconds(job.end_time),
    )  # fmt: skip


@contextmanager
def _translate_errors(url: str, job: str = "") -> Iterator[None]:
    """Turn Ray's refusals and a lost connection into one RazError."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except (RuntimeError, ConnectionError, AuthenticationError, requests.exceptions.RequestException) as error:
        text = str(error)
        if job and ("404" in text or "does not exist" in text):
            raise RazError(f"job {job}", "the cluster has no such job", "raz-sweep job list") from None
        hint = "is the cluster up, with its dashboard? run `raz-sweep cluster check`, then `ray up`"
        if "token" in text.lower() or "401" in text or "403" in text:
            hint = "the cluster requires its token: ~/.ray/auth_token, the same file as on its nodes"
        raise RazError(url, f"Ray's job server refused the request: {first_line(error)[:200]}", hint) from None


@contextmanager
def ssh_tunnel(cluster: Path) -> Iterator[str]:
    """Open an SSH tunnel to the job server of a running cluster. Yields its URL on this machine's loopback.

    Raises RazError when the tunnel does not open.
    """
    prepare_client()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as output:
        ray = ray_command("dashboard", str(cluster), "--port", str(port))
        tunnel = subprocess.Popen(ray, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        try:
            end = time.monotonic() + CONNECT_TIMEOUT
            while not _open(port):
                if tunnel.poll() is not None or time.monotonic() > end:
                    output.seek(0)
                    last = next((line.strip() for line in reversed(output.readlines()) if line.strip()), "no output")
                    raise RazError(str(cluster), f"cannot reach the cluster's head: {last}", f"ray up {cluster}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(tunnel.pid, signal.SIGTERM)
            tunnel.wait()


def _open(port: int) -> bool:
    """Whether an HTTP server answers. A connection is not enough: SSH accepts before the server is reachable."""
    import requests

    try:
        requests.get(f"http://127.0.0.1:{port}/api/version", timeout=5)
    except requests.exceptions.RequestException:
        return False
    return True
