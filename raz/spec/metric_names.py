"""Names of metrics as files write them: `val.mae`, `test.ap50@40`."""

from __future__ import annotations

from raz.config import TrialConfig

_QUARTILES = ("q1", "q2", "q3", "q4")  # of the true heads by local density, the sparsest first
# Of the numbers of counted points and of true heads of each image in a quartile.
QUARTILE_COUNTS = tuple(f"{name}_points_{quartile}" for name in ("mae", "rmse", "bias") for quartile in _QUARTILES)
REGION_METRICS = ("regions_per_image", "images_zoomed")  # shown for rows that zoom
COUNTING_METRICS = (
    "mae", "rmse", "mae_density", "rmse_density", "mae_localization", "rmse_localization", "mae_ceiling",
    "rmse_ceiling", "bias", "gflops_per_image", *REGION_METRICS, *QUARTILE_COUNTS,
)  # fmt: skip
# Also with @part, as in mae@scene1.
METRICS_BY_PART = tuple(name for name in COUNTING_METRICS if name.startswith(("mae", "rmse")))
LOCALIZATION_METRICS = ("ap50", "ap75", "map", "ar50", "ar75", "mar")  # each with @sigma
# Of counted points that are matched one to one; each with @radius.
ONE_TO_ONE_METRICS = (
    "f1", "precision", "recall", *(f"{name}_{quartile}" for name in ("f1", "recall") for quartile in _QUARTILES),
)  # fmt: skip


def metric_names(config: TrialConfig, split: str) -> tuple[str, ...]:
    """The metrics that a trial of this configuration is scored by on a split."""
    names = (
        *COUNTING_METRICS,
        *(f"{name}@{sigma:g}" for name in LOCALIZATION_METRICS for sigma in config.metrics.sigmas),
        *(f"{name}@{radius:g}" for name in ONE_TO_ONE_METRICS for radius in config.metrics.radii),
    )
    return tuple(f"{split}.{name}" for name in names)


def stages_of_metric(metric: str) -> tuple[str, ...]:
    """The trained stages whose networks a metric depends on."""
    if metric.endswith("_density"):
        return ("counting",)
    point_stages = ("localization", "attention", "raz", "raz_attention")
    name = metric.partition(".")[2].partition("@")[0]
    of_points = (
        name.endswith("_localization") or name in (*LOCALIZATION_METRICS, *ONE_TO_ONE_METRICS, *QUARTILE_COUNTS)
    )  # fmt: skip
    return point_stages if of_points else ("counting", *point_stages)
