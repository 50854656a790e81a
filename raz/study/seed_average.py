"""A trial over several seeds: one run per seed, and the mean of their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from raz.pipeline.graph import total_steps
from raz.study.records import Outcome
from raz.study.trial_status import TrialStatus
from raz.utils.json_types import Json

Progress = Callable[[int, float], bool]  # (step, value) -> whether to stop


def run_over_seeds(
    run: Callable[[Mapping[str, Json], Progress | None], Outcome],
    config: Mapping[str, Json],
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> Outcome:
    """Runs a configuration (dotted name -> value) once per seed, in order, and returns the outcome of the whole.

    The steps of a seed follow those of the seed before (`seed_of_step` is the inverse), so that a pruner sees one curve
    per seed. `metrics` are means over the seeds, `seeds` has the metrics of each. The first seed that is pruned or
    fails ends the trial; the message of a failure names it.
    """
    steps_per_seed = total_steps(config) + 1
    outcomes: list[Outcome] = []
    for i, seed in enumerate(seeds):

        def report(step: int, value: float, offset: int = i * steps_per_seed) -> bool:
            return progress is not None and progress(offset + step, value)

        outcome = run({**config, "seed": seed}, report)
        outcomes.append(outcome)
        if outcome.state != TrialStatus.COMPLETE:
            message = f"seed {seed}: {outcome.message}" if outcome.message else ""
            return replace(_mean_outcome(seeds, outcomes), state=outcome.state, reason=outcome.reason, message=message,
                           trace=outcome.trace)  # fmt: skip
    return _mean_outcome(seeds, outcomes)


def _mean_outcome(seeds: Sequence[int], outcomes: Sequence[Outcome]) -> Outcome:
    by_seed = {str(seed): dict(outcome.metrics or {}) for seed, outcome in zip(seeds, outcomes, strict=False)}
    complete = [outcome.metrics or {} for outcome in outcomes if outcome.state == TrialStatus.COMPLETE]
    return Outcome(
        TrialStatus.COMPLETE,
        seconds=sum(outcome.seconds for outcome in outcomes),
        metrics=mean_metrics(complete),
        stages=tuple(stage for outcome in outcomes for stage in outcome.stages),
        device=", ".join(sorted({name for outcome in outcomes for name in outcome.device.split(", ") if name})),
        data=outcomes[-1].data,
        seeds=by_seed,
    )


def mean_metrics(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric that all runs have; {} without runs."""
    names = [name for name in runs[0] if all(name in metrics for metrics in runs)] if runs else []
    return {name: sum(float(metrics[name]) for metrics in runs) / len(runs) for name in names}


def seed_of_step(config: Mapping[str, Json], step: int) -> tuple[int, int]:
    """Index of the seed that a trial's step belongs to, and the step within that seed's run."""
    return divmod(step, total_steps(config) + 1)
