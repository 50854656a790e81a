"""Optuna's dashboard for the studies of a store: read-only, and by default reachable from this machine only.

No web request can change a study: other methods than GET and HEAD are refused, and the storage behind the pages cannot
write.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from raz.errors import RazError
from raz.store.inventory import check_store
from raz.study.journal import NoLock, journal_path, study_names
from raz.study.optuna_internals import CREATE_STUDY, CREATE_TRIAL
from raz.study.records import load_optuna_study
from raz.utils.json_types import Json, as_int

READ_METHODS = ("GET", "HEAD")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class MergedJournalBackend(BaseJournalBackend):
    """Several journals read as one. Ids of studies and trials are renumbered so that they do not clash."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [JournalFileBackend(str(path), lock_obj=NoLock()) for path in paths]
        self._lines_read = [0] * len(paths)  # of each file
        self._studies: list[dict[int, int]] = [{} for _ in paths]  # id in the file -> id here
        self._trials: list[dict[int, int]] = [{} for _ in paths]
        self._logs: list[dict[str, Json]] = []
        self._study_count = self._trial_count = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Json]]:
        for i, file in enumerate(self._files):
            for log in file.read_logs(self._lines_read[i]):
                self._lines_read[i] += 1
                self._logs.append(self._renumbered(i, log))
        yield from self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Json]]) -> None:
        raise RazError("dashboard", "is read-only, so it changes no study")

    def _renumbered(self, i: int, log: dict[str, Json]) -> dict[str, Json]:
        """A line of the i-th journal with the ids that its study and trial have here."""
        out = dict(log)
        if "study_id" in log:
            out["study_id"] = self._studies[i][as_int(log["study_id"], "study_id")]
        if "trial_id" in log:
            out["trial_id"] = self._trials[i][as_int(log["trial_id"], "trial_id")]
        if log["op_code"] == CREATE_STUDY:
            self._studies[i][len(self._studies[i])] = self._study_count
            self._study_count += 1
        elif log["op_code"] == CREATE_TRIAL:
            self._trials[i][len(self._trials[i])] = self._trial_count
            self._trial_count += 1
        return out


def application(store: Path, study: str | None = None, hosts: Sequence[str] = LOOPBACK) -> WSGIApplication:
    """The dashboard as a WSGI application that answers requests for these host names only (`*`: all).

    Raises RazError when there is no study to show, and when optuna-dashboard is not installed.
    """
    check_store(store)
    names = study_names(store) if study is None else (study,)
    if not names:
        raise RazError(f"store {store}", "has no studies yet", "raz-sweep run fusion")
    for name in names:
        load_optuna_study(store, name)  # raises for a missing or damaged study before the server starts
    if find_spec("optuna_dashboard") is None:
        raise RazError("dashboard", "optuna-dashboard is not installed", "pip install 'raz-sweep[dashboard]'")
    import optuna_dashboard

    inner: WSGIApplication = optuna_dashboard.wsgi(
        JournalStorage(MergedJournalBackend([journal_path(store, name) for name in names]))
    )

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", "")).rpartition(":")[0] or str(environ.get("HTTP_HOST", ""))
        if "*" not in hosts and host.strip("[]") not in hosts:  # DNS rebinding
            return _refuse(start, "400 Bad Request", f"this server does not answer to {host!r}")
        if environ["REQUEST_METHOD"] not in READ_METHODS:
            return _refuse(start, "405 Method Not Allowed", "studies are shown here, and cannot be changed")
        return inner(environ, start)

    return answer


def _refuse(start: StartResponse, status: str, reason: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Allow", ", ".join(READ_METHODS))])
    return [f"{reason}\n".encode()]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: str | int) -> None:
        logging.getLogger(__name__).debug(format, *args)


def server(store: Path, study: str | None, host: str, port: int) -> WSGIServer:
    """A bound server that does not serve yet. Port 0 takes a free port. Raises RazError when it cannot be bound."""
    all_interfaces = host in ("0.0.0.0", "::")
    app = application(store, study, ("*",) if all_interfaces else (host, *LOOPBACK))
    try:
        return make_server(host, port, app, _Server, _QuietHandler)
    except OSError as error:
        raise RazError(f"{host}:{port}", error.strerror or str(error), "another --port") from None
