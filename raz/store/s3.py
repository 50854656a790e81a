"""A store or images in S3, and the folder of this machine that stands for it.

    --store s3://BUCKET/PREFIX         this machine works in CACHE/s3%3A%2F%2FBUCKET%2FPREFIX
    --data-root s3://BUCKET/PREFIX     mirrored there before it is read

CACHE is RAZ_CACHE, else ~/.cache/raz-sweep, and has to be the same path on every node. The folder's name says which
bucket it stands for, so a path that travels to another node is enough there. Whoever may use the bucket is found as
Amazon's tools find it (environment, profile, the machine's own role); a key never stands in a path. AWS_ENDPOINT_URL
leads to another server of the same protocol.

S3 puts one object at once and whole, and has neither rename nor a lock: what is written over is never read in part,
and what belongs together is tied by digests (raz.store.s3_tier).
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
from raz.store.paths import StorePaths
from raz.utils.atomic import atomic_write

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEME = "s3://"
_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?P<prefix>(?:/(?!\.)[A-Za-z0-9._=+-]+)*)/?")
RETRY_SECONDS = 300.0  # seconds for which a bucket that does not answer is asked again; environment RAZ_S3_SECONDS
ATTEMPTS = 4  # of one request, one right after the other
SUMS = "SHA256SUMS"  # beside mirrored files: what sha256sum wrote of them
# The words of arrow and Amazon for what no second try puts right.
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
    """The folder that stands for a path: its own, or for s3://… that of this machine. Raises RazError for a URL that
    is none."""
    if not re.match(r"s3:(/|$)", str(path)):
        return path
    url = SCHEME + str(path).removeprefix("s3:").lstrip("/")  # pathlib leaves out a slash
    found = _URL.fullmatch(url)
    if found is None:
        raise RazError(
            url.partition("@")[2] or url, "is no bucket and prefix",
            "s3://bucket/prefix, without keys or options: those are Amazon's own (AWS_PROFILE, AWS_ENDPOINT_URL …)",
        )  # fmt: skip
    root = Path(os.environ.get("RAZ_CACHE") or "~/.cache/raz-sweep").expanduser().absolute()
    return root / quote(SCHEME + found["bucket"] + found["prefix"], safe="")


def bucket_for(folder: Path) -> Bucket | None:
    """What a folder stands for; None for a folder of its own."""
    url = unquote(folder.name)
    return _bucket(url, os.getpid()) if url.startswith(SCHEME) else None


@lru_cache(maxsize=8)
def _bucket(url: str, process: int) -> Bucket:
    return Bucket(url)


class Bucket:
    """Objects below a prefix, by their names there. Every call is tried again while the server does not answer.

    Raises OSError: EACCES where the bucket refuses or is not there, EHOSTUNREACH when it did not answer for PATIENCE.
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
        """Puts an object, whole or not at all, over what was there."""

        def put(system: FileSystem) -> None:
            with system.open_output_stream(f"{self.prefix}/{name}") as stream:
                stream.write(data)

        self._retry(put)

    def remove(self, name: str) -> None:
        """Removes an object, if it is there."""
        try:
            self._retry(lambda system: system.delete_file(f"{self.prefix}/{name}"))
        except FileNotFoundError:
            return

    def names(self, below: str = "") -> dict[str, tuple[int, int]]:
        """Every object below a part of the prefix: name -> (bytes, changed in ns)."""
        from pyarrow.fs import FileSelector, FileType

        at = f"{self.prefix}/{below}".rstrip("/")
        found = self._retry(lambda s: s.get_file_info(FileSelector(at, recursive=True, allow_not_found=True)))
        skip = len(self.prefix) + 1
        return {i.path[skip:]: (i.size, i.mtime_ns) for i in found if i.type == FileType.File}

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
                said = str(error)
                if any(word in said for word in _ABSENT):
                    raise FileNotFoundError(errno.ENOENT, "no such object", self.url) from None
                for word, number in _PERMANENT_ERRORS.items():
                    if word in said:
                        raise OSError(number, f"the bucket refuses: {said}", self.url) from None
                if time.monotonic() + pause > end:
                    raise OSError(errno.EHOSTUNREACH, f"the bucket does not answer: {said}", self.url) from None
            time.sleep(pause * (0.5 + random.random()))  # not every node at the same moment
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


# ------------------------------------------------------------------ what drivers noted, and images


def download_journals(folder: Path) -> None:
    """Brings the journals and tables that the bucket has and this machine lacks. A journal only grows: one of this
    machine that is no beginning of the bucket's stays, and so does one whose driver runs here."""
    import filelock

    bucket = bucket_for(folder)
    if bucket is None:
        return
    paths = StorePaths(folder)
    synced = [paths.relative(part) for part in (paths.studies, paths.tables)]
    for name, (size, _) in sorted({n: stat for part in synced for n, stat in bucket.names(part).items()}.items()):
        path = folder / name
        if len(Path(name).parts) != 2 or path.suffix not in (".journal", ".json"):
            continue
        if path.is_file() and path.stat().st_size == size:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            continue
        try:
            data = bucket.read(name)
            if data is not None and data.startswith(path.read_bytes() if path.exists() else b""):
                write_atomically(path, data)
        finally:
            lock.release()


@lru_cache(maxsize=8)
def mirror(folder: Path) -> Path:
    """The folder, with the bucket's objects in it if it stands for one; looked at once a process.

    What has another size or time than when it was brought is brought again, what is gone there goes here. Where the
    prefix holds SHA256SUMS, each file in it is compared. Raises RazError for a file that arrives otherwise.
    """
    bucket = bucket_for(folder)
    if bucket is None:
        return folder
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    noted = folder.with_name(f"{folder.name}.mirror.json")
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        there = {name: list(told) for name, told in bucket.names().items()}
        if not there:
            raise RazError(bucket.url, "there is nothing below it", "--data-root s3://bucket/prefix")
        try:
            here = json.loads(noted.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            here = {}
        sums = _sums(bucket.read(SUMS) or b"") if SUMS in there else {}
        for name, told in there.items():
            to = folder / name
            if ".." in Path(name).parts or (here.get(name) == told and to.is_file() and to.stat().st_size == told[0]):
                continue
            data = bucket.read(name)
            if data is None:
                continue  # it went meanwhile
            if name in sums and hashlib.sha256(data).hexdigest() != sums[name]:
                raise RazError(f"{bucket.url}/{name}", f"is not what {SUMS} says", "upload it again")
            write_atomically(to, data)
        for name in here.keys() - there.keys():
            (folder / name).unlink(missing_ok=True)
        write_atomically(noted, json.dumps(there).encode())
    return folder


def _sums(data: bytes) -> dict[str, str]:
    lines = (line.split(maxsplit=1) for line in data.decode("utf-8", "replace").splitlines())
    return {words[1].strip().removeprefix("*").removeprefix("./"): words[0] for words in lines if len(words) == 2}


def write_atomically(path: Path, data: bytes) -> None:
    """Written aside and renamed."""
    with atomic_write(path) as aside:
        aside.write_bytes(data)
