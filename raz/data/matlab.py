"""Read heads from variables of MATLAB files, with a distinct error for each kind of damage."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raz.data.contract import Heads
from raz.errors import RazError
from raz.utils.json_types import Json

Variables = Mapping[str, NDArray[np.generic]]

COPY_AGAIN = "copy the annotation again"


def read_variables(data: bytes, where: str, *names: str) -> Variables:
    """The named variables that a MATLAB 5 file contains, or a MATLAB 7.3 (HDF5) file if h5py is installed.

    Raises RazError for bytes that are neither.
    """
    from scipy.io import loadmat  # slow to import, and not needed by other readers

    if not data:
        raise RazError(where, "is empty (0 bytes), expected a MATLAB file", COPY_AGAIN)
    try:
        # the stubs lack file objects
        return dict(loadmat(io.BytesIO(data), variable_names=list(names)))  # type: ignore[arg-type]
    except NotImplementedError:
        return _version_73(data, where, names)
    except Exception as error:  # scipy raises many kinds on damaged bytes, struct.error and zlib.error among them
        raise RazError(where, f"is not a readable MATLAB file ({error})", COPY_AGAIN) from error


def _version_73(data: bytes, where: str, names: tuple[str, ...]) -> Variables:
    """Arrays of a MATLAB 7.3 file, the format of some copies of WorldExpo'10. HDF5 stores them transposed."""
    try:
        import h5py
    except ImportError:
        what = "is a MATLAB 7.3 (HDF5) file, expected MATLAB 5"
        raise RazError(where, what, "save it with -v7, or pip install h5py") from None
    arrays: dict[str, NDArray[np.generic]] = {}
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            for name in names:
                if isinstance(file.get(name), h5py.Dataset):
                    empty = bool(file[name].attrs.get("MATLAB_empty", 0))  # then the data is the array's shape
                    arrays[name] = np.zeros((0, 2)) if empty else np.asarray(file[name][()]).T
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise RazError(where, f"is not a readable MATLAB file ({error})", COPY_AGAIN) from error
    return arrays


def as_heads(values: ArrayLike | Json, where: str, field: str) -> Heads:
    """Heads (n, 2) float64 x, y px from annotated values; an empty array of any shape has no heads.

    `field` names the values in errors. Raises RazError unless they are finite numbers of shape (n, 2).
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
    """Heads of the variable `annPoints`, used by UCF-QNRF, UCF_CC_50 and NWPU-Crowd. Raises RazError."""
    return heads_of_variable(read_variables(data, where, "annPoints"), where, "annPoints")


def heads_of_variable(content: Variables, where: str, name: str) -> Heads:
    """The heads in one variable of a file. Raises RazError if it is missing, and as `as_heads`."""
    if name not in content:
        raise RazError(where, f"has no variable {name}", COPY_AGAIN)
    return as_heads(content[name], where, name)
