"""Networks out of trained stages, wherever their weights lie: in a store's artifacts or in one exported file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raz.paper.networks import Backbone
from raz.pipeline import builders
from raz.pipeline.graph import Declared
from raz.pipeline.inference import Network, weights_of


@dataclass(frozen=True)
class TrainedStage:
    """What a trained stage left: its key, the declared inputs that shaped it, its weights by `part.name`."""

    key: str
    given: Declared
    weights: Mapping[str, Tensor]

    def has(self, part: str) -> bool:
        return bool(weights_of(self.weights, part))

    def load(self, module: nn.Module, part: str) -> None:
        """One part's weights into `module`. Raises RazError when they are of another network."""
        builders.load_state_dict_strict(module, weights_of(self.weights, part), f"weights {self.key[:12]} ({part})")


TrainedOf = Callable[[str], TrainedStage]  # name of a trained stage -> what it left


def _freeze_and_move(width: float, device: torch.device, *parts: nn.Module) -> None:
    """Move finished parts to the device, frozen, in the layout that suits their width."""
    for part in parts:
        part.to(device)
        builders.freeze(part)
    builders.to_channels_last(width, *parts)


def main_net(trained: TrainedOf, through: str, device: torch.device) -> Network:
    """Main-Net up to and with the branch `through` (counting, localization or attention)."""
    stage = trained("counting")
    c = stage.given
    width = c.backbone.width
    if stage.has("backbone"):
        backbone = Backbone(width)
        stage.load(backbone, "backbone")
    else:  # frozen: its weights are those it began with
        backbone = builders.build_backbone(c.backbone, c.seed)
    counting = builders.build_counting(c.counting, backbone, c.seed)
    stage.load(counting, "counting")
    parts: list[nn.Module] = [backbone, counting]
    own, localization, attention, name = backbone, None, None, stage.key
    if through in ("localization", "attention"):
        stage = trained("localization")
        c = stage.given
        if stage.has("backbone"):
            own, name = Backbone(width), stage.key
            stage.load(own, "backbone")
            parts.append(own)
        localization = builders.build_localization(c.localization, backbone, c.seed)
        stage.load(localization, "localization")
        parts.append(localization)
    if through == "attention" and localization is not None:
        stage = trained("attention")
        c = stage.given
        attention = builders.build_attention(c.attention, localization.channels + counting.channels, c.seed)
        stage.load(attention, "attention")
        parts.append(attention)
    _freeze_and_move(width, device, *parts)
    return Network(name, backbone, own, counting, localization, attention)


def raz_net(trained: TrainedOf, with_attention: bool, device: torch.device) -> Network:
    """RAZ-Net: its own localization branch and, if it was trained, backbone."""
    stage = trained("raz")
    width = trained("counting").given.backbone.width
    base = main_net(trained, "localization", device)
    assert base.localization is not None
    backbone, name = base.localization_backbone, base.name
    if stage.has("backbone"):
        backbone, name = Backbone(width), stage.key
        stage.load(backbone, "backbone")
    stage.load(base.localization, "localization")
    parts: list[nn.Module] = [backbone, base.localization]
    attention = None
    if with_attention:
        c = trained("attention").given  # RAZ-Net's branch has the shape of Main-Net's
        attention = builders.build_attention(c.attention, base.localization.channels, c.seed)
        trained("raz_attention").load(attention, "attention")
        parts.append(attention)
    _freeze_and_move(width, device, *parts)
    return Network(name, backbone, backbone, None, base.localization, attention)
