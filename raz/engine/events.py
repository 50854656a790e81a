"""What the person watching a run sees: one calm screen on a terminal, one line an event otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.live import Live

from raz.engine.progress import ProgressView
from raz.pipeline.events import StageEvent
from raz.pipeline.graph import TRAINED
from raz.study.records import Outcome, TrialRecord
from raz.utils.formatting import assignments, duration

REFRESH = 4  # times a second


class TrialEvents(Protocol):
    """What an executor tells."""

    def started(self, number: int, values: Mapping[str, Any]) -> None: ...
    def step(self, number: int, step: int, value: float) -> None: ...
    def stage(self, number: int, event: StageEvent) -> None: ...
    def finished(self, record: TrialRecord) -> None: ...
    def done(self, number: int, text: str, outcome: Outcome | None = None) -> None: ...
    def note(self, text: str) -> None: ...
    def stopping(self, text: str) -> None: ...


def trial_line(record: TrialRecord, metric: str) -> str:
    """A finished trial in one line."""
    head = f"trial {record.number}"
    tail = f"({duration(record.seconds)})  {assignments(record.values)}"
    if record.state == "complete":
        shared = sum(stage.hit for stage in record.stages)
        from_store = f", {shared} of {len(record.stages)} stages from the store" if record.stages else ""
        found = "complete" if record.value is None else f"{metric} {record.value:.4g}"
        return f"{head}: {found}{from_store} {tail}"
    if record.state == "pruned" and record.pruned_at:
        step, value = record.pruned_at
        return f"{head}: pruned at step {step} ({value:.4g}) {tail}"
    message = record.message.splitlines()[0] if record.message else ""
    return f"{head}: {record.state}{f' ({record.reason})' if record.reason else ''} {message} {tail}"


class ConsoleProgress:
    """Events on a rich console. Use as a context."""

    def __init__(
        self, console: Console, total: int, metric: str, direction: str = "minimize", title: str = "raz-sweep"
    ) -> None:
        self.console, self.metric = console, metric
        self.board = ProgressView(title, total, metric, direction)
        self._live: Live | None = None
        self._made: set[tuple[str, str]] = set()  # stage lines told: several trials may tell the same
        if console.is_terminal:
            self._live = Live(
                console=console, get_renderable=lambda: self.board, refresh_per_second=REFRESH, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stopping(self, text: str) -> None:
        """A clean stop was asked for. May be called in a signal's handler."""
        if self._live is None:
            self.note(text)
        self.board.stopping = text

    def started(self, number: int, values: Mapping[str, Any]) -> None:
        self.board.started(number, values)
        if self._live is None:
            self.note(f"trial {number}: started  {assignments(values)}")

    def step(self, number: int, step: int, value: float) -> None:
        """Told by the stage's epoch as well."""

    def stage(self, number: int, event: StageEvent) -> None:
        self.board.stage(number, event)
        told = event.kind in ("started", "finished", "stopped", "failed") and event.stage in TRAINED
        if self._live is None and (event.kind == "note" or told) and (event.kind, event.key) not in self._made:
            self.note(f"  {event}")
            self._made.add((event.kind, event.key))
        if event.kind in ("stopped", "failed"):  # whoever goes on with it tells its start again
            self._made.discard(("started", event.key))

    def finished(self, record: TrialRecord) -> None:
        self.board.finished(record)
        if self._live is None:
            self.note(trial_line(record, self.metric))

    def done(self, number: int, text: str, outcome: Outcome | None = None) -> None:
        """One of the total is over, and this is how; `outcome` is that of a trial that no study keeps."""
        if outcome is not None:
            self.board.table_trial_finished(text, outcome)
        self.board.done(number)
        if self._live is None:
            self.note(text)


class NullEvents:
    """Events that nobody watches."""

    def started(self, number: int, values: Mapping[str, Any]) -> None: ...
    def step(self, number: int, step: int, value: float) -> None: ...
    def stage(self, number: int, event: StageEvent) -> None: ...
    def finished(self, record: TrialRecord) -> None: ...
    def done(self, number: int, text: str, outcome: Outcome | None = None) -> None: ...
    def note(self, text: str) -> None: ...
    def stopping(self, text: str) -> None: ...
