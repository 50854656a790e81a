"""What drivers note of a store in a bucket: journals and tables, written on the driver's own disk and copied there.

One driver writes a study, and a lock on its machine says so. S3 has no lock: before a journal is put over another,
that one has to be its beginning, so a second driver of the same study on another machine is found out and told.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raz.errors import RazError
from raz.store.paths import StorePaths
from raz.store.s3 import Bucket, bucket_for
from raz.study.journal import journal_path, study_names

INTERVAL = 20.0  # seconds between two copies while a run goes on


@contextmanager
def sync_to_bucket(store: Path) -> Iterator[None]:
    """While a run goes on within, its notes are copied to the store's bucket, if it has one, and once more at its
    end. Raises RazError when another driver has written there, OSError when the bucket does not answer."""
    bucket = bucket_for(store)
    if bucket is None:
        yield
        return
    copies = _JournalUploader(store, bucket)
    over = threading.Event()

    def go() -> None:
        while not over.wait(INTERVAL):
            try:
                copies.send()
            except (RazError, OSError):
                continue  # the next time; at the end it is told

    thread = threading.Thread(target=go, daemon=True, name="notes to the bucket")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        copies.send()


class _JournalUploader:
    def __init__(self, store: Path, bucket: Bucket) -> None:
        self.store, self.bucket = store, bucket
        self._seen: dict[str, tuple[int, int]] = {}  # as it was when it was known to be ours

    def send(self) -> None:
        """Copies what has grown."""
        paths = StorePaths(self.store)
        there = self.bucket.names(paths.relative(paths.studies))
        for study in study_names(self.store):
            name = paths.relative(paths.journal(study))
            data = journal_path(self.store, study).read_bytes()
            data = data[: data.rfind(b"\n") + 1]
            told = there.get(name)
            if told is not None and told != self._seen.get(name):
                before = self.bucket.read(name) or b""
                if before.startswith(data):
                    continue  # a study of another driver, which was only read here
                if not data.startswith(before):
                    raise RazError(
                        f"study {study}", f"another driver has written it in {self.bucket.url}",
                        "one machine runs a study at a time; give this one another name",
                    )  # fmt: skip
            if told is None or told[0] != len(data):
                self.bucket.write(name, data)
                self._seen[name] = self.bucket.names(paths.relative(paths.studies))[name]
        known = self.bucket.names(paths.relative(paths.tables))
        for path in paths.tables.glob("*.json"):
            if paths.relative(path) not in known:
                self.bucket.write(paths.relative(path), path.read_bytes())
