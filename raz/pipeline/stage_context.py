"""A trial's stages as this process knows them, and what the function of a stage works with. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from raz.config import TrialConfig
from raz.data.frames import Frames
from raz.pipeline import device
from raz.pipeline.events import EventCallback, StageEvent
from raz.pipeline.graph import Declared, Node, dependency_closure, inputs_for
from raz.pipeline.keys import open_cached, stage_keys
from raz.store.cache import Artifact, StageCache, StageKey
from raz.store.failures import Device
from raz.store.paths import StorePaths

if TYPE_CHECKING:
    import torch

PROGRESS_INTERVAL = 2.0  # seconds between two events about the number of predicted images


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
    scores_only: bool = False  # whether other processes make all stages that run networks

    @cached_property
    def keys(self) -> dict[Node, StageKey]:
        """The key of every stage, for all three splits."""
        return stage_keys(self.config, data_root=self.data_root, splits=("train", "val", "test"))

    @cached_property
    def device(self) -> torch.device:
        """The GPU if there is one, else the CPU. Imports torch."""
        return device.compute_device()

    @cached_property
    def device_name(self) -> str:
        """The GPU's name, or `cpu`."""
        return self.hardware.name

    @cached_property
    def hardware(self) -> Device:
        """The device as failures record it. A process that scores only uses the CPU."""
        return Device("cpu") if self.scores_only else device.hardware()

    def context(self, node: Node) -> StageContext:
        """What the function of the node's stage works with, unless it runs networks (`context.network_context`). It can
        read the artifacts that are in `artifacts` now."""
        nodes = dependency_closure(self.config, [node])
        return StageContext(
            node, inputs_for(self.config, node), {n: self.keys[n] for n in nodes},
            {n: self.artifacts[n].folder for n in nodes if n in self.artifacts},
            self.cache.paths, self.data_root, self.log,
        )  # fmt: skip


@dataclass
class StageContext:
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
