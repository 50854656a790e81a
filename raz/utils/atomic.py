"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place beside `path`, of the same suffix, to write to: it becomes `path` at the end, over what was there, and
    is gone when something fails. Makes the folder. Raises OSError as the file system does, in the name of `path`."""
    if not path.name:  # an empty name, which pathlib takes for the folder one is in
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    aside = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.replace(aside, path)
    except OSError as error:
        if error.filename in (aside, str(aside)):
            error.filename = str(path)
        raise
    finally:
        with suppress(NotADirectoryError):  # where a part of the path is a file
            aside.unlink(missing_ok=True)
