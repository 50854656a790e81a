"""Journals in a bucket, in parts.

A journal only grows, and S3 cannot append. So what was added is an object of its own, named by the byte of the journal
at which it begins; the first part has the journal's own name:

    studies/NAME.journal                             from byte 0
    studies/NAME.journal.parts/0000000000012345      from byte 12,345

A new part takes in those before it that are at most twice as large. So each part is more than twice as large as the
next, a journal of n bytes has log2(n) parts at most, and each byte is sent a few times, not at each copy. A part ends
with a line, so the parts up to any of them are a journal. Parts that overlap hold the same bytes: where a copy was cut
short, both those taken in and the new one are there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raz.errors import RazError
from raz.store.paths import StorePaths
from raz.store.s3 import Bucket, bucket_for, write_atomically

PARTS = ".parts/"  # follows a journal's name
TRIES = 5  # readings of a journal whose parts are being joined meanwhile

Entry = tuple[int, int]  # bytes, ns since 1970 of the last change


@dataclass(frozen=True, order=True)
class Part:
    """An object that holds bytes of a journal."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size

    def name(self, journal: str) -> str:
        """The object's name."""
        return f"{journal}{PARTS}{self.start:016d}" if self.start else journal


def journal_objects(objects: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """The objects of each journal, by its name, of those below `studies`."""
    out: dict[str, dict[str, Entry]] = {}
    for name, entry in objects.items():
        journal, _, start = name.partition(PARTS)
        if len(Path(journal).parts) == 2 and journal.endswith(".journal") and (name == journal or start.isdecimal()):
            out.setdefault(journal, {})[name] = entry
    return out


def parts_of(objects: Mapping[str, Entry]) -> list[Part]:
    """The parts among a journal's objects that it is made of, in order: each begins where the one before it ends, or
    before. Ends at a gap."""
    found = sorted(Part(int(name.partition(PARTS)[2] or 0), size) for name, (size, _) in objects.items())
    out: list[Part] = []
    end = 0
    for part in found:
        if part.start > end:
            break
        if part.end > end:
            out.append(part)
            end = part.end
    return out


def length_of(parts: Iterable[Part]) -> int:
    """Bytes of a journal of these parts."""
    return max((part.end for part in parts), default=0)


def read_parts(bucket: Bucket, journal: str, objects: Mapping[str, Entry]) -> bytes:
    """A journal's bytes, as of now or as of `objects`. Its driver may join parts meanwhile: they are listed again when
    one is gone."""
    for _ in range(TRIES):
        parts = parts_of(objects)
        data = b""
        for part in parts:
            piece = bucket.read(part.name(journal))
            if piece is None or part.start > len(data):
                break
            data += piece[len(data) - part.start :]
        if len(data) >= length_of(parts):
            break
        objects = journal_objects(bucket.names(str(Path(journal).parent))).get(journal, {})
    return data


def append_part(
    bucket: Bucket, journal: str, objects: Mapping[str, Entry], size: int, read: Callable[[int], bytes]
) -> None:
    """Adds what the bucket lacks of a journal, whose first bytes are there as `objects`.

    size: bytes of the whole journal. read(start): its bytes from there to `size`.
    """
    parts = parts_of(objects)
    start = length_of(parts)
    while parts and parts[-1].size <= 2 * (size - start):
        start = min(start, parts.pop().start)
    new = Part(start, size - start)
    bucket.write(new.name(journal), read(start))
    kept = {part.name(journal) for part in (*parts, new)}
    for name in objects:
        if name not in kept:
            bucket.remove(name)


def download_journals(folder: Path) -> None:
    """Downloads the journals and tables that are newer in the bucket.

    Journals only grow. A local journal is kept if it is not a prefix of the bucket's, or if its driver runs on this
    machine.
    """
    bucket = bucket_for(folder)
    if bucket is None:
        return
    paths = StorePaths(folder)
    for name, objects in sorted(journal_objects(bucket.names(paths.relative(paths.studies))).items()):
        _download(folder / name, length_of(parts_of(objects)), partial(read_parts, bucket, name, objects))
    for name, (size, _) in sorted(bucket.names(paths.relative(paths.tables)).items()):
        if len(Path(name).parts) == 2 and name.endswith(".json"):
            _download(folder / name, size, partial(bucket.read, name))


def _download(path: Path, size: int, read: Callable[[], bytes | None]) -> None:
    """Replaces a local file by the bucket's of `size` bytes if that continues it."""
    import filelock

    if path.is_file() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return
    try:
        data = read()
        if data is not None and data.startswith(path.read_bytes() if path.exists() else b""):
            write_atomically(path, data)
    finally:
        lock.release()


class JournalUploader:
    """Copies the journals of a store to its bucket, each time what was added since."""

    def __init__(self, bucket: Bucket, read_journal: Callable[[Path], bytes]) -> None:
        """read_journal: the complete lines of a journal."""
        self.bucket, self._read = bucket, read_journal
        self._copied: dict[str, Mapping[str, Entry]] = {}  # journal -> its objects after the last copy
        # journal -> its objects and its size here, of those by which this machine has nothing to add
        self._others: dict[str, tuple[Mapping[str, Entry], int]] = {}

    def upload(self, study: str, journal: str, path: Path, objects: Mapping[str, Entry]) -> None:
        """Copies a study's journal; `objects` are those of it that the bucket has now.

        Raises RazError when another driver has written the study there.
        """
        size, sent = path.stat().st_size, length_of(parts_of(objects))
        if self._others.get(journal) == (objects, size):
            return
        if objects == self._copied.get(journal) and size >= sent:
            size = _complete(path, sent, size)
        else:
            data = self._read(path)
            existing = read_parts(self.bucket, journal, objects)
            if existing.startswith(data):  # of another driver; this machine only reads it, or has added nothing yet
                self._others[journal] = (objects, size)
                return
            if not data.startswith(existing):
                raise RazError(
                    f"study {study}", f"another driver has written it in {self.bucket.url}",
                    "one machine runs a study at a time; give this one another name",
                )  # fmt: skip
            if len(existing) < sent:
                raise OSError(errno.EAGAIN, "another driver is joining the parts of a journal", self.bucket.url)
            size = len(data)
        if size > sent:
            append_part(self.bucket, journal, objects, size, lambda start: _bytes(path, start, size))
            self._copied[journal] = journal_objects(self.bucket.names(str(Path(journal).parent))).get(journal, {})


def _bytes(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def _complete(path: Path, start: int, end: int) -> int:
    """Where the last complete line of a file ends, at `start` or after it."""
    return start + _bytes(path, start, end).rfind(b"\n") + 1
