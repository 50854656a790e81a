"""Main-Net and RAZ-Net from the weights of trained stages, which come from a store or an exported file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raz.config import BackboneConfig
from raz.pipeline import backbones, builders
from raz.pipeline.graph import Declared
from raz.pipeline.inference import Network, weights_of


@dataclass(frozen=True)
class TrainedStage:
    """The result of a trained stage."""

    key: str
    inputs: Declared  # the declared inputs, which determine the shapes of its networks
    weights: Mapping[str, Tensor]  # by `part.name`

    def has(self, part: str) -> bool:
        """Whether the stage trained this part."""
        return bool(weights_of(self.weights, part))

    def load(self, module: nn.Module, part: str) -> None:
        """Load the weights of one part into `module`. Raises RazError when their names or shapes differ."""
        builders.load_state_dict_strict(module, weights_of(self.weights, part), f"weights {self.key[:12]} ({part})")


TrainedOf = Callable[[str], TrainedStage]  # name of a trained stage -> its result


def _freeze_and_move(config: BackboneConfig, device: torch.device, *parts: nn.Module) -> None:
    """Move parts to the device, freeze them, and choose the memory layout that is fast for them."""
    for part in parts:
        part.to(device)
        builders.freeze(part)
    builders.to_channels_last(config, *parts)


def main_net(trained: TrainedOf, through: str, device: torch.device) -> Network:
    """Main-Net with its branches up to `through` (counting, localization or attention)."""
    stage = trained("counting")
    config = stage.inputs
    below = config.backbone
    if stage.has("backbone"):
        backbone = backbones.empty_backbone(below)
        stage.load(backbone, "backbone")
    else:  # frozen: it has its initial weights
        backbone = backbones.build_backbone(below, config.seed)
    counting = builders.build_counting(config.counting, backbone, config.seed)
    stage.load(counting, "counting")
    parts: list[nn.Module] = [backbone, counting]
    localization_backbone, localization, attention, name = backbone, None, None, stage.key
    if through in ("localization", "attention"):
        stage = trained("localization")
        config = stage.inputs
        if stage.has("backbone"):
            localization_backbone, name = backbones.empty_backbone(below), stage.key
            stage.load(localization_backbone, "backbone")
            parts.append(localization_backbone)
        localization = builders.build_localization(config.localization, backbone, config.seed)
        stage.load(localization, "localization")
        parts.append(localization)
    if through == "attention" and localization is not None:
        stage = trained("attention")
        config = stage.inputs
        attention = builders.build_attention(config.attention, localization.channels + counting.channels, config.seed)
        stage.load(attention, "attention")
        parts.append(attention)
    _freeze_and_move(below, device, *parts)
    return Network(name, backbone, localization_backbone, counting, localization, attention)


def raz_net(trained: TrainedOf, with_attention: bool, device: torch.device) -> Network:
    """RAZ-Net: its own localization branch and, if stage `raz` trained it, its own backbone."""
    stage = trained("raz")
    below = trained("counting").inputs.backbone
    base = main_net(trained, "localization", device)
    assert base.localization is not None
    backbone, name = base.localization_backbone, base.name
    if stage.has("backbone"):
        backbone, name = backbones.empty_backbone(below), stage.key
        stage.load(backbone, "backbone")
    stage.load(base.localization, "localization")
    parts: list[nn.Module] = [backbone, base.localization]
    attention = None
    if with_attention:
        config = trained("attention").inputs  # RAZ-Net's branch has the shape of Main-Net's
        attention = builders.build_attention(config.attention, base.localization.channels, config.seed)
        trained("raz_attention").load(attention, "attention")
        parts.append(attention)
    _freeze_and_move(below, device, *parts)
    return Network(name, backbone, backbone, None, base.localization, attention)
