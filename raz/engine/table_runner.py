"""Fills a table: rows x data sets x seeds, a fixed design without a search. The store keeps what was found."""

from __future__ import annotations

import json
import shlex
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from raz.config import parameters
from raz.engine.events import ConsoleProgress, NullEvents, TrialEvents
from raz.engine.interrupt import STOPPING, StopRequest, handle_signals
from raz.engine.progress import spent_and_saved, spent_and_saved_seconds
from raz.engine.ray_session import cluster_jobs
from raz.engine.study_runner import check_data, parallel_slots
from raz.engine.summary import to_json
from raz.engine.trial_runner import DEFAULT_RUN_TRIAL, import_function, run_attempt
from raz.errors import FailureReason, RazError
from raz.pipeline.events import StageEvent
from raz.planning.cost_model import CostModel
from raz.planning.schedule import max_live_trials
from raz.planning.work_order import expected_seconds, trial_order
from raz.spec.ablation import SPLITS, AblationTable, TableTrial
from raz.spec.ablation_yaml import parse_table
from raz.study.bucket_sync import sync_to_bucket
from raz.study.records import Outcome, TrialStatus
from raz.study.table_runs import record_table_run
from raz.utils.formatting import duration
from raz.utils.yamlfile import Document

MOST_RESTARTS = 2  # of a trial whose process died
POLL_SECONDS = 0.5  # seconds between two looks whether the run was asked to stop


@dataclass(frozen=True)
class TableTrialResult:
    """One seed of one cell, and how its trial ended."""

    row: str
    dataset: str
    seed: int
    outcome: Outcome


@dataclass(frozen=True)
class TableResult:
    """What a run of a table did."""

    table: str
    profile: str
    cells: tuple[TableTrialResult, ...]
    left_out: Mapping[str, str]  # data set -> why it could not be opened
    left: int = 0  # trials that are still to run
    stopped: str = ""  # why the run ended before its last trial

    @property
    def failed(self) -> tuple[TableTrialResult, ...]:
        return tuple(cell for cell in self.cells if cell.outcome.state != "complete")


def run_table(
    table: AblationTable,
    store: Path,
    *,
    profile: str | None = None,
    data_root: Path | None = None,
    jobs: int | None = None,
    inline: bool = False,
    run_trial: str = DEFAULT_RUN_TRIAL,
    watch: AbstractContextManager[TrialEvents] | None = None,
    stop: StopRequest | None = None,
) -> TableResult:
    """Runs every trial of the table's profile; what the store holds is served from there.

    A data set that cannot be opened is left out and named. Raises RazError when none can be, and for an
    unknown profile; Interrupted on SIGTERM and SIGINT (with a `stop` on the second one: the first, or its time being
    up, ends the run cleanly); OSError when the store cannot be written.
    """
    chosen = table.profile(profile)
    left_out: dict[str, str] = {}
    troubles: list[RazError] = []
    trials = list(table.trials(chosen))
    for dataset in chosen.datasets:
        try:
            check_data(next(t.config for t in trials if t.dataset == dataset), data_root)
        except RazError as error:
            left_out[dataset] = str(error)
            troubles.append(error)
    if troubles and len(left_out) == len(chosen.datasets):
        raise troubles[0]
    trials = [trial for trial in trials if trial.dataset not in left_out]
    store.mkdir(parents=True, exist_ok=True)  # a store that cannot be written is told before any training
    record_table_run(store, table, chosen.name, [trial.config for trial in trials])
    threads = max(trial.config.threads for trial in trials)
    jobs = min(len(trials), jobs if jobs is not None else parallel_slots(threads))
    stop = stop or StopRequest()
    with handle_signals(stop), watch or _silent() as events:
        stop.told = lambda: events.stopping(STOPPING)
        for dataset, why in left_out.items():
            events.note(f"{dataset} is left out: {why}")
        if inline or (jobs == 1 and cluster_jobs(threads) is None):  # a head does not train
            cells = _run_serial(trials, store, data_root, run_trial, events, stop)
        else:
            cells = _run_parallel(trials, store, data_root, run_trial, events, jobs, threads, stop)
    left = len(trials) - len(cells)
    return TableResult(table.table, chosen.name, cells, left_out, left, stop.why if left else "")


def _run_serial(
    trials: list[TableTrial],
    store: Path,
    data_root: Path | None,
    run_trial: str,
    events: TrialEvents,
    stop: StopRequest,
) -> tuple[TableTrialResult, ...]:
    function = import_function(run_trial)
    cells = []
    for i, trial in enumerate(trials):
        if stop.asked:
            break
        events.started(i, _trial_labels(trial))

        def log(event: StageEvent, i: int = i) -> None:
            events.stage(i, event)

        outcome = run_attempt(
            function, parameters(trial.config), store, data_root=data_root, splits=SPLITS, log=log,
            progress=lambda step, value: stop.asked,
        )  # fmt: skip
        if outcome.state == "pruned":  # nobody prunes in a table: the stop met it
            break
        cells.append(_record_outcome(i, trial, outcome, events))
    return tuple(cells)


def _run_parallel(
    trials: list[TableTrial],
    store: Path,
    data_root: Path | None,
    run_trial: str,
    events: TrialEvents,
    jobs: int,
    threads: int,
    stop: StopRequest,
) -> tuple[TableTrialResult, ...]:
    """Each trial a Ray task that holds no CPU while the broker has its stages made, `jobs` at a time. Those that share
    least begin first."""
    from raz.engine.ray_session import COORDINATOR, coordinator_resources, session, set_ray_environment

    set_ray_environment()
    import ray

    order = trial_order([trial.config for trial in trials], SPLITS)
    prices = CostModel(store, data_root)
    root = str(data_root.expanduser().resolve()) if data_root else None
    cells: dict[int, TableTrialResult] = {}
    most = max_live_trials(jobs, eager=True)
    with session(jobs * threads), handle_signals(stop):
        held = {name: n for name, n in coordinator_resources().items() if name == COORDINATOR}
        task = ray.remote(num_cpus=0, resources=held, max_retries=MOST_RESTARTS)(_trial_task)
        ear: Any = ray.remote(num_cpus=0, max_restarts=-1)(EventCollector).remote()  # Ray knows its methods as it runs
        running: dict[Any, int] = {}

        def hear() -> None:
            with suppress(ray.exceptions.RayActorError):  # it went with its machine: what it had heard is not shown
                for i, event in ray.get(ear.heard.remote()):
                    events.stage(i, StageEvent(**event))

        while order or running:
            if stop.asked:  # what runs is given up: of each stage in the making at most an epoch is lost
                for waiting in running:
                    ray.cancel(waiting)
                break
            while order and len(running) < most:
                i = order.pop(0)
                events.started(i, _trial_labels(trials[i]))
                config = parameters(trials[i].config)
                seconds = expected_seconds(trials[i].config, SPLITS, prices)
                running[task.remote(run_trial, config, str(store.resolve()), root, seconds, ear, i)] = i
            over, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
            hear()
            if not over:
                continue
            done = over[0]
            i = running.pop(done)
            try:
                outcome = Outcome.from_dict(ray.get(done))
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, OSError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:  # its process, or its node
                message = f"its process died, again after each restart ({type(error).__name__})"
                outcome = Outcome(TrialStatus.FAILED, reason=FailureReason.LOST, message=message)
            cells[i] = _record_outcome(i, trials[i], outcome, events)
    return tuple(cells[i] for i in sorted(cells))


class EventCollector:
    """Where the trials of a table, which run as tasks, say what happens to their stages."""

    def __init__(self) -> None:
        self._told: list[tuple[int, dict[str, Any]]] = []

    def tell(self, i: int, event: dict[str, Any]) -> None:
        self._told.append((i, event))

    def heard(self) -> list[tuple[int, dict[str, Any]]]:
        """What was told since it was asked last."""
        told, self._told = self._told, []
        return told


def _trial_task(
    run_trial: str, config: dict[str, Any], store: str, data_root: str | None, seconds: dict[str, float], ear: Any,
    i: int,
) -> dict[str, Any]:  # fmt: skip
    from raz.engine.broker_client import BrokerClient

    told: list[Any] = []

    def log(event: StageEvent) -> None:
        told[:] = [ear.tell.remote(i, asdict(event))]

    asking = BrokerClient(
        Path(store), uuid.uuid4().hex, {}, seconds=seconds, log=log,
    )  # fmt: skip
    root = Path(data_root) if data_root else None
    try:
        function = import_function(run_trial)
        return asdict(run_attempt(function, config, Path(store), data_root=root, log=log, splits=SPLITS, make=asking))
    finally:
        asking.leave()
        if told:  # one caller's calls arrive in order: with the last the driver hears them all
            import ray

            ray.wait(told, timeout=POLL_SECONDS)


def _trial_labels(trial: TableTrial) -> dict[str, Any]:
    return {"row": trial.row, "dataset": trial.dataset, "seed": trial.seed}


def _record_outcome(i: int, trial: TableTrial, outcome: Outcome, events: TrialEvents) -> TableTrialResult:
    where = f"{trial.row}, {trial.dataset}, seed {trial.seed}"
    if outcome.state == "complete":
        shown = {name: (outcome.metrics or {}).get(name) for name in ("test.mae", "test.rmse")}
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)
        events.done(i, f"{where}: {numbers} ({duration(outcome.seconds)})", outcome)
    else:
        first = outcome.message.splitlines()[0] if outcome.message else ""
        events.done(i, f"{where}: failed ({outcome.reason}) {first}", outcome)
    return TableTrialResult(trial.row, trial.dataset, trial.seed, outcome)


@contextmanager
def _silent() -> Iterator[TrialEvents]:
    yield NullEvents()


def run_table_file(
    source: Document,
    store: Path,
    *,
    settings: Mapping[str, Any],
    data_root: Path | None = None,
    profile: str | None = None,
    jobs: int | None = None,
    inline: bool = False,
    as_json: bool = False,
    max_hours: float | None = None,
    run_trial: str = DEFAULT_RUN_TRIAL,
) -> int:
    """Runs the table of a document and prints what was done. Returns 0, 1 when a trial failed, and where a clean stop
    left more to do 3 (the `max_hours` are up) or 130 (Ctrl-C)."""
    stop = StopRequest(max_hours)
    table = parse_table(source, settings, profile, data_root=data_root)
    total = sum(1 for _ in table.trials(table.profile(profile)))
    with redirect_stdout(sys.stderr), sync_to_bucket(store):  # whatever a library prints, stdout is the result's
        result = run_table(
            table, store, profile=profile, data_root=data_root, jobs=jobs, inline=inline, run_trial=run_trial,
            watch=ConsoleProgress(Console(file=sys.stderr), total, "test.mae", title=f"table {table.table}"), stop=stop,
        )  # fmt: skip
    own = Path(source.name).is_file()  # else a shipped one, known by its name
    report = _report(source.name if own else result.table, result.profile, store, data_root, settings)
    print(to_json(_as_json(result)) if as_json else "\n".join([*_lines(result), f"next: {report}"]))
    if result.stopped:
        print(f"{result.stopped}; the same command goes on from here", file=sys.stderr)
        return stop.code
    return 1 if result.failed else 0


def _as_json(result: TableResult) -> dict[str, Any]:
    cells = [
        {
            "row": cell.row, "dataset": cell.dataset, "seed": cell.seed, "state": cell.outcome.state,
            "metrics": dict(cell.outcome.metrics or {}), "reason": cell.outcome.reason,
            "message": cell.outcome.message, "seconds": round(cell.outcome.seconds, 3),
        }
        for cell in result.cells
    ]  # fmt: skip
    spent, saved = _compute(result)
    return {
        "table": result.table, "profile": result.profile, "cells": cells, "left_out": dict(result.left_out),
        "compute": {"spent_seconds": round(spent, 3), "saved_seconds": round(saved, 3)}, "left": result.left,
        "stopped": result.stopped,
    }  # fmt: skip


def _compute(result: TableResult) -> tuple[float, float]:
    used = [spent_and_saved_seconds(cell.outcome.stages) for cell in result.cells]
    return sum(spent for spent, _ in used), sum(saved for _, saved in used)


def _lines(result: TableResult) -> list[str]:
    failed = result.failed
    out = [
        f"table {result.table}, profile {result.profile}: {len(result.cells) - len(failed)} trials done,"
        f" {len(failed)} failed"
    ]
    spent, saved = _compute(result)
    if spent or saved:
        out.append(f"compute: {spent_and_saved(spent, saved)}")
    if result.stopped:
        out.append(f"{result.stopped}: {result.left} trials are left, and the same command goes on from here")
    out += [
        f"  {cell.row}, {cell.dataset}, seed {cell.seed}: {cell.outcome.reason}: {cell.outcome.message}"
        for cell in failed
    ]
    return out


def _report(table: str, profile: str, store: Path, data_root: Path | None, settings: Mapping[str, Any]) -> str:
    """The command that shows what was run: what changes a trial must be said again."""
    words = ["raz-sweep", "report", "--table", table, "--profile", profile]
    words += ["--store", str(store)] if str(store) != "raz-store" else []
    words += ["--data-root", str(data_root)] if data_root is not None else []
    for name, value in settings.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)
