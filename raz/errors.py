"""The errors a person may cause, each said in one message: where, what was found, what to try."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class RazError(Exception):
    """Something the user can put right. The command line prints it without a traceback and exits 2.

    `where` names the place (a file with its line, an option, a data set), `what` says what was
    found and what was expected, `hint` says what to try.
    """

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        super().__init__(where, what, hint)  # all arguments, so that the error survives a process border
        self.where, self.what, self.hint = where, what, hint

    def __str__(self) -> str:
        tail = f"\n  try: {self.hint}" if self.hint else ""
        return f"{self.where}: {self.what}{tail}"


class RazErrorGroup(RazError):
    """All faults of one input, told at once."""

    def __init__(self, faults: Sequence[RazError]) -> None:
        self.faults = tuple(faults)
        Exception.__init__(self, self.faults)
        self.where, self.what, self.hint = self.faults[0].where, self.faults[0].what, self.faults[0].hint

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
    """A trial that cannot give a number, with the reason that the study records. Raises ValueError for a reason that
    `FailureReason` lacks."""

    def __init__(self, where: str, what: str, hint: str = "", reason: str = FailureReason.ERROR) -> None:
        super().__init__(where, what, hint)
        self.reason = FailureReason(reason)
        self.args = (where, what, hint, reason)


def raise_all(faults: Sequence[RazError]) -> None:
    """Raise the faults together, if there are any."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise RazErrorGroup(faults)
