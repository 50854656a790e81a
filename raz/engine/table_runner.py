"""Runs a table: rows x data sets x seeds, a fixed list of trials. The store keeps the scores."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from raz.engine.events import NullEvents, TrialEvents
from raz.engine.interrupt import STOPPING, StopRequest, handle_signals
from raz.engine.ray_session import in_cluster, parallel_slots
from raz.engine.results import TableResult, TableTrialResult
from raz.engine.runner import Execution, check_backbone, check_data, engine_session, run_trials
from raz.engine.stage_slots import session_cpus
from raz.engine.trial_runner import DEFAULT_RUN_TRIAL, STORED_TRIAL
from raz.engine.trial_source import TableSource
from raz.errors import RazError
from raz.planning.work_order import trial_order
from raz.spec.ablation import TABLE_SPLITS, AblationTable, Profile, TableTrial
from raz.study.records import Outcome
from raz.study.remaining import finished_table_trials
from raz.study.table_runs import record_table_run
from raz.utils.machine import available_cpus


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
    """Runs every trial of the table's profile. Trials that are finished are served from the store, without Ray and
    without making a stage.

    A data set that cannot be opened is left out and named. Raises RazError when none can be, and for an unknown
    profile; RunInterrupted on SIGTERM and on the second SIGINT (the first one, or the end of `stop`'s time, ends the
    run cleanly); OSError when the store cannot be written.
    """
    scale = table.profile(profile)
    trials, left_out = _readable_trials(table, scale, data_root)
    store.mkdir(parents=True, exist_ok=True)  # a store that cannot be written raises here, before any training
    record_table_run(store, table, scale.name, [trial.config for trial in trials])
    stop = stop or StopRequest()
    outcomes: dict[int, Outcome] = {}
    with handle_signals(stop), watch or nullcontext(NullEvents()) as events:
        stop.on_signal = lambda: events.stopping(STOPPING)
        for dataset, why in left_out.items():
            events.note(f"{dataset} is left out: {why}")
        waiting = set(range(len(trials)))
        if run_trial == DEFAULT_RUN_TRIAL:  # the store has no scores of another function
            # Those with all scores of a run first, then those with the scores that the table shows.
            for splits in dict.fromkeys((TABLE_SPLITS, table.splits)):
                finished = waiting & finished_table_trials(trials, store, data_root=data_root, splits=splits)
                source = TableSource(table.table, trials, sorted(finished), splits)
                run_trials(source, Execution(store, data_root, STORED_TRIAL, inline=True), events, stop)
                outcomes |= source.outcomes
                waiting -= finished
        threads = max(trial.config.threads for trial in trials)
        slots = min(max(1, len(waiting)), jobs if jobs is not None else parallel_slots(threads))
        # The head of a cluster does not train. Beside a single GPU, further trials predict and score on CPUs.
        alone = jobs == 1 or len(waiting) <= 1 or available_cpus() < 2 * threads
        inline = inline or (slots == 1 and alone and not in_cluster())
        order = sorted(waiting)
        if not inline:
            order = [order[i] for i in trial_order([trials[i].config for i in order], TABLE_SPLITS)]
        source = TableSource(table.table, trials, order, TABLE_SPLITS)
        cpus = None if jobs is not None else session_cpus(available_cpus(), len(order), {}, threads)
        execution = Execution(store, data_root, run_trial, slots, threads, inline, cpus)
        with engine_session(execution) if order else nullcontext():
            run_trials(source, execution, events, stop)
        outcomes |= source.outcomes
    cells = tuple(
        TableTrialResult(trials[i].row, trials[i].dataset, trials[i].seed, outcomes[i]) for i in sorted(outcomes)
    )
    left = len(trials) - len(cells)
    return TableResult(table.table, scale.name, cells, left_out, left, stop.reason if left else "")


def _readable_trials(
    table: AblationTable, scale: Profile, data_root: Path | None
) -> tuple[list[TableTrial], dict[str, str]]:
    """The trials whose data sets can be opened, and why the other data sets cannot. Raises RazError when none can, and
    for a row's backbone that cannot."""
    trials = list(table.trials(scale))
    left_out: dict[str, str] = {}
    errors: list[RazError] = []
    for dataset in scale.datasets:
        try:
            check_data(next(trial.config for trial in trials if trial.dataset == dataset), data_root)
        except RazError as error:
            left_out[dataset] = str(error)
            errors.append(error)
    if errors and len(left_out) == len(scale.datasets):
        raise errors[0]
    trials = [trial for trial in trials if trial.dataset not in left_out]
    checked = {trial.config.backbone for trial in trials[:1]}
    for backbone in dict.fromkeys(trial.config.backbone for trial in trials):
        if backbone not in checked:
            check_backbone(backbone)
    return trials, left_out
