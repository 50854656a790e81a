"""What other machines have just written, on a file system that shows it late.

A client of NFS or EFS remembers for 30 to 60 s that a file is missing, and which file a name stood for (its lookup
cache, valid as long as the cached attributes of the folder). Opening a folder has the client ask the server for the
folder's attributes; if they changed, names in it are looked up again (`refresh`; man nfs, "close-to-open"). So a file
that seems to be missing is looked for once more after its folder was opened (`exists`). Other file systems promise
less. Where another process has said that something is there, it is looked for until it appears (`look_again`).

No function waits for a file that is there, nor on a file system of this machine alone, where absence is certain.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

LATE_SECONDS = 90.0  # the longest that an announced file is looked for: lookup caches last up to 60 s
LONGEST_PAUSE = 2.0  # seconds between two looks
MOUNTS = "/proc/self/mountinfo"
# Kinds of file systems whose names are the same for all processes that have them mounted, since they are one machine's.
LOCAL_KINDS = frozenset((
    "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs3", "overlay", "ramfs",
    "reiserfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs",
))  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class Mount:
    """Where a folder's file system is mounted, and how."""

    point: str
    kind: str  # ext4, nfs4
    options: tuple[str, ...]  # those of the mount, then those of the file system

    @property
    def local(self) -> bool:
        """Whether no other machine writes there."""
        return self.kind in LOCAL_KINDS


def mount_faults(kind: str, options: Iterable[str]) -> list[str]:
    """What in the options of an NFS or EFS mount harms a shared store, a line each; empty for other kinds."""
    if not kind.startswith("nfs") and kind != "efs":
        return []
    given = dict(option.partition("=")[::2] for option in options)
    faults = []
    uncached = "noac" in given or given.get("actimeo") == "0" or given.get("acdirmax") == "0"
    if given.get("lookupcache") not in ("pos", "positive", "none") and not uncached:
        faults.append("lookupcache=positive is missing: for up to a minute a machine misses what others have made")
    if "nocto" in given:
        faults.append("nocto: a machine does not ask for a file's present content when it opens the file")
    if "nolock" in given or given.get("local_lock") in ("all", "flock", "posix"):
        faults.append("locks are this machine's own: two drivers might write one study")
    if "soft" in given or "softerr" in given:
        faults.append("soft: a server that is slow to answer makes writes fail; hard waits for it")
    return faults


def mount_of(folder: Path) -> Mount | None:
    """The mount that a folder lies in, whether the folder exists or not; None where the system does not tell."""
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:  # no Linux
        return None
    path, found = os.path.realpath(folder), None
    for line in lines:
        front, _, back = line.partition(" - ")
        fields, (kind, _, more) = front.split(" "), back.split(" ", 2)
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and (found is None or len(point) >= len(found.point)):  # of equals the last one covers the others
            found = Mount(point, kind, (*fields[5].split(","), *more.split(",")))
    return found


def may_be_late(folder: Path) -> bool:
    """Whether other machines may write in the folder, so that this one may see it late."""
    mount = mount_of(folder)
    return mount is not None and not mount.local


def refresh(folder: Path) -> bool:
    """Have this machine look up the names in a folder again. Returns whether the folder is there.

    The folder is opened and its first entry read: the number of entries does not matter.
    """
    if _open(folder):
        return True
    return folder.parent != folder and refresh(folder.parent) and _open(folder)


def _open(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except FileNotFoundError:
        return False
    except OSError:  # it may not be read, or is a file: the next look says so
        return True
    return True


def exists(path: Path) -> bool:
    """Whether a file or folder is there, by a fresh view of its folder if it seems to be missing."""
    return path.exists() or (refresh(path.parent) and path.exists())


def look_again(look: Callable[[], T | None], folder: Path, seconds: float = LATE_SECONDS) -> T | None:
    """What `look` finds in a folder after `refresh`, for something that another process said is there.

    Where other machines may write in the folder, `look` is called until it finds something, for at most `seconds`.
    None where it is not found.
    """
    refresh(folder)
    found = look()
    if found is not None or not may_be_late(folder):
        return found
    end, pause = time.monotonic() + seconds, 0.05
    while found is None and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
        refresh(folder)
        found = look()
    return found


def exists_announced(path: Path, *, announced: bool, seconds: float = LATE_SECONDS) -> bool:
    """Whether a file is there that must not be missed: it is looked for as by `look_again` where its folder lists it.

    announced: so also where there is no such folder, since another machine may have made it.
    """
    if exists(path):
        return True
    with suppress(FileNotFoundError):
        announced = path.name in os.listdir(path.parent)
    return announced and look_again(lambda: path.exists() or None, path.parent, seconds) is not None
