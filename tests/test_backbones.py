"""Backbones by name: three very different networks under one contract, their identity in keys, and bad input.

Networks have random weights: none is fetched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.ndimage import uniform_filter
from torch import Tensor, nn
from typer.testing import CliRunner

from raz.cli.main import app
from raz.config import PRESETS, BackboneConfig, TrialConfig, configure
from raz.data import open_dataset
from raz.errors import RazError, RazErrorGroup
from raz.inspection.trial_details import _provenance
from raz.paper.fusion import RULES
from raz.paper.networks import AttentionBranch, Backbone, CountingBranch, LocalizationBranch, initialise
from raz.paper.peaks import find_peaks
from raz.pipeline import backbones, keys
from raz.pipeline.backbones import (
    TIMM,
    TimmBackbone,
    build_backbone,
    empty_backbone,
    measured_size,
    pretrained_identity,
    weights_record,
)
from raz.pipeline.graph import TRAINED, Node
from raz.pipeline.inference import Network
from raz.pipeline.keys import stage_keys, weights_identity
from raz.pipeline.model import load_model, save_model, stored_model
from raz.pipeline.tiling import tiles
from raz.pipeline.trial import run_trial
from raz.pipeline.weights import weights_text
from raz.planning.cost_model import CostModel, backbone_size, parameter_count, stage_gflop
from raz.predict.model_card import model_card
from raz.report.score_index import ScoreIndex
from raz.store.manifest import Manifest
from raz.study.records import TrialRecord, TrialStatus

VGG = BackboneConfig(weights="none", width=0.125)
LITE = BackboneConfig("tf_efficientnet_lite0", weights="none", neck=16)
RESNET = BackboneConfig("resnet18", weights="none", neck=0)
THREE = pytest.mark.parametrize("config", [VGG, LITE, RESNET], ids=lambda config: config.name)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    keys._tensors_identity.cache_clear()
    keys._file_identity.cache_clear()


def built(config: BackboneConfig, seed: int = 0) -> Backbone:
    """A backbone with random weights, ready to predict. Gains that start at 0, as in a ResNet, would hide layers."""
    backbone = build_backbone(config, seed).eval()
    if config.weights == "none":
        for layer in backbone.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.load_state_dict(unlike(layer.state_dict()))
    return backbone


def unlike(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with other vectors: no gain is 0, no two values are alike."""
    return {n: v + 0.1 + 0.2 * torch.rand(v.shape) if v.ndim == 1 else v for n, v in state.items()}


def random_state(name: str, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a whole network of timm with random weights and statistics."""
    torch.manual_seed(seed)
    return unlike(timm.create_model(name, pretrained=False).state_dict())


# ------------------------------------------------------------------ maps


@THREE
@pytest.mark.parametrize("size", [(8, 8), (8, 40), (72, 56), (64, 96)])  # multiples of 8, of 16 and not
def test_features_are_at_an_eighth_of_any_size(config: BackboneConfig, size: tuple[int, int]) -> None:
    backbone = built(config)
    with torch.inference_mode():
        features = backbone(torch.rand(2, 3, *size))
    assert features.shape == (2, backbone.channels, size[0] // 8, size[1] // 8)
    assert torch.isfinite(features).all()


def test_the_neck_projects_and_adds_and_no_neck_concatenates() -> None:
    backbone = built(LITE)
    assert isinstance(backbone, TimmBackbone)
    x = torch.rand(1, 3, 48, 64)
    with torch.inference_mode():
        fine, coarse = backbone.body(x)
        got = backbone(x)
        a, b = (
            torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], maps) + conv.bias[:, None, None]
            for conv, maps in zip(backbone.neck, (fine, coarse), strict=True)
        )
    assert (fine.shape[1:], coarse.shape[1:]) == ((40, 6, 8), (112, 3, 4))
    up = np.zeros((16, 6, 8))  # bilinear by hand: of two neighbours, three quarters of the nearer
    source = b[0].numpy().astype(np.float64)
    for row in range(6):
        for col in range(8):
            for y, wy in linear(row, 3):
                for x_, wx in linear(col, 4):
                    up[:, row, col] += wy * wx * source[:, y, x_]
    assert np.allclose(got[0].numpy(), np.maximum(a[0].numpy() + up, 0), atol=1e-5)
    plain = TimmBackbone(LITE.name, 0, frozen_statistics=True).eval()
    plain.body.load_state_dict(backbone.body.state_dict())
    with torch.inference_mode():
        assert torch.equal(plain(x)[:, :40], fine)
    assert plain.channels == 40 + 112


def linear(index: int, size: int) -> list[tuple[int, float]]:
    """The source cells of a cell of twice as many, with their weights."""
    near, other = index // 2, index // 2 + (1 if index % 2 else -1)
    return [(near, 0.75), (min(max(other, 0), size - 1), 0.25)]


def network(config: BackboneConfig) -> Network:
    backbone = built(config)
    torch.manual_seed(1)
    counting = CountingBranch(backbone.channels, (8,))
    localization = LocalizationBranch(backbone.channels, (8,), (8, 6, 4))
    attention = AttentionBranch(4 + 8, 4)
    for module in (counting, localization, attention):
        initialise(module, "kaiming")
        module.eval()
    with torch.inference_mode():  # features of about 1, as trained ones: random layers make them large or small
        level = float(backbone(torch.randn(1, 3, 96, 96)).std())
    for branch in (counting, localization):
        first = branch.body[0]
        assert isinstance(first, nn.Conv2d)
        first.weight.data /= level
    return Network("test", backbone, backbone, counting, localization, attention)


def assert_same_peaks(whole: NDArray[np.float32], tiled: NDArray[np.float32]) -> None:
    """The peaks of both maps are the same, but where the map decides by less than the maps differ: against the floor,
    or against a pixel beside."""
    tie = 1e-5
    for floor in (0.05, 0.3):
        found = [{tuple(p) for p in find_peaks(response, floor)[0]} for response in (whole, tiled)]
        assert found[0]
        smooth = np.pad(uniform_filter(whole.astype(np.float64), 3, mode="constant"), 2)
        counts = np.pad(uniform_filter(np.ones(whole.shape), 3, mode="constant"), 2, constant_values=1)
        smooth /= counts
        for x, y in found[0] ^ found[1]:
            around = smooth[int(y) : int(y) + 5, int(x) : int(x) + 5].copy()
            centre, around[2, 2] = around[2, 2], -1
            assert abs(around - centre).min() < tie or abs(centre - floor) < tie


@pytest.mark.long
@THREE
@pytest.mark.parametrize(
    "size", [(139, 200), *(pytest.param(size, marks=pytest.mark.slow) for size in ((21, 560), (584, 15)))]
)
def test_tiles_equal_the_whole_image(config: BackboneConfig, size: tuple[int, int]) -> None:
    net = network(config)
    margin = net.margin
    assert margin is not None
    assert margin % net.backbone.alignment == 0
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    wanted = ("density", "response", "attention")
    whole = net.maps(pixels, wanted, CPU)
    tiled = net.maps(pixels, wanted, CPU, limit=1 << 12)  # inner tiles of 64 px
    for name in wanted:
        assert tiled[name].shape == whole[name].shape
        assert np.ptp(whole[name]) > 1e-3
        assert np.abs(tiled[name] - whole[name]).max() < 1e-5 * max(1, np.abs(whole[name]).max())
    assert_same_peaks(whole["response"], tiled["response"])
    if max(size) > 400:  # and it is the margin that makes them equal
        with torch.inference_mode():
            cut = net._tiled(pixels, wanted, CPU, tiles(*size, lambda: 0, net.backbone.alignment, 1 << 12))
        assert np.abs(cut["density"] - whole["density"]).max() > 1e-3


@pytest.mark.long
@THREE
def test_the_receptive_field_is_what_pixels_change(config: BackboneConfig) -> None:
    """Changing all pixels farther away than the field changes nothing, and those at its end change something."""
    backbone = built(config).double()
    radius = backbone.receptive_field()
    assert radius is not None
    step = backbone.alignment
    reach = -(-radius // step) * step  # as tiles have it
    width = 2 * (reach + 32) + step
    start, end = reach + 32, reach + 32 + step  # the aligned cells that are watched
    x = torch.randn(1, 3, 16, width, dtype=torch.float64)

    def changed(*columns: slice) -> float:
        other = x.clone()
        for each in columns:
            other[..., each] += 5 * torch.randn(other[..., each].shape, dtype=torch.float64)
        with torch.inference_mode():
            difference = backbone(other) - backbone(x)
        return float(difference[..., start // 8 : end // 8].abs().max())

    for far in (slice(0, start - reach), slice(end + reach, width)):
        assert changed(far) == 0
    assert changed(slice(start - reach, start - reach + 16), slice(end + reach - 16, end + reach)) > 0


def test_the_field_of_vgg_is_the_formula_s() -> None:
    backbone = built(VGG)
    # Kernel sizes less 1 at their strides: the field of relu4_3 is 92 px wide, 42 px beyond a cell of 8 px.
    field = 1 + 2 * 2 * 1 + 1 + 2 * 2 * 2 + 2 + 3 * 2 * 4 + 4 + 3 * 2 * 8
    assert field == 92
    radius = backbone.receptive_field()
    assert radius is not None
    assert (field - 8) // 2 <= radius <= (field - 8) // 2 + 8


@pytest.mark.long
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "efficientnet_b0"])  # squeeze, excite
def test_a_network_that_sees_the_whole_image_is_never_tiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "FIELD_SIDES", (256, 512))
    backbones._field_of.cache_clear()
    backbone = built(BackboneConfig(name, weights="none", neck=0)).double()
    x = torch.rand(1, 3, 16, 1600, dtype=torch.float64)
    other = x.clone()
    other[..., :16] += 3
    with torch.inference_mode():  # the far end of the image feels it
        assert float((backbone(other) - backbone(x))[..., -1].abs().max()) > 0
    net = network(BackboneConfig(name, weights="none", neck=8))
    pixels = np.random.default_rng(3).integers(0, 256, (100, 90, 3), dtype=np.uint8)
    assert net.maps(pixels, ("density", "response", "attention"), CPU)["response"].shape == (100, 90)
    with pytest.raises(RazError, match="90 x 100 px") as told:
        net.maps(pixels, ("density",), CPU, limit=1 << 13)
    assert net.backbone.receptive_field() is None
    assert net.margin is None
    assert "whole image" in told.value.what
    assert "max_side" in told.value.hint
    backbones._field_of.cache_clear()


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("resnet18", ("conv1", "bn1", "layer1", "layer2", "layer3")),
        ("tf_efficientnet_lite0", ("conv_stem", "bn1", *(f"blocks.{i}" for i in range(5)))),
    ],
)
def test_nothing_beyond_stride_16_is_there(name: str, kept: tuple[str, ...]) -> None:
    whole = timm.create_model(name, pretrained=False)
    body = sum(p.numel() for n, p in whole.named_parameters() if n.startswith(tuple(f"{k}." for k in kept)))
    neck = 24
    backbone = TimmBackbone(name, neck, frozen_statistics=True).eval()
    channels = {"resnet18": (128, 256), "tf_efficientnet_lite0": (40, 112)}[name]
    weights = body + sum((n + 1) * neck for n in channels)
    assert sum(p.numel() for p in backbone.parameters()) == weights
    done: list[float] = []

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        taps = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
        done.append(2 * taps * out.numel())

    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, 64, 64))
    flop, counted, out = measured_size(name, neck)
    assert flop == pytest.approx(sum(done) / 64**2)
    assert (counted, out) == (weights, neck)
    size = backbone_size(BackboneConfig(name, neck=neck))
    assert (size.flop, size.weights, size.channels) == (flop, weights, neck)


@pytest.mark.long
@pytest.mark.parametrize("name", [LITE.name, RESNET.name])
def test_only_learned_statistics_move(name: str, tmp_path: Path) -> None:
    save_file(random_state(name), tmp_path / "w.safetensors")
    for weights, moves in ((str(tmp_path / "w.safetensors"), False), ("none", True)):
        backbone = build_backbone(BackboneConfig(name, weights, neck=8), 0)
        before = {n: b.clone() for n, b in backbone.named_buffers()}
        gains = {n: p.detach().clone() for n, p in backbone.named_parameters()}
        optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-3)
        backbone.train()
        backbone(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
        moved = {n for n, b in backbone.named_buffers() if not torch.equal(b, before[n])}
        assert moved == (set(before) if moves else set())
        learned = {n for n, p in backbone.named_parameters() if not torch.equal(p, gains[n])}
        assert "body.bn1.weight" in learned  # gains learn in both cases
        backbone.eval()
        assert not any(m.training for m in backbone.modules())


def test_initial_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    a = built(RESNET, 3).state_dict()
    torch.manual_seed(2)
    b = built(RESNET, 3).state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a)
    other = built(RESNET, 4).state_dict()
    assert not torch.equal(a["body.conv1.weight"], other["body.conv1.weight"])


# ------------------------------------------------------------------ weights and their identity

NAMES = ["tf_efficientnet_lite0", "resnet18", "convnext_atto"]  # timm joins names of the last when it cuts it


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_equal_tensors_have_equal_keys(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state(name)
    files = {n: tmp_path / n for n in ("full.pt", "full.safetensors", "cut.safetensors", "joined.safetensors")}
    torch.save(state, files["full.pt"])
    save_file(state, files["full.safetensors"])
    config = BackboneConfig(name, str(files["full.pt"]), neck=8)
    joined = build_backbone(config, 0).pretrained.state_dict()
    save_file(joined, files["joined.safetensors"])
    used = {backbones._source_name(n, state) for n in joined}
    assert None not in used
    cut = {n: v for n, v in state.items() if n in used and not n.endswith("num_batches_tracked")}
    assert len(cut) < len(state)
    save_file(cut, files["cut.safetensors"])
    found = {n: weights_identity(BackboneConfig(name, str(path), neck=8)) for n, path in files.items()}
    monkeypatch.setattr(backbones, "_timm_weights", lambda asked: {name: state}[asked])
    found["fetched"] = weights_identity(BackboneConfig(name, "imagenet", neck=8))
    found["another neck"] = weights_identity(BackboneConfig(name, str(files["full.pt"]), neck=0))
    assert len(set(found.values())) == 1, found

    other = dict(state)
    last = sorted(cut)[-1]
    other[last] = other[last].clone()
    other[last].view(-1)[0] += 1e-3
    save_file(other, tmp_path / "other.safetensors")
    save_file({n: v.half() if v.is_floating_point() else v for n, v in state.items()}, tmp_path / "half.safetensors")
    beyond = {n: v + 1 if n not in used else v for n, v in state.items()}  # in layers that are not kept
    save_file(beyond, tmp_path / "beyond.safetensors")
    changed = {n: weights_identity(BackboneConfig(name, str(tmp_path / f"{n}.safetensors"))) for n in ("other", "half")}
    assert len({*changed.values(), *found.values()}) == 3
    assert weights_identity(BackboneConfig(name, str(tmp_path / "beyond.safetensors"))) == found["fetched"]


@pytest.mark.long
def test_the_weights_reach_the_layers(tmp_path: Path) -> None:
    """The features are those of the whole network, whose forward pass is timm's."""
    for name, stages in (("resnet18", ("layer2", "layer3")), ("tf_efficientnet_lite0", ("blocks.2", "blocks.4"))):
        whole = timm.create_model(name, pretrained=False)
        whole.load_state_dict(random_state(name))
        torch.save(whole.state_dict(), tmp_path / "w.pt")
        wanted: list[Tensor] = []
        for stage in stages:
            whole.get_submodule(stage).register_forward_hook(lambda _, __, out, into=wanted: into.append(out))
        x = torch.randn(1, 3, 64, 96)
        with torch.inference_mode():
            whole.eval()(x)
            got = built(BackboneConfig(name, str(tmp_path / "w.pt"), neck=0))(x)
        fine, coarse = wanted
        torch.testing.assert_close(got[:, : fine.shape[1]], fine)
        up = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(got[:, fine.shape[1] :], up)


def test_colours_are_normalised_as_the_network_expects() -> None:
    assert built(LITE).colours.mean == (0.5, 0.5, 0.5)  # TensorFlow's
    assert built(RESNET).colours.mean == pytest.approx((0.485, 0.456, 0.406))


def test_weights_are_named_by_their_tensors_in_keys(tmp_path: Path) -> None:
    save_file(random_state("resnet18"), tmp_path / "a.safetensors")
    torch.save(load_file(tmp_path / "a.safetensors"), tmp_path / "b.pt")
    keys_of = {
        n: stage_keys(micro("resnet18", **{"backbone.weights": str(tmp_path / n), "dataset": "toy"}))[Node("counting")]
        for n in ("a.safetensors", "b.pt")
    }
    assert keys_of["a.safetensors"].key == keys_of["b.pt"].key
    assert str(keys_of["b.pt"].inputs["backbone.weights"]).startswith("tensors:")


def test_the_keys_of_vgg_know_nothing_of_names_and_necks() -> None:
    """Presets `paper` and `tiny` have the keys that they had before backbones had names."""
    for preset in ("paper", "tiny"):
        config = PRESETS[preset]
        assert config.backbone.name == "vgg16"
        assert weights_identity(config.backbone) == config.backbone.weights  # fetches nothing
        inputs = stage_keys(configure(config, {"dataset": "toy"}))[Node("counting")].inputs
        assert {n for n in inputs if n.startswith("backbone.")} == {"backbone.weights", "backbone.width"}


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        (torch.float32, "w.safetensors"),
        (torch.float16, "w.safetensors, stored in half precision (float16)"),
        (torch.bfloat16, "w.safetensors, stored in half precision (bfloat16)"),
    ],
)
def test_half_precision_is_told_of_the_file(dtype: torch.dtype, text: str, tmp_path: Path) -> None:
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in random_state("resnet18").items()}
    save_file(state, tmp_path / "w.safetensors")
    record = weights_record(BackboneConfig("resnet18", str(tmp_path / "w.safetensors")))
    assert weights_text(record) == text
    manifest = Manifest(weights=record, key={"needs": {}, "data": {}}, files={})
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))).weights == record
    assert weights_text(weights_record(BackboneConfig("resnet18", "imagenet"))) == "imagenet"
    assert weights_record(BackboneConfig("resnet18", "none")) == {}
    assert weights_text(Manifest().weights) == ""
    trial = TrialRecord(
        "a", 0, TrialStatus.COMPLETE, {}, {"seed": 0, "threads": 1}, 1.0, {}, (), {}, "", "", 1.0, {}, None, None, None
    )
    shown = _provenance(trial, {}, [manifest, Manifest()])  # as `show` prints it
    assert f"pretrained weights: {text}" in shown.lines()
    assert shown.to_dict()["weights"] == text
    assert not any("weights" in line for line in _provenance(trial, {}, [Manifest()]).lines())


# ------------------------------------------------------------------ whole trials

MICRO = {
    "dataset": "shanghaitech_a", "backbone.width": 1.0, "counting.channels": [8, 8], "localization.channels": [8],
    "localization.upsample": [8, 6, 4], "attention.channels": 4, "attention.sigma_z": 6.0, "depth": 3,
    "zooming.theta_z": 0.001, "raz.regions.theta_z": 0.001,
    **{f"{name}.{k}": v for k, v in (("epochs", 1), ("crop", 64)) for name in (
        "counting.train", "localization.train", "attention.train", "raz.train", "raz.attention_train"
    )},
}  # fmt: skip


def micro(name: str, **settings: Any) -> TrialConfig:
    width = {"backbone.width": 0.0625} if name == "vgg16" else {"backbone.name": name, "backbone.neck": 8}
    return configure(PRESETS["tiny"], MICRO | width | settings)


def free(part: str, pretrained: bool) -> dict[str, Any]:
    """Schedule-free, as preset `small` trains."""
    values = {"optimizer": "schedule-free", "average": 0.0, "warmup": 2}
    values |= {"backbone_lr": 1e-4, "grey": 0.3} if pretrained else {}
    return {f"{part}.{name}": value for name, value in values.items()}


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg16", "resnet18", "tf_efficientnet_lite0"])
def test_five_stages_four_rules_and_an_exported_model(name: str, crowd: Path, tmp_path: Path) -> None:
    config = micro(name)
    weights, half = tmp_path / "half.safetensors", "half.safetensors, stored in half precision (float16)"
    if name == "tf_efficientnet_lite0":  # as preset `small`: pretrained, schedule-free, counts expected, all unfrozen
        halves = {n: v.half() if v.is_floating_point() else v for n, v in random_state(name).items()}
        save_file(halves, weights)
        config = configure(
            config,
            {
                "backbone.weights": str(weights), "peaks.count": "expected", "localization.unfreeze": "backbone",
                "counting.loss": "pyramid-l1", "counting.sizes": [1.0, 0.8],
                **free("counting.train", True), **free("localization.train", True), **free("raz.train", True),
                **free("attention.train", False), **free("raz.attention_train", False),
            },
        )  # fmt: skip
    store = tmp_path / "store"
    metrics = run_trial(config, store, data_root=crowd, splits=("val", "test")).metrics
    assert metrics["test.images_zoomed_2"] > 0  # else nothing was zoomed, and nothing tested
    assert {p.parent.name for p in (store / "stages").glob("*/*")} >= {*TRAINED, "density", "points", "zoom", "score"}
    for rule in RULES:
        other = configure(config, {"fusion.rule": rule})
        result = run_trial(other, store, data_root=crowd, splits=("test",))
        assert np.isfinite(result.metrics["test.mae"])
        assert all(use.hit for use in result.stages if not use.stage.startswith("score"))

    if weights.exists():  # pretrained statistics went through three trainings as they were
        wanted = load_file(weights)
        for stage in ("counting", "localization", "raz"):
            (file,) = (store / "stages" / stage).glob("*/weights.safetensors")
            kept = {n: v for n, v in load_file(file).items() if n.startswith("backbone.body.") and "running_" in n}
            assert len(kept) > 20
            for tensor, value in kept.items():
                assert torch.equal(value, wanted[tensor.removeprefix("backbone.body.")].float())
        weights.unlink()  # an exported model needs it no more

    key = score_of(store, config)
    made = ScoreIndex(store).find({"test": key})
    assert made is not None
    assert made.provenance["test"].made.get("weights") == ((half,) if name == "tf_efficientnet_lite0" else ())
    assert (half in model_card(stored_model(store, key))) == (name == "tf_efficientnet_lite0")
    save_model(stored_model(store, key), tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors")
    with np.load(store / "stages" / "score" / key / "per_image.npz", allow_pickle=False) as scored:
        ends = [0, *scored["match_ends"].tolist()]
        for i, item in enumerate(open_dataset("shanghaitech_a", crowd).items["test"]):
            got = model.predict(item.load_pixels())
            assert got.count == scored["fused"][i]
            if config.peaks.count == "threshold":
                assert got.localization == scored["localization"][i]
            assert len(got.points) == got.localization
            assert np.array_equal(got.scores, scored["match_score"][ends[i] : ends[i + 1]])


def score_of(store: Path, config: TrialConfig) -> str:
    """The key of the score of test images under the trial's own rule."""
    for manifest in (store / "stages" / "score").glob("*/manifest.json"):
        told = json.loads(manifest.read_text())
        if told["stage"] == "score@test" and told["config"]["fusion.rule"] == config.fusion.rule:
            return manifest.parent.name
    raise AssertionError("no score")


@THREE
def test_prices_follow_the_network(config: BackboneConfig, crowd: Path, tmp_path: Path) -> None:
    trial = micro(config.name, **{"backbone.neck": config.neck if config.neck else 12})
    costs = CostModel(tmp_path, crowd, "cpu")
    for node in stage_keys(trial, data_root=crowd):
        estimate, measured = costs.seconds(trial, node)
        assert not measured
        assert 0 < estimate.low <= estimate.likely <= estimate.high
        assert costs.bytes(trial, node) > 0
    backbone = empty_backbone(trial.backbone)
    branch = CountingBranch(backbone.channels, trial.counting.channels)
    weights = sum(p.numel() for module in (backbone, branch) for p in module.parameters())
    assert parameter_count(trial, "counting") == weights
    frozen = configure(trial, {"localization.unfreeze": "none"})
    learned = configure(trial, {"localization.unfreeze": "backbone"})
    of, node = costs.sizes(trial), Node("localization")
    assert stage_gflop(learned, node, of) > stage_gflop(frozen, node, of)


def test_a_dry_run_prices_networks_of_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "networks.yaml"
    names = "backbone.name: {choice: [vgg16, resnet18]}"
    path.write_text(SPACE.format(settings="backbone.width: 1.0", parameters=names))
    result = CliRunner().invoke(app, ["run", str(path), "--store", str(tmp_path / "store"), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["trials"] == 2
    assert plan["device_seconds"]["likely"] > 0


# ------------------------------------------------------------------ bad input

SPACE = """\
study: bad
base: {{preset: tiny, dataset: toy, set: {{{settings}}}}}
design: {{sampler: grid}}
objective: {{metric: val.mae, direction: minimize}}
parameters: {{{parameters}}}
"""


def refused(tmp_path: Path, settings: str, parameters: str = "depth: {choice: [1, 2]}") -> str:
    """The message of a run that ends with exit code 2 before any trial starts."""
    path = tmp_path / "bad.yaml"
    path.write_text(SPACE.format(settings=settings, parameters=parameters))
    store = tmp_path / "store"
    result = CliRunner().invoke(app, ["run", str(path), "--store", str(store), "--inline"])
    assert result.exit_code == 2, result.output
    assert not list(store.glob("stages/*")), "a stage was made"
    assert not list(store.glob("studies/*.journal")), "a study was begun"
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def test_an_unknown_network_is_told_with_a_near_one(tmp_path: Path) -> None:
    told = refused(tmp_path, "backbone.width: 1.0, backbone.name: tf_eficientnet_lite0")
    assert "'tf_eficientnet_lite0' is no network of timm" in told
    assert "did you mean tf_efficientnet_lite0" in told


def test_an_unknown_network_among_the_choices_is_told(tmp_path: Path) -> None:
    choices = "backbone.name: {choice: [resnet18, resnet-18]}"
    assert "'resnet-18' is no network" in refused(tmp_path, "backbone.width: 1.0", choices)
    named = "network: {choice: {a: {backbone.name: resnet18}, b: {backbone.name: zzzzzz}}}"
    told = refused(tmp_path, "backbone.width: 1.0", named)
    assert "'zzzzzz' is no network of timm" in told
    assert "vgg16" in told


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_tiny_patch16_224", "has features at strides 16, 16, 16, expected 8 and 16"),
        ("swin_tiny_patch4_window7_224", "cannot run on an image of 112 x 80 px"),  # images of one size only
        ("inception_v3", "gives maps (1, 288, 7, 11)"),  # without padding
    ],
)
def test_a_network_without_the_maps_is_told(name: str, words: str, tmp_path: Path) -> None:
    assert words in refused(tmp_path, f"backbone.width: 1.0, backbone.name: {name}")


@pytest.mark.long
def test_weights_of_another_network_are_told(tmp_path: Path) -> None:
    for name in ("resnet34", "tf_efficientnet_lite0"):
        save_file(random_state(name), tmp_path / f"{name}.safetensors")

    def message(name: str, file: str) -> str:
        return refused(tmp_path, f"backbone.width: 1.0, backbone.name: {name}, backbone.weights: {tmp_path / file}")

    # a deeper one of the same family has all tensors of the shallower one, of the same shapes
    told = message("resnet18", "resnet34.safetensors")
    assert "for resnet18: weights of another network: it has no layer1.2." in told
    told = message("resnet18", "tf_efficientnet_lite0.safetensors")
    assert "weights of another network: bn1.weight is (32,), expected (64,)" in told
    told = message("tf_efficientnet_lite1", "tf_efficientnet_lite0.safetensors")
    assert "weights of another network" in told
    told = message("resnet18", "nowhere.safetensors")
    assert "nowhere.safetensors' is no file, expected imagenet, none or a state dict's path" in told
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "resnet34.safetensors").read_bytes()[:1000])
    assert "is no checkpoint" in message("resnet18", "torn.safetensors")


def test_without_internet_the_file_to_bring_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def unreachable(name: str, pretrained: bool = False, **rest: Any) -> nn.Module:
        if pretrained:
            raise OSError("Name or service not known")
        return real(name, pretrained=False, **rest)

    monkeypatch.setattr(timm, "create_model", unreachable)
    told = refused(tmp_path, "backbone.width: 1.0, backbone.name: resnet18, backbone.weights: imagenet")
    assert "the weights of resnet18 could not be fetched (Name or service not known)" in told
    assert "model.safetensors of timm/resnet18.a1_in1k from huggingface.co" in told
    assert "set backbone.weights to that file" in told


def test_weights_in_the_cache_need_no_internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state("resnet18")
    cache = tmp_path / "models--timm--resnet18.a1_in1k"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    save_file(state, cache / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    save_file(state, tmp_path / "w.safetensors")
    fetched = pretrained_identity(BackboneConfig("resnet18", "imagenet"))
    assert fetched == pretrained_identity(BackboneConfig("resnet18", str(tmp_path / "w.safetensors")))


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("the network was asked")


def test_an_old_or_missing_timm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = "backbone.width: 1.0, backbone.name: resnet18"
    wanted = ".".join(map(str, TIMM))
    with monkeypatch.context() as patch:
        patch.setattr(timm, "__version__", "0.9.16")
        told = refused(tmp_path, settings)
        assert f"timm is 0.9.16, expected {wanted} or newer" in told
        assert f"pip install 'timm>={wanted}" in told
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "timm", None)
        told = refused(tmp_path, settings)
        assert f"expected timm {wanted}" in told
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'"timm>={wanted},' in project


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone.name": "resnet18", "backbone.width": 1.0, "counting.unfreeze": "none"}, "a frozen neck"),
        ({"backbone.name": "resnet18", "backbone.width": 0.5}, "1 with resnet18"),
        ({"backbone.name": ""}, "vgg16, or a network of timm"),
        ({"backbone.name": "resnet18", "backbone.width": 1.0, "backbone.neck": -1}, "to 4096"),
        ({"backbone.neck": 64}, "96 with vgg16: it has none"),
    ],
)
def test_values_that_cannot_be_are_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((RazError, RazErrorGroup), match=words):
        configure(PRESETS["tiny"], settings)


def test_a_table_with_an_unknown_network_in_a_row_is_told(tmp_path: Path) -> None:
    from raz.engine.table_runner import run_table
    from raz.spec.ablation_yaml import parse_table
    from raz.utils.yamlfile import parse

    table = parse_table(
        parse(
            "table: networks\nmetrics: [test.mae]\nseeds: [0]\n"
            "profiles:\n  toy: {base: {preset: tiny, set: {backbone.width: 1.0}}, datasets: [toy]}\n"
            "rows:\n  vgg: {set: {}}\n  other: {set: {backbone.name: nonsense}}\n",
            "networks.yaml",
        )
    )
    with pytest.raises(RazError, match="'nonsense' is no network"):
        run_table(table, tmp_path / "store", inline=True)


def unfit(call: Callable[[], Any]) -> str:
    with pytest.raises(RazError) as told:
        call()
    return str(told.value)


def test_errors_of_the_library_name_the_network() -> None:
    assert unfit(lambda: TimmBackbone("levit_128s", 8, frozen_statistics=True)).startswith("backbone.name: levit_128s")
    assert "hrnet_w18_small cannot run" in unfit(lambda: measured_size("hrnet_w18_small", 8))
