"""Optuna's own dashboard on a store's journals: read-only, and on this machine only by default.

Nothing that comes over the web can change a study: requests that would are refused, and the storage behind the pages
has no way to write.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from raz.errors import RazError
from raz.store.inventory import check_store
from raz.study.journal import NoLock, journal_path, study_names
from raz.study.optuna_internals import CREATE_STUDY, CREATE_TRIAL
from raz.study.records import load_study

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
READS = ("GET", "HEAD")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class MergedJournalBackend(BaseJournalBackend):
    """Several journals as one, to be read: each line as it comes, with study and trial numbers that do not clash."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [JournalFileBackend(str(path), lock_obj=NoLock()) for path in paths]
        self._read = [0] * len(paths)  # lines of each file
        self._studies: list[dict[int, int]] = [{} for _ in paths]  # in the file -> here
        self._trials: list[dict[int, int]] = [{} for _ in paths]
        self._logs: list[dict[str, Any]] = []
        self._made = {"study": 0, "trial": 0}

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        for i, file in enumerate(self._files):
            for log in file.read_logs(self._read[i]):
                self._read[i] += 1
                self._logs.append(self._renumbered(i, log))
        yield from self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise RazError("dashboard", "it shows studies, and changes none")

    def _renumbered(self, i: int, log: dict[str, Any]) -> dict[str, Any]:
        out = dict(log)
        if "study_id" in log:
            out["study_id"] = self._studies[i][log["study_id"]]
        if "trial_id" in log:
            out["trial_id"] = self._trials[i][log["trial_id"]]
        if log["op_code"] == CREATE_STUDY:
            self._new("study", self._studies[i])
        elif log["op_code"] == CREATE_TRIAL:
            self._new("trial", self._trials[i])
        return out

    def _new(self, kind: str, known: dict[int, int]) -> None:
        known[len(known)] = self._made[kind]
        self._made[kind] += 1


def application(store: Path, study: str | None = None, hosts: Sequence[str] = LOOPBACK) -> Wsgi:
    """The dashboard as a WSGI application, which answers to these names of this machine only.

    Raises RazError when there is nothing to show, and when optuna-dashboard is not installed.
    """
    check_store(store)
    names = study_names(store) if study is None else (study,)
    if not names:
        raise RazError(f"store {store}", "has no studies yet", "raz-sweep run fusion")
    for name in names:
        load_study(store, name)  # a study that is not there, or damaged, is told before anything is served
    if find_spec("optuna_dashboard") is None:
        raise RazError("dashboard", "optuna-dashboard is not installed", "pip install 'raz-sweep[dashboard]'")
    import optuna_dashboard

    inner = optuna_dashboard.wsgi(JournalStorage(MergedJournalBackend([journal_path(store, name) for name in names])))

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", "")).rpartition(":")[0] or str(environ.get("HTTP_HOST", ""))
        if "*" not in hosts and host.strip("[]") not in hosts:  # a page elsewhere that points its name at us
            return _refuse(start, "400 Bad Request", f"this server does not answer to {host!r}")
        if environ["REQUEST_METHOD"] not in READS:
            return _refuse(start, "405 Method Not Allowed", "studies are shown here, and cannot be changed")
        found: Iterable[bytes] = inner(environ, start)
        return found

    return answer


def _refuse(start: Callable[..., Any], status: str, why: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Allow", ", ".join(READS))])
    return [f"{why}\n".encode()]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        logging.getLogger(__name__).debug(format, *args)


def server(store: Path, study: str | None, host: str, port: int) -> WSGIServer:
    """A server that is bound and not yet serving; port 0 takes a free one. Raises RazError when it cannot be bound."""
    open_to_all = host in ("0.0.0.0", "::")
    app = application(store, study, ("*",) if open_to_all else (host, *LOOPBACK))
    try:
        return make_server(host, port, app, _Server, _Quiet)
    except OSError as error:
        raise RazError(f"{host}:{port}", error.strerror or str(error), "another --port") from None
