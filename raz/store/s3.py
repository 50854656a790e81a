"""A store or images in S3, and the local folder that stands for the bucket.

    --store s3://BUCKET/PREFIX         works in the local folder CACHE/s3%3A%2F%2FBUCKET%2FPREFIX
    --data-root s3://BUCKET/PREFIX     mirrored there before it is read

CACHE is RAZ_CACHE, else ~/.cache/raz-sweep; it must be the same path on every node. The folder's name encodes the
bucket, so the path suffices on another node. Credentials are found as Amazon's tools find them (environment, profile,
the machine's role), and are never part of a path. AWS_ENDPOINT_URL selects another server of the same protocol.

S3 writes each object atomically, and has neither rename nor locks: an overwritten object is never read in part, and
objects that belong together are tied by digests (raz.store.s3_tier).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote, urlparse

from raz.errors import RazError
from raz.utils.atomic import atomic_write

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEME = "s3://"
_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?P<prefix>(?:/(?!\.)[A-Za-z0-9._=+-]+)*)/?")
RETRY_SECONDS = 300.0  # for how long a request is retried while the bucket does not answer; environment RAZ_S3_SECONDS
ATTEMPTS = 4  # number of attempts by Arrow's client, before a request is retried here
SUMS = "SHA256SUMS"  # digests of the mirrored files, in the format of sha256sum
# Texts in Arrow's and Amazon's errors for which a retry does not help.
_PERMANENT_ERRORS = {
    "ACCESS_DENIED": errno.EACCES,
    "NO_SUCH_BUCKET": errno.EACCES,
    "INVALID_ACCESS_KEY_ID": errno.EACCES,
    "SIGNATURE_DOES_NOT_MATCH": errno.EACCES,
    "No AWS Credentials": errno.EACCES,
}
_ABSENT = ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "Path does not exist")
T = TypeVar("T")


def local_mirror_path(path: Path) -> Path:
    """The local folder for a path: the path itself, or the folder that stands for an s3:// URL. Raises RazError for a
    malformed URL."""
    if not re.match(r"s3:(/|$)", str(path)):
        return path
    url = SCHEME + str(path).removeprefix("s3:").lstrip("/")  # pathlib drops a slash
    match = _URL.fullmatch(url)
    if match is None:
        raise RazError(
            url.partition("@")[2] or url, "is no bucket and prefix",
            "s3://bucket/prefix, without keys or options: those are Amazon's own (AWS_PROFILE, AWS_ENDPOINT_URL …)",
        )  # fmt: skip
    root = Path(os.environ.get("RAZ_CACHE") or "~/.cache/raz-sweep").expanduser().absolute()
    return root / quote(SCHEME + match["bucket"] + match["prefix"], safe="")


def bucket_for(folder: Path) -> Bucket | None:
    """The bucket that a local folder stands for; None for any other folder."""
    url = unquote(folder.name)
    return _bucket(url, os.getpid()) if url.startswith(SCHEME) else None


@lru_cache(maxsize=8)
def _bucket(url: str, process: int) -> Bucket:
    return Bucket(url)


class Bucket:
    """The objects below a prefix, by their names there. Every call is retried while the server does not answer.

    Raises OSError: EACCES where the bucket denies access or does not exist, EHOSTUNREACH when it did not answer for
    RETRY_SECONDS.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = url.removeprefix(SCHEME)
        self._system: FileSystem | None = None

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> bytes | None:
        """An object's bytes; None when there is none."""

        def get(system: FileSystem) -> bytes:
            with system.open_input_stream(f"{self.prefix}/{name}") as stream:
                return bytes(stream.read())

        try:
            return self._retry(get)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write an object, atomically; replaces an old one."""

        def put(system: FileSystem) -> None:
            with system.open_output_stream(f"{self.prefix}/{name}") as stream:
                stream.write(data)

        self._retry(put)

    def remove(self, name: str) -> None:
        """Delete an object, if it exists."""
        try:
            self._retry(lambda system: system.delete_file(f"{self.prefix}/{name}"))
        except FileNotFoundError:
            return

    def names(self, below: str = "") -> dict[str, tuple[int, int]]:
        """Every object whose name starts with `below`: name -> (bytes, ns since 1970 of its last change)."""
        from pyarrow.fs import FileSelector, FileType

        folder = f"{self.prefix}/{below}".rstrip("/")
        infos = self._retry(lambda s: s.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True)))
        skip = len(self.prefix) + 1
        return {i.path[skip:]: (i.size, i.mtime_ns) for i in infos if i.type == FileType.File}

    def _retry(self, call: Callable[[FileSystem], T]) -> T:
        end = time.monotonic() + float(os.environ.get("RAZ_S3_SECONDS") or RETRY_SECONDS)
        pause = 0.2
        while True:
            try:
                if self._system is None:
                    self._system = _connect()
                return call(self._system)
            except FileNotFoundError:
                raise
            except OSError as error:
                text = str(error)
                if any(code in text for code in _ABSENT):
                    raise FileNotFoundError(errno.ENOENT, "no such object", self.url) from None
                for code, number in _PERMANENT_ERRORS.items():
                    if code in text:
                        raise OSError(number, f"the bucket refuses: {text}", self.url) from None
                if time.monotonic() + pause > end:
                    raise OSError(errno.EHOSTUNREACH, f"the bucket does not answer: {text}", self.url) from None
            time.sleep(pause * (0.5 + random.random()))  # so that nodes do not retry at the same moment
            pause = min(2 * pause, 10.0)


def _connect() -> FileSystem:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    options: dict[str, str] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        parts = urlparse(endpoint)
        options = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        options["region"] = region
    return S3FileSystem(
        connect_timeout=10, request_timeout=60, allow_delayed_open=True,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS), **options,
    )  # fmt: skip


# ------------------------------------------------------------------ images


@lru_cache(maxsize=8)
def mirror(folder: Path) -> Path:
    """The folder; if it stands for a bucket, with the bucket's objects in it. Checks once per process.

    Objects whose size or time changed since the last download are downloaded again; files whose object was deleted are
    deleted. Files listed in SHA256SUMS are verified. Raises RazError for a file of another digest.
    """
    bucket = bucket_for(folder)
    if bucket is None:
        return folder
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    index = folder.with_name(f"{folder.name}.mirror.json")
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        remote = {name: list(stat) for name, stat in bucket.names().items()}
        if not remote:
            raise RazError(bucket.url, "there is nothing below it", "--data-root s3://bucket/prefix")
        try:
            local = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            local = {}
        sums = _sums(bucket.read(SUMS) or b"") if SUMS in remote else {}
        for name, stat in remote.items():
            path = folder / name
            if ".." in Path(name).parts or (
                local.get(name) == stat and path.is_file() and path.stat().st_size == stat[0]
            ):
                continue
            data = bucket.read(name)
            if data is None:
                continue  # deleted meanwhile
            if name in sums and hashlib.sha256(data).hexdigest() != sums[name]:
                raise RazError(f"{bucket.url}/{name}", f"is not what {SUMS} says", "upload it again")
            write_atomically(path, data)
        for name in local.keys() - remote.keys():
            (folder / name).unlink(missing_ok=True)
        write_atomically(index, json.dumps(remote).encode())
    return folder


def _sums(data: bytes) -> dict[str, str]:
    """Name -> sha256, from a file of sha256sum."""
    lines = (line.split(maxsplit=1) for line in data.decode("utf-8", "replace").splitlines())
    return {words[1].strip().removeprefix("*").removeprefix("./"): words[0] for words in lines if len(words) == 2}


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file and rename it."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
