"""What the function of a stage works with: images, networks read from the store, and features of frozen networks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import torch

from raz.config import BackboneConfig, TrialConfig, ZoomingConfig, changed_since
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
from raz.pipeline.regions import REGIONS_VERSION, image_candidates
from raz.pipeline.samples import Images
from raz.store.cache import Artifact, StageCache, StageKey, digest
from raz.store.failures import Device
from raz.store.paths import CANDIDATES, WEIGHTS, StorePaths
from raz.utils.json_types import JsonLike

MEMO = FeatureLru()  # features of whole images, shared by the stages of this process
PROGRESS_INTERVAL = 2.0  # seconds between two events about the number of predicted images
Branch = Literal["counting", "localization", "attention"]


@lru_cache(maxsize=8)
def frames_of(name: str, root: Path | None, split: str, scale: float, max_side: int, pack: Path) -> Frames:
    """The images of a split at the network's input size, opened once per process. Raises KeyError for an unknown
    split."""
    items = {str(key): samples for key, samples in open_cached(name, root).items.items()}
    return Frames(items[split], scale=scale, max_side=max_side, pack=pack)


@dataclass
class TrialState:
    """A trial's configuration and keys, and the artifacts that were found or made so far."""

    config: TrialConfig
    cache: StageCache
    data_root: Path | None
    log: EventCallback
    artifacts: dict[Node, Artifact] = field(default_factory=dict)

    @cached_property
    def keys(self) -> dict[Node, StageKey]:
        """The key of every stage, for all three splits."""
        return stage_keys(self.config, data_root=self.data_root, splits=("train", "val", "test"))

    @cached_property
    def device(self) -> torch.device:
        """The GPU if there is one, else the CPU."""
        return builders.device()

    @cached_property
    def device_name(self) -> str:
        """The GPU's name, or `cpu`."""
        return self.hardware.name

    @cached_property
    def hardware(self) -> Device:
        """The device as failures record it."""
        if self.device.type != "cuda":
            return Device("cpu")
        return Device(torch.cuda.get_device_name(), torch.cuda.get_device_properties(self.device).total_memory)

    def context(self, node: Node) -> ExecutionContext:
        """What the function of the node's stage works with. It can read the artifacts that are in `artifacts` now."""
        nodes = dependency_closure(self.config, [node])
        return ExecutionContext(
            node, inputs_for(self.config, node), {n: self.keys[n] for n in nodes},
            {n: self.artifacts[n].folder for n in nodes if n in self.artifacts},
            self.cache.paths, self.data_root, self.device, self.log,
        )  # fmt: skip


@dataclass
class ExecutionContext:
    """What the function of one stage works with.

    It holds the declared inputs, keys and artifacts of the stage's node and of all that the node needs, and nothing
    else of the trial. So everything that can change the output is in the key.
    """

    node: Node
    stage_inputs: Mapping[str, Declared]  # stage -> its declared inputs
    keys: Mapping[Node, StageKey]
    folders: Mapping[Node, Path]  # of the artifacts
    paths: StorePaths
    data_root: Path | None
    device: torch.device
    log: EventCallback
    read: set[str] = field(default_factory=set)  # packs and features that the stage has read, for its manifest

    @property
    def inputs(self) -> Declared:
        """The declared inputs of the stage itself."""
        return self.stage_inputs[self.node.stage]

    def note(self, node: Node, text: str) -> None:
        """Log a remark about a node."""
        self.log(StageEvent("note", str(node), self.keys[node].key, reason=text))

    def frames(self, split: str, size: float = 1.0) -> Frames:
        """The images of a split at `size` times the network's input size."""
        scaled = self.inputs.input.times(size)
        packs = self.paths.packs
        frames = frames_of(self.inputs.dataset, self.data_root, split, scaled.scale, scaled.max_side, packs)
        self.read |= {self.paths.relative(packs / name) for name in frames.packs}
        return frames

    def iter_images(self, frames: Frames) -> Iterator[int]:
        """Indices of the images. Logs how many are done, every PROGRESS_INTERVAL seconds."""
        last = time.monotonic()
        for i in range(len(frames)):
            yield i
            now = time.monotonic()
            if now - last > PROGRESS_INTERVAL:
                last = now
                key = self.keys[self.node].key
                self.log(StageEvent("images", str(self.node), key, epoch=i + 1, epochs=len(frames)))

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

    def features_folder(self, weights: str, data: str, size: float = 1.0) -> Path:
        """The folder of the features that these frozen weights give for these images.

        weights: identifies the weights; data: identifies the images; size: the images' scale, as in `frames`.
        """
        scaled = asdict(self.inputs.input.times(size))
        folder = self.paths.features / digest([weights, data, scaled, self.inputs.threads, self.device.type])
        self.read.add(self.paths.relative(folder))
        return folder

    def features(self, backbone: Backbone, weights: str, images: Images, data: str, size: float = 1.0) -> FeatureCache:
        """The cache of a frozen backbone's features of these images. `weights`, `data`, `size`: see
        `features_folder`."""
        return FeatureCache(self.features_folder(weights, data, size), backbone, images, self.device)

    def rich_maps(
        self, features: FeatureCache, branch: CountingBranch | LocalizationBranch, weights: str, data: str
    ) -> BranchFeatureCache:
        """The cache of a frozen branch's last feature map of the images of `features`."""
        stride = branch.output_stride if isinstance(branch, CountingBranch) else 1
        folder = self.features_folder(f"{weights}/rich", data)
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
        folder = self.features_folder(weights, self.keys[self.node].data[split], size)
        return cached_candidates(folder / CANDIDATES, len(frames), compute)


def memo_name(image: str, size: float) -> str:
    """The id in the memo of features of an image at `size` times the networks' input size."""
    return image if size == 1 else f"{image} x {size!r}"


def initial_weights_id(config: BackboneConfig, seed: int) -> str:
    """Identifies the weights of a backbone that no stage trained."""
    added = changed_since(config)
    return digest([weights_identity(config), config.width, seed, *([added] if added else [])])
