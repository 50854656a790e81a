"""Versions of the software that makes a result, for studies and for the manifests of artifacts."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from raz._version import __version__


@lru_cache(maxsize=1)
def environment_versions() -> dict[str, str]:
    """Versions of Python and of the main packages; in a git checkout also the commit, `+changes` if it is dirty."""
    out = {"python": platform.python_version()}
    for package in ("raz-sweep", "torch", "ray", "optuna", "numpy"):
        try:
            out[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            out[package] = __version__ if package == "raz-sweep" else "none"
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        git = ["git", "-C", str(checkout)]
        try:
            commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
            dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):  # no git: the versions alone
            return out
        if commit.returncode == 0:
            out["commit"] = commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
    return out
