"""A trial: its stages found or made, each once per key, and its metrics. Runs in a plain Python shell.

`run_trial(config, store)` is all that engines call. A stage is made under its lease: whoever waits for it finds
the artifact when the lease is free, and a killed maker's training is continued from its last epoch. An engine
that has other processes make the stages gives `make`, and these call `make_stages`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from raz.config import BackboneConfig, InputConfig, TrialConfig, from_parameters, parameters
from raz.data.contract import Split
from raz.data.frames import Frames
from raz.errors import TrialFailure
from raz.paper.networks import Backbone, CountingBranch, LocalizationBranch
from raz.paper.zoom import Points
from raz.pipeline import nets
from raz.pipeline.assemble import Trained, main_net, raz_net
from raz.pipeline.cache import Artifact, StageCache, StageKey, digest, write_json, writing
from raz.pipeline.frozen import (
    RICH_BYTES,
    Candidates,
    FeatureCache,
    RichCache,
    SizedFeatures,
    kept_candidates,
    rich_bytes,
)
from raz.pipeline.infer import FeatureMemo, Network
from raz.pipeline.keys import opened, stage_keys, weights_identity
from raz.pipeline.lease import Lease, LostLease
from raz.pipeline.memory import keep_freed_memory
from raz.pipeline.regions import candidates, points_of, region_images, zoom_pass
from raz.pipeline.samples import Images, Sizes
from raz.pipeline.score import Predicted, Scores, ceiling_counts, score_split, within
from raz.pipeline.tasks import Batch, Material, RichOf, attention_task, counting_task, features_from, localization_task
from raz.pipeline.told import Kind, StageEvent, Tell
from raz.pipeline.train import Checkpoint, Outcome, Progress, Pruned, Task, train
from raz.pipeline.tree import STAGES, Node, chain_key, declared, first_step, fits_on_train, needed_for, ordered
from raz.versions import versions

__all__ = [
    "STAGES", "Missing", "Pruned", "StageUse", "TrialResult", "forget_failures", "make_stages", "run_trial",
    "stage_keys", "stored_metrics",
]  # fmt: skip

Hear = Callable[[int, float], bool]  # (epoch, validation value) of a trained stage -> stop?


@dataclass(frozen=True)
class StageUse:
    """One stage of a trial: its key, whether it was found (`hit`), the seconds it took when it was made, and those
    that were spent on it for this trial: 0 for a hit, fewer than `seconds` where training went on from a checkpoint."""

    stage: str
    key: str
    hit: bool
    seconds: float
    spent: float = 0.0


@dataclass(frozen=True)
class TrialResult:
    """Metrics by dotted name (`val.mae`, `test.ap50@40` …), the stages behind them, the trial's own seconds."""

    metrics: dict[str, float]
    stages: tuple[StageUse, ...]
    seconds: float
    device: str = ""
    data: Mapping[str, str] = field(default_factory=dict)  # split -> fingerprint of what was read


@lru_cache(maxsize=8)
def _frames(name: str, root: Path | None, split: Split, scale: float, max_side: int, pack: Path) -> Frames:
    return Frames(opened(name, root).items[split], scale=scale, max_side=max_side, pack=pack)


@lru_cache(maxsize=8)
def _ceiling(name: str, root: Path | None, split: Split, scale: float, max_side: int, pack: Path) -> NDArray[np.int64]:
    """`ceiling_counts` of a split, once a process: every score of it prints them."""
    frames = _frames(name, root, split, scale, max_side, pack)
    return ceiling_counts([frames.heads(i) for i in range(len(frames))], [frames.size(i) for i in range(len(frames))])


_MEMO = FeatureMemo()
IMAGES_TOLD = 2.0  # seconds between two words on how many images are predicted


def stored_metrics(
    config: TrialConfig, store: Path, *, data_root: Path | None = None, splits: tuple[str, ...] = ("val", "test")
) -> dict[str, float] | None:
    """The metrics of a trial as the store holds them; None where a score is not there. Makes nothing."""
    keys = stage_keys(config, data_root=data_root, splits=splits)
    cache = StageCache(store)
    out: dict[str, float] = {}
    for split in splits:
        found = cache.find(keys[Node("score", split)])
        if found is None:
            return None
        out |= _read_metrics(found, split)
    return out


def run_trial(
    config: TrialConfig,
    store: Path,
    *,
    data_root: Path | None = None,
    splits: tuple[str, ...] = ("val",),
    progress: Progress | None = None,
    log: Tell | None = None,
    make: Make | None = None,
) -> TrialResult:
    """Make what is missing of a trial and return its metrics.

    `progress(step, value) -> stop?` hears each epoch of each trained stage, steps cumulated over the stages'
    epoch caps, also those of stages found in the store. `log` hears what happens to each stage; `print` will do.
    Raises Pruned when it says stop, TrialFailure with
    its reason when the trial cannot give a number, RazError for what the user can put right.
    """
    began = time.monotonic()
    trial = _Trial(config.resolved(), _cache(Path(store)), data_root, log or (lambda _: None), make=make)
    if progress is not None:
        trial.tell = lambda node, epoch, value: progress(trial.step(node) + epoch, value)
    with _threads(config.threads):
        trial.path = ordered(trial.config, splits)
        if make is not None:
            make.begin({node: trial.keys[node] for node in trial.path})
        uses = [trial.ensure(node) for node in trial.path]
        metrics: dict[str, float] = {}
        for split in splits:
            metrics |= _read_metrics(trial.artifacts[Node("score", split)], split)
    data = {split: value for node in trial.artifacts for split, value in trial.keys[node].data.items()}
    return TrialResult(metrics, tuple(uses), time.monotonic() - began, trial.device_name, data)


def make_stages(
    config: TrialConfig,
    store: Path,
    nodes: Sequence[Node],
    *,
    data_root: Path | None = None,
    tell: Callable[[Node, int, float], bool] | None = None,
    made: Callable[[Node], None] | None = None,
    log: Tell | None = None,
) -> None:
    """Make these stages of a trial, in order, and what is missing of their needs.

    `tell(node, epoch, value) -> stop?` hears each epoch of those that are trained, `made(node)` when each is in
    the store. Raises as `run_trial`.
    """
    trial = _Trial(config.resolved(), _cache(Path(store)), data_root, log or (lambda _: None))
    with _threads(config.threads):
        for node in needed_for(trial.config, nodes):
            trial.tell = tell if node in nodes else None
            trial.ensure(node)
            if made is not None and node in nodes:
                made(node)


def forget_failures(
    config: TrialConfig, store: Path, *, data_root: Path | None = None, splits: tuple[str, ...] = ("val",)
) -> int:
    """Lets the stages of a trial that failed by their own fault be tried again; how many there were."""
    cache = _cache(Path(store))
    return sum(cache.forget(key) for key in stage_keys(config, data_root=data_root, splits=splits).values())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=4)
def _cache(store: Path) -> StageCache:
    """One a process, so that an artifact is read through once, not once a trial."""
    return StageCache(store)


@dataclass(frozen=True)
class Missing:
    """What a trial lacks next: a trained stage, or a run of inferred ones that may share a process."""

    config: TrialConfig
    nodes: tuple[Node, ...]  # the trial waits for the first
    keys: tuple[StageKey, ...]
    path: tuple[Node, ...]  # all that the trial still has before it, these first
    data_root: Path | None


class Make(Protocol):
    """An engine that has other processes make stages."""

    def begin(self, path: Mapping[Node, StageKey]) -> None:
        """What the trial has before it, in order."""

    def __call__(self, missing: Missing, hear: Hear) -> bool | None:
        """Returns when the first of the missing is in the store: whether this trial was the first to ask for it. None:
        make it here. Calls `hear` for the epochs as they are trained; raises as `run_trial`."""


def _read_metrics(artifact: Artifact, split: str) -> dict[str, float]:
    values = json.loads((artifact.folder / "metrics.json").read_text(encoding="utf-8"))
    return {f"{split}.{name}": float(value) for name, value in values.items()}


@dataclass
class _Trial:
    """The artifacts of one trial as they are found or made."""

    config: TrialConfig
    cache: StageCache
    data_root: Path | None
    log: Tell
    make: Make | None = None
    tell: Callable[[Node, int, float], bool] | None = None
    path: Sequence[Node] = ()
    artifacts: dict[Node, Artifact] = field(default_factory=dict)
    heard: dict[Node, int] = field(default_factory=dict)  # the last epoch that was told of each stage
    spent: dict[Node, float] = field(default_factory=dict)  # seconds worked for this trial on what it lacked
    read: set[str] = field(default_factory=set)  # packs and features that the stage in the making has read

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
        given = _resized(self.config.input, size)
        pack = self.cache.store / "packs"
        frames = _frames(self.config.dataset, self.data_root, cast(Split, split), given.scale, given.max_side, pack)
        self.read |= {f"packs/{name}" for name in frames.packs}
        return frames

    # -------------------------------------------------------------- finding or making a stage

    def ensure(self, node: Node) -> StageUse:
        key = self.keys[node]
        found, hit = self.cache.find(key), True
        while found is None:
            failure = self.cache.failure(key, self.device_name)
            if failure is not None:
                raise failure
            paid = self.make(self._missing(node), self._hearing(node)) if self.make is not None else None
            if paid is None:
                found, hit = self._make_here(node, key)
            else:
                found, hit = self.cache.find(key), not paid
                if found is not None and paid:
                    self.spent[node] = found.seconds
        self.artifacts[node] = found
        if hit:
            self.log(StageEvent("hit", str(node), key.key, seconds=found.seconds))
        if STAGES[node.stage].kind == "trained":
            self._replay(node, found)
        return StageUse(str(node), key.key, hit, found.seconds, self.spent.get(node, 0.0))

    def _make_here(self, node: Node, key: StageKey) -> tuple[Artifact | None, bool]:
        """The artifact and whether another process made it; None when another has taken over the making."""
        trained = STAGES[node.stage].kind == "trained"
        name = chain_key(key) if trained else key.key
        places = [self.cache.folder(node.stage, key.key).parent]
        if trained:
            places.append(self.cache.chain_folder(node.stage, name))
        with self.cache.lease(f"{node.stage}-{name}", places, self._waiting(node)) as lease:
            found = self.cache.find(key)
            if found is not None:
                return found, True
            failure = self.cache.failure(key, self.device_name)
            if failure is not None:
                raise failure
            self.read.clear()
            try:
                with self._told(node, key), writing(self.cache.store), _memory_of(f"stage {node}"):
                    found = self._make_trained(node, key, lease) if trained else self._make(node, key, lease)
            except LostLease:
                return None, True
            except TrialFailure as error:
                with writing(self.cache.store):
                    self.cache.remember(key, error, self.device_name)
                raise
            spent = self.spent.get(node, 0.0)
            self.log(StageEvent("finished", str(node), key.key, seconds=found.seconds, spent=spent))
            return found, False

    @contextmanager
    def _told(self, node: Node, key: StageKey) -> Iterator[None]:
        """Around the making of a stage: tells that it starts and why it stops short, and adds up the seconds spent."""
        began = time.monotonic()
        self.log(StageEvent("started", str(node), key.key))
        kind: Kind = "finished"
        reason = ""
        try:
            yield
        except Pruned as stop:
            kind, reason = "stopped", f"step {stop.step}"
            raise
        except LostLease:
            kind, reason = "stopped", "another process has taken over"
            raise
        except Exception as error:
            kind, reason = "failed", getattr(error, "reason", "") or type(error).__name__
            raise
        finally:
            spent = time.monotonic() - began
            self.spent[node] = self.spent.get(node, 0.0) + spent
            if kind != "finished":
                self.log(StageEvent(kind, str(node), key.key, spent=spent, reason=reason))

    def _missing(self, node: Node) -> Missing:
        rest = tuple(self.path[self.path.index(node) :])
        nodes = [node]
        if STAGES[node.stage].kind == "inferred":
            for other in rest[1:]:
                if STAGES[other.stage].kind != "inferred":
                    break
                if self.cache.find(self.keys[other]) is None:
                    nodes.append(other)
        return Missing(self.config, tuple(nodes), tuple(self.keys[n] for n in nodes), rest, self.data_root)

    def _hearing(self, node: Node) -> Hear:
        """Each epoch is told once, whether it is heard live, from a checkpoint or from the store."""

        def hear(epoch: int, value: float) -> bool:
            if self.tell is None or epoch <= self.heard.get(node, 0):
                return False
            self.heard[node] = epoch
            return self.tell(node, epoch, value)

        return hear

    def _waiting(self, node: Node) -> Callable[[], None]:
        told: list[bool] = []

        def wait() -> None:
            if not told:
                self.log(StageEvent("waiting", str(node), self.keys[node].key))
                told.append(True)

        return wait

    def step(self, node: Node) -> int:
        """Epoch caps of the trained stages before this one, so that steps align among trials."""
        return first_step(parameters(self.config), node.stage)

    def _replay(self, node: Node, artifact: Artifact) -> None:
        if self.tell is None:
            return
        hear = self._hearing(node)
        for point in json.loads((artifact.folder / "curve.json").read_text(encoding="utf-8")):
            if hear(int(point["epoch"]), float(point["value"])):
                raise Pruned(self.step(node) + int(point["epoch"]), float(point["value"]))

    def _about(self, node: Node, seconds: float) -> dict[str, Any]:
        return {
            "stage": str(node),
            "seconds": seconds,
            "device": self.device_name,
            "versions": versions(),
            "config": parameters(self.config),
            "read": sorted(self.read),
        }

    def _make_trained(self, node: Node, key: StageKey, lease: Lease) -> Artifact:
        chain = self.cache.chain_folder(node.stage, chain_key(key))
        checkpoint = Checkpoint(chain / "checkpoint.pt", lease)

        def heard(point: Mapping[str, float]) -> None:
            self.log(
                StageEvent(
                    "epoch", str(node), key.key, epoch=int(point["epoch"]), epochs=config.epochs, loss=point["loss"],
                    value=point["value"], seconds=point["seconds"],
                )
            )  # fmt: skip

        given = declared(self.config, node.stage)
        task, config = _TASKS[node.stage](self, given)
        if task is None:  # nothing to learn from: the copy of Main-Net stays as it is
            outcome = Outcome(_state(config), 0, 0.0, [])
        else:
            try:
                outcome = train(task, config, checkpoint, self.device, self._hearing(node), heard)
            except Pruned as stop:
                raise Pruned(self.step(node) + stop.step, stop.value) from stop

        def write(folder: Path) -> None:
            weights = {name: value.detach().cpu().contiguous() for name, value in outcome.weights.items()}
            (folder / "weights.safetensors").write_bytes(save(weights))
            write_json(folder / "curve.json", outcome.curve)

        seconds = sum(point["seconds"] for point in outcome.curve)
        about = self._about(node, seconds) | {"best_epoch": outcome.best_epoch, "best_value": outcome.best_value}
        return self.cache.publish(key, write, about, lease)

    def _make(self, node: Node, key: StageKey, lease: Lease) -> Artifact:
        began = time.monotonic()
        given = declared(self.config, node.stage)
        if node.stage == "score":
            scores = self._score(node, given)

            def write(folder: Path) -> None:
                write_json(folder / "metrics.json", scores.metrics)
                write_json(folder / "fitted.json", scores.fitted.as_json())
                np.savez_compressed(folder / "per_image.npz", allow_pickle=False, **scores.per_image)
        else:
            arrays = {"density": self._density, "points": self._points, "zoom": self._zoom}[node.stage](node, given)

            def write(folder: Path) -> None:
                np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)

        return self.cache.publish(key, write, self._about(node, time.monotonic() - began), lease)

    # -------------------------------------------------------------- networks out of artifacts

    def _folder(self, stage: str) -> Path:
        return self.artifacts[Node(stage)].folder

    def _stage_config(self, stage: str) -> TrialConfig:
        """The configuration with only what went into `stage`; how networks are shaped."""
        return _configured(json.dumps(self.artifacts[Node(stage)].manifest["config"]))

    def _trained(self, stage: str) -> Trained:
        weights = nets.read_state(self._folder(stage) / "weights.safetensors")
        return Trained(self.keys[Node(stage)].key, self._stage_config(stage), weights)

    def _main(self, through: str) -> Network:
        """Main-Net up to and with the branch `through` (counting, localization or attention)."""
        return main_net(self._trained, through, self.device)

    def _raz(self, with_attention: bool) -> Network:
        """RAZ-Net: its own localization branch and, if it was trained, backbone."""
        return raz_net(self._trained, with_attention, self.device)

    # -------------------------------------------------------------- what trained stages learn

    def _features(self, backbone: Backbone, weights: str, images: Images, data: str, size: float = 1.0) -> FeatureCache:
        """The cache of a frozen backbone's features on these images."""
        return FeatureCache(self._frozen_folder(weights, data, size), backbone, images, self.device)

    def _frozen_folder(self, weights: str, data: str, size: float = 1.0) -> Path:
        """Where what these frozen weights give of these data is kept."""
        name = digest([weights, data, asdict(_resized(self.config.input, size)), self.config.threads, self.device.type])
        self.read.add(f"features/{name}")
        return self.cache.store / "features" / name

    def _rich_maps(
        self, features: FeatureCache, branch: CountingBranch | LocalizationBranch, weights: str, data: str
    ) -> RichCache:
        """The cache of a frozen branch's last rich map on the images of these features."""
        stride = branch.output_stride if isinstance(branch, CountingBranch) else 1
        folder = self._frozen_folder(f"{weights}/rich", data)
        return RichCache(folder, branch, branch.channels, stride, features)

    def _weights_name(self, network: Network, kind: str) -> str:
        """What names the weights of the backbone before a branch."""
        c = self._stage_config("counting")
        shared = kind == "counting" or network.localization_backbone is network.backbone
        return _untrained(c.backbone, c.seed) if shared and c.counting.unfreeze == "none" else f"{network.name}/{kind}"

    def _frozen_features(self, network: Network, kind: str = "counting") -> tuple[FeatureCache, FeatureCache]:
        """The caches of the training and the validation images."""
        backbone = network.backbone if kind == "counting" else network.localization_backbone
        weights, data = self._weights_name(network, kind), self.keys[Node("counting")].data
        train, val = (self._features(backbone, weights, self.frames(s), data[s]) for s in ("train", "val"))
        return train, val

    def _sized(self, backbone: Backbone, weights: str, sizes: tuple[float, ...]) -> tuple[SizedFeatures, FeatureCache]:
        """The caches of the training images at these sizes and of the validation images."""
        data = self.keys[Node("counting")].data
        caches = (self._features(backbone, weights, self.frames("train", s), data["train"], s) for s in sizes)
        return SizedFeatures(tuple(caches)), self._features(backbone, weights, self.frames("val"), data["val"])

    def _material(self, given: Any, sizes: tuple[float, ...], k: int = 4) -> Material:
        """Training images at these sizes, validation images at the input's."""
        train = Sizes(tuple(self.frames("train", size) for size in sizes))
        return Material(train, self.frames("val"), given.seed, self.device, k)

    def _counting(self, given: Any) -> tuple[Task, Any]:
        c = given.counting
        m = self._material(given, c.sizes, c.k)
        backbone = nets.build_backbone(given.backbone, given.seed).to(self.device)
        branch = nets.build_counting(c, backbone, given.seed).to(self.device)
        nets.narrow_layout(given.backbone.width, backbone, branch)
        modules = nn.ModuleDict({"counting": branch})
        frozen: tuple[SizedFeatures | None, FeatureCache | None] = (None, None)
        if c.unfreeze == "backbone":
            modules["backbone"] = backbone
        else:
            nets.freeze(backbone)
            frozen = self._sized(backbone, _untrained(given.backbone, given.seed), c.sizes)
        task = counting_task(
            m, modules, branch,
            features_from(backbone, m.train, self.device, frozen[0]),
            features_from(backbone, m.val, self.device, frozen[1]),
            c.train, beta=c.beta, kernel=c.kernel, kind=c.loss,
        )  # fmt: skip
        return task, c.train

    def _localization(self, given: Any) -> tuple[Task, Any]:
        c = given.localization
        m = self._material(given, c.sizes)
        base = self._main(through="counting")
        backbone = base.backbone
        branch = nets.build_localization(c, backbone, given.seed).to(self.device)
        nets.narrow_layout(self.config.backbone.width, branch)
        modules = nn.ModuleDict({"localization": branch})
        frozen: tuple[SizedFeatures | None, FeatureCache | None] = (None, None)
        if c.unfreeze == "backbone":
            backbone.requires_grad_(True)
            modules["backbone"] = backbone
        else:
            frozen = self._sized(backbone, self._weights_name(base, "counting"), c.sizes)
        task = localization_task(
            m, "localization", modules, branch,
            features_from(backbone, m.train, self.device, frozen[0]),
            features_from(backbone, m.val, self.device, frozen[1]),
            c.train, gamma=c.gamma,
        )  # fmt: skip
        return task, c.train

    def _attention(self, given: Any) -> tuple[Task, Any]:
        c = given.attention
        data = self.keys[Node("attention")].data
        names = digest([data["train"], asdict(given.input)]), digest([data["val"], asdict(given.input)])
        m = Material(self.frames("train"), self.frames("val"), given.seed, self.device, names=names)
        base = self._main(through="localization")
        assert base.counting is not None
        assert base.localization is not None
        counting, localization = base.counting, base.localization
        branch = nets.build_attention(c, localization.channels + counting.channels, given.seed).to(self.device)
        nets.narrow_layout(self.config.backbone.width, branch)
        shared = base.localization_backbone is base.backbone
        den = self._frozen_features(base, "counting")
        loc = den if shared else self._frozen_features(base, "localization")

        sizes = [(localization.channels, 1), (counting.channels, counting.output_stride)]
        weights = [self.keys[Node(stage)].key for stage in ("localization", "counting")]

        def rich(den: FeatureCache, loc: FeatureCache, data: str, mirrors: bool) -> RichOf:
            if rich_bytes(loc.images, sizes, mirrors) <= RICH_BYTES:
                maps = self._rich_maps(loc, localization, weights[0], data)
                cells = self._rich_maps(den, counting, weights[1], data)
                return lambda windows: (maps.crops(windows), cells.crops(windows))
            den_of, loc_of = (features_from(c.backbone, c.images, self.device, c) for c in (den, loc))

            def of(windows: Batch) -> tuple[Tensor, Tensor | None]:
                own = loc_of(windows)
                return localization(own)[1], counting(own if den is loc else den_of(windows))[1]

            return of

        task = attention_task(
            m, "attention", nn.ModuleDict({"attention": branch}), branch,
            rich(den[0], loc[0], data["train"], c.train.flip), rich(den[1], loc[1], data["val"], False),
            c.train, sigma_z=c.sigma_z, kind=c.loss,
        )  # fmt: skip
        return task, c.train

    def _candidates(
        self, node: Node, network: Network, split: str, data: str, given: Any, config: Any
    ) -> list[Candidates]:
        """What Main-Net's attention proposes on each image of a split: once for every stage and every theta_z, k_z
        and IoU that choose among it."""
        frames = self.frames(split)

        def compute() -> list[Candidates]:
            out = []
            for i in self._each(node, frames):
                image = frames.ids[i]
                maps = network.maps(frames.pixels(i), ("attention",), self.device, _MEMO, image)
                out.append(candidates(maps["attention"], config, given.seed, image, 2))
            return out

        drawn = [given.seed, config.anchors, config.samples, config.sampling]
        folder = self._frozen_folder(digest([self.keys[Node("attention")].key, drawn]), data)
        return kept_candidates(folder / "candidates.npz", len(frames), compute)

    def _region_material(self, node: Node, given: Any, network: Network) -> tuple[Material, dict[str, str]]:
        """Zoomed regions of the training and validation images, and names of these data."""
        config = given.raz.regions
        key = self.keys[Node("attention")]
        sets = {
            split: region_images(
                self.frames(split), config, self._candidates(node, network, split, key.data[split], given, config)
            )
            for split in ("train", "val")
        }
        names = {split: digest([key.key, asdict(config), key.data[split], given.seed]) for split in sets}
        regions = f"RAZ-Net learns from {len(sets['train'])} regions, validated on {len(sets['val'])}"
        self.log(StageEvent("note", "raz", self.keys[Node("raz")].key, reason=regions))
        m = Material(sets["train"], sets["val"], given.seed, self.device, names=(names["train"], names["val"]))
        return m, names

    def _raz_net(self, given: Any) -> tuple[Task | None, Any]:
        network = self._main(through="attention")
        m, names = self._region_material(Node("raz"), given, network)
        assert network.localization is not None
        branch, backbone = network.localization, network.localization_backbone
        branch.requires_grad_(True)
        modules = nn.ModuleDict({"localization": branch})
        frozen: list[FeatureCache | None] = [None, None]
        if given.raz.unfreeze == "backbone":
            backbone.requires_grad_(True)
            modules["backbone"] = backbone
        else:
            weights = f"{network.name}/regions"
            frozen = [self._features(backbone, weights, getattr(m, s), names[s]) for s in ("train", "val")]
        if not len(m.train) or not len(m.val):
            why = "no region to learn from: RAZ-Net stays a copy of Main-Net (try a larger sigma_z, a lower theta_z)"
            self.log(StageEvent("note", "raz", self.keys[Node("raz")].key, reason=why))
            return None, modules
        task = localization_task(
            m, "raz", modules, branch,
            features_from(backbone, m.train, self.device, frozen[0]),
            features_from(backbone, m.val, self.device, frozen[1]),
            given.raz.train, gamma=given.localization.gamma,
        )  # fmt: skip
        return task, given.raz.train

    def _raz_attention(self, given: Any) -> tuple[Task | None, Any]:
        main = self._main(through="attention")
        m, names = self._region_material(Node("raz_attention"), given, main)
        network = self._raz(with_attention=False)
        assert network.localization is not None
        assert main.attention is not None
        localization = network.localization
        c = self._stage_config("attention").attention
        branch = nets.raz_attention_from(main.attention, localization.channels, c).to(self.device)
        nets.narrow_layout(self.config.backbone.width, branch)
        modules = nn.ModuleDict({"attention": branch})
        if not len(m.train) or not len(m.val):
            return None, modules
        weights = f"{network.name}/regions"
        caches = [self._features(network.backbone, weights, getattr(m, s), names[s]) for s in ("train", "val")]

        sizes = [(localization.channels, 1)]

        def rich(cache: FeatureCache, data: str, mirrors: bool) -> RichOf:
            if rich_bytes(cache.images, sizes, mirrors) <= RICH_BYTES:
                maps = self._rich_maps(cache, localization, self.keys[Node("raz")].key, data)
                return lambda windows: (maps.crops(windows), None)
            of = features_from(cache.backbone, cache.images, self.device, cache)
            return lambda windows: (localization(of(windows))[1], None)

        train = given.raz.attention_train
        task = attention_task(
            m, "raz_attention", modules, branch,
            rich(caches[0], names["train"], train.flip), rich(caches[1], names["val"], False),
            train, sigma_z=given.attention.sigma_z, kind=given.attention.loss,
        )  # fmt: skip
        return task, train

    # -------------------------------------------------------------- what inferred stages predict

    def _density(self, node: Node, given: Any) -> dict[str, NDArray[Any]]:
        network, frames = self._main(through="counting"), self.frames(node.split)
        out = {}
        for i in self._each(node, frames):
            maps = network.maps(frames.pixels(i), ("density",), self.device, _MEMO, frames.ids[i])
            out[f"d{i}"] = maps["density"]
        return out

    def _points(self, node: Node, given: Any) -> dict[str, NDArray[Any]]:
        network, frames = self._main(through="localization"), self.frames(node.split)
        points = []
        for i in self._each(node, frames):
            maps = network.maps(frames.pixels(i), ("response",), self.device, _MEMO, frames.ids[i])
            points.append(points_of(maps["response"], 0, 1))
        return _pack_points(points)

    def _zoom(self, node: Node, given: Any) -> dict[str, NDArray[Any]]:
        frames, config, number = self.frames(node.split), given.zooming, node.zoom_pass
        proposed = None
        if number == 2:
            data = self.keys[node].data[node.split]
            proposed = self._candidates(node, self._main(through="attention"), node.split, data, given, config)
        raz = self._raz(with_attention=number > 2)
        previous = Node("points", node.split) if number == 2 else Node("zoom", node.split, number - 1)
        before, regions_before = self._read_pass(previous)

        def raz_map(kind: str, of: Node) -> Callable[[NDArray[np.uint8], str], NDArray[np.float32]]:
            # The next pass looks at the same crops for its proposals: their features are remembered.
            key = self.keys[of].key
            return lambda pixels, name: raz.maps(pixels, (kind,), self.device, _MEMO, f"{key}/{name}")[kind]

        points, regions = [], []
        for i in self._each(node, frames):
            found, chosen = zoom_pass(
                frames, i, number, before[i], regions_before[i], config, given.seed,
                proposed[i] if proposed is not None else None,
                raz_map("attention", previous), raz_map("response", node),
            )  # fmt: skip
            points.append(found)
            regions.append(chosen)
        ends = np.cumsum([len(r) for r in regions], dtype=np.int64)
        packed: dict[str, NDArray[Any]] = dict(_pack_points(points))
        return packed | {"regions": np.concatenate([np.zeros((0, 4)), *regions]), "region_ends": ends}

    def _each(self, node: Node, frames: Frames) -> Iterator[int]:
        """Indices of a split; tells now and then how many are done."""
        told = time.monotonic()
        for i in range(len(frames)):
            yield i
            now = time.monotonic()
            if now - told > IMAGES_TOLD:
                told = now
                self.log(StageEvent("images", str(node), self.keys[node].key, epoch=i + 1, epochs=len(frames)))

    def _read_pass(self, node: Node) -> tuple[list[Points], list[NDArray[np.float64]]]:
        with np.load(self.artifacts[node].folder / "arrays.npz", allow_pickle=False) as arrays:
            points = _unpack_points(arrays)
            if "regions" not in arrays:
                return points, [np.zeros((0, 4)) for _ in points]
            return points, np.split(arrays["regions"], arrays["region_ends"][:-1])

    # -------------------------------------------------------------- the score

    def _predicted(self, split: str) -> Predicted:
        frames = self.frames(split)
        with np.load(self.artifacts[Node("density", split)].folder / "arrays.npz", allow_pickle=False) as arrays:
            density = [arrays[f"d{i}"] for i in range(len(frames))]
        passes, regions = [self._read_pass(Node("points", split))[0]], []
        for number in range(2, self.config.depth + 1):
            points, chosen = self._read_pass(Node("zoom", split, number))
            passes.append(points)
            regions.append(chosen)
        given = self.config.input
        ceiling = _ceiling(
            self.config.dataset, self.data_root, cast(Split, split), given.scale, given.max_side,
            self.cache.store / "packs",
        )  # fmt: skip
        scales = [frames.scale(i) for i in range(len(frames))]
        stride = self._stage_config("counting").counting.output_stride
        predicted = Predicted(
            frames.ids, [frames.original_heads(i) for i in range(len(frames))],
            [frames.size(i) for i in range(len(frames))], [(1 / x, 1 / y) for x, y in scales],
            density, stride, passes, regions, ceiling, tuple(item.part for item in frames.items),
        )  # fmt: skip
        return within(predicted, [item.region for item in frames.items])

    def _score(self, node: Node, given: Any) -> Scores:
        split = self._predicted(node.split)
        val = split if node.split == "val" else self._predicted("val")
        learned = None
        if fits_on_train(self.config):
            learned = split if node.split == "train" else self._predicted("train")
        return score_split(node.split, split, val, learned, given.depth, given.peaks, given.fusion, given.metrics)


_TASKS: Mapping[str, Callable[[_Trial, Any], tuple[Task | None, Any]]] = {
    "counting": _Trial._counting,
    "localization": _Trial._localization,
    "attention": _Trial._attention,
    "raz": _Trial._raz_net,
    "raz_attention": _Trial._raz_attention,
}


@lru_cache(maxsize=64)
def _configured(values: str) -> TrialConfig:
    return from_parameters(json.loads(values))


@contextmanager
def _memory_of(where: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        hint = "set a smaller batch, crop or input.scale"
        raise TrialFailure(where, "the device's memory is full", hint, reason="oom") from error


def _resized(given: InputConfig, size: float) -> InputConfig:
    """The input at `size` times its size."""
    return InputConfig(given.scale * size, round(given.max_side * size))


def _untrained(config: BackboneConfig, seed: int) -> str:
    """What names the weights of a backbone that no stage trained."""
    return digest([weights_identity(config.weights), config.width, seed])


def _state(modules: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in modules.state_dict().items()}


def _pack_points(points: list[Points]) -> dict[str, NDArray[Any]]:
    return {
        "xy": np.concatenate([np.zeros((0, 2)), *[p.xy for p in points]]),
        "score": np.concatenate([np.zeros(0, np.float32), *[p.score for p in points]]),
        "network": np.concatenate([np.zeros(0, np.int8), *[p.network for p in points]]),
        "depth": np.concatenate([np.zeros(0, np.int8), *[p.depth for p in points]]),
        "ends": np.cumsum([len(p) for p in points], dtype=np.int64),
    }


def _unpack_points(arrays: Mapping[str, NDArray[Any]]) -> list[Points]:
    cuts = arrays["ends"][:-1]
    parts = [np.split(arrays[name], cuts) for name in ("xy", "score", "network", "depth")]
    return [Points(*values) for values in zip(*parts, strict=True)]
