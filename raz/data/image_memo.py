"""What a machine remembers of image files, so that not every process of it reads a whole data set to name its images.

An image is remembered by its path, size, inode and times of its last change (of content, and of anything). A file that
was changed within SETTLED seconds is not: a second change might leave the same times. What is remembered decides names
and keys only; whoever decodes an image compares its sha256 again (`raz.data.image_pairs.load_pixels`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from raz.utils.atomic import atomic_write

SETTLED = 60.0  # seconds, more than the clock of a file server may differ
_VERSION = 1  # raise it when a sample's digest changes for the same files


@dataclass(frozen=True)
class KnownImage:
    """What reading an image file found out."""

    image_digest: str  # sha256 of its bytes
    digest: str  # of the sample
    height: int  # px
    width: int


@dataclass
class ImageMemo:
    """The images of one data set."""

    path: Path
    known: dict[str, list[object]]
    changed: bool = False
    used: set[str] = field(default_factory=set)

    def get(self, picture: Path, rest: str) -> KnownImage | None:
        """What is known of the file as it is now; `rest` is a digest of all else that the sample's digest covers."""
        entry = self.known.get(str(picture))
        stamp = stamp_of(picture)
        if entry is None or stamp is None or entry[0] != [*stamp, rest]:
            return None
        image_digest, digest, height, width = entry[1:]
        if not (isinstance(image_digest, str) and isinstance(digest, str)):
            return None
        if not (isinstance(height, int) and isinstance(width, int)):
            return None
        self.used.add(str(picture))
        return KnownImage(image_digest, digest, height, width)

    def put(self, picture: Path, rest: str, stamp: tuple[int, ...] | None, image: KnownImage) -> None:
        """Remember what was read from a file that had this stamp before it was read, unless it changed lately."""
        if stamp is None or stamp != stamp_of(picture) or max(stamp[2:]) / 1e9 > time.time() - SETTLED:
            return
        self.known[str(picture)] = [[*stamp, rest], image.image_digest, image.digest, image.height, image.width]
        self.used.add(str(picture))
        self.changed = True

    def save(self) -> None:
        """Write it where it changed; images that were not asked for are forgotten."""
        if not self.changed:
            return
        content = {"version": _VERSION, "images": {path: self.known[path] for path in sorted(self.used)}}
        with suppress(OSError), atomic_write(self.path) as temporary:  # a full or read-only disk: read again next time
            temporary.write_text(json.dumps(content), encoding="utf-8")


def stamp_of(picture: Path) -> tuple[int, ...] | None:
    """Size, inode and times of the last changes of a file, in nanoseconds; None if it cannot be asked."""
    try:
        status = os.stat(picture)
    except OSError:
        return None
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


_CURRENT: ContextVar[ImageMemo | None] = ContextVar("image_memo", default=None)


def current() -> ImageMemo | None:
    """The memo of the data set that is being opened; None where every file has to be read (`data check`)."""
    return _CURRENT.get()


@contextmanager
def remembered(folder: Path | None) -> Iterator[None]:
    """Let the scan of a data set's folder use, and add to, what this machine remembers of its images."""
    if folder is None:
        yield
        return
    root = Path(os.path.expanduser(os.environ.get("RAZ_CACHE") or "~/.cache/raz-sweep"))  # fine without a home
    name = hashlib.sha256(str(folder.absolute()).encode(errors="surrogateescape")).hexdigest()[:32]
    memo = ImageMemo(root / "images" / f"{name}.json", {})
    with suppress(OSError, ValueError):  # none yet, or damaged: all is read
        content = json.loads(memo.path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("version") == _VERSION:
            images = content.get("images")
            if isinstance(images, dict):
                memo.known = {k: v for k, v in images.items() if isinstance(v, list) and len(v) == 5}
    token = _CURRENT.set(memo)
    try:
        yield
        memo.save()
    finally:
        _CURRENT.reset(token)
