"""Tuning of glibc's malloc: freed memory stays with the process, so that the next training step need not fault it in
again."""

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
    """Make glibc serve tensors of up to 1 GiB from its heap, and keep up to 1 GiB of freed memory.

    By default glibc maps blocks above a threshold, which grows to 32 MiB at most, and unmaps them when they are freed;
    it also returns the free top of the heap beyond twice that threshold. PyTorch frees and allocates the same
    activations at every step, so the kernel zeroes the same pages at every step. See mallopt(3), M_MMAP_THRESHOLD and
    M_TRIM_THRESHOLD; setting either also stops the threshold from growing.

    Measured with benchmarks/bench_model.py and single runs of it (glibc 2.36, Linux 6.18, pages of 4 KiB, width 1/8,
    one thread): the kernel took 19 to 26 % of the CPU time of a whole image's maps, 15 to 19 % of a step on crops of
    256 px and 0 to 18 % of one on crops of 128 px, depending on the layout of the heap; with this, below 1 %. Whole
    images were 1.2 times as fast. The peak of resident memory rose by 0 to 6 %. Kept memory is not available to other
    processes.

    Returns whether the settings hold. May be called repeatedly. Does nothing (False) where the C library is not glibc
    (macOS, Windows, musl), and where the environment already sets one of the two (MALLOC_MMAP_THRESHOLD_,
    MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES). No result changes.
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
