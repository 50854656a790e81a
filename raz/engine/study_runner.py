"""A whole search: settle and resume, run the trials, then look once at the test images with the best.

The study and the store are what stays; everything that Ray holds may be thrown away.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raz.config import TrialConfig, diff, from_parameters
from raz.engine.events import NullEvents, TrialEvents
from raz.engine.inline import run_inline
from raz.engine.interrupt import STOPPING, StopRequest, handle_signals
from raz.engine.progress import spent_and_saved_seconds
from raz.engine.ray_session import cluster_jobs
from raz.engine.trial_runner import DEFAULT_RUN_TRIAL, import_function
from raz.errors import RazError, TrialFailure
from raz.spec.search_space import SearchSpace
from raz.store.cache import DETERMINISTIC_FAILURES
from raz.study.ledger import Ledger, open_ledger
from raz.study.records import TrialRecord
from raz.study.remaining import RecordedTrial, run_target, superseded
from raz.utils.machine import available_cpus

FINISHED_STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class SweepResult:
    """What a search found."""

    study: str
    metric: str
    counts: Mapping[str, int]  # complete, pruned, failed (without those that were run again)
    reasons: Mapping[str, int]  # of the failures
    ran: int  # trials this run finished
    best: TrialRecord | None
    changed: Mapping[str, tuple[Any, Any]]  # dotted name -> (base, best)
    held_out: Mapping[str, float]  # the best trial's metrics with the test split, predicted after the search
    baselines: Mapping[str, Mapping[str, float]]  # the same errors of blind guesses: median, ridge
    front: tuple[TrialRecord, ...] = ()  # of several objectives: the trials that none beats in every one
    trouble: str = ""  # why the test images could not be predicted
    store: str = ""
    seconds: float = 0.0
    spent: float = 0.0  # seconds of stages made in this run
    saved: float = 0.0  # seconds that its trials would have spent on stages they found made
    left: int = 0  # trials that are still to run
    stopped: str = ""  # why the run ended before its target

    @property
    def failed(self) -> int:
        return self.counts.get("failed", 0)

    def as_json(self) -> dict[str, Any]:
        """JSON values only."""
        best = self.best
        return {
            "study": self.study,
            "metric": self.metric,
            "trials": dict(self.counts),
            "failures": dict(self.reasons),
            "ran": self.ran,
            "best": best
            and {
                "trial": best.number,
                "value": best.value,
                "values": dict(best.values),
                "changed": {name: {"base": a, "best": b} for name, (a, b) in sorted(self.changed.items())},
                "validation": dict(best.metrics),
                "test": {name: value for name, value in self.held_out.items() if name.startswith("test.")},
                "baselines": {name: dict(errors) for name, errors in self.baselines.items()},
                "trouble": self.trouble,
            },
            "front": [
                {"trial": r.number, "objectives": dict(r.objectives), "values": dict(r.values)} for r in self.front
            ],
            "store": self.store,
            "seconds": round(self.seconds, 3),
            "compute": {"spent_seconds": round(self.spent, 3), "saved_seconds": round(self.saved, 3)},
            "left": self.left,
            "stopped": self.stopped,
        }


def parallel_slots(threads: int) -> int:
    """Stages of `threads` CPUs that may run at a time: on the cluster this process has joined, else on this machine."""
    joined = cluster_jobs(threads)
    return joined if joined is not None else max(1, available_cpus() // threads)


def parallel_trials(space: SearchSpace, jobs: int | None = None) -> int:
    """Trials at a time: as asked, else one for each `threads` cores."""
    return jobs if jobs is not None else parallel_slots(space.threads)


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
    watch: Callable[[int], Any] | None = None,
    stop: StopRequest | None = None,
    command: str = "",
) -> SweepResult:
    """Runs a study until its target, from wherever it stands.

    `trials` is a target other than the file's; `watch(left)` gives a context of Events. Raises
    RazError for what would meet every trial (a data set that is not there, a study that asked
    something else), Interrupted on SIGTERM and SIGINT (with a `stop` on the second one: the first, or its time
    being up, ends the run cleanly), OSError when the store cannot be written. `command` is kept with the study, for
    who reads of it later.
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
        before = {r.number for r in ledger.iter_records() if r.state in FINISHED_STATES}
        if left:
            with (watch or _null_events)(left) as events:
                if stop is not None:
                    stop.told = lambda: events.stopping(STOPPING)
                if inline:
                    run_inline(ledger, store, data_root=data_root, run_trial=run_trial, events=events, stop=stop)
                else:
                    from raz.engine.ray_session import set_ray_environment

                    set_ray_environment()
                    from raz.engine.tune_runner import run_tuned

                    run_tuned(
                        ledger, store, data_root=data_root, run_trial=run_trial, events=events,
                        jobs=slots, threads=space.threads, stop=stop,
                    )  # fmt: skip
        stopped = stop.why if stop is not None and stop.asked and ledger.left else ""
        return _build_result(ledger, store, data_root, run_trial, before, began, stopped)


def _clear_stage_failures(ledger: Ledger, store: Path, data_root: Path | None, run_trial: str) -> None:
    """Lets the stages of failed trials be tried again: the store remembers why they could not be made."""
    if run_trial != DEFAULT_RUN_TRIAL:
        return
    from raz.pipeline.trial import forget_failures

    for record in ledger.iter_records():
        if record.state == "failed" and record.reason in DETERMINISTIC_FAILURES and record.config:
            with suppress(RazError):  # what cannot be run has no stages that failed
                forget_failures(from_parameters(record.config), store, data_root=data_root)


@contextmanager
def _null_events(left: int) -> Iterator[TrialEvents]:
    yield NullEvents()


def _build_result(
    ledger: Ledger,
    store: Path,
    data_root: Path | None,
    run_trial: str,
    before: set[int],
    began: float,
    stopped: str,
) -> SweepResult:
    space, best = ledger.space, ledger.best()
    over: dict[int, tuple[str, str]] = {}  # trial -> state, reason
    records: list[RecordedTrial] = []
    used: list[tuple[float, float]] = []  # of the trials of this run
    for record in ledger.iter_records():
        records.append(RecordedTrial(record.number, record.state, record.reason, record.retry_of))
        if record.state in FINISHED_STATES:
            over[record.number] = record.state, record.reason
            if record.number not in before:
                used.append(spent_and_saved_seconds(record.stages))
    again = superseded(records)
    final = [ended for number, ended in over.items() if number not in again]
    held_out: Mapping[str, float] = {}
    guesses: Mapping[str, Mapping[str, float]] = {}
    trouble = ""
    changed: Mapping[str, tuple[Any, Any]] = {}
    if best is not None:
        config = from_parameters(best.config)
        changed = diff(space.base, config)
    if best is not None and not stopped:  # the test images are for a search that has come to its end
        try:
            held_out = _held_out(ledger, best, config, store, data_root, run_trial)
            guesses = _baselines(ledger, config, data_root)
        except TrialFailure as error:
            trouble = str(error)
    return SweepResult(
        study=space.study, metric=space.metric,
        counts={state: sum(found == state for found, _ in final) for state in ("complete", "pruned", "failed")},
        reasons=Counter(reason for state, reason in final if state == "failed"),
        ran=len(used), spent=sum(spent for spent, _ in used), saved=sum(saved for _, saved in used),
        front=ledger.front() if len(space.objectives) > 1 else (), left=ledger.left, stopped=stopped,
        best=best, changed=changed, held_out=held_out, baselines=guesses, trouble=trouble, store=str(store),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def _held_out(
    ledger: Ledger, best: TrialRecord, config: TrialConfig, store: Path, data_root: Path | None, run_trial: str
) -> Mapping[str, float]:
    """The best trial's metrics with the test split: predicted once, then kept in the study."""
    kept = ledger.study.user_attrs.get("held_out", {})
    if kept.get("trial") == best.number:
        return dict(kept["metrics"])
    seeds = ledger.space.averaged_seeds or (config.seed,)
    each = [
        import_function(run_trial)(
            replace(config, seed=seed), store, data_root=data_root, splits=("val", "test")
        ).metrics
        for seed in seeds
    ]
    names = [name for name in each[0] if all(name in metrics for metrics in each)]
    metrics = {name: sum(float(metrics[name]) for metrics in each) / len(each) for name in names}
    ledger.study.set_user_attr("held_out", {"trial": best.number, "metrics": metrics})
    return metrics


def _baselines(ledger: Ledger, config: TrialConfig, data_root: Path | None) -> Mapping[str, Mapping[str, float]]:
    """What the data set's blind guesses score, kept in the study: they read every image."""
    from raz.data import open_dataset
    from raz.data.baseline import baselines

    kept: dict[str, dict[str, dict[str, float]]] = ledger.study.user_attrs.get("baselines", {})
    if config.dataset not in kept:
        kept = {**kept, config.dataset: baselines(open_dataset(config.dataset, data_root))}
        ledger.study.set_user_attr("baselines", kept)
    return kept[config.dataset]


def check_data(config: TrialConfig, data_root: Path | None) -> None:
    """Raises RazError when the data set cannot be opened, before a sweep is built on it."""
    from raz.data import open_dataset

    open_dataset(config.dataset, data_root)
    if config.backbone.weights != "none":  # weights that are missing or of another network would meet every trial
        from raz.pipeline.builders import build_backbone

        build_backbone(config.backbone, config.seed)
