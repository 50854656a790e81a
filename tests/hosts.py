"""Machines that are thrown away: a laptop and hosts with SSH, each in its own namespaces, on one network of their own.

A host sees this machine's system (read-only), a home, a `/tmp` and a shared memory of its own, no process but its own,
and `/shared`, the folder that all of them have. Killing its first process is pulling its plug. Needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "rsync", "ssh", "ssh-keygen", "pivot_root")

# In its new namespaces: makes the root folder that the host sees, then waits for its end of the wire.
BEGIN = r"""
set -e
name=$1 folder=$2 home=$3 address=$4 wire=$5 gateway=$6; shift 6
hostname "$name"
mount --make-rprivate /
root=$folder/root.$name
mkdir -p "$root"; mount -t tmpfs tmpfs "$root"; cd "$root"
for from in /*; do
  at=${from#/}
  case $at in
    tmp|root|run|proc|shared|mnt) mkdir -p "$at";;
    dev|sys) mkdir "$at"; mount --rbind "$from" "$at";;
    *) if [ -L "$from" ]; then ln -s "$(readlink "$from")" "$at"
       elif [ -d "$from" ]; then mkdir "$at"; mount --bind "$from" "$at"; mount -o remount,bind,ro "$at"; fi;;
  esac
done
mkdir -p shared; mount -t tmpfs -o size=2g tmpfs tmp; chmod 1777 tmp
mount -t tmpfs -o size=1g tmpfs dev/shm
mount --bind "$home" root
mount --bind "$folder/shared" shared
for from; do  # below what is now another folder; an empty one: mounted there before the plug was pulled
  [ -e "$root$from" ] && [ -n "$(ls -A "$root$from")" ] && continue
  mkdir -p "$root$from"; mount --bind "$from" "$root$from"; mount -o remount,bind,ro "$root$from"
done
mkdir -p run/sshd run/old mnt; pivot_root . run/old; cd /
mount -t proc proc /proc
umount -l /run/old
until ip link show "$wire" >/dev/null 2>&1; do sleep 0.05; done
ip link set lo up; ip link set "$wire" name eth0; ip addr add "$address/24" dev eth0; ip link set eth0 up
ip route add default via "$gateway"
"""
SSHD = (
    "exec /usr/sbin/sshd -D -e -o PidFile=none -o HostKey=$HOME/.hostkey -o UsePAM=no -o StrictModes=no"
    " -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no -o PrintLastLog=no -o UseDNS=no"
)
IDLE = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"


def missing() -> str:
    """Why there can be no such machines here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    lacking += [] if Path("/usr/sbin/sshd").exists() else ["sshd"]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    wire = f"rzv{os.getpid()}"
    attempts = (
        ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        ["ip", "link", "add", f"{wire}b", "type", "bridge"],
        ["ip", "link", "add", wire, "type", "veth", "peer", "name", f"{wire}p"],
    )
    try:
        for words in attempts:
            tried = subprocess.run(words, capture_output=True, text=True)
            if tried.returncode != 0:
                return f"no namespaces here: {' '.join(words[:4])}: {tried.stderr.strip()}"
    finally:
        for name in (wire, f"{wire}b"):
            subprocess.run(["ip", "link", "del", name], capture_output=True)
    return ""


def needed() -> list[Path]:
    """The folders that this interpreter, its packages and this checkout lie in."""
    packages = [Path(place) for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    return [Path(sys.base_prefix), Path(sys.prefix), *packages, ROOT]


class Host:
    """One of them. `home` is its root's home, also while it is down."""

    def __init__(self, lab: Lab, number: int, name: str) -> None:
        self.lab, self.number, self.name = lab, number, name
        self.address = f"{lab.network}.{10 + number}"
        self.home = lab.folder / "homes" / name
        self.wire = f"rzv{os.getpid()}x{number}"
        self._outer: subprocess.Popen[bytes] | None = None
        self.pid = 0  # of its first process, as seen from here
        self.space = 0  # which process numbers it has

    def up(self) -> None:
        """Plugs it in."""
        self.home.mkdir(parents=True, exist_ok=True)
        then = IDLE if self.number == 0 else SSHD
        with (self.lab.folder / f"{self.name}.log").open("ab") as log:
            self._outer = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork",
                 "--kill-child", "bash", "-c", BEGIN + then, "bash", self.name, str(self.lab.folder), str(self.home),
                 self.address, f"{self.wire}p", f"{self.lab.network}.1", *map(str, needed())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": os.environ["PATH"], "HOME": "/root"},
            )  # fmt: skip
        outer = self._outer.pid
        until(lambda: bool(_children(outer)) or self._outer.poll() is not None, 30)  # type: ignore[union-attr]
        self.pid = _children(outer)[0]
        self.space = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        tell("ip", "link", "add", self.wire, "type", "veth", "peer", "name", f"{self.wire}p")
        tell("ip", "link", "set", self.wire, "master", self.lab.bridge, "up")
        tell("ip", "link", "set", f"{self.wire}p", "netns", str(self.pid))
        until(self._answers, 60)

    def _answers(self) -> bool:
        if self._outer is None or self._outer.poll() is not None:
            raise RuntimeError(f"{self.name}: {(self.lab.folder / f'{self.name}.log').read_text()[-2000:]}")
        probe = "ip -4 addr show eth0 | grep -q inet" if self.number == 0 else "exec 3<>/dev/tcp/127.0.0.1/22"
        return self.run(probe).returncode == 0

    def kill(self) -> None:
        """Pulls its plug: every process of it is gone at once, and so is its end of the wire."""
        if self._outer is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._outer.wait(30)
        self._outer = None
        subprocess.run(["ip", "link", "del", self.wire], capture_output=True)  # gone with its other end, in a while

    def run(self, command: str, timeout: float = 60, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command in it, as its root, without a login."""
        environment = {"HOME": "/root", "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "dumb", **variables}
        return subprocess.run(
            ["nsenter", "--target", str(self.pid), "--all", "bash", "-c", command], env=environment, text=True,
            capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def processes(self) -> dict[int, str]:
        """All that runs in it, without what keeps it up: process numbers as seen from here, and how they are called."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.stat(folder / "ns" / "pid").st_ino == self.space and int(folder.name) != self.pid:
                    name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if name and not name.startswith(("sshd:", "sleep 3600")):  # its own
                        found[int(folder.name)] = name
        return found


class Lab:
    """The network, a laptop (host 0, without an SSH server) and hosts 1 to n that open to its key."""

    def __init__(self, folder: Path, hosts: int) -> None:
        self.folder = folder
        self.network = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
        self.bridge = f"rzb{os.getpid()}"
        self.shared = folder / "shared"
        self.shared.mkdir(parents=True)
        self.laptop = Host(self, 0, "laptop")
        self.hosts = [Host(self, n, f"host{n}") for n in range(1, hosts + 1)]

    def up(self) -> None:
        tell("ip", "link", "add", self.bridge, "type", "bridge")
        tell("ip", "addr", "add", f"{self.network}.1/24", "dev", self.bridge)
        tell("ip", "link", "set", self.bridge, "up")
        key = self.laptop.home / ".ssh" / "key"
        key.parent.mkdir(parents=True, mode=0o700)
        tell("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        for host in self.hosts:
            (host.home / ".ssh").mkdir(parents=True, mode=0o700)
            shutil.copy(key.with_suffix(".pub"), host.home / ".ssh" / "authorized_keys")
            tell("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host.home / ".hostkey"))
        for host in (self.laptop, *self.hosts):
            host.up()

    def down(self) -> None:
        for host in (self.laptop, *self.hosts):
            host.kill()
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)

    def left(self) -> list[str]:
        """What of it is still on this machine: wires and processes."""
        wires = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        found = [line for line in wires.splitlines() if self.bridge in line or f"rzv{os.getpid()}x" in line]
        return found + [name for host in (self.laptop, *self.hosts) for name in host.processes().values()]


@contextmanager
def lab(folder: Path, hosts: int) -> Iterator[Lab]:
    """Machines for the time of the context; `folder` must not be there yet."""
    made = Lab(folder, hosts)
    try:
        made.up()
        yield made
    finally:
        made.down()


def until(met: Callable[[], bool], seconds: float, told: Callable[[], str] = lambda: "it never came to pass") -> None:
    """Waits until `met` returns True. Raises AssertionError with the text of `told` after `seconds`."""
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            raise AssertionError(told())
        time.sleep(0.1)


def tell(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _children(pid: int) -> Sequence[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
