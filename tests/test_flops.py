"""FLOP of networks: against sums by hand, PyTorch's own counter, and whole networks at odd sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from raz.config import PRESETS, TrialConfig, configure
from raz.data.frames import zoomed_size
from raz.paper.networks import AttentionBranch, CountingBranch, LocalizationBranch
from raz.pipeline import gflop
from raz.pipeline.backbones import empty_backbone
from raz.pipeline.flops import FlopBySize, ForwardFlop, image_gflop, recorded_costs
from raz.pipeline.gflop import ForwardCost, cost_name
from raz.pipeline.graph import Node, inputs_for
from raz.pipeline.inference import Network
from raz.planning.cost_model import branch_flop

ALL = ("density", "response", "attention")


def whole(config: TrialConfig, *, raz: bool) -> Network:
    """The network as it predicts, layers without numbers."""
    with torch.device("meta"):
        below = empty_backbone(config.backbone)
        own = empty_backbone(config.backbone) if config.localization.unfreeze == "backbone" and not raz else below
        counting = CountingBranch(below.channels, config.counting.channels, config.counting.output_stride)
        localization = LocalizationBranch(below.channels, config.localization.channels, config.localization.upsample)
        read = localization.channels + (0 if raz else counting.channels)
        attention = AttentionBranch(read, config.attention.channels)
    return Network("", below.eval(), own.eval(), None if raz else counting, localization, attention)


def by_pytorch(network: Network, wanted: tuple[str, ...], height: int, width: int) -> int:
    x = torch.empty(1, 3, -(-height // 8) * 8, -(-width // 8) * 8, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.tensors(x, wanted)
    return counter.get_total_flops()


def test_a_counted_convolution_by_hand() -> None:
    """3x3, 3 -> 5 channels at full size, then 2x2 of stride 2, 5 -> 7: each output takes kernel x inputs multiply-adds,
    and each multiply-add is two operations; depthwise, an output takes its own channel alone."""
    with torch.device("meta"):
        layers = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 2, stride=2), nn.Conv2d(7, 7, 3, padding=1, groups=7)
        )
    h, w = 40, 72
    quarter = (h // 2) * (w // 2)
    by_hand = 2 * (h * w * 5 * 27 + quarter * 7 * 20 + quarter * 7 * 9)
    assert FlopBySize(layers, 8)(h, w) == by_hand
    assert FlopBySize(layers, 8)(33, 65) == by_hand  # padded


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("tiny", {}),
        ("paper", {"counting.output_stride": 2}),
        ("tiny", {"localization.unfreeze": "backbone"}),
        ("small", {}),  # of timm, aligned to 16 px
        ("tiny", {"backbone.name": "resnet18", "backbone.neck": 0, "backbone.width": 1.0}),
    ],
)
def test_a_network_costs_what_pytorch_counts(name: str, changed: dict) -> None:  # type: ignore[type-arg]
    config = configure(PRESETS[name], changed)
    for raz, wanted in (
        (False, ALL), (False, ("density",)), (False, ("density", "response")), (True, ("response",)),
        (True, ("response", "attention")),
    ):  # fmt: skip
        got = ForwardFlop(
            config.backbone, config.counting, config.localization, config.attention, wanted, raz=raz
        )  # fmt: skip
        assert got.backbone.formula is not None
        assert got.branches.formula is not None
        for height, width in ((8, 8), (17, 100), (168, 1024), (769, 1001)):
            assert got(height, width) == by_pytorch(whole(config, raz=raz), wanted, height, width), (wanted, height)


def test_the_plan_counts_the_same_by_its_formulas() -> None:
    """The cost model's closed forms, of VGG-16 and its branches; they leave out the kernels that attention adds up."""
    for name in ("tiny", "paper"):
        config = PRESETS[name]
        got = ForwardFlop(config.backbone, config.counting, config.localization, config.attention, ALL, raz=False)
        assert got(512, 768) == pytest.approx(sum(branch_flop(config).values()) * 512 * 768, rel=1e-3)


def test_what_depends_on_the_whole_image_is_counted_at_each_size() -> None:
    """Attention of every pixel to every other costs the square of their number."""

    def attend(x: Tensor) -> Tensor:
        flat = x.flatten(2).transpose(1, 2)
        return functional.softmax(flat @ flat.transpose(1, 2), -1) @ flat

    flop = FlopBySize(attend, 8)
    assert flop.formula is None
    for height, width in ((8, 16), (72, 40)):
        assert flop(height, width) == 2 * 2 * 3 * (height * width) ** 2


def test_an_image_costs_its_networks_and_its_crops() -> None:
    config = configure(PRESETS["tiny"], {"depth": 3, "zooming.factor": 3})
    boxes = np.array([[0.0, 0.0, 40.0, 30.0], [10.5, 3.25, 60.0, 41.0]])
    none = np.zeros((0, 4))
    regions = [[boxes, none], [boxes[:1], none]]
    sizes = [(64, 72), (100, 90)]
    got = image_gflop(inputs_for(config, Node("score", "val")), 3, sizes, regions)
    main, raz = whole(config, raz=False), whole(config, raz=True)
    expected = [by_pytorch(main, ALL, *size) for size in sizes]
    for box in boxes:  # regions of pass 3 are proposed in the crops of pass 2
        expected[0] += by_pytorch(raz, ("response", "attention"), *zoomed_size(box, 3.0))
    expected[0] += by_pytorch(raz, ("response",), *zoomed_size(boxes[0], 9.0))
    assert (got * 1e9).round().astype(int).tolist() == expected
    alone = image_gflop(inputs_for(configure(config, {"depth": 1}), Node("score", "val")), 1, sizes, [])
    assert alone[0] * 1e9 == pytest.approx(by_pytorch(main, ("density", "response"), *sizes[0]))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_stages_keep_of_their_costs_gives_the_same(depth: int) -> None:
    """A score reads the numbers that the stages of passes 1 and 2 have kept; `image_gflop` counts anew."""
    config = configure(PRESETS["tiny"], {"depth": depth})
    inputs = inputs_for(config, Node("score", "val"))
    kept = recorded_costs(inputs, Node("points", "val") if depth == 1 else Node("zoom", "val", 2))
    rng = np.random.default_rng(depth)
    sizes = [(int(height), int(width)) for height, width in rng.integers(30, 400, (5, 2))]

    def boxes() -> Any:
        corners = np.sort(rng.uniform(0, 200, (int(rng.integers(0, 4)), 2, 2)), axis=1)
        return corners.reshape(-1, 4) + np.array([0, 0, 9, 9])

    regions = [[boxes() for _ in sizes] for _ in range(depth - 1)]

    def cost(raz: bool, wanted: tuple[str, ...]) -> ForwardCost:
        return ForwardCost.from_numbers(kept[cost_name(raz, wanted)])

    factor = inputs["zoom"].zooming.factor if depth > 1 else 1
    np.testing.assert_array_equal(
        gflop.image_gflop(cost, factor, depth, sizes, regions), image_gflop(inputs, depth, sizes, regions)
    )


def test_only_the_stages_of_passes_one_and_two_keep_costs() -> None:
    inputs = inputs_for(configure(PRESETS["tiny"], {"depth": 3}), Node("score", "val"))
    assert recorded_costs(inputs, Node("density", "val")) == recorded_costs(inputs, Node("zoom", "val", 3)) == {}
