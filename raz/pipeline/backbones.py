"""Backbones by name: the paper's VGG-16, or any network of timm that has features at strides 8 and 16.

Of a network of timm, the blocks up to stride 16 are kept. Its two feature maps are projected to `neck` channels each by
1x1 convolutions, the coarser is up-sampled, and their sum is what the branches read. With `neck: 0` the maps are
concatenated as they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from raz.config import PAPER_BACKBONE, BackboneConfig
from raz.errors import RazError
from raz.paper.networks import IMAGENET, STRIDE, Backbone, ColourStatistics, VggBackbone, initialise
from raz.pipeline.builders import load_state_dict_strict, read_state, seed_torch
from raz.pipeline.torch_internals import count_flop
from raz.pipeline.weights import weights_file
from raz.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from timm.models import FeatureInfo

COARSE = 16  # the stride of the second feature map
FIELD_SIDES = (512, 1024, 2048)  # px; a receptive field that fills the last of them counts as not finite
SIZED = 256  # px; side of the image for which operations are counted
PROBED = (80, 112)  # px; height and width of the image on which a network is tried: multiples of 16, of nothing more
TIMM = (1, 0, 15)  # the oldest version whose features are known to be right
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of weights on huggingface.co, as timm looks for them
UNLOADED = "num_batches_tracked"  # counters of batch normalisation: not read in evaluation, and missing in some files
HINT = "legal are vgg16 and timm's convolutional networks, such as tf_efficientnet_lite0 or resnet18"


class TimmBackbone(Backbone):
    """The layers of a network of timm up to stride 16, and the neck: (B, 3, H, W) -> (B, channels, H/8, W/8).

    frozen_statistics: whether batch normalisation keeps its statistics in training, as pretrained networks do. Raises
    RazError for a name that timm does not know, and for a network without features at strides 8 and 16.
    """

    alignment = COARSE

    def __init__(self, name: str, neck: int, *, frozen_statistics: bool) -> None:
        super().__init__()
        self.body, channels, self.colours = _body(name)
        self.neck = nn.ModuleList([nn.Conv2d(n, neck, 1) for n in channels] if neck else [])
        self.channels = neck or sum(channels)
        self.frozen_statistics = frozen_statistics
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = x.shape[-2] // STRIDE, x.shape[-1] // STRIDE
        x = functional.pad(x, (0, -x.shape[-1] % COARSE, 0, -x.shape[-2] % COARSE))  # with 0, the mean colour
        fine, coarse = self.body(x)
        if self.neck:
            fine, coarse = self.neck[0](fine), self.neck[1](coarse)
        coarse = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        out = functional.relu(fine + coarse) if self.neck else torch.cat([fine, coarse], 1)
        return out[..., :rows, :cols]

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switch the mode; pretrained batch normalisation stays in evaluation mode."""
        super().train(mode)
        if self.frozen_statistics:
            for layer in self.body.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
        return self

    @property
    def pretrained(self) -> nn.Module:
        return self.body

    def receptive_field(self) -> int | None:
        return _field_of(self.name)


def build_backbone(config: BackboneConfig, seed: int) -> Backbone:
    """The backbone with pretrained weights, or He-initialised from the seed (`none`).

    Raises RazError where weights are missing or of another network.
    """
    seed_torch(seed, "backbone")
    backbone = empty_backbone(config)
    seed_torch(seed, "backbone")  # again: how much the constructor draws depends on the network's layers
    initialise(backbone, "kaiming")
    if config.weights != "none":
        _load(backbone.pretrained, config)
    return backbone


def empty_backbone(config: BackboneConfig) -> Backbone:
    """The backbone's modules, for weights that are loaded later. Raises RazError as `TimmBackbone`."""
    if config.name == PAPER_BACKBONE:
        return VggBackbone(config.width)
    return TimmBackbone(config.name, config.neck, frozen_statistics=config.weights != "none")


def pretrained_identity(config: BackboneConfig) -> str:
    """sha256 of the pretrained tensors that the backbone loads, as float32: equal for equal tensors, whether they are
    fetched or read from a file. Raises RazError as `build_backbone`."""
    part = empty_backbone(config).pretrained
    _load(part, config)
    sha256 = hashlib.sha256()
    for name, tensor in sorted(part.state_dict().items()):
        if not name.endswith(UNLOADED):
            sha256.update(f"{name} {tuple(tensor.shape)}".encode())
            sha256.update(tensor.float().contiguous().numpy().tobytes())
    return f"tensors:{sha256.hexdigest()}"


def weights_record(config: BackboneConfig) -> dict[str, str]:
    """What a manifest tells about pretrained weights: `name` (`imagenet`, or the file's) and, of a file, the `dtype` of
    its tensors. A key holds only their values. Empty for weights from scratch. Raises RazError for a missing file."""
    if config.weights in ("none", "imagenet"):
        return {} if config.weights == "none" else {"name": config.weights}
    path = weights_file(config.weights)
    dtypes = {value.dtype for value in read_state(path).values() if value.is_floating_point()}
    return {"name": path.name, "dtype": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))}


def measured_size(name: str, neck: int) -> tuple[float, int, int]:
    """FLOP for one pixel of the input, weights, and channels of the features, of a network of timm with its neck.
    Nothing is computed: the layers run on tensors without values."""
    with torch.device("meta"):
        backbone = TimmBackbone(name, neck, frozen_statistics=True).eval()
        x = torch.empty(1, 3, SIZED, SIZED)
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    return count_flop(lambda: backbone(x)) / SIZED**2, weights, backbone.channels


# ------------------------------------------------------------------ pretrained weights


def _load(part: nn.Module, config: BackboneConfig) -> None:
    """Load the pretrained weights into the part of a backbone that has them."""
    if config.weights != "imagenet":
        state: Mapping[str, Tensor] = read_state(weights_file(config.weights))
    else:
        state = _vgg_weights() if config.name == PAPER_BACKBONE else _timm_weights(config.name)
    where = f"backbone.weights {config.weights}, for {config.name}"
    if config.name != PAPER_BACKBONE and config.weights != "imagenet":
        _refuse_larger_network(config.name, part, state, where)
    own = part.state_dict()
    found = {name: state[source] for name in own if (source := _source_name(name, state)) is not None}
    found |= {name: value for name, value in own.items() if name.endswith(UNLOADED) and name not in found}
    load_state_dict_strict(part, found, where)


def _source_name(name: str, state: Mapping[str, Tensor]) -> str | None:
    """The name in a whole network's state dict of a tensor of its cut copy, or None."""
    return next((whole for whole in _names_in_whole(name) if whole in state), None)


def _names_in_whole(name: str) -> Iterator[str]:
    """The names that a tensor of a cut copy may have in the whole network.

    Where timm cuts a network between the parts of a container, it joins both names: `layers_0.…` for `layers.0.…`.
    """
    yield name
    first, dot, rest = name.partition(".")
    words = first.split("_")
    for i in range(len(words) - 1, 0, -1):
        yield f"{'_'.join(words[:i])}.{'_'.join(words[i:])}{dot}{rest}"


def _refuse_larger_network(name: str, part: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Raise RazError where a state dict has tensors that the network lacks, in parts that it has: a deeper network of
    the same family holds all tensors of a shallower one, with the same shapes."""
    with torch.device("meta"):
        whole = {*_timm().create_model(name, pretrained=False).state_dict(), *part.state_dict()}
    parts = {tensor.partition(".")[0] for tensor in whole}
    unknown = [tensor for tensor in state if tensor not in whole and tensor.partition(".")[0] in parts]
    unknown = [tensor for tensor in unknown if not tensor.endswith(UNLOADED)]
    if unknown:
        shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise RazError(where, f"weights of another network: it has no {shown}", "use weights of this very network")


def _vgg_weights() -> Mapping[str, Tensor]:
    from torchvision.models import VGG16_Weights

    try:
        state: Mapping[str, Tensor] = VGG16_Weights.IMAGENET1K_V1.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:  # no internet, no permission, a wrong hash
        raise RazError(
            "backbone.weights: imagenet", f"the ImageNet weights of VGG-16 could not be fetched ({error})",
            "connect once so that torchvision can keep them, or set backbone.weights to a file you have, or to none",
        ) from error  # fmt: skip
    return state


def _timm_weights(name: str) -> Mapping[str, Tensor]:
    timm = _timm()
    pretrained = timm.get_pretrained_cfg(name)
    hub = pretrained.hf_hub_id if pretrained is not None else None
    cached = cached_weights(hub, pretrained.hf_hub_filename) if hub else None
    try:
        # A file in the cache is read as it is: the hub's client would ask the network first, and wait for it in vain.
        overlay = {"file": cached} if cached else None
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        state: Mapping[str, Tensor] = network.state_dict()
    except Exception as error:  # of the hub's client, of the network below it, and of timm
        if isinstance(error, MemoryError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise RazError(
            "backbone.weights: imagenet", f"the weights of {name} could not be fetched ({reason})",
            f"connect once so that timm can keep them, or take model.safetensors of {hub or 'its page'} from "
            "huggingface.co on another machine and set backbone.weights to that file",
        ) from error  # fmt: skip
    return state


def cached_weights(hub: str, file: str | None = None) -> str | None:
    """The file of a network's weights that was fetched from huggingface.co before; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = hub.partition("@")
    found = (
        try_to_load_from_cache(repository, name, revision=revision or None) for name in ([file] if file else HUB_FILES)
    )
    return next((path for path in found if isinstance(path, str)), None)


# ------------------------------------------------------------------ networks of timm


def _timm() -> ModuleType:
    """The package timm. Raises RazError where it is missing or too old."""
    wanted = ".".join(map(str, TIMM))
    hint = f"pip install 'timm>={wanted},<1.1'"
    try:
        import timm
    except ImportError as error:
        raise RazError("backbone.name", f"timm cannot be imported ({error}), expected timm {wanted}", hint) from error
    if tuple(int(part) for part in re.findall(r"\d+", timm.__version__)[:3]) < TIMM:
        raise RazError("backbone.name", f"timm is {timm.__version__}, expected {wanted} or newer", hint)
    return timm


def _body(name: str) -> tuple[nn.Module, tuple[int, int], ColourStatistics]:
    """The layers up to stride 16, the channels of the maps at strides 8 and 16, and the colour statistics."""
    timm = _timm()
    if not timm.is_model(name):
        guess = did_you_mean(name, [PAPER_BACKBONE, *timm.list_models()])
        hint = guess if guess.startswith("did") else HINT
        raise RazError("backbone.name", f"{name!r} is no network of timm {timm.__version__}", hint)
    body = _cut(name, _feature_indices(name))
    fine, coarse = _feature_info(body).channels()
    config = timm.get_pretrained_cfg(name)
    mean, std = (config.mean, config.std) if config is not None else (IMAGENET.mean, IMAGENET.std)
    return body, (fine, coarse), ColourStatistics((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _cut(name: str, wanted: tuple[int, int]) -> nn.Module:
    """A network that ends with the wanted feature maps."""
    body: nn.Module = _timm().create_model(name, pretrained=False, features_only=True, out_indices=wanted)
    blocks = getattr(body, "blocks", None)
    if isinstance(blocks, nn.Sequential):  # timm runs all blocks of these networks, whichever features are asked for
        stages = _feature_info(body).get_dicts(keys=["stage"])
        body.blocks = blocks[: max(int(feature["stage"]) for feature in stages)]
    return body


def _try(name: str, body: nn.Module) -> None:
    """Raise RazError for a network that takes images of one size only, or gives maps of another layout or size."""
    height, width = PROBED
    wanted = [
        (1, channels, height // stride, width // stride)
        for channels, stride in zip(_feature_info(body).channels(), (STRIDE, COARSE), strict=True)
    ]
    try:
        with torch.no_grad():
            found = [tuple(x.shape) for x in body.eval()(torch.empty(1, 3, height, width))]
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        what = f"{name} cannot run on an image of {width} x {height} px ({reason}), expected any multiple of {COARSE}"
        raise RazError("backbone.name", what, HINT) from error
    if found != wanted:
        shown = " and ".join(map(str, found))
        what = f"{name} gives maps {shown} of an image of {width} x {height} px, expected {wanted[0]} and {wanted[1]}"
        raise RazError("backbone.name", what, HINT)


def _feature_info(network: nn.Module) -> FeatureInfo:
    from timm.models import FeatureInfo

    info = network.feature_info
    assert isinstance(info, FeatureInfo)
    return info


@lru_cache(maxsize=32)
def _feature_indices(name: str) -> tuple[int, int]:
    """Which of a network's feature maps are the last ones at strides 8 and 16. Raises RazError as `TimmBackbone`."""
    timm = _timm()
    try:
        with torch.device("meta"):
            strides = _feature_info(timm.create_model(name, pretrained=False, features_only=True)).reduction()
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise RazError("backbone.name", f"timm cannot give the feature maps of {name} ({error})", HINT) from error
    fine, coarse = (max((i for i, s in enumerate(strides) if s == wanted), default=-1) for wanted in (STRIDE, COARSE))
    if min(fine, coarse) < 0:
        found = ", ".join(str(stride) for stride in strides)
        raise RazError("backbone.name", f"{name} has features at strides {found}, expected {STRIDE} and {COARSE}", HINT)
    with torch.device("meta"):
        _try(name, _cut(name, (fine, coarse)))
    return fine, coarse


@lru_cache(maxsize=8)
def _field_of(name: str) -> int | None:
    """Upper bound of half the receptive field of the features that a network of timm gives, in px, a multiple of
    COARSE; None where it is not finite.

    A square that is not a number spreads to every output that reads it, whatever the weights and activations are.
    """
    backbone = TimmBackbone(name, 0, frozen_statistics=True).eval()
    for side in FIELD_SIDES:
        start = side // 2
        x = torch.zeros(1, 3, side, side)
        x[..., start : start + COARSE, start : start + COARSE] = torch.nan
        with torch.inference_mode():
            reached = backbone(x).isnan().any(dim=1)[0]
        rows, cols = (reached.any(dim=axis).nonzero() for axis in (1, 0))
        low, high = STRIDE * int(min(rows.min(), cols.min())), STRIDE * int(max(rows.max(), cols.max()) + 1)
        if low > 0 and high < side:
            # of the square, the outputs at its ends may read one pixel or all
            return -(-max(start - low, high - start - COARSE) // COARSE) * COARSE
    return None
