"""Leases: the exclusive right to write under a name, on a folder that many machines may share.

    LEASES/<name>.lease            the holder: token, heartbeat, host and process; created by a hard link, so one wins
    LEASES/.<name>.dead-<token>    a broken lease, until the new holder has fenced off the old one

Needs neither flock nor synchronised clocks: the holder increments a count in its file, and a reader that sees the same
count for `seconds` of its own clock breaks the lease by a rename. On the same machine a holder whose process is gone
loses the lease at once.

A holder may be paused at any instruction and continue after it lost the lease. So it writes to temporary files, whose
names start with `.attempt-<token>`, and renames them by `commit`, which first checks the lease. The new holder removes
the temporary files of the old one, after which the old one has nothing to rename.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from raz.store.late_view import refresh
from raz.store.paths import LEASE_SUFFIX

ATTEMPT = ".attempt-"
SECONDS = 30.0  # without a heartbeat, after which a lease is lost; environment RAZ_LEASE_SECONDS
HEARTBEATS = 6  # number of heartbeats in this time
POLL = 0.2  # most seconds between two tries of a waiting process


class LeaseLost(RuntimeError):
    """Another process has taken over the lease: nothing more may be committed."""


def lease_seconds() -> float:
    """Seconds without a heartbeat after which a lease is lost: environment RAZ_LEASE_SECONDS, else SECONDS."""
    return float(os.environ.get("RAZ_LEASE_SECONDS") or SECONDS)


class Lease:
    """A held lease. `acquire` gives one.

    `from_lost_machine`: it was broken, and its holder was on another machine, which may have written what this one sees
    late.
    """

    def __init__(self, path: Path, token: str, handle: int) -> None:
        self.path, self.token = path, token
        self.from_lost_machine = False
        self._handle = handle
        self._stop = threading.Event()
        self._heartbeat: threading.Thread | None = None

    def is_held(self) -> bool:
        """Whether this process still holds it."""
        return _token(self.path) == self.token

    def check(self) -> None:
        """Raises LeaseLost when this process does not hold it any more."""
        if not self.is_held():
            raise LeaseLost(self.path.stem)

    def temp_path(self, folder: Path, suffix: str = "") -> Path:
        """A new path in `folder`, for a file or folder that `commit` will rename."""
        return folder / f"{ATTEMPT}{self.token}-{uuid.uuid4().hex[:8]}{suffix}"

    def commit(self, temporary: Path, final: Path) -> None:
        """Rename `temporary` to `final`. Raises LeaseLost when the lease is lost, OSError as os.replace."""
        self.check()
        try:
            os.replace(temporary, final)
        except FileNotFoundError:
            refresh(temporary.parent)
            if temporary.exists():
                raise
            raise LeaseLost(self.path.stem) from None  # the new holder has removed it

    # ------------------------------------------------------------------ heartbeat

    def _start(self, every: float) -> None:
        self._heartbeat = threading.Thread(
            target=self._beat, args=(every,), daemon=True, name=f"lease {self.path.stem}"
        )
        self._heartbeat.start()

    def _beat(self, every: float) -> None:
        """Increment the count in the open file, which remains this holder's even if another process takes the name."""
        count = 0
        while not self._stop.wait(every):
            count += 1
            with suppress(OSError):  # full disk, or no file server: other processes see no heartbeat
                os.pwrite(self._handle, f"{count:012d}".encode(), len(self.token) + 1)
                os.fsync(self._handle)

    def _end(self) -> None:
        self._stop.set()
        if self._heartbeat is not None:
            self._heartbeat.join()
        os.close(self._handle)
        with suppress(OSError):
            dead = _break_lease(self.path, self.token)
            if dead is not None:
                dead.unlink()


@contextmanager
def acquire(
    folder: Path,
    name: str,
    folders: Sequence[Path] = (),
    *,
    seconds: float | None = None,
    waiting: Callable[[], None] | None = None,
) -> Iterator[Lease]:
    """Hold the lease `name`; wait while another process holds it.

    folders: where holders of this lease write; temporary files of earlier holders that lost it are removed there.
    seconds: without a heartbeat, after which another holder loses it. waiting: called at every try while another
    process holds it; may raise. Raises OSError when the folder of leases cannot be written.
    """
    patience = seconds if seconds is not None else lease_seconds()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{LEASE_SUFFIX}"
    token = uuid.uuid4().hex
    temporary = folder / f".{name}.new-{token}"
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    lease = Lease(path, token, handle)
    try:
        os.write(handle, f"{token} {0:012d} {_holder_id()}\n".encode())
        os.fsync(handle)
        lease.from_lost_machine = _acquire(path, temporary, token, patience, waiting)
    except BaseException:
        os.close(handle)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    lease._start(patience / HEARTBEATS)
    try:
        for dead in folder.glob(f".{name}.dead-*"):
            _fence(dead, folders)
        yield lease
    finally:
        lease._end()


def _acquire(path: Path, temporary: Path, token: str, patience: float, waiting: Callable[[], None] | None) -> bool:
    """Returns whether the lease of a holder on another machine was broken for it."""
    last_text, last_change = "", time.monotonic()
    pause, from_lost_machine = 0.01, False
    while True:
        try:
            os.link(temporary, path)
            return from_lost_machine
        except FileExistsError:
            text = _read(path)
        if text.startswith(token):  # the file server's answer was lost, and the link made twice
            return from_lost_machine
        now = time.monotonic()
        if text != last_text:
            last_text, last_change = text, now
        if text and (now - last_change > patience or _process_dead(text)):
            with suppress(FileNotFoundError):  # another process was faster
                broken = _break_lease(path, text.split(" ", 1)[0])
                from_lost_machine = from_lost_machine or (broken is not None and not _of_this_machine(text))
            continue
        if waiting is not None:
            waiting()
        time.sleep(pause)
        pause = min(2 * pause, POLL, patience / HEARTBEATS)


def _break_lease(path: Path, token: str) -> Path | None:
    """Rename the lease of `token` to a `.dead-` file, and return its path. None, and no change, if another process
    holds the lease."""
    if _token(path) != token:
        return None
    dead = path.with_name(f".{path.stem}.dead-{uuid.uuid4().hex}")
    os.rename(path, dead)
    if _token(dead) == token:
        return dead
    with suppress(FileExistsError):  # it is a newer holder's: put it back; if the name is taken, it is lost
        os.link(dead, path)
    dead.unlink()
    return None


def _fence(dead: Path, folders: Sequence[Path]) -> None:
    """Remove the temporary files of the holder of a broken lease, then the broken lease."""
    token = _token(dead)
    if token:
        for folder in folders:
            refresh(folder)  # one that its holder made may still seem to be missing
            for attempt in folder.glob(f"{ATTEMPT}{token}*"):
                if attempt.is_dir():
                    shutil.rmtree(attempt, ignore_errors=True)
                else:
                    attempt.unlink(missing_ok=True)
    dead.unlink(missing_ok=True)


def holder_alive(path: Path) -> bool | None:
    """Whether the process that holds a lease file lives; None when it runs on another machine."""
    text = _read(path)
    fields = text.split()
    if not text or _process_dead(text):
        return False
    return True if len(fields) == 5 and fields[2] == _host_id() and fields[4] != "-" else None


def heartbeat(path: Path) -> str:
    """Token and heartbeat of a lease file; empty if there is none. If a later call returns another text, the holder is
    alive."""
    return " ".join(_read(path).split(" ", 2)[:2])


def _read(path: Path) -> str:
    """The text of a lease file; empty if there is none. By a fresh view of its folder: a client of NFS would read the
    lease that had the name before."""
    refresh(path.parent)
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        return ""
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):  # ESTALE: deleted on the server while it was read
            raise
        return ""


def _token(path: Path) -> str:
    return _read(path).split(" ", 1)[0]


# ------------------------------------------------------------------ processes of this machine


@lru_cache(maxsize=1)
def _host_id() -> str:
    """Identifies this machine's boot and PID namespace (a container has its own). Empty: unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _process_start_time(pid: str) -> str:
    """Start time of a process in clock ticks since boot; empty if it has exited or is a zombie."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _holder_id() -> str:
    """Host, process number and start time of this process, as a lease file holds them."""
    return f"{_host_id() or '-'} {os.getpid()} {_process_start_time(str(os.getpid())) or '-'}"


def _of_this_machine(text: str) -> bool:
    """Whether the holder named in the text of a lease file is or was a process of this machine."""
    fields = text.split()
    return len(fields) == 5 and fields[2] == _host_id()


def _process_dead(text: str) -> bool:
    """Whether the holder named in the text of a lease file was a process of this machine that has exited."""
    if not _of_this_machine(text):
        return False
    _, _, _, pid, start_time = text.split()
    return start_time != "-" and _process_start_time(pid) != start_time
