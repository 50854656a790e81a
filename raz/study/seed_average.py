"""One trial over several seeds: the same configuration run for each, judged by the mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raz.pipeline.graph import total_steps
from raz.study.records import Outcome, TrialStatus

Progress = Callable[[int, float], bool]  # (step, value) -> stop?


def run_over_seeds(
    run: Callable[[Mapping[str, Any], Progress | None], Outcome],
    config: Mapping[str, Any],
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> Outcome:
    """Runs a configuration once a seed, in order, and returns what became of it.

    `config` are flat parameters. Steps of the i-th seed follow those of the one before (`seed_of_step` undoes it),
    so a pruner sees each seed's curve apart. The metrics are means over the seeds, each seed's own beside; a seed
    that is pruned or fails ends the trial, with that seed named.
    """
    span = total_steps(config) + 1
    outcomes: list[Outcome] = []
    for i, seed in enumerate(seeds):

        def told(step: int, value: float, offset: int = i * span) -> bool:
            return progress is not None and progress(offset + step, value)

        outcome = run({**config, "seed": seed}, told)
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


def seed_of_step(config: Mapping[str, Any], step: int) -> tuple[int, int]:
    """Which seed (0 for the first) a trial's step belongs to, and the step within that seed's run."""
    return divmod(step, total_steps(config) + 1)
