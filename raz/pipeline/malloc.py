"""Freed memory stays with the process, so that a training step need not fault in again what the last one freed."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's malloc.h. Sizes in bytes; mallopt takes an int.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30
_KEPT_OLD = 1 << 25  # 4 MiB · sizeof(long), the most that older releases accept for M_MMAP_THRESHOLD

_OWN_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_TUNABLES = ("glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold")


def keep_freed_memory() -> bool:
    """Ask glibc to serve tensors of up to 1 GiB from its heap and to keep as much of it when they are freed.

    By default glibc maps what is larger than a threshold, which grows to 32 MiB at most, and unmaps it when it is
    freed; it also returns the heap's free top beyond twice that threshold. PyTorch frees and allocates the same
    activations at every step, so the kernel zeroes the same pages at every step. mallopt(3): M_MMAP_THRESHOLD and
    M_TRIM_THRESHOLD; setting either also ends the threshold's growth by itself.

    Measured with benchmarks/bench_model.py and single runs of it (glibc 2.36, Linux 6.18, pages of 4 KiB, width 1/8,
    one thread): the kernel took 19 to 26 % of the CPU time of a whole picture's maps, 15 to 19 % of a step on crops of
    256 px and 0 to 18 % of one on crops of 128 px, as the heap happens to lie; with this, below 1 %. Whole pictures
    came 1.2 times as fast. The peak of resident memory rose by 0 to 6 %; what is kept is not there for other
    processes.

    Returns whether the settings hold, and may be called any number of times. It does nothing (False) where the C
    library is not glibc (macOS, Windows, musl) and where the environment already sets one of the two
    (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES): those were set on purpose. No result changes.
    """
    if not sys.platform.startswith("linux") or _set_by_environment():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return False
    mallopt = library.mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    mapped = any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in (_KEPT, _KEPT_OLD))
    trimmed = mallopt(_M_TRIM_THRESHOLD, _KEPT) == 1
    return mapped and trimmed


def _set_by_environment() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(name in os.environ for name in _OWN_SETTINGS) or any(name in tunables for name in _TUNABLES)
