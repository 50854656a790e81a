"""Copies journals and notes of tables from the driver's disk to the store's bucket.

A study has one driver, which holds a lock on its machine. S3 has no lock, so a journal in the bucket is
only continued (`raz.store.s3_journals`). A second driver of the same study on another machine gets an error.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raz.errors import RazError
from raz.store.paths import StorePaths
from raz.store.s3 import Bucket, bucket_for
from raz.store.s3_journals import JournalUploader, journal_objects
from raz.study.journal import journal_path, read_journal, study_names

INTERVAL = 20.0  # seconds between two copies


@contextmanager
def sync_to_bucket(store: Path) -> Iterator[None]:
    """Copies to the store's bucket, if it has one, every INTERVAL seconds within the context, and once at its end.

    Raises RazError when another driver has written one of the studies there, OSError when the bucket does not answer.
    """
    bucket = bucket_for(store)
    if bucket is None:
        yield
        return
    uploader = _Uploader(store, bucket)
    ended = threading.Event()

    def upload_regularly() -> None:
        while not ended.wait(INTERVAL):
            try:
                uploader.upload()
            except (RazError, OSError):
                continue  # retried; the last upload raises it

    thread = threading.Thread(target=upload_regularly, daemon=True, name="upload of journals")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        uploader.upload()


class _Uploader:
    """Uploads the journals and notes of a store."""

    def __init__(self, store: Path, bucket: Bucket) -> None:
        self.store, self.bucket = store, bucket
        self._journals = JournalUploader(bucket, read_journal)

    def upload(self) -> None:
        """Uploads what was added to journals, and every note that the bucket lacks. Raises as `sync_to_bucket`."""
        paths = StorePaths(self.store)
        remote = journal_objects(self.bucket.names(paths.relative(paths.studies)))
        for study in study_names(self.store):
            name = paths.relative(paths.journal(study))
            self._journals.upload(study, name, journal_path(self.store, study), remote.get(name, {}))
        remote_tables = self.bucket.names(paths.relative(paths.tables))
        for path in paths.tables.glob("*.json"):
            if paths.relative(path) not in remote_tables:
                self.bucket.write(paths.relative(path), path.read_bytes())
