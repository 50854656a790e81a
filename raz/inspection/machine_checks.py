"""`raz-sweep doctor`: what this machine has for a sweep, line by line, and what to do where something is missing."""

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
from raz.utils.machine import available_cpus

Status = Literal["ok", "warn", "fail"]
GB = 1 << 30
LEAST_MEMORY, LEAST_DISK = 2 * GB, 5 * GB  # one trial of preset `tiny`; features of 300 photographs
LEAST_SHARED = GB // 2  # /dev/shm, where Ray keeps what processes share
IMAGENET = "vgg16-397923af.pth"  # as torchvision names the ImageNet weights of VGG-16


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, what was found, what to do."""

    name: str
    status: Status
    found: str
    hint: str = ""


def run_checks(store: Path, data_root: Path | None, weights: str | None = None) -> list[Check]:
    """Every check. Nothing is kept: a file is written beside or in the store and taken away again."""
    checks = [python(), *packages(), devices(), cores(), memory(), shared_memory(), *disk(store)]
    return [*checks, backbone(weights), *data(data_root), ray_starts()]


def exit_code(checks: Sequence[Check]) -> int:
    """The exit code: 1 when something fails."""
    return int(any(check.status == "fail" for check in checks))


def python() -> Check:
    return Check("python", "ok", f"{platform.python_version()}, {platform.platform(terse=True)}")


def packages(requirements: Sequence[str] | None = None) -> list[Check]:
    """Installed versions against what raz-sweep asks for."""
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
        if _numbers(version) < _numbers(least):
            faults.append(Check(name, "fail", f"{version}, expected {least} or newer", f"pip install '{line}'"))
        elif name in ("torch", "ray", "optuna", "numpy"):
            shown.append(f"{name} {version}")
    return [Check("packages", "ok", ", ".join(shown)), *faults] if shown else faults


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def devices() -> Check:
    import torch

    if not torch.cuda.is_available():
        hint = "presets tiny and small are made for this; preset paper wants a GPU"
        return Check("devices", "ok", "no CUDA device: everything runs on the CPU", hint)
    names = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        names.append(f"{torch.cuda.get_device_name(i)} ({free / GB:.0f} of {total / GB:.0f} GB free)")
    return Check("devices", "ok", ", ".join(names))


def cores(count: int | None = None, load: float | None = None) -> Check:
    """Cores this process may use, and whether others use them now."""
    count = available_cpus() if count is None else count
    load = os.getloadavg()[0] if load is None else load
    found = f"{count} cores, load {load:.1f}"
    if os.environ.get("OMP_NUM_THREADS"):
        found += f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} (a trial sets its own `threads`)"
    if load > 1.5 * count:
        return Check("cores", "warn", found, "others use them: times will be longer than measured")
    return Check("cores", "ok", found)


def memory(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> Check:
    """Free memory, within what a container allows."""
    try:
        text = meminfo.read_text()
        free, total = (int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) << 10 for key in ("MemAvailable", "MemTotal"))  # type: ignore[index]
    except (OSError, TypeError):
        return Check("memory", "warn", "cannot be told on this system", f"a trial wants {LEAST_MEMORY / GB:.0f} GB")
    found = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    try:
        allowed = int(limit.read_text())
        free, found = min(free, allowed), f"{found}, {allowed / GB:.1f} GB allowed by the container"
    except (OSError, ValueError):  # no container, or `max`: no limit
        pass
    if free < LEAST_MEMORY:
        return Check("memory", "warn", found, "run one trial at a time (--jobs 1) and close what else is open")
    return Check("memory", "ok", found)


def shared_memory(place: Path = Path("/dev/shm")) -> Check:
    try:
        size = shutil.disk_usage(place).total
    except OSError:
        return Check("shared memory", "ok", f"no {place}: Ray uses files instead")
    if size < LEAST_SHARED:
        hint = "Ray falls back to slower files; in a container give --shm-size=1g, or run with --inline"
        return Check("shared memory", "warn", f"{size / GB:.2f} GB in {place}", hint)
    return Check("shared memory", "ok", f"{size / GB:.1f} GB in {place}")


def disk(store: Path) -> list[Check]:
    """Room where the store is, or would be, and whether it may be written."""
    store = store.expanduser().absolute()
    place = next(p for p in (store, *store.parents) if p.exists())
    name = f"store {store}" + ("" if place == store else " (not there yet)")
    if not place.is_dir():
        return [Check("store", "fail", f"{place} is a file", "choose another --store")]
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".raz-doctor-"):
            pass
    except OSError as error:
        return [Check("store", "fail", f"{name}: {error.strerror}", "choose a --store that may be written")]
    free = shutil.disk_usage(place).free
    found = f"{name}, writable, {free / GB:.0f} GB free"
    if free < LEAST_DISK:
        return [Check("store", "warn", found, "features of photographs take gigabytes: choose a --store with room")]
    return [Check("store", "ok", found)]


def backbone(weights: str | None) -> Check:
    """The pretrained backbone: a file that was named, or the copy that torchvision keeps."""
    if weights is not None:
        from raz.paper.networks import Backbone
        from raz.pipeline.builders import load_state_dict_strict, read_state

        path = Path(weights).expanduser()
        try:
            state = read_state(path)
            kept = {k: v for k, v in state.items() if k.startswith("features.")}
            load_state_dict_strict(Backbone(), kept, str(path), extra=True)
        except RazError as error:
            return Check("weights", "fail", f"{error.where}: {error.what}", error.hint)
        return Check("weights", "ok", f"{path}: VGG-16 through relu4_3")
    import torch

    kept_at = Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET
    if kept_at.is_file():
        return Check("weights", "ok", f"ImageNet weights of VGG-16 in {kept_at}")
    hint = "presets small and paper fetch them at first use; or --set backbone.weights=FILE; preset tiny needs none"
    return Check("weights", "warn", "no ImageNet weights of VGG-16 kept yet", hint)


def data(root: Path | None) -> list[Check]:
    """The data sets that are found, a line each, and one line for the others."""
    from raz.data import find_dataset_folder, readers

    found, missing = [], []
    for name in readers(root):
        try:
            place = find_dataset_folder(name, root)
        except RazError:
            missing.append(name)
            continue
        found.append(Check(f"data {name}", "ok", str(place) if place else "generated"))
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


def ray_starts(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> Check:
    """Whether Ray can be imported, asked of a process of its own: it may crash, and it is slow to load."""
    try:
        done = run(
            [sys.executable, "-c", "import ray; print(ray.__version__)"], capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return Check("ray", "warn", "importing it took more than 120 s", "run with --inline, without Ray")
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("ray", "fail", f"cannot be imported: {reason}", "pip install 'ray[tune]'; --inline works without")
    return Check("ray", "ok", f"{done.stdout.strip()} can be imported")


def as_json(checks: Sequence[Check]) -> dict[str, object]:
    return {"ok": exit_code(checks) == 0, "checks": [asdict(check) for check in checks]}


def render(checks: Sequence[Check]) -> str:
    """A line a check, what to do beneath those that are not well."""
    wide = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<{wide}}  {check.found}")
        if check.hint and check.status != "ok":
            lines.append(f"{'':<4}  {'':<{wide}}  try: {check.hint}")
    return "\n".join(lines)
