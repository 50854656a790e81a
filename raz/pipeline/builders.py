"""Branches from a configuration: initialisation, and loading state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raz.config import PAPER_BACKBONE, AttentionConfig, BackboneConfig, CountingConfig, LocalizationConfig
from raz.errors import RazError
from raz.paper.networks import AttentionBranch, Backbone, CountingBranch, LocalizationBranch, initialise
from raz.pipeline.samples import seed_of

NARROW = 0.25  # width of VGG-16 up to which channels_last is faster; above it, training is slower


def seed_torch(*parts: object) -> None:
    """Seed torch with a number that depends on the parts alone."""
    torch.manual_seed(seed_of(7, *parts))


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or `torch.load(weights_only=True)`. Raises RazError when it is neither."""
    expected = "expected a state dict (safetensors, or saved by torch.save)"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RazError(
            str(path), f"cannot be read ({error.strerror or error})", "check the path and its permissions"
        ) from error
    except Exception as error:  # damaged pickles make torch raise errors of many classes
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise RazError(str(path), f"is no checkpoint ({reason}), {expected}", "check that the file is whole") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RazError(
            str(path), f"holds a {type(state).__name__}, {expected} of tensors only", "save model.state_dict()"
        )
    return state


def load_state_dict_strict(module: nn.Module, state: Mapping[str, Tensor], where: str, extra: bool = False) -> None:
    """Load a state dict as float32. Raises RazError with all missing names and wrong shapes, and, unless `extra`, all
    unknown names."""
    wanted = module.state_dict()
    faults = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    faults += [f"{name} is missing" for name in wanted if name not in state]
    if not extra:
        faults += [f"{name} is unknown" for name in state if name not in wanted]
    if faults:
        shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
        raise RazError(where, f"weights of another network: {shown}", "use weights of this very configuration")
    module.load_state_dict({name: state[name].float() for name in wanted})


def build_counting(config: CountingConfig, backbone: Backbone, seed: int) -> CountingBranch:
    """A counting branch, initialised from the seed."""
    seed_torch(seed, "counting")
    branch = CountingBranch(backbone.channels, config.channels, config.output_stride)
    initialise(branch, config.init)
    return branch


def build_localization(config: LocalizationConfig, backbone: Backbone, seed: int) -> LocalizationBranch:
    """A localization branch, initialised from the seed."""
    seed_torch(seed, "localization")
    branch = LocalizationBranch(backbone.channels, config.channels, config.upsample)
    initialise(branch, config.init)
    return branch


def build_attention(config: AttentionConfig, in_channels: int, seed: int) -> AttentionBranch:
    """An attention branch, initialised from the seed."""
    seed_torch(seed, "attention")
    branch = AttentionBranch(in_channels, config.channels)
    initialise(branch, config.init)
    return branch


def raz_attention_from(main: AttentionBranch, localization_channels: int, config: AttentionConfig) -> AttentionBranch:
    """RAZ-Net's attention branch, which reads the localization features only. It starts from Main-Net's weights for
    these channels, which are the first of the concatenation (4, 5)."""
    branch = AttentionBranch(localization_channels, config.channels)
    state = {name: value.clone() for name, value in main.state_dict().items()}
    state["body.0.weight"] = state["body.0.weight"][:, :localization_channels].clone()
    branch.load_state_dict(state)
    return branch


def to_channels_last(backbone: BackboneConfig, *modules: nn.Module) -> None:
    """Use the channels_last memory layout for a narrow VGG-16 and for the networks of timm, and their branches; on a
    GPU for all, whose matrix units work in it."""
    for module in modules:
        on_gpu = any(parameter.is_cuda for parameter in module.parameters())
        if on_gpu or backbone.name != PAPER_BACKBONE or backbone.width <= NARROW:
            module.to(memory_format=torch.channels_last)


def freeze(module: nn.Module) -> None:
    """Switch off gradients, and switch to evaluation mode."""
    module.requires_grad_(False)
    module.eval()
