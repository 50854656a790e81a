"""Networks and losses against closed forms, torchvision and finite differences."""

import math

import numpy as np
import pytest
import torch
from torchvision.models import vgg16

from raz.paper.losses import attention_loss, counting_loss, localization_loss
from raz.paper.networks import (
    IMAGENET,
    AttentionBranch,
    CountingBranch,
    LocalizationBranch,
    VggBackbone,
    initialise,
    network_input,
    receptive_field_radius,
)
from raz.paper.peaks import find_peaks
from raz.pipeline.inference import Network
from raz.pipeline.inference import margin as margin_of


@pytest.mark.long
def test_backbone_is_torchvisions_vgg16_through_relu4_3() -> None:
    reference = vgg16(weights=None).features[:23]
    ours = VggBackbone()
    ours.features.load_state_dict(reference.state_dict())
    x = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), reference(x), rtol=0, atol=0)
    assert ours(x).shape == (1, 512, 5, 7)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in ours.modules()) == 10


@pytest.mark.parametrize(("stride", "side"), [(8, 5), (4, 10), (2, 20)])
def test_counting_output_has_the_stride_asked_for(stride: int, side: int) -> None:
    density, rich = CountingBranch(16, (12, 8), stride)(torch.zeros(1, 16, 5, 5))
    assert density.shape == (1, 1, side, side)
    assert rich.shape == (1, 8, side, side)


def test_localization_output_is_as_large_as_the_input() -> None:
    logits, rich = LocalizationBranch(16, (8,), (8, 6, 4))(torch.zeros(1, 16, 5, 7))
    assert logits.shape == (1, 1, 40, 56)
    assert rich.shape == (1, 4, 40, 56)


def test_network_input_pads_with_the_mean_colour_and_normalises_as_torchvision() -> None:
    pixels = np.full((9, 17, 3), 255, np.uint8)
    x = network_input(pixels)
    assert x.shape == (1, 3, 16, 24)
    for c in range(3):
        assert x[0, c, 0, 0].item() == pytest.approx((1 - IMAGENET.mean[c]) / IMAGENET.std[c], rel=1e-6)
    assert float(x[:, :, 9:].abs().sum() + x[:, :, :, 17:].abs().sum()) == 0.0


def test_counting_loss_is_equation_1() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 3, 4)), rng.normal(size=(2, 1, 3, 4))
    m, n = 3 * 8, 4 * 8
    literal = np.mean([8 * math.sqrt(((a[i] - b[i]) ** 2).sum() / (m * n)) for i in range(2)])
    ours = float(counting_loss(torch.from_numpy(a), torch.from_numpy(b)))
    assert ours == pytest.approx(literal, rel=1e-9)
    assert float(counting_loss(torch.from_numpy(a), torch.from_numpy(b), "mse")) == pytest.approx(((a - b) ** 2).mean())


@pytest.mark.parametrize("shape", [(16, 32), (5, 21)])
def test_the_pyramid_compares_the_counts_of_blocks(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 1, *shape)), rng.normal(size=(2, 1, *shape))
    literal = 0.0
    for i in range(2):
        total = 0.0
        for k in (1, 2, 4, 8, 16):
            for y in range(0, shape[0], k):
                for x in range(0, shape[1], k):
                    block = (a - b)[i, 0, y : y + k, x : x + k].sum()
                    total += block**2 / k**3 * k * k / (shape[0] * shape[1])
        literal += math.sqrt(total + 1e-5) / 2
    ours = float(counting_loss(torch.from_numpy(a), torch.from_numpy(b), "pyramid"))
    assert ours == pytest.approx(literal, rel=1e-9)


def test_localization_loss_is_equation_3() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(2, 1, 5, 6)), (rng.random((2, 1, 5, 6)) < 0.2).astype(float)
    psi = 1 / (1 + np.exp(-logits))
    literal = np.mean(-100 * labels * np.log(psi) - (1 - labels) * np.log(1 - psi))
    ours = float(localization_loss(torch.from_numpy(logits), torch.from_numpy(labels), 100.0))
    assert ours == pytest.approx(literal, rel=1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [8, 4, 2])
def test_attention_equals_the_concatenation_it_never_makes(stride: int, layout: torch.memory_format) -> None:
    torch.manual_seed(stride)
    branch = AttentionBranch(3 + 5, 4).double().to(memory_format=layout)
    rich = torch.randn(2, 3, 16, 24, dtype=torch.float64).to(memory_format=layout)
    counting = torch.randn(2, 5, 16 // stride, 24 // stride, dtype=torch.float64).to(memory_format=layout)
    up = torch.nn.functional.interpolate(counting, size=(16, 24), mode="nearest")
    plain = branch.head(branch.body(torch.cat([rich, up], dim=1)))
    wanted = torch.autograd.grad(plain.square().sum(), list(branch.parameters()))
    got = branch(rich, counting)
    torch.testing.assert_close(got, plain, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(got.square().sum(), list(branch.parameters())), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["counting", "localization", "attention-mse", "attention-bce"])
def test_gradients_of_the_losses(kind: str) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, 1, 4, 4, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.rand(2, 1, 4, 4, generator=g, dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        if kind == "counting":
            return counting_loss(x, y)
        if kind == "localization":
            return localization_loss(x, (y > 0.7).double(), 100.0)
        return attention_loss(x, y, kind.split("-")[1])

    assert torch.autograd.gradcheck(loss, (x,))


def test_counting_loss_has_a_finite_gradient_at_a_perfect_map() -> None:
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    counting_loss(x, torch.zeros(1, 1, 2, 2)).backward()
    assert torch.isfinite(x.grad).all()


def test_normal_initialisation_is_csrnets() -> None:
    branch = CountingBranch(64, (64,))
    initialise(branch, "normal")
    weight = branch.body[0].weight
    assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert float(branch.body[0].bias.detach().abs().max()) == 0.0


def _network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    backbone = VggBackbone(0.125)
    counting = CountingBranch(backbone.channels, (8, 8))
    localization = LocalizationBranch(backbone.channels, (8,), (8, 6, 4))
    attention = AttentionBranch(4 + 8, 4)
    for module in (backbone, counting, localization, attention):
        initialise(module, "kaiming")
        module.eval()
    counting.head.weight.data.mul_(0.1)  # persons a cell, as a trained branch gives
    return Network("test", backbone, backbone, counting, localization, attention)


# The last is wider than a tile with its margins.
@pytest.mark.long
@pytest.mark.parametrize("size", [(171, 202), (130, 136), (81, 420)])
def test_tiles_equal_the_whole_image(size: tuple[int, int]) -> None:
    network = _network()
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    cpu = torch.device("cpu")
    wanted = ("density", "response", "attention")
    whole = network.maps(pixels, wanted, cpu)
    assert network.margin < 160
    tiled = network.maps(pixels, wanted, cpu, limit=1 << 12)  # inner tiles of 64 px
    for name in wanted:
        assert tiled[name].shape == whole[name].shape
        assert np.abs(tiled[name] - whole[name]).max() < 1e-5
    for floor in (0.3, 0.5):
        (a, _), (b, _) = find_peaks(whole["response"], floor), find_peaks(tiled["response"], floor)
        assert {tuple(p) for p in a} == {tuple(p) for p in b}


def test_no_smaller_margin_makes_tiles_equal() -> None:
    """Brute force on every margin, in double precision where nothing is rounded away: tiles are equal from some margin
    on, which is below the one that is taken and not far below."""
    network = _network(7)
    rng = np.random.default_rng(7)
    strip = torch.from_numpy(rng.normal(size=(1, 3, 16, 512)))
    for part in (network.backbone, network.counting, network.localization, network.attention):
        part.double()
        for layer in part.modules():  # all weights positive: what an output sees never cancels
            if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                layer.weight.data.abs_()
    names = {"density": 8, "response": 1, "attention": 1}
    with torch.inference_mode():
        whole = _logits(network, strip)
        differs = {name: [0] for name in names}
        for margin in range(0, 200, 8):
            part = _logits(network, strip[..., 256 - margin : 320 + margin])
            for name, step in names.items():
                inner = part[name][..., margin // step : (64 + margin) // step]
                error = (inner - whole[name][..., 256 // step : 320 // step]).abs().max()
                if float(error) > 1e-13 * float(whole[name].abs().max()):
                    differs[name].append(margin)
    for name, branches in (("density", {"counting"}), ("response", {"localization"}), ("attention", {"attention"})):
        if name == "attention":
            branches = {"counting", "localization", "attention"}
        taken = margin_of(network.backbone, **{branch: getattr(network, branch) for branch in branches})
        assert max(differs[name]) < taken, name
        assert max(differs[name]) >= taken - 24, name


def _logits(network: Network, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The maps before the sigmoid, which would hide small differences."""
    features = network.backbone(x)
    density, rich_counting = network.counting(features)
    logits, rich_localization = network.localization(features)
    return {
        "density": density, "response": logits, "attention": network.attention(rich_localization, rich_counting)
    }  # fmt: skip


def test_radius_bounds_what_an_output_pixel_sees() -> None:
    network = _network(4)
    x = torch.randn(1, 3, 480, 480, requires_grad=True)
    logits, _ = network.localization(network.backbone(x))
    (gradient,) = torch.autograd.grad(logits[0, 0, 240, 240], x)
    ys, xs = torch.nonzero(gradient.abs().sum((0, 1)), as_tuple=True)
    seen = max(abs(int(v) - 240) for v in (ys.min(), ys.max(), xs.min(), xs.max()))
    assert seen <= receptive_field_radius(network.backbone) + 8 * receptive_field_radius(network.localization.body)
