"""Trials one after the other in this process, without Ray."""

from __future__ import annotations

from pathlib import Path

from raz.engine.events import TrialEvents
from raz.engine.interrupt import StopRequest
from raz.engine.trial_runner import import_function, run_attempt
from raz.pipeline.events import StageEvent
from raz.study.ledger import Ledger


def run_inline(
    ledger: Ledger,
    store: Path,
    *,
    data_root: Path | None = None,
    run_trial: str,
    events: TrialEvents,
    stop: StopRequest | None = None,
) -> None:
    """Runs what the ledger still has to ask for. A trial that `stop` ends goes back into the queue."""
    function = import_function(run_trial)
    stop = stop or StopRequest()
    while not stop.asked and (asked := ledger.ask()) is not None:
        number, values, config = asked
        events.started(number, values)
        pruned = False

        def progress(step: int, value: float, number: int = number) -> bool:
            nonlocal pruned
            events.step(number, step, value)
            pruned = ledger.report(number, step, value)
            return pruned or stop.asked

        def log(event: StageEvent, number: int = number) -> None:
            events.stage(number, event)

        outcome = run_attempt(
            function, config, store, data_root=data_root, progress=progress, log=log, seeds=ledger.space.averaged_seeds
        )
        if outcome.state == "pruned" and not pruned:
            ledger.requeue(number)
            events.done(number, f"trial {number}: stopped, and queued again")
        else:
            events.finished(ledger.tell(number, outcome))
