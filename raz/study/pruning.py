"""When a trial is not worth going on.

A trial's curve runs through the stages it trains, and each stage's validation value is another quantity. So a
step is compared with the same step of other trials only (Optuna's median pruner takes the best value of all
steps so far, which would set one stage's error against another's), and less is always better, whatever the
direction of the objective.
"""

from __future__ import annotations

import math

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

FEWEST = 4  # other trials that must have reached the step


class StepPruner(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Prunes a trial whose last value is worse than the `keep` quantile of others at the same step.

    Equal is not worse: trials that share a stage have the same curve there, and none is pruned in it.
    """

    def __init__(self, keep: float, warmup_steps: int = 0) -> None:
        self.keep, self.warmup_steps = keep, warmup_steps

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or step < self.warmup_steps:
            return False
        value = trial.intermediate_values[step]
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        others = [
            other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False, states=ended)
            if step in other.intermediate_values and math.isfinite(other.intermediate_values[step])
        ]
        if len(others) < FEWEST:
            return False
        return not value <= float(np.quantile(others, self.keep))  # a value that is no number is worse
