"""A device whose memory is full: what is told, and what helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from raz.config import TrainConfig
from raz.errors import FailureReason, TrialFailure
from raz.pipeline.failures import DEVICE_OOM, classify
from raz.pipeline.graph import STAGES

FULL = "the device's memory is full"
NORMALISED = "half batches would train another network: its batch normalisation learns from whole ones"
WHOLE_IMAGES = "set a smaller input.scale or input.max_side: images are predicted whole up to 2 megapixels"


class BatchTooLarge(TrialFailure):
    """A step of training does not fit into the device's memory, and half of its batch may."""


@contextmanager
def full_memory_as_failure(
    where: str, hint: str, what: str = FULL, kind: type[TrialFailure] = TrialFailure
) -> Iterator[None]:
    """Raise a failure of this kind, which the store records, where the device's memory runs out. The machine's own
    memory is another matter: it depends on what else runs there."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TrialFailure) or classify(error) != DEVICE_OOM:
            raise
        raise kind(where, what, hint, reason=FailureReason.OOM) from error


def step_memory(
    stage: str, epoch: int, config: TrainConfig, *, halvable: bool, halved: bool
) -> AbstractContextManager[None]:
    """`full_memory_as_failure` for the steps of an epoch: BatchTooLarge where halves of the batches may fit.

    halvable: whether the gradients of two halves add up to those of the batch. halved: whether they are taken so.
    """
    where, hint = f"stage {stage}, epoch {epoch}", step_hint(stage, config)
    if halved:
        return full_memory_as_failure(where, hint, f"{FULL}, with half batches too")
    if config.batch == 1:
        return full_memory_as_failure(where, hint)
    if not halvable:
        return full_memory_as_failure(where, hint, f"{FULL}, and {NORMALISED}")
    return full_memory_as_failure(where, hint, kind=BatchTooLarge)


def step_hint(stage: str, config: TrainConfig) -> str:
    """What makes a step of a stage's training smaller."""
    prefix = STAGES[stage].epochs.removesuffix("epochs") if stage in STAGES else ""
    crop = f"a smaller {prefix}crop (now {config.crop})" if config.crop else f"{prefix}crop (now whole images)"
    if config.batch == 1:
        return f"set {crop} or a smaller input.scale"
    return f"set a smaller {prefix}batch (now {config.batch}), {crop} or a smaller input.scale"
