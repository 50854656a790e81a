"""Names of metrics as files write them: `val.mae`, `test.ap50@40`."""

from __future__ import annotations

from raz.config import TrialConfig
from raz.spec.ablation import COUNTING, LOCALIZATION


def metric_names(config: TrialConfig, split: str) -> tuple[str, ...]:
    """The metrics that a trial of this configuration is scored by on a split."""
    sigmas = [f"{sigma:g}" for sigma in config.metrics.sigmas]
    return tuple(f"{split}.{name}" for name in (*COUNTING, *(f"{n}@{s}" for n in LOCALIZATION for s in sigmas)))


def stages_of_metric(metric: str) -> tuple[str, ...]:
    """The trained stages whose networks a metric depends on."""
    if metric.endswith("_density"):
        return ("counting",)
    alone = ("localization", "attention", "raz", "raz_attention")
    name = metric.partition(".")[2].partition("@")[0]
    return alone if name.endswith("_localization") or name in LOCALIZATION else ("counting", *alone)
