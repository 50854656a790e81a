"""Atomic writes: a file appears completely or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` with the same suffix.

    On success it replaces `path` atomically; on error it is deleted. Missing folders are made. Raises OSError with
    `path` as its file name.
    """
    if not path.name:  # pathlib takes an empty name for the current folder
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (temporary, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with suppress(NotADirectoryError):  # where a part of the path is a file
            temporary.unlink(missing_ok=True)
