"""Annotations in MATLAB files: numbers out of named variables, and every way in which they can be wrong told apart."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from raz.data.contract import Heads
from raz.errors import RazError

COPY_AGAIN = "copy the annotation again"


def read_variables(data: bytes, where: str, *names: str) -> dict[str, Any]:
    """Those of the named variables that a MATLAB 5 file holds, or a 7.3 (HDF5) one where h5py is installed.

    Raises RazError for bytes that are neither.
    """
    from scipy.io import loadmat  # takes longer to import than a reader that is not used should

    if not data:
        raise RazError(where, "is empty (0 bytes), expected a MATLAB file", COPY_AGAIN)
    try:
        # the stubs leave out that a file object will do
        return dict(loadmat(io.BytesIO(data), variable_names=list(names)))  # type: ignore[arg-type]
    except NotImplementedError:
        return _version_73(data, where, names)
    except Exception as error:  # scipy raises many kinds on damaged bytes, struct.error and zlib.error among them
        raise RazError(where, f"is no MATLAB file that can be read ({error})", COPY_AGAIN) from error


def _version_73(data: bytes, where: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Plain arrays of a MATLAB 7.3 file; some copies of WorldExpo'10 come so. HDF5 holds them transposed."""
    try:
        import h5py
    except ImportError:
        what = "is a MATLAB 7.3 (HDF5) file, expected MATLAB 5"
        raise RazError(where, what, "save it with -v7, or pip install h5py") from None
    found: dict[str, Any] = {}
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            for name in names:
                if isinstance(file.get(name), h5py.Dataset):
                    empty = bool(file[name].attrs.get("MATLAB_empty", 0))  # then the data are the array's size
                    found[name] = np.zeros((0, 2)) if empty else np.asarray(file[name][()]).T
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise RazError(where, f"is no MATLAB file that can be read ({error})", COPY_AGAIN) from error
    return found


def as_heads(values: Any, where: str, field: str) -> Heads:
    """Heads (n, 2) float64 of an array as annotated, in x, y px; an empty array of any shape is no head.

    Raises RazError for text instead of numbers, NaN or infinite points, and any shape but (n, 2).
    """
    array = np.asarray(values)
    if array.size == 0 and array.dtype.kind not in "OSU":
        return np.zeros((0, 2))
    if array.dtype.kind not in "fiu":
        kind = "text" if array.dtype.kind in "SU" else f"{array.dtype}"
        raise RazError(where, f"{field} holds {kind}, expected numbers", COPY_AGAIN)
    if array.ndim != 2 or array.shape[1] != 2:
        raise RazError(where, f"{field} has the shape {array.shape}, expected (n, 2): x, y in pixels", COPY_AGAIN)
    heads = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(heads).all(axis=1))
    if len(bad):
        raise RazError(where, f"{len(bad)} point(s) are not finite, the first at row {bad[0] + 1}", COPY_AGAIN)
    return heads


def read_ann_points(data: bytes, where: str) -> Heads:
    """`annPoints`, (n, 2) x, y px: what UCF-QNRF, UCF_CC_50 and NWPU-Crowd annotate with. Raises RazError."""
    return heads_of_variable(read_variables(data, where, "annPoints"), where, "annPoints")


def heads_of_variable(content: Mapping[str, Any], where: str, name: str) -> Heads:
    """The heads of one variable of a file. Raises RazError when it is not there, and as `points`."""
    if name not in content:
        raise RazError(where, f"has no variable {name}", COPY_AGAIN)
    return as_heads(content[name], where, name)
