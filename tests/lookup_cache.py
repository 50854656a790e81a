"""The lookup cache of an NFS client, emulated in a Python process, which so stands for a machine of its own.

A name below the folder that was once found missing stays missing for some seconds, whatever other processes make of it,
unless its folder was opened since (`listing_refreshes`), or this process itself made it. As in Linux: a missing folder
hides all that is in it; making a file or folder asks the server, not the cache; a name that this process deletes is
remembered as missing. The folder is mounted as nfs4 in what the process reads of /proc/self/mountinfo.

`environment` has every Python process that inherits it emulate one, each for itself. It lists in FOLDER.hidden each
name that seemed to be missing and was there.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
VARIABLE = "EMULATED_LOOKUP_CACHE"  # FOLDER|SECONDS|listing_refreshes (0 or 1)
MOUNTS = "/proc/self/mountinfo"
CREATING = os.O_CREAT


class LookupCache:
    """The names below `root` that are remembered as missing, and the functions of `os` that look there first."""

    def __init__(self, root: Path, seconds: float, listing_refreshes: bool = True, told: Path | None = None) -> None:
        self.root, self.seconds, self.listing_refreshes = os.path.realpath(root), seconds, listing_refreshes
        self.missing: dict[str, float] = {}  # path -> when it was looked up on the server
        self.hidden = 0  # how often a name seemed to be missing that was there
        self.told = told  # a file that gets a line for each of them
        self._real: dict[str, Callable[..., Any]] = {}

    # ------------------------------------------------------------------ the cache

    def inside(self, path: object) -> str | None:
        """The absolute path, if it is one below the root."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        absolute = os.path.abspath(os.fsdecode(path))
        return absolute if absolute.startswith(self.root + "/") else None

    def components(self, path: str) -> list[str]:
        parts = path[len(self.root) + 1 :].split("/")
        return ["/".join([self.root, *parts[: n + 1]]) for n in range(len(parts))]

    def look_up(self, path: str, *, last: bool = True) -> None:
        """Raises FileNotFoundError where a component is remembered as missing; the last one only if asked for."""
        for component in self.components(path) if last else self.components(path)[:-1]:
            since = self.missing.get(component)
            if since is None:
                continue
            if time.monotonic() - since < self.seconds:
                if self._real["access"](component, os.F_OK):
                    self.hidden += 1
                    if self.told is not None:
                        with self._real["io.open"](self.told, "a") as file:
                            file.write(f"{os.getpid()} {path}\n")
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            del self.missing[component]

    def remember(self, path: str) -> None:
        """The server has said that there is no such path: so one of its components is missing."""
        for component in self.components(path):
            if not self._real["access"](component, os.F_OK):
                self.missing.setdefault(component, time.monotonic())
                return

    def made(self, path: str) -> None:
        self.missing.pop(path, None)

    def opened(self, folder: str) -> None:
        if self.listing_refreshes:
            self.missing = {path: at for path, at in self.missing.items() if os.path.dirname(path) != folder}

    # ------------------------------------------------------------------ the functions

    def _call(self, name: str, path: object, *args: Any, makes: bool = False, **kwargs: Any) -> Any:
        inside = None if kwargs.get("dir_fd") is not None else self.inside(path)
        if inside is None:
            return self._real[name](path, *args, **kwargs)
        self.look_up(inside, last=not makes)
        try:
            result = self._real[name](path, *args, **kwargs)
        except FileNotFoundError:
            self.remember(inside)
            raise
        except FileExistsError:
            self.made(inside)
            raise
        if makes:
            self.made(inside)
        return result

    def reads(self, name: str) -> Callable[..., Any]:
        return lambda path, *args, **kwargs: self._call(name, path, *args, **kwargs)

    def makes(self, name: str) -> Callable[..., Any]:
        return lambda path, *args, **kwargs: self._call(name, path, *args, makes=True, **kwargs)

    def deletes(self, name: str) -> Callable[..., Any]:
        def delete(path: Any, *args: Any, **kwargs: Any) -> None:
            self._call(name, path, *args, **kwargs)
            inside = None if kwargs.get("dir_fd") is not None else self.inside(path)
            if inside is not None:
                self.missing[inside] = time.monotonic()

        return delete

    def lists(self, name: str) -> Callable[..., Any]:
        def listed(path: Any = ".", *args: Any) -> Any:
            result = self._call(name, path, *args)
            if isinstance(path, str | bytes | os.PathLike):
                self.opened(os.path.abspath(os.fsdecode(path)))
            return result

        return listed

    def moves(self, name: str) -> Callable[..., Any]:
        def move(source: Any, target: Any, **kwargs: Any) -> None:
            to = self.inside(target)
            if to is not None:
                self.look_up(to, last=False)
            try:
                self._call(name, source, target, **kwargs)
            except FileExistsError:
                if name == "link" and to is not None:  # the client forgets the name before it asks the server
                    self.made(to)
                raise
            if to is not None:
                self.made(to)

        return move

    def os_open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
        return self._call("open", path, flags, *args, makes=bool(flags & CREATING), **kwargs)

    def io_open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if file == MOUNTS:
            shown = f"999 1 0:99 / {self.root} rw,relatime shared:1 - nfs4 server:/ rw,vers=4.1,hard\n"
            return io.StringIO(self._real["io.open"](file).read() + shown)
        return self._call("io.open", file, mode, *args, makes=any(letter in mode for letter in "wax"), **kwargs)

    def install(self) -> None:
        self._real = {name: getattr(os, name) for name in NAMES} | {"io.open": io.open}
        patched: dict[str, Callable[..., Any]] = {"open": self.os_open}
        patched |= {name: self.reads(name) for name in ("stat", "lstat", "access", "utime")}
        patched |= {name: self.lists(name) for name in ("scandir", "listdir")}
        patched |= {name: self.moves(name) for name in ("rename", "replace", "link")}
        patched |= {name: self.deletes(name) for name in ("unlink", "remove", "rmdir")}
        patched["mkdir"] = self.makes("mkdir")
        for name, function in patched.items():
            for supports in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                if self._real[name] in supports:
                    supports.add(function)  # type: ignore[arg-type]
            setattr(os, name, function)
        builtins.open = io.open = self.io_open  # type: ignore[assignment]

    def uninstall(self) -> None:
        builtins.open = io.open = self._real["io.open"]
        for name in NAMES:
            setattr(os, name, self._real[name])


NAMES = ("open", "stat", "lstat", "access", "utime", "scandir", "listdir", "rename", "replace", "link", "unlink",
         "remove", "rmdir", "mkdir")  # fmt: skip


@contextmanager
def emulated(root: Path, seconds: float, listing_refreshes: bool = True) -> Iterator[LookupCache]:
    """In this process, within the context."""
    cache = LookupCache(root, seconds, listing_refreshes)
    cache.install()
    try:
        yield cache
    finally:
        cache.uninstall()


def environment(site: Path, root: Path, seconds: float, listing_refreshes: bool = True) -> dict[str, str]:
    """This process's environment, and what has every Python process with it emulate a client. `site`: a folder for a
    module that Python imports when it starts."""
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text("from tests.lookup_cache import from_environment\nfrom_environment()\n")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), str(HERE)]),
        VARIABLE: f"{root}|{seconds}|{int(listing_refreshes)}",
    }


def from_environment() -> None:
    root, seconds, listing_refreshes = os.environ[VARIABLE].split("|")
    LookupCache(Path(root), float(seconds), bool(int(listing_refreshes)), told=Path(f"{root}.hidden")).install()
