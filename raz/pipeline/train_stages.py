"""What the trained stages learn: each function gives the task of one stage and the settings of its training.

In place of a task None, with the modules as they are, where there is nothing to learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from raz.config import ZoomingConfig
from raz.pipeline import builders
from raz.pipeline.context import ExecutionContext, initial_weights_id
from raz.pipeline.events import StageEvent
from raz.pipeline.feature_cache import RICH_BYTES, FeatureCache, MultiScaleFeatures, rich_bytes
from raz.pipeline.graph import Declared, Node
from raz.pipeline.inference import Network
from raz.pipeline.regions import region_images
from raz.pipeline.samples import MultiScaleImages
from raz.pipeline.tasks import (
    Batch,
    RichOf,
    TrainingData,
    attention_task,
    counting_task,
    features_from,
    localization_task,
)
from raz.pipeline.training_loop import TrainingTask
from raz.store.cache import digest


def _material(w: ExecutionContext, given: Declared, sizes: tuple[float, ...], k: int = 4) -> TrainingData:
    """Training images at these sizes, validation images at the input's."""
    train = MultiScaleImages(tuple(w.frames("train", size) for size in sizes))
    return TrainingData(train, w.frames("val"), given.seed, w.device, k)


def counting(w: ExecutionContext, given: Declared) -> tuple[TrainingTask, Any]:
    c = given.counting
    m = _material(w, given, c.sizes, c.k)
    backbone = builders.build_backbone(given.backbone, given.seed).to(w.device)
    branch = builders.build_counting(c, backbone, given.seed).to(w.device)
    builders.to_channels_last(given.backbone.width, backbone, branch)
    modules = nn.ModuleDict({"counting": branch})
    frozen: tuple[MultiScaleFeatures | None, FeatureCache | None] = (None, None)
    if c.unfreeze == "backbone":
        modules["backbone"] = backbone
    else:
        builders.freeze(backbone)
        frozen = w.multi_scale_features(backbone, initial_weights_id(given.backbone, given.seed), c.sizes)
    task = counting_task(
        m, modules, branch,
        features_from(backbone, m.train, w.device, frozen[0]),
        features_from(backbone, m.val, w.device, frozen[1]),
        c.train, beta=c.beta, kernel=c.kernel, kind=c.loss,
    )  # fmt: skip
    return task, c.train


def localization(w: ExecutionContext, given: Declared) -> tuple[TrainingTask, Any]:
    c = given.localization
    m = _material(w, given, c.sizes)
    base = w.main(through="counting")
    backbone = base.backbone
    branch = builders.build_localization(c, backbone, given.seed).to(w.device)
    builders.to_channels_last(w.inputs["counting"].backbone.width, branch)
    modules = nn.ModuleDict({"localization": branch})
    frozen: tuple[MultiScaleFeatures | None, FeatureCache | None] = (None, None)
    if c.unfreeze == "backbone":
        backbone.requires_grad_(True)
        modules["backbone"] = backbone
    else:
        frozen = w.multi_scale_features(backbone, w.weights_name(base, "counting"), c.sizes)
    task = localization_task(
        m, "localization", modules, branch,
        features_from(backbone, m.train, w.device, frozen[0]),
        features_from(backbone, m.val, w.device, frozen[1]),
        c.train, gamma=c.gamma,
    )  # fmt: skip
    return task, c.train


def attention(w: ExecutionContext, given: Declared) -> tuple[TrainingTask, Any]:
    c = given.attention
    data = w.keys[Node("attention")].data
    names = digest([data["train"], asdict(given.input)]), digest([data["val"], asdict(given.input)])
    m = TrainingData(w.frames("train"), w.frames("val"), given.seed, w.device, names=names)
    base = w.main(through="localization")
    assert base.counting is not None
    assert base.localization is not None
    counting, localization = base.counting, base.localization
    branch = builders.build_attention(c, localization.channels + counting.channels, given.seed).to(w.device)
    builders.to_channels_last(w.inputs["counting"].backbone.width, branch)
    shared = base.localization_backbone is base.backbone
    den = w.frozen_features(base, "counting")
    loc = den if shared else w.frozen_features(base, "localization")

    sizes = [(localization.channels, 1), (counting.channels, counting.output_stride)]
    weights = [w.keys[Node(stage)].key for stage in ("localization", "counting")]

    def rich(den: FeatureCache, loc: FeatureCache, data: str, mirrors: bool) -> RichOf:
        if rich_bytes(loc.images, sizes, mirrors) <= RICH_BYTES:
            maps = w.rich_maps(loc, localization, weights[0], data)
            cells = w.rich_maps(den, counting, weights[1], data)
            return lambda windows: (maps.crops(windows), cells.crops(windows))
        den_of, loc_of = (features_from(c.backbone, c.images, w.device, c) for c in (den, loc))

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


def _region_material(
    w: ExecutionContext, node: Node, given: Declared, network: Network
) -> tuple[TrainingData, dict[str, str]]:
    """Zoomed regions of the training and validation images, and names of these data."""
    config = given.raz.regions
    assert isinstance(config, ZoomingConfig)  # `same` is written out
    key = w.keys[Node("attention")]
    sets = {
        split: region_images(
            w.frames(split), config, w.candidates(node, network, split, key.data[split], given, config)
        )
        for split in ("train", "val")
    }
    names = {split: digest([key.key, asdict(config), key.data[split], given.seed]) for split in sets}
    regions = f"RAZ-Net learns from {len(sets['train'])} regions, validated on {len(sets['val'])}"
    w.log(StageEvent("note", "raz", w.keys[Node("raz")].key, reason=regions))
    m = TrainingData(sets["train"], sets["val"], given.seed, w.device, names=(names["train"], names["val"]))
    return m, names


def raz_net(w: ExecutionContext, given: Declared) -> tuple[TrainingTask | None, Any]:
    network = w.main(through="attention")
    m, names = _region_material(w, Node("raz"), given, network)
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
        frozen = [w.features(backbone, weights, getattr(m, s), names[s]) for s in ("train", "val")]
    if not len(m.train) or not len(m.val):
        why = "no region to learn from: RAZ-Net stays a copy of Main-Net (try a larger sigma_z, a lower theta_z)"
        w.log(StageEvent("note", "raz", w.keys[Node("raz")].key, reason=why))
        return None, modules
    task = localization_task(
        m, "raz", modules, branch,
        features_from(backbone, m.train, w.device, frozen[0]),
        features_from(backbone, m.val, w.device, frozen[1]),
        given.raz.train, gamma=given.localization.gamma,
    )  # fmt: skip
    return task, given.raz.train


def raz_attention(w: ExecutionContext, given: Declared) -> tuple[TrainingTask | None, Any]:
    main = w.main(through="attention")
    m, names = _region_material(w, Node("raz_attention"), given, main)
    network = w.raz(with_attention=False)
    assert network.localization is not None
    assert main.attention is not None
    localization = network.localization
    c = w.inputs["attention"].attention
    branch = builders.raz_attention_from(main.attention, localization.channels, c).to(w.device)
    builders.to_channels_last(w.inputs["counting"].backbone.width, branch)
    modules = nn.ModuleDict({"attention": branch})
    if not len(m.train) or not len(m.val):
        return None, modules
    weights = f"{network.name}/regions"
    caches = [w.features(network.backbone, weights, getattr(m, s), names[s]) for s in ("train", "val")]

    sizes = [(localization.channels, 1)]

    def rich(cache: FeatureCache, data: str, mirrors: bool) -> RichOf:
        if rich_bytes(cache.images, sizes, mirrors) <= RICH_BYTES:
            maps = w.rich_maps(cache, localization, w.keys[Node("raz")].key, data)
            return lambda windows: (maps.crops(windows), None)
        of = features_from(cache.backbone, cache.images, w.device, cache)
        return lambda windows: (localization(of(windows))[1], None)

    train = given.raz.attention_train
    task = attention_task(
        m, "raz_attention", modules, branch,
        rich(caches[0], names["train"], train.flip), rich(caches[1], names["val"], False),
        train, sigma_z=given.attention.sigma_z, kind=given.attention.loss,
    )  # fmt: skip
    return task, train


TASKS: Mapping[str, Callable[[ExecutionContext, Declared], tuple[TrainingTask | None, Any]]] = {
    "counting": counting,
    "localization": localization,
    "attention": attention,
    "raz": raz_net,
    "raz_attention": raz_attention,
}
