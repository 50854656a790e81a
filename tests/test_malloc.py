"""keep_freed_memory: what the kernel counts in processes with it and without, not how long they take."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from raz.pipeline import malloc

ROOT = Path(__file__).parents[1]
SIZE, TIMES = 64 << 20, 8
GLIBC = platform.libc_ver()[0] == "glibc"

# Prints what two calls returned (- where none was made), and the page faults of TIMES tensors of SIZE bytes, each
# written, read and freed before the next, after as many that are not counted: the heap first finds its size.
CHILD = f"""
import resource, sys
import torch
from raz.pipeline.malloc import keep_freed_memory
torch.set_num_threads(1)
told = [keep_freed_memory(), keep_freed_memory()] if sys.argv[1] == "keep" else ["-"]
for value in range({2 * TIMES}):
    if value == {TIMES}:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = torch.empty({SIZE}, dtype=torch.uint8).fill_(value)
    assert int(tensor[::4096].sum(dtype=torch.int64)) == value * tensor[::4096].numel()
    del tensor
print(*told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
UNSET = (*malloc._OWN_SETTINGS, "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")


def child(word: str, **settings: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name not in UNSET} | settings
    run = subprocess.run(
        [sys.executable, "-c", CHILD, word], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.long
@pytest.mark.skipif(not GLIBC, reason="only glibc has the settings")
def test_freed_tensors_are_not_faulted_in_again() -> None:
    *told, kept = child("keep")
    assert told == ["True", "True"]  # and a second call says the same
    _, plain = child("plain")
    assert int(plain) > TIMES * 16  # half of what huge pages of 2 MiB would take
    assert int(kept) * 8 < int(plain)


@pytest.mark.long
@pytest.mark.skipif(not GLIBC, reason="only glibc has the settings")
@pytest.mark.parametrize(
    "settings",
    [
        {"MALLOC_MMAP_THRESHOLD_": "65536"},
        {"MALLOC_TRIM_THRESHOLD_": "65536"},
        {"GLIBC_TUNABLES": "glibc.malloc.check=0:glibc.malloc.mmap_threshold=65536"},
    ],
)
def test_settings_of_the_environment_stay(settings: dict[str, str]) -> None:
    *told, faults = child("keep", **settings)
    assert told == ["False", "False"]
    assert int(faults) > TIMES * 16  # memory is still given back


class Recorder:
    """A C library that accepts every setting and records the calls."""

    def __init__(self, limit: int) -> None:
        self.asked: list[tuple[int, int]] = []

        def mallopt(parameter: int, value: int) -> int:
            self.asked.append((parameter, value))
            return int(parameter != -3 or value <= limit)

        self.mallopt = mallopt
        self.gnu_get_libc_version = object()


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    return monkeypatch


@pytest.mark.parametrize(
    ("limit", "thresholds", "result"),
    [(2**31 - 1, [2**30], True), (2**25, [2**30, 2**25], True), (0, [2**30, 2**25], False)],
)
def test_an_older_glibc_gets_the_most_it_accepts(
    unset: pytest.MonkeyPatch, limit: int, thresholds: list[int], result: bool
) -> None:
    library = Recorder(limit)
    unset.setattr(ctypes, "CDLL", lambda _: library)
    assert malloc.keep_freed_memory() is result
    assert library.asked == [*((-3, size) for size in thresholds), (-1, 2**30)]


@pytest.mark.parametrize("missing", ["mallopt", "gnu_get_libc_version"])
def test_another_c_library_is_left_alone(unset: pytest.MonkeyPatch, missing: str) -> None:
    library = Recorder(2**31 - 1)
    delattr(library, missing)
    unset.setattr(ctypes, "CDLL", lambda _: library)
    assert malloc.keep_freed_memory() is False
    assert library.asked == []


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(unset: pytest.MonkeyPatch, system: str) -> None:
    def refuse(_: object) -> object:
        raise AssertionError("the C library was opened")

    unset.setattr(sys, "platform", system)
    unset.setattr(ctypes, "CDLL", refuse)
    assert malloc.keep_freed_memory() is False


# Prints by how many bytes the three maps of a picture of 24 million pixels raise the peak of resident memory.
LARGE = """
import numpy as np, torch
from pathlib import Path
from raz.config import PRESETS
from raz.pipeline import backbones, builders
from raz.pipeline.inference import Network
from raz.pipeline.malloc import keep_freed_memory

def peak():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

torch.set_num_threads(1)
keep_freed_memory()
tiny = PRESETS["tiny"]
backbone = backbones.build_backbone(tiny.backbone, 0)
counting = builders.build_counting(tiny.counting, backbone, 0)
localization = builders.build_localization(tiny.localization, backbone, 0)
attention = builders.build_attention(tiny.attention, localization.channels + counting.channels, 0)
builders.to_channels_last(tiny.backbone, backbone, counting, localization, attention)
for part in (backbone, counting, localization, attention):
    builders.freeze(part)
network = Network("tiny", backbone, backbone, counting, localization, attention)
pixels = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), dtype=np.uint8)
before = peak()
maps = network.maps(pixels, ("density", "response", "attention"), torch.device("cpu"))
assert maps["response"].shape == maps["attention"].shape == (4000, 6000)
assert maps["density"].shape == (500, 750)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_tiles_bound_the_memory_of_a_picture_of_24_million_pixels() -> None:
    run = subprocess.run([sys.executable, "-c", LARGE], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    # Whole, its first two layers alone would take 8 channels x 24 million x 4 bytes each: 1.5 GB.
    assert int(run.stdout) < 1.3e9
