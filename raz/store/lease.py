"""The right to write under a name, held by one process at a time, on any folder that machines share.

    LEASES/<name>.lease            the holder: token, heartbeat, where it runs; linked into place, so one wins
    LEASES/.<name>.dead-<token>    what was taken from a silent holder, until its successor has shut it out

Needs neither flock nor synchronised clocks: a holder counts up in its file, and a reader that sees the same
count for `seconds` of its own clock takes the lease away by a rename. On the same machine a holder whose
process is gone loses it at once.

A holder may be paused at any instruction and wake up after its time. So all that it writes is written aside,
under a name that starts with `.attempt-<token>`, and put into place by `commit`, which asks first whether the
lease is still held; and who takes over removes the old holder's asides, after which nothing is left that it
could put into place.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from raz.store.paths import LEASE_SUFFIX

ATTEMPT = ".attempt-"
SECONDS = 30.0  # of silence after which a holder has lost its lease; environment RAZ_LEASE_SECONDS
HEARTBEATS = 6  # heartbeats in that time
POLL = 0.2  # seconds at most between two looks of a process that waits


class LeaseLost(RuntimeError):
    """Another process has taken over: nothing more may be put into place."""


def lease_seconds() -> float:
    """Silence after which a lease is lost: environment RAZ_LEASE_SECONDS, else SECONDS."""
    return float(os.environ.get("RAZ_LEASE_SECONDS") or SECONDS)


class Lease:
    """A held lease. Get one from `hold`."""

    def __init__(self, path: Path, token: str, handle: int) -> None:
        self.path, self.token = path, token
        self._handle = handle
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    def is_held(self) -> bool:
        """Whether it is still this process's."""
        return _token(self.path) == self.token

    def check(self) -> None:
        """Raises LostLease when it is not."""
        if not self.is_held():
            raise LeaseLost(self.path.stem)

    def temp_path(self, folder: Path, suffix: str = "") -> Path:
        """A new path in `folder` for what `commit` will put into place."""
        return folder / f"{ATTEMPT}{self.token}-{uuid.uuid4().hex[:8]}{suffix}"

    def commit(self, aside: Path, final: Path) -> None:
        """Renames `aside` to `final` if the lease is held. Raises LostLease, and OSError as os.replace does."""
        self.check()
        try:
            os.replace(aside, final)
        except FileNotFoundError:
            if aside.exists():
                raise
            raise LeaseLost(self.path.stem) from None  # whoever took over has removed it

    # ------------------------------------------------------------------ its heart

    def _start(self, every: float) -> None:
        self._heart = threading.Thread(target=self._beat, args=(every,), daemon=True, name=f"lease {self.path.stem}")
        self._heart.start()

    def _beat(self, every: float) -> None:
        """Counts up in the open file: where another has taken the name, this touches nobody else's lease."""
        count = 0
        while not self._stop.wait(every):
            count += 1
            with suppress(OSError):  # a full disk or a server away: silence is what the others will see
                os.pwrite(self._handle, f"{count:012d}".encode(), len(self.token) + 1)
                os.fsync(self._handle)

    def _end(self) -> None:
        self._stop.set()
        if self._heart is not None:
            self._heart.join()
        os.close(self._handle)
        with suppress(OSError):
            taken = _break_lease(self.path, self.token)
            if taken is not None:
                taken.unlink()


@contextmanager
def acquire(
    folder: Path,
    name: str,
    places: Sequence[Path] = (),
    *,
    seconds: float | None = None,
    waiting: Callable[[], None] | None = None,
) -> Iterator[Lease]:
    """Hold the lease `name`, waiting while another process has it.

    `places` are the folders in which its holders write aside; what earlier, silenced holders have left there
    is removed. `waiting` is called at every look while another holds it, and may raise. Raises OSError when
    the folder cannot be written.
    """
    patience = seconds if seconds is not None else lease_seconds()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{LEASE_SUFFIX}"
    token = uuid.uuid4().hex
    aside = folder / f".{name}.new-{token}"
    handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    lease = Lease(path, token, handle)
    try:
        os.write(handle, f"{token} {0:012d} {_holder_id()}\n".encode())
        os.fsync(handle)
        _acquire(path, aside, token, patience, waiting)
    except BaseException:
        os.close(handle)
        raise
    finally:
        aside.unlink(missing_ok=True)
    lease._start(patience / HEARTBEATS)
    try:
        for dead in folder.glob(f".{name}.dead-*"):
            _fence(dead, places)
        yield lease
    finally:
        lease._end()


def _acquire(path: Path, aside: Path, token: str, patience: float, waiting: Callable[[], None] | None) -> None:
    seen, since = "", time.monotonic()
    pause = 0.01
    while True:
        try:
            os.link(aside, path)
            return
        except FileExistsError:
            text = _read(path)
        if text.startswith(token):  # a file server's answer was lost and the link asked for twice
            return
        now = time.monotonic()
        if text != seen:
            seen, since = text, now
        if text and (now - since > patience or _process_dead(text)):
            with suppress(FileNotFoundError):  # another was quicker
                _break_lease(path, text.split(" ", 1)[0])
            continue
        if waiting is not None:
            waiting()
        time.sleep(pause)
        pause = min(2 * pause, POLL, patience / HEARTBEATS)


def _break_lease(path: Path, token: str) -> Path | None:
    """Renames the lease aside if it is `token`'s, and says where to; another's is left, or put back."""
    if _token(path) != token:
        return None
    dead = path.with_name(f".{path.stem}.dead-{uuid.uuid4().hex}")
    os.rename(path, dead)
    if _token(dead) == token:
        return dead
    with suppress(FileExistsError):  # changed hands in between; if once more, its holder will find it lost
        os.link(dead, path)
    dead.unlink()
    return None


def _fence(dead: Path, places: Sequence[Path]) -> None:
    token = _token(dead)
    if token:
        for place in places:
            for left in place.glob(f"{ATTEMPT}{token}*"):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
    dead.unlink(missing_ok=True)


def holder_alive(path: Path) -> bool | None:
    """Whether the holder of a lease file is there: None when it runs on a machine whose processes cannot be asked."""
    text = _read(path)
    fields = text.split()
    if not text or _process_dead(text):
        return False
    return True if len(fields) == 5 and fields[2] == _host_id() and fields[4] != "-" else None


def heartbeat(path: Path) -> str:
    """Token and heartbeat of a lease file: another text later means that its holder lives; empty when it is gone."""
    return " ".join(_read(path).split(" ", 2)[:2])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _token(path: Path) -> str:
    return _read(path).split(" ", 1)[0]


# ------------------------------------------------------------------ is a process of this machine still there?


@lru_cache(maxsize=1)
def _host_id() -> str:
    """This machine since it was started, and its process numbers (a container has its own). Empty: unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _process_start_time(pid: str) -> str:
    """When the process started, in ticks since boot; empty when it is gone, or waits to be buried."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _holder_id() -> str:
    return f"{_host_id() or '-'} {os.getpid()} {_process_start_time(str(os.getpid())) or '-'}"


def _process_dead(text: str) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    fields = text.split()
    if len(fields) != 5:
        return False
    _, _, here, pid, born = fields
    return here == _host_id() and born != "-" and _process_start_time(pid) != born
