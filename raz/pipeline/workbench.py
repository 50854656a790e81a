"""What the makers of a trial's stages work with: its images, its networks out of the store, and frozen features."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import torch

from raz.config import BackboneConfig, InputConfig, TrialConfig, from_parameters
from raz.data.contract import Split
from raz.data.frames import Frames
from raz.paper.networks import Backbone, CountingBranch, LocalizationBranch
from raz.pipeline import nets
from raz.pipeline.assemble import Trained, main_net, raz_net
from raz.pipeline.cache import Artifact, StageCache, StageKey, digest
from raz.pipeline.frozen import Candidates, FeatureCache, RichCache, SizedFeatures, kept_candidates
from raz.pipeline.infer import FeatureMemo, Network
from raz.pipeline.keys import opened, stage_keys, weights_identity
from raz.pipeline.regions import candidates
from raz.pipeline.samples import Images
from raz.pipeline.told import StageEvent, Tell
from raz.pipeline.tree import Node

MEMO = FeatureMemo()
IMAGES_TOLD = 2.0  # seconds between two words on how many images are predicted


@lru_cache(maxsize=8)
def frames_of(name: str, root: Path | None, split: Split, scale: float, max_side: int, pack: Path) -> Frames:
    return Frames(opened(name, root).items[split], scale=scale, max_side=max_side, pack=pack)


@lru_cache(maxsize=64)
def _configured(values: str) -> TrialConfig:
    return from_parameters(json.loads(values))


@dataclass
class Workbench:
    """A trial's configuration and keys, and the artifacts found or made so far.

    `read` collects the packs and features that the stage in the making has read.
    """

    config: TrialConfig
    cache: StageCache
    data_root: Path | None
    log: Tell
    artifacts: dict[Node, Artifact] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    @cached_property
    def keys(self) -> dict[Node, StageKey]:
        return stage_keys(self.config, data_root=self.data_root, splits=("train", "val", "test"))

    @cached_property
    def device(self) -> torch.device:
        return nets.device()

    @cached_property
    def device_name(self) -> str:
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def frames(self, split: str, size: float = 1.0) -> Frames:
        """The images of a split at the network's input size, or at `size` times it."""
        given = resized(self.config.input, size)
        pack = self.cache.store / "packs"
        frames = frames_of(self.config.dataset, self.data_root, cast(Split, split), given.scale, given.max_side, pack)
        self.read |= {f"packs/{name}" for name in frames.packs}
        return frames

    # -------------------------------------------------------------- networks out of artifacts

    def folder(self, stage: str) -> Path:
        return self.artifacts[Node(stage)].folder

    def stage_config(self, stage: str) -> TrialConfig:
        """The configuration with only what went into `stage`; how networks are shaped."""
        return _configured(json.dumps(self.artifacts[Node(stage)].manifest["config"]))

    def trained(self, stage: str) -> Trained:
        weights = nets.read_state(self.folder(stage) / "weights.safetensors")
        return Trained(self.keys[Node(stage)].key, self.stage_config(stage), weights)

    def main(self, through: str) -> Network:
        """Main-Net up to and with the branch `through` (counting, localization or attention)."""
        return main_net(self.trained, through, self.device)

    def raz(self, with_attention: bool) -> Network:
        """RAZ-Net: its own localization branch and, if it was trained, backbone."""
        return raz_net(self.trained, with_attention, self.device)

    # -------------------------------------------------------------- what frozen networks give, kept

    def features(self, backbone: Backbone, weights: str, images: Images, data: str, size: float = 1.0) -> FeatureCache:
        """The cache of a frozen backbone's features on these images."""
        return FeatureCache(self.frozen_folder(weights, data, size), backbone, images, self.device)

    def frozen_folder(self, weights: str, data: str, size: float = 1.0) -> Path:
        """Where what these frozen weights give of these data is kept."""
        name = digest([weights, data, asdict(resized(self.config.input, size)), self.config.threads, self.device.type])
        self.read.add(f"features/{name}")
        return self.cache.store / "features" / name

    def rich_maps(
        self, features: FeatureCache, branch: CountingBranch | LocalizationBranch, weights: str, data: str
    ) -> RichCache:
        """The cache of a frozen branch's last rich map on the images of these features."""
        stride = branch.output_stride if isinstance(branch, CountingBranch) else 1
        folder = self.frozen_folder(f"{weights}/rich", data)
        return RichCache(folder, branch, branch.channels, stride, features)

    def weights_name(self, network: Network, kind: str) -> str:
        """What names the weights of the backbone before a branch."""
        c = self.stage_config("counting")
        shared = kind == "counting" or network.localization_backbone is network.backbone
        return untrained(c.backbone, c.seed) if shared and c.counting.unfreeze == "none" else f"{network.name}/{kind}"

    def frozen_features(self, network: Network, kind: str = "counting") -> tuple[FeatureCache, FeatureCache]:
        """The caches of the training and the validation images."""
        backbone = network.backbone if kind == "counting" else network.localization_backbone
        weights, data = self.weights_name(network, kind), self.keys[Node("counting")].data
        train, val = (self.features(backbone, weights, self.frames(s), data[s]) for s in ("train", "val"))
        return train, val

    def sized(self, backbone: Backbone, weights: str, sizes: tuple[float, ...]) -> tuple[SizedFeatures, FeatureCache]:
        """The caches of the training images at these sizes and of the validation images."""
        data = self.keys[Node("counting")].data
        caches = (self.features(backbone, weights, self.frames("train", s), data["train"], s) for s in sizes)
        return SizedFeatures(tuple(caches)), self.features(backbone, weights, self.frames("val"), data["val"])

    def candidates(
        self, node: Node, network: Network, split: str, data: str, given: Any, config: Any
    ) -> list[Candidates]:
        """What Main-Net's attention proposes on each image of a split: once for every stage and every theta_z, k_z
        and IoU that choose among it."""
        frames = self.frames(split)

        def compute() -> list[Candidates]:
            out = []
            for i in self.each(node, frames):
                image = frames.ids[i]
                maps = network.maps(frames.pixels(i), ("attention",), self.device, MEMO, image)
                out.append(candidates(maps["attention"], config, given.seed, image, 2))
            return out

        drawn = [given.seed, config.anchors, config.samples, config.sampling]
        folder = self.frozen_folder(digest([self.keys[Node("attention")].key, drawn]), data)
        return kept_candidates(folder / "candidates.npz", len(frames), compute)

    def each(self, node: Node, frames: Frames) -> Iterator[int]:
        """Indices of a split; tells now and then how many are done."""
        told = time.monotonic()
        for i in range(len(frames)):
            yield i
            now = time.monotonic()
            if now - told > IMAGES_TOLD:
                told = now
                self.log(StageEvent("images", str(node), self.keys[node].key, epoch=i + 1, epochs=len(frames)))


def resized(given: InputConfig, size: float) -> InputConfig:
    """The input at `size` times its size."""
    return InputConfig(given.scale * size, round(given.max_side * size))


def untrained(config: BackboneConfig, seed: int) -> str:
    """What names the weights of a backbone that no stage trained."""
    return digest([weights_identity(config.weights), config.width, seed])
