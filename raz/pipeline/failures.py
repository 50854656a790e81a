"""Classification of exceptions: the reason that a study records for its trial, and whether the stage would fail again.

An exception is classified by its class. PyTorch's and Ray's classes are compared by qualified name, so that neither
package is imported here. Text decides only where the CUDA runtime or Ray has no class for running out of memory.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from raz.errors import FailureReason, RazError, TrialFailure
from raz.store.failures import DETERMINISTIC_FAILURES


@dataclass(frozen=True)
class Failure:
    """The classification of an exception. `deterministic`: the same stage fails again on the same device, so the
    store records the failure and no other trial tries."""

    reason: FailureReason
    deterministic: bool


DEVICE_OOM = Failure(FailureReason.OOM, True)  # a device's memory holds the stage or does not
HOST_OOM = Failure(FailureReason.OOM, False)  # the machine's memory depends on what else runs there
LOST = Failure(FailureReason.LOST, False)
INVALID = Failure(FailureReason.INVALID, True)
ERROR = Failure(FailureReason.ERROR, False)

BY_CLASS = {
    "builtins.MemoryError": HOST_OOM,
    "torch.OutOfMemoryError": DEVICE_OOM,
    "ray.exceptions.OutOfMemoryError": HOST_OOM,  # of Ray's memory monitor, which kills a process
    "ray.exceptions.RayError": LOST,  # of a process, an actor or a node that went away
}
# In RuntimeErrors of PyTorch that have no class of their own.
DEVICE_OOM_TEXTS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
HOST_OOM_TEXTS = ("DefaultCPUAllocator",)
# In Ray's message about an actor that its memory monitor killed; the class may be that of any dead actor.
RAY_OOM_TEXTS = ("OutOfMemory", "low on memory")

# Errors that every trial would meet: the disk is full, or the store cannot be written or does not answer.
FATAL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EHOSTUNREACH)


def classify(error: BaseException) -> Failure:
    """The classification of an exception of a trial or a stage. An exception that Ray passed on from another process is
    classified as the one that was raised there."""
    if isinstance(error, TrialFailure):
        return Failure(error.reason, error.reason in DETERMINISTIC_FAILURES)
    if isinstance(error, RazError):
        return INVALID
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__]
    if "ray.exceptions.RayTaskError" in names:
        cause = getattr(error, "cause", None)
        return classify(cause) if isinstance(cause, BaseException) else ERROR
    if "ray.exceptions.RayActorError" in names and is_ray_oom_text(str(error)):
        return HOST_OOM
    for name in names:
        if name in BY_CLASS:
            return BY_CLASS[name]
    if isinstance(error, RuntimeError):
        text = str(error)
        if any(part.lower() in text.lower() for part in DEVICE_OOM_TEXTS):
            return DEVICE_OOM
        if any(part in text for part in HOST_OOM_TEXTS):
            return HOST_OOM
    return ERROR


def is_ray_oom_text(text: str) -> bool:
    """Whether a message of Ray says that its memory monitor killed the process."""
    return any(part in text for part in RAY_OOM_TEXTS)


def fatal_os_error(error: BaseException) -> OSError | None:
    """The OSError with one of FATAL_ERRNOS that `error` is or was raised from; None for any other error, and for a
    TrialFailure, which concerns its trial alone."""
    if isinstance(error, TrialFailure):
        return None
    for candidate in (error, error.__cause__, getattr(error, "cause", None)):  # `cause`: of Ray's RayTaskError
        if isinstance(candidate, OSError) and candidate.errno in FATAL_ERRNOS:
            return candidate
    return None
