"""The trained stages: each function builds the networks, data and loss of one stage for the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from raz.config import TrainConfig, ZoomingConfig
from raz.pipeline import backbones, builders
from raz.pipeline.context import ExecutionContext, initial_weights_id
from raz.pipeline.feature_cache import RICH_BYTES, FeatureCache, MultiScaleFeatures, rich_bytes
from raz.pipeline.graph import Node
from raz.pipeline.inference import Network
from raz.pipeline.regions import REGIONS_VERSION, region_images
from raz.pipeline.samples import MultiScaleImages
from raz.pipeline.tasks import (
    Batch,
    RichOf,
    Source,
    Tensors,
    TrainingData,
    attention_task,
    counting_task,
    features_from,
    localization_task,
    rich_from,
    tiles_from,
)
from raz.pipeline.training_loop import TrainingTask
from raz.store.cache import digest


@dataclass(frozen=True)
class TrainedStagePlan:
    """What a trained stage trains, and how."""

    task: TrainingTask[Batch] | None  # None: there are no training samples, `modules` stay as they are
    modules: nn.Module  # their weights are the stage's artifact
    settings: TrainConfig


def _image_data(context: ExecutionContext, sizes: tuple[float, ...], k: int = 4) -> TrainingData:
    """Training images at these sizes, validation images at the input's size."""
    train = MultiScaleImages(tuple(context.frames("train", size) for size in sizes))
    return TrainingData(train, context.frames("val"), context.inputs.seed, context.device, k)


def counting(context: ExecutionContext) -> TrainedStagePlan:
    """The counting branch, and the backbone unless it is frozen."""
    inputs, device = context.inputs, context.device
    config = inputs.counting
    data = _image_data(context, config.sizes, config.k)
    backbone = backbones.build_backbone(inputs.backbone, inputs.seed).to(device)
    branch = builders.build_counting(config, backbone, inputs.seed).to(device)
    builders.to_channels_last(inputs.backbone, backbone, branch)
    modules = nn.ModuleDict({"counting": branch})
    frozen: tuple[MultiScaleFeatures | None, FeatureCache | None] = (None, None)
    if config.unfreeze == "backbone":
        modules["backbone"] = backbone
    else:
        builders.freeze(backbone)
        weights = initial_weights_id(inputs.backbone, inputs.seed)
        frozen = context.multi_scale_features(backbone, weights, config.sizes)
    task = counting_task(
        data, modules, branch,
        features_from(backbone, data.train, device, frozen[0]),
        features_from(backbone, data.val, device, frozen[1]),
        config.train, beta=config.beta, kernel=config.kernel, kind=config.loss, pretrained=backbone.pretrained,
        tiles_of=tiles_from(backbone, counting=branch),
    )  # fmt: skip
    return TrainedStagePlan(task, modules, config.train)


def localization(context: ExecutionContext) -> TrainedStagePlan:
    """Main-Net's localization branch, and a backbone of its own unless the backbone is frozen."""
    inputs, device = context.inputs, context.device
    config = inputs.localization
    data = _image_data(context, config.sizes)
    network = context.main_net("counting")
    backbone = network.backbone
    branch = builders.build_localization(config, backbone, inputs.seed).to(device)
    builders.to_channels_last(context.stage_inputs["counting"].backbone, branch)
    modules = nn.ModuleDict({"localization": branch})
    frozen: tuple[MultiScaleFeatures | None, FeatureCache | None] = (None, None)
    if config.unfreeze == "backbone":
        backbone.requires_grad_(True)
        modules["backbone"] = backbone
    else:
        weights = context.backbone_id(network, "counting")
        frozen = context.multi_scale_features(backbone, weights, config.sizes)
    task = localization_task(
        data, "localization", modules, branch,
        features_from(backbone, data.train, device, frozen[0]),
        features_from(backbone, data.val, device, frozen[1]),
        config.train, gamma=config.gamma, pretrained=backbone.pretrained,
        tiles_of=tiles_from(backbone, localization=branch),
    )  # fmt: skip
    return TrainedStagePlan(task, modules, config.train)


def attention(context: ExecutionContext) -> TrainedStagePlan:
    """Main-Net's attention branch, on the frozen localization and counting branches."""
    inputs, device = context.inputs, context.device
    config = inputs.attention
    fingerprints = context.keys[Node("attention")].data
    names = digest([fingerprints["train"], asdict(inputs.input)]), digest([fingerprints["val"], asdict(inputs.input)])
    data = TrainingData(context.frames("train"), context.frames("val"), inputs.seed, device, names=names)
    network = context.main_net("localization")
    assert network.counting is not None
    assert network.localization is not None
    counting, localization = network.counting, network.localization
    branch = builders.build_attention(config, localization.channels + counting.channels, inputs.seed).to(device)
    builders.to_channels_last(context.stage_inputs["counting"].backbone, branch)
    shared = network.localization_backbone is network.backbone
    counting_features = context.frozen_features(network, "counting")
    localization_features = counting_features if shared else context.frozen_features(network, "localization")

    sizes = [(localization.channels, 1), (counting.channels, counting.output_stride)]
    localization_key, counting_key = (context.keys[Node(stage)].key for stage in ("localization", "counting"))

    def rich(of_counting: FeatureCache, of_localization: FeatureCache, images: str, mirrors: bool) -> RichOf:
        """The last maps of both branches: cached on disk if they fit RICH_BYTES, else computed for each window."""
        if rich_bytes(of_localization.images, sizes, mirrors) <= RICH_BYTES:
            maps = context.rich_maps(of_localization, localization, localization_key, images)
            cells = context.rich_maps(of_counting, counting, counting_key, images)
            return rich_from(device, maps, cells)
        caches = (of_localization,) if of_counting is of_localization else (of_localization, of_counting)

        def compute(_: Batch, loaded: Tensors) -> tuple[Tensor, Tensor | None]:
            features = [half.float() for half in loaded]
            return localization(features[0])[1], counting(features[-1])[1]

        def ensure(windows: Batch) -> None:
            for cache in caches:
                cache.ensure(windows)

        return Source(device, lambda windows: tuple(cache.load(windows) for cache in caches), compute, ensure)

    modules = nn.ModuleDict({"attention": branch})
    task = attention_task(
        data, "attention", modules, branch,
        rich(counting_features[0], localization_features[0], fingerprints["train"], config.train.flip),
        rich(counting_features[1], localization_features[1], fingerprints["val"], False),
        config.train, sigma_z=config.sigma_z, kind=config.loss,
        tiles_of=tiles_from(network.backbone, counting=counting, localization=localization, attention=branch),
    )  # fmt: skip
    return TrainedStagePlan(task, modules, config.train)


def _region_data(context: ExecutionContext, network: Network) -> tuple[TrainingData, dict[str, str]]:
    """Zoomed regions of the training and validation images, and the ids of these two sets in the caches."""
    inputs = context.inputs
    config = inputs.raz.regions
    assert isinstance(config, ZoomingConfig)  # `same` was replaced by the regions of `zooming`
    key = context.keys[Node("attention")]
    regions = {
        split: region_images(context.frames(split), config, context.candidates(network, split, config))
        for split in ("train", "val")
    }
    names = {
        split: digest([REGIONS_VERSION, key.key, asdict(config), key.data[split], inputs.seed]) for split in regions
    }
    train, val = regions["train"], regions["val"]
    context.note(Node("raz"), f"RAZ-Net learns from {len(train)} regions, validated on {len(val)}")
    return TrainingData(train, val, inputs.seed, context.device, names=(names["train"], names["val"])), names


def _region_features(
    context: ExecutionContext, network: Network, data: TrainingData, names: Mapping[str, str]
) -> tuple[FeatureCache, FeatureCache]:
    """Features of the localization branch's frozen backbone, of the training and of the validation regions."""
    backbone, weights = network.localization_backbone, f"{network.name}/regions"
    return (
        context.features(backbone, weights, data.train, names["train"]),
        context.features(backbone, weights, data.val, names["val"]),
    )


def raz_net(context: ExecutionContext) -> TrainedStagePlan:
    """RAZ-Net's localization branch: Main-Net's, trained further on zoomed regions."""
    inputs, device = context.inputs, context.device
    config = inputs.raz
    network = context.main_net("attention")
    data, names = _region_data(context, network)
    assert network.localization is not None
    branch, backbone = network.localization, network.localization_backbone
    branch.requires_grad_(True)
    modules = nn.ModuleDict({"localization": branch})
    frozen: tuple[FeatureCache | None, FeatureCache | None] = (None, None)
    if config.unfreeze == "backbone":
        backbone.requires_grad_(True)
        modules["backbone"] = backbone
    else:
        frozen = _region_features(context, network, data, names)
    if not len(data.train) or not len(data.val):
        reason = "no region to learn from: RAZ-Net stays a copy of Main-Net (try a larger sigma_z, a lower theta_z)"
        context.note(Node("raz"), reason)
        return TrainedStagePlan(None, modules, config.train)
    task = localization_task(
        data, "raz", modules, branch,
        features_from(backbone, data.train, device, frozen[0]),
        features_from(backbone, data.val, device, frozen[1]),
        config.train, gamma=inputs.localization.gamma, pretrained=backbone.pretrained,
        tiles_of=tiles_from(backbone, localization=branch),
    )  # fmt: skip
    return TrainedStagePlan(task, modules, config.train)


def raz_attention(context: ExecutionContext) -> TrainedStagePlan:
    """RAZ-Net's attention branch, on zoomed regions; it starts from Main-Net's weights."""
    inputs, train = context.inputs, context.inputs.raz.attention_train
    main = context.main_net("attention")
    data, names = _region_data(context, main)
    network = context.raz_net(with_attention=False)
    assert network.localization is not None
    assert main.attention is not None
    localization = network.localization
    config = context.stage_inputs["attention"].attention
    branch = builders.raz_attention_from(main.attention, localization.channels, config).to(context.device)
    builders.to_channels_last(context.stage_inputs["counting"].backbone, branch)
    modules = nn.ModuleDict({"attention": branch})
    if not len(data.train) or not len(data.val):
        return TrainedStagePlan(None, modules, train)
    caches = _region_features(context, network, data, names)

    def rich(cache: FeatureCache, images: str, mirrors: bool) -> RichOf:
        """The branch's last map: cached on disk if it fits RICH_BYTES, else computed for each window."""
        if rich_bytes(cache.images, [(localization.channels, 1)], mirrors) <= RICH_BYTES:
            maps = context.rich_maps(cache, localization, context.keys[Node("raz")].key, images)
            return rich_from(context.device, maps)
        features_of = features_from(cache.backbone, cache.images, context.device, cache)

        def compute(windows: Batch, loaded: Tensors) -> tuple[Tensor, Tensor | None]:
            return localization(features_of.compute(windows, loaded))[1], None

        return Source(context.device, features_of.load, compute, features_of.ensure)

    task = attention_task(
        data, "raz_attention", modules, branch,
        rich(caches[0], names["train"], train.flip), rich(caches[1], names["val"], False),
        train, sigma_z=inputs.attention.sigma_z, kind=inputs.attention.loss,
        tiles_of=tiles_from(network.backbone, localization=localization, attention=branch),
    )  # fmt: skip
    return TrainedStagePlan(task, modules, train)


PLANS: Mapping[str, Callable[[ExecutionContext], TrainedStagePlan]] = {
    "counting": counting,
    "localization": localization,
    "attention": attention,
    "raz": raz_net,
    "raz_attention": raz_attention,
}
