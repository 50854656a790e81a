"""How exceptions are classified: each by its real class."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest
import torch

from raz.errors import FailureReason, RazError, RazErrorGroup, TrialFailure
from raz.pipeline.failures import BY_CLASS, DEVICE_OOM, ERROR, HOST_OOM, INVALID, LOST, classify, fatal_os_error


@pytest.fixture
def ray_errors() -> Any:
    from raz.engine.ray_session import set_ray_environment

    set_ray_environment()
    import ray.exceptions

    return ray.exceptions


@pytest.mark.parametrize("reason", FailureReason)
def test_a_trial_failure_keeps_its_reason(reason: FailureReason) -> None:
    failure = classify(TrialFailure("stage counting", "cannot be made", reason=reason))
    assert (failure.reason, failure.deterministic) == (reason, reason in ("nan", "oom", "invalid"))


def test_what_the_user_can_put_right_is_invalid() -> None:
    fault = RazError("f.yaml:3", "depth is 7", "depth: 4")
    assert classify(fault) == classify(RazErrorGroup([fault, fault])) == INVALID


def test_a_device_that_is_full_fails_again_there() -> None:
    assert classify(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")) == DEVICE_OOM
    assert classify(torch.OutOfMemoryError("words that a later PyTorch may choose")) == DEVICE_OOM
    assert DEVICE_OOM.deterministic


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("CUDA error: out of memory", DEVICE_OOM),
        ("CUDA out of memory. Tried to", DEVICE_OOM),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", DEVICE_OOM),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", DEVICE_OOM),
        ("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory", HOST_OOM),
        ("CUDA error: device-side assert triggered", ERROR),
    ],
)
def test_runtime_errors_without_a_class_are_known_by_their_text(text: str, failure: object) -> None:
    assert classify(RuntimeError(text)) == failure
    assert classify(torch.AcceleratorError(text)) == failure


def test_a_real_allocation_that_cannot_be_met() -> None:
    with pytest.raises(RuntimeError) as torch_error:
        torch.empty(2**60, dtype=torch.uint8)
    assert classify(torch_error.value) == HOST_OOM
    with pytest.raises(MemoryError) as numpy_error:
        np.empty(2**60, dtype=np.uint8)
    assert classify(numpy_error.value) == classify(MemoryError()) == HOST_OOM


def test_text_decides_nothing_for_other_classes() -> None:
    assert classify(KeyError("out of memory")) == classify(ValueError("DefaultCPUAllocator")) == ERROR
    assert classify(OSError(errno.EIO, "Input/output error")) == classify(ZeroDivisionError()) == ERROR


def test_every_class_of_ray_is_there(ray_errors: Any) -> None:
    names = [name.removeprefix("ray.exceptions.") for name in BY_CLASS if name.startswith("ray.")]
    assert names
    for name in names:
        cls = getattr(ray_errors, name)
        assert f"{cls.__module__}.{cls.__qualname__}" in BY_CLASS


def test_processes_and_machines_that_went_away_are_lost(ray_errors: Any) -> None:
    for error in (
        ray_errors.WorkerCrashedError(), ray_errors.NodeDiedError("its node died"), ray_errors.ActorDiedError(),
        ray_errors.ActorUnavailableError("no answer", None), ray_errors.TaskCancelledError(),
        ray_errors.OwnerDiedError("ab", None, ""),
    ):  # fmt: skip
        assert classify(error) == LOST, error


def test_a_process_that_ray_killed_for_memory_ran_out_of_it(ray_errors: Any) -> None:
    assert classify(ray_errors.OutOfMemoryError("killed")) == HOST_OOM
    context = ray_errors.ActorDiedErrorContext(
        actor_id=bytes(16), error_message="Task was killed due to the node running low on memory."
    )
    assert classify(ray_errors.ActorDiedError(context)) == HOST_OOM
    context.error_message = "Its worker process has died."
    assert classify(ray_errors.ActorDiedError(context)) == LOST


def test_an_error_of_another_process_counts_as_what_was_raised_there(ray_errors: Any) -> None:
    for cause in (
        MemoryError(),
        torch.OutOfMemoryError("full"),
        ZeroDivisionError(),
        TrialFailure("x", "y", "", "nan"),
    ):
        carried = ray_errors.RayTaskError("f", "traceback", cause)
        assert classify(carried) == classify(carried.as_instanceof_cause()) == classify(cause)


def test_a_refusal_that_every_trial_meets(ray_errors: Any) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "store")
    wrapped = RazError("store s", "No space left on device")
    wrapped.__cause__ = full
    assert fatal_os_error(full) is fatal_os_error(wrapped) is full
    assert fatal_os_error(ray_errors.RayTaskError("f", "traceback", full).as_instanceof_cause()) is not None
    own = TrialFailure("stage x", "diverged", reason="nan")
    own.__cause__ = full
    assert fatal_os_error(own) is None
    assert fatal_os_error(OSError(errno.EIO, "Input/output error")) is None
    assert fatal_os_error(RazError("data", "is not there")) is None
