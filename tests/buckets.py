"""A real S3 server (moto's) in a process of its own, and a way to it that may be slow, faulty or cut."""

from __future__ import annotations

import http.client
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.heads import bare, free_ports

BUCKET = "raz-bucket"


@dataclass
class S3:
    """The server's ports and faults. moto holds objects in memory only, so they are recorded here too, and put again
    into a server that replaces a killed one."""

    inner: int  # moto's own port
    outer: int  # the port for clients
    delay: float = 0.0  # seconds before each answer
    faulty: float = 0.0  # part of the requests that are answered 500, or not at all
    requests: int = 0
    refused: int = 0
    objects: dict[str, bytes | None] = field(default_factory=dict)  # path -> what was put; None: removed
    process: Any = None
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.outer}", "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-this-test", "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def start(self) -> None:
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.inner)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=bare())
        end = time.monotonic() + 240
        while True:
            with suppress(OSError):
                if self.forward("PUT", f"/{BUCKET}", b"", {})[0] == 200:
                    break
            assert self.process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        for path, body in self.objects.items():
            if body is not None:
                assert self.forward("PUT", path, body, {})[0] == 200

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def names(self) -> set[str]:
        return {path.removeprefix(f"/{BUCKET}/") for path, body in self.objects.items() if body is not None}

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.inner, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


class _Way(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    s3: S3

    def log_message(self, *_: object) -> None:
        return None

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue
        return b"".join(parts)

    def _headers(self, body: bytes) -> dict[str, str]:
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
        return {**kept, "Content-Length": str(len(body))}

    def _pass(self) -> None:
        s3 = self.s3
        body = self._body()
        s3.requests += 1
        time.sleep(s3.delay)
        drawn = s3.rng.random()
        if drawn < s3.faulty:
            s3.refused += 1
            if drawn < s3.faulty / 2:
                self.close_connection = True  # hung up on
                return
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        try:
            status, headers, text = s3.forward(self.command, self.path, body, self._headers(body))
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # nobody is behind
            return
        path = self.path.partition("?")[0]
        if status < 300 and self.command == "PUT" and "?" not in self.path:
            s3.objects[path] = s3.forward("GET", path, b"", {})[2]
        if status < 300 and self.command == "DELETE":
            s3.objects[path] = None
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(text))
        self.send_header("Content-Length", size)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(text)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass


@contextmanager
def s3_server() -> Iterator[S3]:
    """Up within it, with the bucket BUCKET."""
    inner, outer = free_ports(2)
    s3 = S3(inner, outer)
    way = ThreadingHTTPServer(("127.0.0.1", outer), type("Way", (_Way,), {"s3": s3}))
    way.daemon_threads = True
    thread = threading.Thread(target=way.serve_forever, daemon=True)
    thread.start()
    try:
        s3.start()
        yield s3
    finally:
        way.shutdown()
        way.server_close()
        if s3.process is not None:
            s3.kill()


def variables(s3: S3, cache: object, **more: str) -> dict[str, str]:
    """The environment of a machine whose cache is `cache`."""
    return {**bare(), **s3.environment, "RAZ_CACHE": str(cache), "RAZ_S3_SECONDS": "240", **more}
