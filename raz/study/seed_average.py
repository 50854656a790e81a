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

    Steps of the i-th seed follow those of the seed before (`seed_of_step` is the inverse), so that a pruner sees one
    curve per seed. `metrics` are means over the seeds, `seeds` has those of each. The first seed that is pruned or
    fails ends the trial; the message of a failure names it.
    """
    span = total_steps(config) + 1
    outcomes: list[Outcome] = []
    for i, seed in enumerate(seeds):

        def report(step: int, value: float, offset: int = i * span) -> bool:
            return progress is not None and progress(offset + step, value)

        outcome = run({**config, "seed": seed}, report)
        outcomes.append(outcome)
        if outcome.state != TrialStatus.COMPLETE:
            message = f"seed {seed}: {outcome.message}" if outcome.message else ""
            return replace(_mean_outcome(seeds, outcomes), state=outcome.state, reason=outcome.reason, message=message,
                           trace=outcome.trace)  # fmt: skip
    return _mean_outcome(seeds, outcomes)


def _mean_outcome(seeds: Sequence[int], outcomes: Sequence[Outcome]) -> Outcome:
    each = {str(seed): dict(outcome.metrics or {}) for seed, outcome in zip(seeds, outcomes, strict=False)}
    complete = [outcome.metrics or {} for outcome in outcomes if outcome.state == TrialStatus.COMPLETE]
    names = [name for name in complete[0] if all(name in metrics for metrics in complete)] if complete else []
    return Outcome(
        TrialStatus.COMPLETE,
        seconds=sum(outcome.seconds for outcome in outcomes),
        metrics={name: sum(metrics[name] for metrics in complete) / len(complete) for name in names},
        stages=tuple(stage for outcome in outcomes for stage in outcome.stages),
        device=outcomes[-1].device,
        data=outcomes[-1].data,
        seeds=each,
    )


def seed_of_step(config: Mapping[str, Json], step: int) -> tuple[int, int]:
    """Index of the seed that a trial's step belongs to, and the step within that seed's run."""
    return divmod(step, total_steps(config) + 1)
