"""Trials under Ray Tune: light coordinators in reused processes, each with the CPUs of its threads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from raz.engine.events import Events
from raz.engine.search import HOPELESS, OUTCOME, STEP, VALUE, OptunaPruner, StudySearch
from raz.engine.session import session
from raz.engine.stop import signals
from raz.engine.trial import attempt, resolve
from raz.study.ledger import Ledger

MOST_RESTARTS = 2  # of a trial whose process died, within one run


def coordinate(given: dict[str, Any]) -> None:
    """A trial's process: walks the stages through the store's cache and reports each step.

    When Tune stops it, `tune.report` raises SystemExit. The trial hears it as the word to stop, so that what
    it trained is kept and its locks are released; then the exit goes on its way.
    """
    stopped: SystemExit | None = None

    def progress(step: int, value: float) -> bool:
        nonlocal stopped
        try:
            tune.report({STEP: step, VALUE: value})
        except SystemExit as stop:
            stopped = stop
        return stopped is not None

    try:
        outcome = attempt(
            resolve(given["run_trial"]), json.loads(given["config"]), Path(given["store"]),
            data_root=Path(given["data_root"]) if given["data_root"] else None, progress=progress,
        )  # fmt: skip
    except OSError as error:
        last = {HOPELESS: json.dumps([error.errno, error.strerror, _text(error.filename)])}
    else:
        last = {OUTCOME: json.dumps(asdict(outcome))}
    if stopped is not None:
        raise stopped
    tune.report(last)


def _text(name: Any) -> str | None:
    return None if name is None else str(name)


def run_tuned(
    ledger: Ledger,
    store: Path,
    *,
    data_root: Path | None = None,
    run_trial: str,
    events: Events,
    jobs: int,
    threads: int,
) -> None:
    """Runs what the ledger still has to ask for, `jobs` trials at a time. Raises OSError as `attempt`."""
    constants = {
        "run_trial": run_trial,
        "store": str(store.resolve()),
        "data_root": str(data_root.expanduser().resolve()) if data_root else "",
    }
    search = StudySearch(ledger, events, constants)
    with session(jobs * threads) as folder, signals():  # after Ray, which sets handlers of its own
        tuner = tune.Tuner(
            tune.with_resources(coordinate, {"CPU": threads}),
            tune_config=tune.TuneConfig(
                search_alg=search, scheduler=OptunaPruner(), num_samples=ledger.left, max_concurrent_trials=jobs,
                reuse_actors=True, trial_name_creator=_name, trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=ledger.space.study, storage_path=str(folder / "tune"), verbose=0,
                failure_config=tune.FailureConfig(max_failures=MOST_RESTARTS),
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        except tune.TuneError:
            if search.hopeless is None:
                raise
    if search.hopeless is not None:
        raise search.hopeless


def _name(trial: Any) -> str:
    return f"trial-{trial.config['number']}-{trial.trial_id}"
