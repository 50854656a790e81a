"""Recorded failures of a stage: which device met each, and on which other devices it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raz.errors import FailureReason, TrialFailure
from raz.utils.json_types import Json, JsonObject, as_list, as_object, get_int, get_str, parse_object

# A stage that failed for one of these reasons would fail again.
DETERMINISTIC_FAILURES = (FailureReason.NAN, FailureReason.INVALID, FailureReason.OOM)


@dataclass(frozen=True)
class Device:
    """What makes a stage: `cpu`, or a GPU by its name, and the bytes of its memory (0: unknown, or the CPU)."""

    name: str
    memory: int = 0

    @property
    def kind(self) -> str:
        """`cpu` or `gpu`."""
        return "cpu" if self.name == "cpu" else "gpu"


@dataclass(frozen=True)
class RecordedFailure:
    """A failure for one of DETERMINISTIC_FAILURES, and the device that met it."""

    failure: TrialFailure
    device: Device

    def counts_on(self, device: Device | None) -> bool:
        """Whether the stage would fail on this device as well; None: a device that is not known yet.

        What cannot be run fails everywhere. Training diverges on one kind of device and may not on another, whose
        numbers are rounded differently (mixed precision). A full memory is that of GPUs of one name, and of no more
        bytes: some names are sold with several sizes.
        """
        met, reason = self.device, self.failure.reason
        if reason == FailureReason.INVALID:
            return True
        if device is None:
            return False
        if reason == FailureReason.OOM:
            return met.name == device.name and (not met.memory or device.memory <= met.memory)
        return met.kind == device.kind

    def to_json(self) -> dict[str, Json]:
        """The inverse of `_failure`."""
        failure = self.failure
        return {
            "where": failure.where, "what": failure.what, "hint": failure.hint, "reason": failure.reason,
            "device": self.device.name, "memory": self.device.memory,
        }  # fmt: skip


def read_failures(text: bytes) -> list[RecordedFailure]:
    """The failures in a stage's record, the newest first; [] for a damaged one: the stage is tried again."""
    try:
        record = parse_object(text)
        if "failures" not in record:  # earlier versions recorded one, without the memory
            return [_failure(record)]
        return [_failure(as_object(each, "failures")) for each in as_list(record["failures"], "failures")]
    except ValueError:
        return []


def with_failure(recorded: Sequence[RecordedFailure], new: RecordedFailure) -> list[RecordedFailure]:
    """The failures with a new one, which replaces those of its reason and of a device with its name."""

    def replaced(old: RecordedFailure) -> bool:
        return (old.failure.reason, old.device.name) == (new.failure.reason, new.device.name)

    return [new, *(old for old in recorded if not replaced(old))]


def _failure(note: JsonObject) -> RecordedFailure:
    where, what, hint, reason = (get_str(note, name) for name in ("where", "what", "hint", "reason"))
    device = Device(get_str(note, "device", ""), get_int(note, "memory", 0))
    return RecordedFailure(TrialFailure(where, what, hint, reason=reason), device)
