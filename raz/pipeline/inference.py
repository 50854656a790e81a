"""Inference on whole images: response, density and attention maps, in one piece or by overlapping tiles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raz.paper.networks import (
    STRIDE,
    AttentionBranch,
    Backbone,
    CountingBranch,
    LocalizationBranch,
    network_input,
    receptive_field_radius,
)
from raz.pipeline.tiling import Tile, by_size, tiles

MEMO_BYTES = 1 << 30

Maps = dict[str, NDArray[np.float32]]


@dataclass
class FeatureLru:
    """A memo of backbone features of images, shared by the stages of one process. Beyond `limit` bytes, the least
    recently used features are dropped."""

    limit: int = MEMO_BYTES
    _features: OrderedDict[tuple[str, str], Tensor] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def get(self, weights: str, image: str, compute: Callable[[], Tensor]) -> Tensor:
        """The features for these ids of weights and image; computed where they are not in the memo."""
        cached = self._features.get((weights, image))
        if cached is not None:
            self._features.move_to_end((weights, image))
            return cached
        value = compute()
        size = value.numel() * value.element_size()
        if size <= self.limit:
            self._features[weights, image] = value
            self._bytes += size
            while self._bytes > self.limit:
                _, old = self._features.popitem(last=False)
                self._bytes -= old.numel() * old.element_size()
        return value

    def clear(self) -> None:
        """Drop all features, which lie in the device's memory."""
        self._features.clear()
        self._bytes = 0


@dataclass(frozen=True)
class Network:
    """Main-Net, or RAZ-Net (no counting branch).

    name: identifies the weights in the memo. localization_backbone: the backbone below the localization branch; the
    counting branch's own unless `localization.unfreeze: backbone`.
    """

    name: str
    backbone: Backbone
    localization_backbone: Backbone
    counting: CountingBranch | None = None
    localization: LocalizationBranch | None = None
    attention: AttentionBranch | None = None

    @torch.inference_mode()
    def maps(
        self,
        pixels: NDArray[np.uint8],  # (H, W, 3)
        wanted: tuple[str, ...],
        device: torch.device,
        memo: FeatureLru | None = None,
        image: str = "",
        limit: int | None = None,
    ) -> Maps:
        """The wanted maps, float32: `density` (ceil(H/s), ceil(W/s)), `response` and `attention` (both (H, W)).

        memo, image: the memo of features, and the image's id in it; features are not kept where either is missing.
        limit: larger images are predicted by tiles of this many px; by default that of the image's size.
        Raises RazError for a larger image where the network sees the whole of it.
        """
        height, width = pixels.shape[:2]
        parts = tiles(height, width, lambda: self.margin, self.backbone.alignment, limit)
        if len(parts) > 1:
            return self._tiled(pixels, wanted, device, parts)
        out = self._forward(network_input(pixels, device, self.backbone.colours), wanted, memo, image)
        for name, value in out.items():
            rows, cols = self._shape(name, height, width)
            out[name] = np.ascontiguousarray(value[:rows, :cols])
        return out

    def _shape(self, name: str, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a map of an image, without the padding."""
        step = self.counting.output_stride if self.counting is not None and name == "density" else 1
        return -(-height // step), -(-width // step)

    def _forward(self, x: Tensor, wanted: tuple[str, ...], memo: FeatureLru | None, image: str) -> Maps:
        out = self.tensors(x, wanted, memo, image)
        return {name: out[name][0, 0].float().cpu().numpy() for name in wanted}

    def tensors(
        self, x: Tensor, wanted: tuple[str, ...], memo: FeatureLru | None = None, image: str = ""
    ) -> dict[str, Tensor]:
        """The wanted maps, (1, 1, h, w) each, and others that they took, of an input (1, 3, H, W)."""
        computed: dict[str, Tensor] = {}  # features by kind, so that both branches share them

        def features(backbone: Backbone, kind: str) -> Tensor:
            if kind not in computed and memo is not None and image:
                computed[kind] = memo.get(f"{self.name}/{kind}", image, lambda: backbone(x))
            elif kind not in computed:
                computed[kind] = backbone(x)
            return computed[kind]

        out: dict[str, Tensor] = {}
        shared = self.localization_backbone is self.backbone
        rich_counting = rich_localization = None
        if self.counting is not None and ("density" in wanted or "attention" in wanted):
            out["density"], rich_counting = self.counting(features(self.backbone, "backbone"))
        if self.localization is not None and ("response" in wanted or "attention" in wanted):
            own = features(self.localization_backbone, "backbone" if shared else "localization")
            logits, rich_localization = self.localization(own)
            out["response"] = torch.sigmoid(logits)
        if self.attention is not None and "attention" in wanted and rich_localization is not None:
            out["attention"] = torch.sigmoid(self.attention(rich_localization, rich_counting))
        return out

    @property
    def margin(self) -> int | None:
        """Radius of the receptive field of all maps, as `margin`."""
        return margin(self.backbone, counting=self.counting, localization=self.localization, attention=self.attention)

    def _tiled(
        self, pixels: NDArray[np.uint8], wanted: tuple[str, ...], device: torch.device, parts: Sequence[Tile]
    ) -> Maps:
        """The maps of the whole image from those of its tiles."""
        height, width = pixels.shape[:2]
        stride = self.counting.output_stride if self.counting is not None else STRIDE
        out = {name: np.zeros(self._shape(name, height, width), np.float32) for name in wanted}
        for tile in by_size(parts):
            part = np.ascontiguousarray(pixels[tile.top : tile.bottom, tile.left : tile.right])
            x = network_input(part, device, self.backbone.colours)
            for name, value in self._forward(x, wanted, None, "").items():
                step = stride if name == "density" else 1
                target = out[name][tile.place(step)]
                target[:] = value[tile.inner(step)][: target.shape[0], : target.shape[1]]
        return out


def margin(
    backbone: Backbone,
    *,
    counting: CountingBranch | None = None,
    localization: LocalizationBranch | None = None,
    attention: AttentionBranch | None = None,
) -> int | None:
    """Radius in px of what an output of these parts sees, rounded up to the backbone's alignment; None where it sees
    the whole image."""
    field = backbone.receptive_field()
    if field is None:
        return None
    branches = [STRIDE * receptive_field_radius(part.body) for part in (counting, localization) if part is not None]
    above = max(branches, default=0) + (receptive_field_radius(attention.body) if attention is not None else 0)
    return -(-(field + above) // backbone.alignment) * backbone.alignment


def weights_of(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The entries of one part (`counting.…`), without its prefix."""
    return {name[len(part) + 1 :]: value for name, value in state.items() if name.startswith(f"{part}.")}
