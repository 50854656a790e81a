"""Checks whether this machine can run a sweep, with a hint for each problem. `raz.inspection.doctor` runs them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from raz.errors import RazError
from raz.pipeline.device import VISIBLE, cuda_problem
from raz.store.late_view import mount_faults, mount_of
from raz.utils.json_types import JsonLike
from raz.utils.machine import available_cpus

Status = Literal["ok", "warn", "fail"]
GB = 1 << 30
MIN_MEMORY = 2 * GB  # for one trial of preset `tiny`
MIN_DISK = 5 * GB  # for the features of 300 photographs
MIN_SHARED_MEMORY = GB // 2  # of /dev/shm, for Ray's object store


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str  # of what was checked
    status: Status
    found: str
    hint: str = ""  # what to do about it


@dataclass(frozen=True)
class CheckReport:
    """The results of all checks."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed; warnings are allowed."""
        return all(check.status != "fail" for check in self.checks)

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def to_text(self) -> str:
        """A line per check, with the hint below those that warn or fail."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
            if check.hint and check.status != "ok":
                lines.append(f"{'':<4}  {'':<{width}}  try: {check.hint}")
        return "\n".join(lines)


def check_python() -> Check:
    """The versions of Python and of the operating system."""
    return Check("python", "ok", f"{platform.python_version()}, {platform.platform(terse=True)}")


def check_packages(requirements: Sequence[str] | None = None) -> list[Check]:
    """Installed versions, compared with `requirements` (default: those of raz-sweep)."""
    if requirements is None:
        try:
            requirements = metadata.requires("raz-sweep") or []
        except metadata.PackageNotFoundError:
            return [Check("raz-sweep", "warn", "run from a checkout that is not installed", "pip install -e .")]
    faults, shown = [], []
    for line in requirements:
        if "extra ==" in line:
            continue
        match = re.match(r"([\w.-]+)(?:\[[\w,]+\])?\s*(?:>=\s*([\d.]+))?", line)
        assert match is not None
        name, least = match.group(1), match.group(2) or "0"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            faults.append(Check(name, "fail", "is not installed", f"pip install '{line}'"))
            continue
        if _version_tuple(version) < _version_tuple(least):
            faults.append(Check(name, "fail", f"{version}, expected {least} or newer", f"pip install '{line}'"))
        elif name in ("torch", "ray", "optuna", "numpy", "timm", "schedulefree"):
            shown.append(f"{name} {version}")
    return [Check("packages", "ok", ", ".join(shown)), *faults] if shown else faults


def _version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def check_devices(node: Path = Path("/dev/nvidia0")) -> Check:
    """The CUDA devices with their free memory. Warns of a GPU (`node` is its device file) that PyTorch cannot use."""
    import torch

    if not torch.cuda.is_available():
        if node.exists() and os.environ.get(VISIBLE) != "":
            hint = "a PyTorch built for this driver (https://pytorch.org/get-started/locally); else everything is slow"
            return Check("devices", "fail", f"there is a GPU, and PyTorch finds no CUDA: {cuda_problem()}", hint)
        hint = "presets tiny and small are made for this; preset paper needs a GPU"
        return Check("devices", "ok", "no CUDA device: everything runs on the CPU", hint)
    names = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        names.append(f"{torch.cuda.get_device_name(i)} ({free / GB:.0f} of {total / GB:.0f} GB free)")
    return Check("devices", "ok", ", ".join(names))


def check_cores(count: int | None = None, load: float | None = None) -> Check:
    """CPU cores that this process may use; warns where other processes use them now."""
    count = available_cpus() if count is None else count
    load = os.getloadavg()[0] if load is None else load
    found = f"{count} cores, load {load:.1f}"
    if os.environ.get("OMP_NUM_THREADS"):
        found += f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} (a trial sets its own `threads`)"
    if load > 1.5 * count:
        return Check("cores", "warn", found, "other processes use them: runs will take longer than estimated")
    return Check("cores", "ok", found)


def check_memory(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> Check:
    """Free memory, within the limit of a container."""
    try:
        text = meminfo.read_text()
        free, total = (int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) << 10 for key in ("MemAvailable", "MemTotal"))  # type: ignore[index]
    except (OSError, TypeError):
        return Check("memory", "warn", "cannot be read on this system", f"a trial needs {MIN_MEMORY / GB:.0f} GB")
    found = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    try:
        allowed = int(limit.read_text())
        free, found = min(free, allowed), f"{found}, {allowed / GB:.1f} GB allowed by the container"
    except (OSError, ValueError):  # no container, or `max`, which is no limit
        pass
    if free < MIN_MEMORY:
        return Check("memory", "warn", found, "run one trial at a time (--jobs 1) and close what else is open")
    return Check("memory", "ok", found)


def check_shared_memory(path: Path = Path("/dev/shm")) -> Check:
    """The size of the shared memory, in which Ray's workers exchange objects."""
    try:
        size = shutil.disk_usage(path).total
    except OSError:
        return Check("shared memory", "ok", f"no {path}: Ray uses files instead")
    if size < MIN_SHARED_MEMORY:
        hint = "Ray falls back to slower files; in a container give --shm-size=1g, or run with --inline"
        return Check("shared memory", "warn", f"{size / GB:.2f} GB in {path}", hint)
    return Check("shared memory", "ok", f"{size / GB:.1f} GB in {path}")


def check_disk(store: Path) -> list[Check]:
    """Free space at the store, or at its nearest existing parent, and whether it is writable."""
    store = store.expanduser().absolute()
    existing = next(path for path in (store, *store.parents) if path.exists())
    name = f"store {store}" + ("" if existing == store else " (not there yet)")
    if not existing.is_dir():
        return [Check("store", "fail", f"{existing} is a file", "choose another --store")]
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".raz-doctor-"):
            pass
    except OSError as error:
        return [Check("store", "fail", f"{name}: {error.strerror}", "choose a --store that may be written")]
    free = shutil.disk_usage(existing).free
    found = f"{name}, writable, {free / GB:.0f} GB free"
    if free < MIN_DISK:
        return [Check("store", "warn", found, "features of photographs take gigabytes: choose a --store with room")]
    return [Check("store", "ok", found)]


def check_mount(store: Path) -> list[Check]:
    """How the store is mounted, where other machines may write in it; else no check."""
    mount = mount_of(store.expanduser().absolute())
    if mount is None or mount.local:
        return []
    found, faults = f"{mount.kind} at {mount.point}", mount_faults(mount.kind, mount.options)
    if faults:
        return [Check("mount", "warn", f"{found}: {'; '.join(faults)}", "cluster/README.md says which options")]
    return [Check("mount", "ok", found)]


def check_datasets(root: Path | None) -> list[Check]:
    """A check per data set found below `root`, and one that lists the missing ones."""
    from raz.data import find_dataset_folder, readers

    found, missing = [], []
    for name in readers(root):
        try:
            folder = find_dataset_folder(name, root)
        except RazError:
            missing.append(name)
            continue
        found.append(Check(f"data {name}", "ok", str(folder) if folder else "generated"))
    if root is not None and not root.expanduser().is_dir():
        return [Check("data", "fail", f"{root} is no folder", "check --data-root and RAZ_DATA_ROOT"), *found]
    if missing and root is not None:
        found.append(
            Check("data", "ok", f"not in {root}: {', '.join(missing)}", "raz-sweep data list says what is looked for")
        )
    elif missing:
        hint = "--data-root DIR or RAZ_DATA_ROOT; the generated crowd needs none"
        found.append(Check("data", "ok", f"no folder named for {', '.join(missing)}", hint))
    return found


def check_ray(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> Check:
    """Whether Ray can be imported. It is tried in a separate process, because the import may crash."""
    try:
        process = run(
            [sys.executable, "-c", "import ray; print(ray.__version__)"], capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return Check("ray", "warn", "importing it took more than 120 s", "run with --inline, without Ray")
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("ray", "fail", f"cannot be imported: {reason}", "pip install 'ray[tune]'; --inline works without")
    return Check("ray", "ok", f"{process.stdout.strip()} can be imported")
