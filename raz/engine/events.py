"""What a run shows while it runs: one screen on a terminal, else one line for each event."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live

from raz.engine.progress import ProgressView
from raz.pipeline.events import StageEvent
from raz.pipeline.graph import TRAINED
from raz.study.records import Outcome, TrialRecord
from raz.study.trial_status import TrialStatus
from raz.utils.formatting import assignments, duration
from raz.utils.json_types import Json

REFRESH_RATE = 4  # redraws a second


class TrialEvents(Protocol):
    """Callbacks of an executor. `number` is that of the trial in its study or table."""

    def started(self, number: int, values: Mapping[str, Json]) -> None:
        """A trial starts; `values` are the values that distinguish it from other trials."""

    def step(self, number: int, step: int, value: float) -> None:
        """A validation value of a trial."""

    def stage(self, number: int, event: StageEvent) -> None:
        """An event of a stage of a trial."""

    def finished(self, record: TrialRecord) -> None:
        """A trial of a study has ended."""

    def done(self, number: int, text: str, outcome: Outcome | None = None) -> None:
        """A trial without a record has ended, or is queued again. `text`: its line. `outcome`: that of a table's."""

    def note(self, text: str) -> None:
        """A line that belongs to no trial."""

    def stopping(self, text: str) -> None:
        """A clean stop was requested; may be called in a signal handler."""


def trial_line(record: TrialRecord, metric: str) -> str:
    """A finished trial in one line: its value, or why it has none, its seconds and its searched values."""
    head = f"trial {record.number}"
    tail = f"({duration(record.seconds)})  {assignments(record.values)}"
    if record.state == TrialStatus.COMPLETE:
        shared = sum(stage.hit for stage in record.stages)
        from_store = f", {shared} of {len(record.stages)} stages from the store" if record.stages else ""
        result = "complete" if record.value is None else f"{metric} {record.value:.4g}"
        return f"{head}: {result}{from_store} {tail}"
    if record.state == TrialStatus.PRUNED and record.pruned_at:
        step, value = record.pruned_at
        return f"{head}: pruned at step {step} ({value:.4g}) {tail}"
    message = record.message.splitlines()[0] if record.message else ""
    return f"{head}: {record.state}{f' ({record.reason})' if record.reason else ''} {message} {tail}"


class ConsoleProgress:
    """TrialEvents on a rich console. A context manager."""

    def __init__(
        self, console: Console, total: int, metric: str, direction: str = "minimize", title: str = "raz-sweep"
    ) -> None:
        self.console, self.metric = console, metric
        self.view = ProgressView(title, total, metric, direction)
        self._live: Live | None = None
        # (kind, key, reason) of printed stage lines, which several trials may report
        self._shown: set[tuple[str, str, str]] = set()
        if console.is_terminal:
            self._live = Live(
                console=console, get_renderable=lambda: self.view, refresh_per_second=REFRESH_RATE, transient=True,
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
        if self._live is None:
            self.note(text)
        self.view.stopping = text

    def started(self, number: int, values: Mapping[str, Json]) -> None:
        self.view.started(number, values)
        if self._live is None:
            self.note(f"trial {number}: started  {assignments(values)}")

    def step(self, number: int, step: int, value: float) -> None:
        """Nothing: the event of its epoch is shown."""

    def stage(self, number: int, event: StageEvent) -> None:
        self.view.stage(number, event)
        training = event.kind in ("started", "finished", "stopped", "failed") and event.stage in TRAINED
        remark = event.kind in ("note", "warning")
        line = (event.kind, event.key, event.reason if remark else "")
        wanted = event.kind == "warning" or (self._live is None and (remark or training))
        if wanted and line not in self._shown:
            self.note(f"  {event}")
            self._shown.add(line)
        if event.kind in ("stopped", "failed"):  # its next start is shown again
            self._shown.discard(("started", event.key, ""))

    def finished(self, record: TrialRecord) -> None:
        self.view.finished(record)
        if self._live is None:
            self.note(trial_line(record, self.metric))

    def done(self, number: int, text: str, outcome: Outcome | None = None) -> None:
        if outcome is not None:
            self.view.table_trial_finished(text, outcome)
        self.view.done(number)
        if self._live is None:
            self.note(text)


class NullEvents:
    """TrialEvents that show nothing."""

    def started(self, number: int, values: Mapping[str, Json]) -> None: ...
    def step(self, number: int, step: int, value: float) -> None: ...
    def stage(self, number: int, event: StageEvent) -> None: ...
    def finished(self, record: TrialRecord) -> None: ...
    def done(self, number: int, text: str, outcome: Outcome | None = None) -> None: ...
    def note(self, text: str) -> None: ...
    def stopping(self, text: str) -> None: ...
