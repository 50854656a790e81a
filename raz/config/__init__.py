"""What a trial is: `TrialConfig`, its presets, and its values by dotted name.

`trial` holds the dataclasses, `presets` complete configurations, `parameters` sets values by dotted name, `value_types`
and `ranges` check them, `growth` keeps what was stored before a field was added.
"""

from __future__ import annotations

from raz.config.growth import before_values, changed_since, completed, from_parameters, without_before
from raz.config.parameters import Settings, configure, diff, parameter_types, parameters
from raz.config.presets import PRESETS
from raz.config.trial import (
    PAPER_BACKBONE,
    AttentionConfig,
    BackboneConfig,
    CountingConfig,
    FusionConfig,
    InputConfig,
    LocalizationConfig,
    MetricsConfig,
    PeaksConfig,
    PredictConfig,
    RazConfig,
    TrainConfig,
    TrialConfig,
    ZoomingConfig,
    added,
)
from raz.config.value_types import Leaf, ParameterType

__all__ = [
    "PAPER_BACKBONE", "PRESETS", "AttentionConfig", "BackboneConfig", "CountingConfig", "FusionConfig", "InputConfig",
    "Leaf", "LocalizationConfig", "MetricsConfig", "ParameterType", "PeaksConfig", "PredictConfig", "RazConfig",
    "Settings", "TrainConfig", "TrialConfig", "ZoomingConfig", "added", "before_values", "changed_since", "completed",
    "configure", "diff", "from_parameters", "parameter_types", "parameters", "without_before",
]  # fmt: skip
