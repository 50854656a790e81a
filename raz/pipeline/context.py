"""What the makers of a trial's stages work with: its images, its networks out of the store, and frozen features."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import cast

import torch

from raz.config import BackboneConfig, InputConfig, TrialConfig, ZoomingConfig
from raz.data.contract import Split
from raz.data.frames import Frames
from raz.paper.networks import Backbone, CountingBranch, LocalizationBranch
from raz.pipeline import builders
from raz.pipeline.assembly import TrainedStage, main_net, raz_net
from raz.pipeline.events import EventCallback, StageEvent
from raz.pipeline.feature_cache import (
    BranchFeatureCache,
    Candidates,
    FeatureCache,
    MultiScaleFeatures,
    cached_candidates,
)
from raz.pipeline.graph import Declared, Node, dependency_closure, inputs_for
from raz.pipeline.inference import FeatureLru, Network
from raz.pipeline.keys import open_cached, stage_keys, weights_identity
from raz.pipeline.regions import candidates
from raz.pipeline.samples import Images
from raz.store.cache import Artifact, StageCache, StageKey, digest
from raz.store.paths import CANDIDATES, WEIGHTS, StorePaths
from raz.utils.json_types import JsonLike

MEMO = FeatureLru()
PROGRESS_INTERVAL = 2.0  # seconds between two words on how many images are predicted


@lru_cache(maxsize=8)
def frames_of(name: str, root: Path | None, split: Split, scale: float, max_side: int, pack: Path) -> Frames:
    return Frames(open_cached(name, root).items[split], scale=scale, max_side=max_side, pack=pack)


@dataclass
class TrialState:
    """A trial's configuration and keys, and the artifacts found or made so far."""

    config: TrialConfig
    cache: StageCache
    data_root: Path | None
    log: EventCallback
    artifacts: dict[Node, Artifact] = field(default_factory=dict)

    @cached_property
    def keys(self) -> dict[Node, StageKey]:
        return stage_keys(self.config, data_root=self.data_root, splits=("train", "val", "test"))

    @cached_property
    def device(self) -> torch.device:
        return builders.device()

    @cached_property
    def device_name(self) -> str:
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def workbench(self, node: Node) -> ExecutionContext:
        """What the function of the node's stage works with. It may read artifacts that were found by now."""
        nodes = dependency_closure(self.config, [node])
        return ExecutionContext(
            node, inputs_for(self.config, node), {n: self.keys[n] for n in nodes},
            {n: self.artifacts[n].folder for n in nodes if n in self.artifacts},
            self.cache.paths, self.data_root, self.device, self.log,
        )  # fmt: skip


@dataclass
class ExecutionContext:
    """What the function of one stage works with: declared inputs, keys and artifacts of its node and of all that this
    needs, and nothing else of the trial, so that everything that can change its output is in its key.

    `read` collects the packs and features that the stage has read.
    """

    node: Node
    inputs: Mapping[str, Declared]  # by stage
    keys: Mapping[Node, StageKey]
    folders: Mapping[Node, Path]  # of the artifacts
    paths: StorePaths
    data_root: Path | None
    device: torch.device
    log: EventCallback
    read: set[str] = field(default_factory=set)

    @property
    def given(self) -> Declared:
        """The declared inputs of the stage itself."""
        return self.inputs[self.node.stage]

    def frames(self, split: str, size: float = 1.0) -> Frames:
        """The images of a split at the network's input size, or at `size` times it."""
        size_of, pack = resized(self.given.input, size), self.paths.packs
        frames = frames_of(
            self.given.dataset, self.data_root, cast(Split, split), size_of.scale, size_of.max_side, pack
        )
        self.read |= {self.paths.relative(pack / name) for name in frames.packs}
        return frames

    # -------------------------------------------------------------- networks out of artifacts

    def trained(self, stage: str) -> TrainedStage:
        node = Node(stage)
        weights = builders.read_state(self.folders[node] / WEIGHTS)
        return TrainedStage(self.keys[node].key, self.inputs[stage], weights)

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
        name = digest([weights, data, asdict(resized(self.given.input, size)), self.given.threads, self.device.type])
        folder = self.paths.features / name
        self.read.add(self.paths.relative(folder))
        return folder

    def rich_maps(
        self, features: FeatureCache, branch: CountingBranch | LocalizationBranch, weights: str, data: str
    ) -> BranchFeatureCache:
        """The cache of a frozen branch's last rich map on the images of these features."""
        stride = branch.output_stride if isinstance(branch, CountingBranch) else 1
        folder = self.frozen_folder(f"{weights}/rich", data)
        return BranchFeatureCache(folder, branch, branch.channels, stride, features)

    def weights_name(self, network: Network, kind: str) -> str:
        """What names the weights of the backbone before a branch."""
        c = self.inputs["counting"]
        shared = kind == "counting" or network.localization_backbone is network.backbone
        return (
            initial_weights_id(c.backbone, c.seed)
            if shared and c.counting.unfreeze == "none"
            else f"{network.name}/{kind}"
        )

    def frozen_features(self, network: Network, kind: str = "counting") -> tuple[FeatureCache, FeatureCache]:
        """The caches of the training and the validation images."""
        backbone = network.backbone if kind == "counting" else network.localization_backbone
        weights, data = self.weights_name(network, kind), self.keys[Node("counting")].data
        train, val = (self.features(backbone, weights, self.frames(s), data[s]) for s in ("train", "val"))
        return train, val

    def multi_scale_features(
        self, backbone: Backbone, weights: str, sizes: tuple[float, ...]
    ) -> tuple[MultiScaleFeatures, FeatureCache]:
        """The caches of the training images at these sizes and of the validation images."""
        data = self.keys[Node("counting")].data
        caches = (self.features(backbone, weights, self.frames("train", s), data["train"], s) for s in sizes)
        return MultiScaleFeatures(tuple(caches)), self.features(backbone, weights, self.frames("val"), data["val"])

    def candidates(
        self, node: Node, network: Network, split: str, data: str, given: Declared, config: ZoomingConfig
    ) -> list[Candidates]:
        """What Main-Net's attention proposes on each image of a split: once for every stage and every theta_z, k_z
        and IoU that choose among it."""
        frames = self.frames(split)

        def compute() -> list[Candidates]:
            out = []
            for i in self.iter_images(node, frames):
                image = frames.ids[i]
                maps = network.maps(frames.pixels(i), ("attention",), self.device, MEMO, image)
                out.append(candidates(maps["attention"], config, given.seed, image, 2))
            return out

        drawn: JsonLike = [given.seed, config.anchors, config.samples, config.sampling]
        folder = self.frozen_folder(digest([self.keys[Node("attention")].key, drawn]), data)
        return cached_candidates(folder / CANDIDATES, len(frames), compute)

    def iter_images(self, node: Node, frames: Frames) -> Iterator[int]:
        """Indices of a split; tells now and then how many are done."""
        told = time.monotonic()
        for i in range(len(frames)):
            yield i
            now = time.monotonic()
            if now - told > PROGRESS_INTERVAL:
                told = now
                self.log(StageEvent("images", str(node), self.keys[node].key, epoch=i + 1, epochs=len(frames)))


def resized(given: InputConfig, size: float) -> InputConfig:
    """The input at `size` times its size."""
    return InputConfig(given.scale * size, round(given.max_side * size))


def initial_weights_id(config: BackboneConfig, seed: int) -> str:
    """What names the weights of a backbone that no stage trained."""
    return digest([weights_identity(config.weights), config.width, seed])
