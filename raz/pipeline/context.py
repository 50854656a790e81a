"""What the function of a stage that runs networks works with: networks read from the store, and features of frozen
ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from raz.config import BackboneConfig, ZoomingConfig, changed_since
from raz.paper.networks import Backbone, CountingBranch, LocalizationBranch
from raz.pipeline import builders, device, tiling
from raz.pipeline.assembly import TrainedStage, main_net, raz_net
from raz.pipeline.feature_cache import (
    BranchFeatureCache,
    Candidates,
    FeatureCache,
    MultiScaleFeatures,
    cached_candidates,
)
from raz.pipeline.graph import Node
from raz.pipeline.inference import FeatureLru, Network
from raz.pipeline.keys import weights_identity
from raz.pipeline.regions import REGIONS_VERSION, image_candidates
from raz.pipeline.samples import Images
from raz.pipeline.stage_context import StageContext, TrialState
from raz.store.cache import digest
from raz.store.paths import CANDIDATES, WEIGHTS
from raz.utils.json_types import JsonLike

MEMO = FeatureLru()  # features of whole images, shared by the stages of this process
Branch = Literal["counting", "localization", "attention"]


@dataclass
class ExecutionContext(StageContext):
    """A StageContext of a stage that runs networks on a device."""

    device: torch.device = field(default_factory=device.compute_device)

    # -------------------------------------------------------------- networks from artifacts

    def trained(self, stage: str) -> TrainedStage:
        """The weights of a trained stage. Raises RazError where they cannot be read."""
        node = Node(stage)
        weights = builders.read_state(self.folders[node] / WEIGHTS)
        return TrainedStage(self.keys[node].key, self.stage_inputs[stage], weights)

    def main_net(self, through: Branch) -> Network:
        """Main-Net with its branches up to `through`."""
        return main_net(self.trained, through, self.device)

    def raz_net(self, *, with_attention: bool) -> Network:
        """RAZ-Net: its own localization branch and, if it was trained, its own backbone."""
        return raz_net(self.trained, with_attention, self.device)

    # -------------------------------------------------------------- features of frozen networks

    def features_folder(self, weights: str, data: str, size: float = 1.0, *, tiled: bool = False) -> Path:
        """The folder of the features that these frozen weights give for these images.

        weights: identifies the weights; data: identifies the images; size: the images' scale, as in `frames`; tiled:
        whether any of them goes by tiles, which changes the last bits.
        """
        scaled = asdict(self.inputs.input.times(size))
        made: list[JsonLike] = [weights, data, scaled, self.inputs.threads, self.device.type]
        folder = self.paths.features / digest([*made, *([tiling.TILE_PIXELS] if tiled else [])])
        self.read.add(self.paths.relative(folder))
        return folder

    def features(self, backbone: Backbone, weights: str, images: Images, data: str, size: float = 1.0) -> FeatureCache:
        """The cache of a frozen backbone's features of these images. `weights`, `data`, `size`: see
        `features_folder`."""
        folder = self.features_folder(weights, data, size, tiled=_any_tiled(images))
        return FeatureCache(folder, backbone, images, self.device)

    def rich_maps(
        self, features: FeatureCache, branch: CountingBranch | LocalizationBranch, weights: str, data: str
    ) -> BranchFeatureCache:
        """The cache of a frozen branch's last feature map of the images of `features`."""
        stride = branch.output_stride if isinstance(branch, CountingBranch) else 1
        folder = self.features_folder(f"{weights}/rich", data, tiled=_any_tiled(features.images))
        return BranchFeatureCache(folder, branch, branch.channels, stride, features)

    def backbone_id(self, network: Network, branch: Branch) -> str:
        """Identifies the weights of the backbone below a branch: the initial ones, or those that a stage trained."""
        counting = self.stage_inputs["counting"]
        shared = branch == "counting" or network.localization_backbone is network.backbone
        if shared and counting.counting.unfreeze == "none":
            return initial_weights_id(counting.backbone, counting.seed)
        return f"{network.name}/{branch}"

    def frozen_features(self, network: Network, branch: Branch) -> tuple[FeatureCache, FeatureCache]:
        """Features of the backbone below a branch, of the training and of the validation images."""
        backbone = network.backbone if branch == "counting" else network.localization_backbone
        train, val = self.multi_scale_features(backbone, self.backbone_id(network, branch), (1.0,))
        return train.caches[0], val

    def multi_scale_features(
        self, backbone: Backbone, weights: str, sizes: tuple[float, ...]
    ) -> tuple[MultiScaleFeatures, FeatureCache]:
        """Features of the training images at these sizes, and of the validation images at size 1."""
        data = self.keys[Node("counting")].data
        train = (self.features(backbone, weights, self.frames("train", s), data["train"], s) for s in sizes)
        return MultiScaleFeatures(tuple(train)), self.features(backbone, weights, self.frames("val"), data["val"])

    def candidates(self, network: Network, split: str, zooming: ZoomingConfig, size: float = 1.0) -> list[Candidates]:
        """Regions that Main-Net's attention proposes on each image of a split, sampled by the image's content (15).
        `size`: the images' scale, as in `frames`.

        Cached on disk: stages, theta_z, k_z and IoU thresholds choose among the same proposals.
        """
        frames, seed = self.frames(split, size), self.inputs.seed

        def compute() -> list[Candidates]:
            out = []
            for i in self.iter_images(frames):
                image = memo_name(frames.ids[i], size)
                maps = network.maps(frames.pixels(i), ("attention",), self.device, MEMO, image)
                out.append(image_candidates(maps["attention"], zooming, seed, frames.content(i), 2))
            return out

        sampling: JsonLike = [REGIONS_VERSION, seed, zooming.anchors, zooming.samples, zooming.sampling]
        weights = digest([self.keys[Node("attention")].key, sampling])
        halved = any(tiling.halved(*frames.size(i)) for i in range(len(frames)))
        folder = self.features_folder(weights, self.keys[self.node].data[split], size, tiled=halved)
        return cached_candidates(folder / CANDIDATES, len(frames), compute)


def network_context(state: TrialState, node: Node) -> ExecutionContext:
    """What the function of a stage that runs networks works with, on the trial's device."""
    return ExecutionContext(**vars(state.context(node)), device=state.device)


def _any_tiled(images: Images) -> bool:
    return not all(tiling.fits(*images.size(i)) for i in range(len(images)))


def memo_name(image: str, size: float) -> str:
    """The id in the memo of features of an image at `size` times the networks' input size."""
    return image if size == 1 else f"{image} x {size!r}"


def initial_weights_id(config: BackboneConfig, seed: int) -> str:
    """Identifies the weights of a backbone that no stage trained."""
    added = changed_since(config)
    return digest([weights_identity(config), config.width, seed, *([added] if added else [])])
