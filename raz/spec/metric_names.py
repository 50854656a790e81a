"""Names of metrics as files write them: `val.mae`, `test.ap50@40`."""

from __future__ import annotations

from raz.config import TrialConfig

REGION_METRICS = ("regions_per_image", "images_zoomed")  # shown for rows that zoom
COUNTING_METRICS = (
    "mae", "rmse", "mae_density", "rmse_density", "mae_localization", "rmse_localization", "mae_ceiling",
    "rmse_ceiling", "bias", *REGION_METRICS,
)  # fmt: skip
# Also with @part, as in mae@scene1.
METRICS_BY_PART = tuple(name for name in COUNTING_METRICS if name.startswith(("mae", "rmse")))
LOCALIZATION_METRICS = ("ap50", "ap75", "map", "ar50", "ar75", "mar")  # each with @sigma


def metric_names(config: TrialConfig, split: str) -> tuple[str, ...]:
    """The metrics that a trial of this configuration is scored by on a split."""
    sigmas = [f"{sigma:g}" for sigma in config.metrics.sigmas]
    names = (*COUNTING_METRICS, *(f"{name}@{sigma}" for name in LOCALIZATION_METRICS for sigma in sigmas))
    return tuple(f"{split}.{name}" for name in names)


def stages_of_metric(metric: str) -> tuple[str, ...]:
    """The trained stages whose networks a metric depends on."""
    if metric.endswith("_density"):
        return ("counting",)
    point_stages = ("localization", "attention", "raz", "raz_attention")
    name = metric.partition(".")[2].partition("@")[0]
    of_points = name.endswith("_localization") or name in LOCALIZATION_METRICS
    return point_stages if of_points else ("counting", *point_stages)
