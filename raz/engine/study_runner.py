"""Runs a study: resumes it, runs its trials, then predicts the test images once with the best configuration.

All state is in the study and the store.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raz.config import TrialConfig, diff, from_parameters
from raz.engine.events import NullEvents, TrialEvents
from raz.engine.interrupt import StopRequest, handle_signals
from raz.engine.results import Compute, StudyResult, total_compute
from raz.engine.runner import Execution, engine_session, parallel_trials, run_trials
from raz.engine.stage_slots import session_cpus
from raz.engine.trial_runner import DEFAULT_RUN_TRIAL, import_function
from raz.engine.trial_source import StudySource
from raz.errors import RazError, TrialFailure
from raz.spec.search_space import SearchSpace
from raz.store.failures import DETERMINISTIC_FAILURES
from raz.study.attributes import StudyAttributes
from raz.study.ledger import Ledger, open_ledger
from raz.study.records import TrialRecord
from raz.study.remaining import RecordedTrial, run_target, superseded
from raz.study.seed_average import mean_metrics
from raz.study.trial_status import TrialStatus
from raz.utils.json_types import Json
from raz.utils.machine import available_cpus

if TYPE_CHECKING:  # imports torch
    from raz.pipeline.executor import StageProvider


class ScoringStopped(Exception):
    """A stop was requested while the held-out scores were made."""


ENDED = (TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.FAILED)


def run_study(
    space: SearchSpace,
    store: Path,
    *,
    data_root: Path | None = None,
    trials: int | None = None,
    jobs: int | None = None,
    inline: bool = False,
    retry: bool = False,
    run_trial: str = DEFAULT_RUN_TRIAL,
    watch: Callable[[int], AbstractContextManager[TrialEvents]] | None = None,
    stop: StopRequest | None = None,
    command: str = "",
) -> StudyResult:
    """Runs a study, new or resumed, until it has as many finished trials as its target.

    `trials` is a target other than the file's. `watch(left)` gives a context of TrialEvents. `command` is recorded with
    the study, for its readers. Raises RazError for an error that every trial would meet (a missing data set, a study of
    the same name with another search space); RunInterrupted on SIGTERM and SIGINT (with a `stop` on the second SIGINT:
    the first one, or the end of its time, ends the run cleanly); OSError when the store cannot be written.
    """
    began = time.monotonic()
    target = run_target(space, trials)
    with handle_signals(stop), open_ledger(store, space) as ledger:
        if command and ledger.study.user_attrs.get("command") != command:
            ledger.study.set_user_attr("command", command)
        if retry:
            _clear_stage_failures(ledger, store, data_root, run_trial)
        left = ledger.recover(target, retry=retry)
        slots = 1 if inline else min(left, parallel_trials(space, jobs))
        if space.fixed and slots > 1:
            ledger.order_queue()
        ended_before = {r.number for r in ledger.iter_records() if r.state in ENDED}
        machine = available_cpus() if jobs is None else jobs * space.threads
        cpus = session_cpus(machine, max(1, left), space.resources, space.threads)
        execution = Execution(store, data_root, run_trial, max(1, slots), space.threads, inline, cpus)
        with ExitStack() as stack:
            if left:
                stack.enter_context(engine_session(execution))
                with watch(left) if watch is not None else nullcontext(NullEvents()) as events:
                    run_trials(StudySource(ledger), execution, events, stop)
            stopped = stop.reason if stop is not None and stop.requested and ledger.left else ""
            return _build_result(ledger, execution, ended_before, began, stopped, stop)


def _clear_stage_failures(ledger: Ledger, store: Path, data_root: Path | None, run_trial: str) -> None:
    """Removes the recorded failures of stages of failed trials, so that these stages are made again."""
    if run_trial != DEFAULT_RUN_TRIAL:
        return
    from raz.pipeline.trial import forget_failures

    for record in ledger.iter_records():
        if record.state == TrialStatus.FAILED and record.reason in DETERMINISTIC_FAILURES and record.config:
            with suppress(RazError):  # an invalid configuration has no failed stages
                forget_failures(from_parameters(record.config), store, data_root=data_root)


def _build_result(
    ledger: Ledger,
    execution: Execution,
    ended_before: set[int],
    began: float,
    stopped: str,
    stop: StopRequest | None,
) -> StudyResult:
    """The result of a run. `ended_before`: trials that had ended before it. `began`: its start, on the monotonic
    clock."""
    space, best = ledger.space, ledger.best()
    trials: list[RecordedTrial] = []
    ran: list[Compute] = []  # of the trials of this run
    for record in ledger.iter_records():
        trials.append(RecordedTrial(record.number, record.state, record.reason, record.retry_of))
        if record.state in ENDED and record.number not in ended_before:
            ran.append(total_compute([record]))
    replaced = superseded(trials)
    final = [trial for trial in trials if trial.state in ENDED and trial.number not in replaced]
    held_out: Mapping[str, float] = {}
    baselines: Mapping[str, Mapping[str, float]] = {}
    trouble = ""
    changed: Mapping[str, tuple[Json, Json]] = {}
    if best is not None:
        config = from_parameters(best.config)
        changed = diff(space.base, config)
    if best is not None and not stopped:  # test images are predicted only after a complete search
        try:
            held_out = _held_out(ledger, best, config, execution, stop)
            baselines = _baselines(ledger, config, execution.data_root)
        except TrialFailure as error:
            trouble = str(error)
        except ScoringStopped:  # the next command predicts the test images
            stopped = stop.reason if stop is not None else ""
    return StudyResult(
        study=space.study, metric=space.metric,
        counts={state.value: sum(trial.state == state for trial in final) for state in ENDED},
        reasons=Counter(trial.reason for trial in final if trial.state == TrialStatus.FAILED), ran=len(ran),
        compute=Compute(sum(each.spent for each in ran), sum(each.saved for each in ran)),
        front=ledger.front() if len(space.objectives) > 1 else (), left=ledger.left, stopped=stopped,
        best=best, changed=changed, held_out=held_out, baselines=baselines, trouble=trouble, store=str(execution.store),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def _held_out(
    ledger: Ledger, best: TrialRecord, config: TrialConfig, execution: Execution, stop: StopRequest | None
) -> Mapping[str, float]:
    """The best trial's metrics of the validation and the test images, predicted once and then recorded in the study.

    The networks run where those of the trials do; this process makes the scores alone. Raises TrialFailure as
    `raz.pipeline.trial.run_trial`.
    """
    recorded = StudyAttributes.parse(ledger.study.user_attrs).held_out
    if recorded is not None and recorded.trial == best.number:
        return recorded.metrics
    seeds = ledger.space.averaged_seeds or (config.seed,)
    run = import_function(execution.run_trial)

    def scores(make: StageProvider | None) -> Mapping[str, float]:
        results = [
            run(
                replace(config, seed=seed), execution.store, data_root=execution.data_root, splits=("val", "test"),
                make=make,
            )
            for seed in seeds
        ]  # fmt: skip
        return mean_metrics([result.metrics for result in results])

    if execution.inline:
        metrics = scores(None)
    else:
        with engine_session(execution), handle_signals(stop):  # after Ray, which sets handlers of its own
            from raz.engine.broker_client import own_stages

            def check() -> None:
                if stop is not None and stop.requested:
                    raise ScoringStopped

            with own_stages(execution.store, ledger.space.resources, seeds=seeds, heartbeat=check) as client:
                metrics = scores(client)
    ledger.study.set_user_attr("held_out", {"trial": best.number, "metrics": metrics})
    return metrics


def _baselines(ledger: Ledger, config: TrialConfig, data_root: Path | None) -> Mapping[str, Mapping[str, float]]:
    """The errors of the data set's baselines (median, ridge regression), recorded in the study, since
    computing them reads every image."""
    from raz.data import open_dataset
    from raz.data.baseline import baselines

    recorded = StudyAttributes.parse(ledger.study.user_attrs).baselines
    if config.dataset not in recorded:
        recorded = {**recorded, config.dataset: baselines(open_dataset(config.dataset, data_root))}
        ledger.study.set_user_attr("baselines", recorded)
    return recorded[config.dataset]
