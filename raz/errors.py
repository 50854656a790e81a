"""Errors that a user can correct. Each message says where, what was found and expected, and what to try."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class RazError(Exception):
    """Something the user can correct. The command line prints it without a traceback and exits with 2.

    where: a file with its line, an option, a data set.
    what: what was found, and what was expected.
    hint: what to try; may be empty.
    parameter: the dotted name of the wrong configuration parameter, or of the wrong key in a file; '' for other
        errors. It is not part of the message.
    """

    def __init__(self, where: str, what: str, hint: str = "", parameter: str = "") -> None:
        super().__init__(where, what, hint, parameter)  # pickle calls the class with `args`
        self.where, self.what, self.hint, self.parameter = where, what, hint, parameter

    def __str__(self) -> str:
        tail = f"\n  try: {self.hint}" if self.hint else ""
        return f"{self.where}: {self.what}{tail}"


class RazErrorGroup(RazError):
    """All faults of one input together. `where`, `what`, `hint` and `parameter` are those of the first."""

    def __init__(self, faults: Sequence[RazError]) -> None:
        first = faults[0]
        super().__init__(first.where, first.what, first.hint, first.parameter)
        self.faults = tuple(faults)
        self.args = (self.faults,)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class FailureReason(StrEnum):
    """Why a trial failed, spelled as studies store it."""

    NAN = "nan"  # training diverged
    OOM = "oom"  # the memory of the machine or of its device ran out
    LOST = "lost"  # its process or its machine went away
    INVALID = "invalid"  # the configuration cannot be run
    ERROR = "error"  # any other exception


class TrialFailure(RazError):
    """A trial that gives no score, with the reason that the study records. Raises ValueError for a reason that
    `FailureReason` lacks."""

    def __init__(self, where: str, what: str, hint: str = "", reason: str = FailureReason.ERROR) -> None:
        super().__init__(where, what, hint)
        self.reason = FailureReason(reason)
        self.args = (where, what, hint, reason)


def flatten_errors(error: RazError) -> tuple[RazError, ...]:
    """The faults of a group, or the error itself."""
    return error.faults if isinstance(error, RazErrorGroup) else (error,)


def raise_all(faults: Sequence[RazError]) -> None:
    """Raise the faults together, if there are any; a single one as itself."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise RazErrorGroup(faults)
