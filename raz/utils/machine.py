"""This machine's CPUs."""

from __future__ import annotations

import os


def available_cpus() -> int:
    """CPU cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
