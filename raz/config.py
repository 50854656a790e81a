"""TrialConfig: everything a trial is, as frozen dataclasses. The defaults are the paper's values.

Each part belongs to one stage (see `raz.pipeline.trial.STAGES`), so that a stage's key is made of the
parts it declares. Numbers in brackets refer to the rows of the reading of the paper.

A field that is added when stores and studies exist is written `name: float = added(default=0.5, before=0.0)`: `before`
is what the code did until then. At that value the field is in no key and in no study's meaning, so these stay as they
were, and a stored configuration that lacks the field has that value, whatever the default is.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any, Literal

from raz.errors import RazError, raise_all
from raz.utils.suggestions import did_you_mean


def added(*, default: Any, before: Any) -> Any:
    """A dataclass field that came later. before: the value of it that gives what the code gave without the field, of
    the field's type; where the field is a whole part, a part."""
    return field(default=default, metadata={"before": before})


@dataclass(frozen=True)
class InputConfig:
    """Size of the network's input (26). Results are always scored in original pixels."""

    scale: float = 1.0  # input pixels per original pixel
    max_side: int = 0  # longest side allowed after scaling, 0 = any


@dataclass(frozen=True)
class BackboneConfig:
    """The first ten convolutions of VGG-16, stride 8 (1)."""

    weights: str = "imagenet"  # imagenet | none | path of a state dict in torchvision's layout
    width: float = 1.0  # channel multiplier, only without pretrained weights


@dataclass(frozen=True)
class TrainConfig:
    """How one stage is trained (24, 25). `epochs` is no part of the chain's key."""

    epochs: int = 400
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-4
    momentum: float = 0.95
    weight_decay: float = 0.0
    batch: int = 1
    crop: int = 256  # side of the training crop in input pixels, a multiple of 8; 0 = whole images
    crops_per_image: int = 4  # crops drawn from each image in an epoch
    flip: bool = True
    plateau: int = 20  # epochs without a better validation value until the rate is halved
    stop: int = 80  # epochs without a better validation value until training stops
    average: float = 0.0  # decay of the moving average of the weights that is evaluated, 0 = none
    clip: float = 10.0  # largest norm of the gradient, 0 = any
    amp: bool = True  # mixed precision, on CUDA only


@dataclass(frozen=True)
class CountingConfig:
    """The counting branch (2) and its ground truth (7, 8)."""

    channels: tuple[int, ...] = (512, 512, 512, 256, 128, 64)
    beta: float = 0.1
    k: int = 4
    kernel: Literal["raz", "csrnet"] = "raz"
    output_stride: Literal[8, 4, 2] = 8
    loss: Literal["rmse", "mse", "pyramid"] = "rmse"
    init: Literal["normal", "kaiming"] = "normal"
    unfreeze: Literal["backbone", "none"] = "backbone"
    sizes: tuple[float, ...] = (1.0,)  # at which training images are learned from, over their input size
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class LocalizationConfig:
    """The localization branch (3) and its loss (9, 10)."""

    channels: tuple[int, ...] = (512, 512, 512)
    upsample: tuple[int, int, int] = (256, 128, 64)
    gamma: float = 100.0
    init: Literal["normal", "kaiming"] = "normal"
    unfreeze: Literal["none", "backbone"] = "none"
    sizes: tuple[float, ...] = (1.0,)  # as counting.sizes
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class AttentionConfig:
    """The zooming region proposal branch (4) and its ground truth (11, 12)."""

    channels: int = 64
    init: Literal["normal", "kaiming"] = "normal"
    sigma_z: float = 3.0  # pixels of the network's input
    loss: Literal["mse", "bce"] = "mse"
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class ZoomingConfig:
    """Which regions are zoomed, and how (15, 16, 17, 28)."""

    theta_z: float = 0.01
    k_z: int = 10
    anchors: str = "paper"  # a name in raz.paper.zoom.ANCHOR_SETS
    sampling: Literal["attention", "uniform"] = "attention"
    samples: int = 200
    iou: float = 0.5
    factor: int = 2
    border: int = 8  # inner border of a crop that belongs to the outside, pixels of the zoomed crop
    seam: float = 3.0  # points nearer than this across a seam are one, pixels of the zoomed image


@dataclass(frozen=True)
class RazConfig:
    """RAZ-Net (5): which crops it learns from, and how."""

    regions: ZoomingConfig | Literal["same"] = ZoomingConfig()  # `same` ties them to `zooming`
    unfreeze: Literal["backbone", "none"] = "backbone"
    train: TrainConfig = TrainConfig()
    attention_train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class PeaksConfig:
    """From a response map to counted points (13)."""

    threshold: float | Literal["fitted"] = "fitted"


@dataclass(frozen=True)
class FusionConfig:
    """Two-stream fusion (Eq. 4, 18)."""

    rule: str = "grid"  # a name in raz.paper.fusion.RULES
    theta_f: float | Literal["cell", "shared", "image"] = "cell"
    fit_on: Literal["val", "train"] = "train"
    cells: int = 4
    folds: int = 5


@dataclass(frozen=True)
class MetricsConfig:
    """The localization metric (22, 23, 28)."""

    sigmas: tuple[float, ...] = (40.0, 20.0, 5.0)
    points: Literal["counted", "all"] = "counted"
    pool: Literal["dataset", "image"] = "dataset"
    floor: float = 0.05  # least score of a point under `points: all`


@dataclass(frozen=True)
class TrialConfig:
    """One trial, whole. `threads` are in every key: they change the last bits."""

    dataset: str = "shanghaitech_a"
    seed: int = 0
    threads: int = 1
    input: InputConfig = InputConfig()
    backbone: BackboneConfig = BackboneConfig()
    counting: CountingConfig = CountingConfig()
    localization: LocalizationConfig = LocalizationConfig()
    attention: AttentionConfig = AttentionConfig()
    raz: RazConfig = RazConfig()
    zooming: ZoomingConfig = ZoomingConfig()
    peaks: PeaksConfig = PeaksConfig()
    depth: int = 2
    fusion: FusionConfig = FusionConfig()
    metrics: MetricsConfig = MetricsConfig()

    def resolved(self) -> TrialConfig:
        """The same trial with `raz.regions: same` written out."""
        if self.raz.regions == "same":
            return replace(self, raz=replace(self.raz, regions=self.zooming))
        return self


def _presets() -> dict[str, TrialConfig]:
    paper = TrialConfig()
    # Real photographs on CPUs: pretrained backbone frozen (its features are cached), narrow heads,
    # half-size input. AdamW, since the narrow heads start from scratch.
    small_train = TrainConfig(
        epochs=100, optimizer="adamw", lr=5e-4, weight_decay=1e-4, batch=4, crop=256, crops_per_image=1,
        plateau=8, stop=25, average=0.99, clip=1.0,
    )  # fmt: skip
    small = replace(
        paper,
        threads=2,
        input=InputConfig(scale=0.5),
        # On 54 held-out training images of ShanghaiTech A the error fell from 172 (squared error, one size) to 141 with
        # blocks of cells compared and images also seen at 0.7 of their size, and to 130 with four sizes. Letting the
        # backbone's last convolutions learn on did not lower it further. A wider kernel suits the coarse input.
        counting=replace(
            paper.counting, init="kaiming", channels=(64, 64, 64, 32), beta=0.3, loss="pyramid", unfreeze="none",
            sizes=(1.4, 1.0, 0.7, 0.5), train=replace(small_train, average=0.995, clip=0.02, stop=40),
        ),
        localization=replace(
            paper.localization, init="kaiming", channels=(64, 64), upsample=(32, 16, 16),
            sizes=(1.0, 0.7), train=replace(small_train, epochs=30, lr=1e-3),
        ),
        attention=replace(
            paper.attention, init="kaiming", channels=16, train=replace(small_train, epochs=5, lr=1e-3)
        ),
        raz=RazConfig(
            regions=ZoomingConfig(k_z=1),
            unfreeze="none",
            train=replace(small_train, epochs=5, flip=False),
            attention_train=replace(small_train, epochs=3, flip=False),
        ),
        zooming=replace(paper.zooming, k_z=4),
        fusion=FusionConfig(theta_f="cell", fit_on="val"),
    )  # fmt: skip
    # A narrow network from scratch: the generated crowd, and tests.
    tiny_train = TrainConfig(
        epochs=30, optimizer="adamw", lr=2e-3, weight_decay=1e-4, batch=4, crop=128, crops_per_image=2,
        plateau=6, stop=15, average=0.98, clip=1.0,
    )  # fmt: skip
    tiny = replace(
        small,
        dataset="toy",
        threads=1,
        zooming=paper.zooming,
        input=InputConfig(),
        backbone=BackboneConfig(weights="none", width=0.125),
        counting=replace(paper.counting, init="kaiming", channels=(32, 32, 32), unfreeze="backbone", train=tiny_train),
        localization=replace(
            paper.localization,
            init="kaiming",
            channels=(32,),
            upsample=(24, 16, 8),
            train=replace(tiny_train, epochs=20),
        ),
        attention=replace(
            paper.attention, init="kaiming", channels=8, train=replace(tiny_train, epochs=10, crops_per_image=1)
        ),
        raz=RazConfig(
            regions=ZoomingConfig(k_z=2),
            unfreeze="backbone",
            train=replace(tiny_train, epochs=10, crops_per_image=1),
            attention_train=replace(tiny_train, epochs=5, crops_per_image=1),
        ),
    )
    return {"paper": paper, "small": small, "tiny": tiny}


PRESETS: dict[str, TrialConfig] = _presets()


# ------------------------------------------------------------------ names and values of parameters


def parameters(config: TrialConfig) -> dict[str, Any]:
    """Dotted names and values of every leaf, e.g. `zooming.k_z: 10`; JSON values only."""
    out: dict[str, Any] = {}

    def walk(part: Any, prefix: str) -> None:
        for f in fields(part):
            value = getattr(part, f.name)
            if is_dataclass(value):
                walk(value, f"{prefix}{f.name}.")
            else:
                out[f"{prefix}{f.name}"] = list(value) if isinstance(value, tuple) else value

    walk(config, "")
    return out


@lru_cache(maxsize=1)  # a trial asks for them several times, and reading annotations takes milliseconds
def parameter_types() -> Mapping[str, Any]:
    """Every legal dotted name with its annotated type."""
    out: dict[str, Any] = {}

    def walk(cls: type, prefix: str) -> None:
        hints = typing.get_type_hints(cls)
        for f in fields(cls):
            hint = hints[f.name]
            part = _part_class(hint)
            if part is not None:
                walk(part, f"{prefix}{f.name}.")
            if part is None or part is not hint:  # a leaf, or a part that may also be a word
                out[f"{prefix}{f.name}"] = hint

    walk(TrialConfig, "")
    return out


_NOTHING = object()


@lru_cache(maxsize=1)  # as known_names
def before_values() -> Mapping[str, Any]:
    """Dotted names and JSON values of what every field that was `added` stood for before it existed.

    Raises ValueError for a value that is not of the field's type.
    """
    out: dict[str, Any] = {}

    def walk(cls: type, prefix: str, outer: Any) -> None:
        hints = typing.get_type_hints(cls)
        for f in fields(cls):
            name, hint = f"{prefix}{f.name}", hints[f.name]
            before = f.metadata.get("before", _NOTHING if outer is _NOTHING else getattr(outer, f.name))
            part = _part_class(hint)
            if part is not None:
                walk(part, f"{name}.", before if is_dataclass(before) else _NOTHING)
            if before is not _NOTHING and not is_dataclass(before):  # a leaf, or the word for a part
                value = coerce(hint, before)
                out[name] = list(value) if isinstance(value, tuple) else value

    walk(TrialConfig, "", _NOTHING)
    return out


def without_before(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as a key or a study's meaning holds them: without later fields that are as they were before."""
    before = before_values()
    return {
        name: value for name, value in values.items()
        if name not in before or before[name] != value or isinstance(before[name], bool) != isinstance(value, bool)
    }  # fmt: skip


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the later fields that it lacks, at their values of before. The parameters of a part
    for which a word stands (`raz.regions: same`) are not lacking."""
    out = dict(values)
    for name, value in before_values().items():
        outer = name.split(".")
        parts = (".".join(outer[:i]) for i in range(1, len(outer)))
        if name not in out and not any(p in out for p in parts) and not any(n.startswith(f"{name}.") for n in values):
            out[name] = value
    return out


def changed_since(part: Any) -> dict[str, Any]:
    """Names and values of a dataclass's own later fields that are not as they were before."""
    values = {f.name: (getattr(part, f.name), f.metadata["before"]) for f in fields(part) if "before" in f.metadata}
    return {name: value for name, (value, before) in values.items() if value != before}


def configure(base: TrialConfig, settings: Mapping[str, Any], where: str = "settings") -> TrialConfig:
    """`base` with dotted names set: `configure(paper, {"zooming.k_z": 4})`.

    A preset's word for a whole part (`raz.regions: same`) is set before its leaves. Raises RazError(s)
    naming every unknown name and every value of the wrong kind or out of range, all at once.
    """
    hints = parameter_types()
    faults: list[tuple[int, RazError]] = []
    legal: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in hints:
            faults.append((name.count("."), RazError(where, f"unknown parameter {name!r}", did_you_mean(name, hints))))
            continue
        if _has(base, name, value):  # legal, then: most of a stored configuration is as it was
            kept[name] = value
            continue
        try:
            legal[name] = coerce(hints[name], value)
        except ValueError as error:
            faults.append((name.count("."), RazError(where, f"{name} is {value!r}, expected {error}", "")))
    raise_all([fault for _, fault in sorted(faults, key=itemgetter(0))])  # those of whole parts first
    for word in [name for name, value in legal.items() if isinstance(value, str) and _part_class(hints[name])]:
        undone = {name: value for name, value in kept.items() if name.startswith(f"{word}.")}  # or set
        legal |= {name: coerce(hints[name], value) for name, value in undone.items()}
    config: TrialConfig = _set(base, legal) if legal else base
    raise_all([RazError(where, fault) for fault in validate_ranges(config)])
    return config


def _has(config: TrialConfig, name: str, value: Any) -> bool:
    """Whether a parameter has the value already, in kind too."""
    try:
        found = _getter(name)(config)
    except AttributeError:  # a word stands for the part
        return False
    if type(found) is tuple and type(value) is list:  # as it is stored
        return found == tuple(value) and [*map(type, found)] == [*map(type, value)]
    return type(found) is type(value) and bool(found == value)


@lru_cache(maxsize=1024)
def _getter(name: str) -> Callable[[Any], Any]:
    return attrgetter(name)


def _set(part: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """The part with legal values by their dotted names below it. Each part is made once, however many are set in it."""
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    for first, below in inner.items():
        at = own.get(first, getattr(part, first))
        if not is_dataclass(at):  # the word is replaced by the part's defaults, then set
            at = _part_class(parameter_types()[f"{prefix}{first}"])()  # type: ignore[misc]
        own[first] = _set(at, below, f"{prefix}{first}.")
    return type(part)(**{**vars(part), **own})  # as `replace`, in a third of the time


def _part_class(hint: Any) -> type | None:
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        for option in typing.get_args(hint):
            if isinstance(option, type) and is_dataclass(option):
                return option
    return None


def coerce(hint: Any, value: Any) -> Any:
    """`value` as the annotated type. Raises ValueError with what was expected."""
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("true or false")
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ValueError("a whole number")
    if hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise ValueError(
            "a finite number" + (" (write 1.0e-4: YAML reads 1e-4 as text)" if _looks_numeric(value) else "")
        )
    if hint is str:
        if isinstance(value, str):
            return value
        raise ValueError("a text")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if any(value == option and type(value) is type(option) for option in args):
            return value
        raise ValueError("one of " + ", ".join(str(a) for a in args))
    if origin in (types.UnionType, typing.Union):
        wanted = []
        for option in args:
            try:
                return coerce(option, value)
            except ValueError as error:
                wanted.append(str(error))
        raise ValueError(" or ".join(wanted))
    if origin is tuple:
        kinds = args[:1] if args[-1] is Ellipsis else args
        if not isinstance(value, (list, tuple)) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise ValueError(f"a list of {'' if args[-1] is Ellipsis else len(args)} numbers".replace("  ", " "))
        return tuple(coerce(kinds[min(i, len(kinds) - 1)], v) for i, v in enumerate(value))
    if is_dataclass(hint):
        raise ValueError("its own parameters, each by its dotted name")
    raise ValueError(f"a {hint}")


def _looks_numeric(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def validate_ranges(config: TrialConfig) -> list[str]:
    """What is of the right kind but cannot be: the paper's own ranges and the code's limits."""
    faults: list[str] = []

    def need(name: str, ok: bool, value: object, expected: str) -> None:
        if not ok:
            faults.append(f"{name} is {value!r}, expected {expected}")

    c = config.resolved()
    need("seed", c.seed >= 0, c.seed, "0 or more")
    need("threads", 1 <= c.threads <= 1024, c.threads, "1 to 1024")
    need("depth", 1 <= c.depth <= 8, c.depth, "1 to 8 passes")
    need("input.scale", 0 < c.input.scale <= 4, c.input.scale, "more than 0, at most 4")
    need("input.max_side", c.input.max_side >= 0, c.input.max_side, "0 (any) or more")
    need("backbone.width", 0 < c.backbone.width <= 4, c.backbone.width, "more than 0, at most 4")
    need(
        "backbone.width", c.backbone.width == 1 or c.backbone.weights == "none", c.backbone.width,
        "1 with pretrained weights (set backbone.weights: none for another width)",
    )  # fmt: skip
    need("counting.beta", c.counting.beta > 0, c.counting.beta, "more than 0")
    need("counting.k", c.counting.k >= 1, c.counting.k, "1 or more")
    need("counting.channels", min(c.counting.channels, default=0) >= 1, c.counting.channels, "one or more widths >= 1")
    loc = c.localization
    for name, sizes in (("counting", c.counting.sizes), ("localization", loc.sizes)):
        legal = bool(sizes) and len(set(sizes)) == len(sizes) and all(0.1 <= size <= 4 for size in sizes)
        need(f"{name}.sizes", legal, sizes, "one or more different numbers from 0.1 to 4")
    need("localization.channels", min(loc.channels, default=1) >= 1, loc.channels, "widths >= 1")
    need("localization.upsample", min(loc.upsample) >= 1, loc.upsample, "three widths >= 1")
    need("localization.gamma", loc.gamma > 0, loc.gamma, "more than 0")
    need("attention.channels", c.attention.channels >= 1, c.attention.channels, "1 or more")
    need("attention.sigma_z", c.attention.sigma_z > 0, c.attention.sigma_z, "more than 0")
    for name, zoom in (("zooming", c.zooming), ("raz.regions", c.raz.regions)):
        assert isinstance(zoom, ZoomingConfig)
        need(f"{name}.theta_z", 0 <= zoom.theta_z < 1, zoom.theta_z, "0 to 1")
        need(f"{name}.k_z", zoom.k_z >= 1, zoom.k_z, "1 or more")
        need(f"{name}.samples", zoom.samples >= 1, zoom.samples, "1 or more")
        need(f"{name}.iou", 0 < zoom.iou <= 1, zoom.iou, "more than 0, at most 1")
        need(f"{name}.factor", 2 <= zoom.factor <= 8, zoom.factor, "2 to 8")
        need(f"{name}.border", zoom.border >= 0, zoom.border, "0 or more")
        need(f"{name}.seam", zoom.seam >= 0, zoom.seam, "0 or more")
    if not isinstance(c.peaks.threshold, str):
        need("peaks.threshold", 0 < c.peaks.threshold < 1, c.peaks.threshold, "fitted, or a number between 0 and 1")
    need("fusion.cells", 1 <= c.fusion.cells <= 64, c.fusion.cells, "1 to 64")
    need("fusion.folds", c.fusion.folds >= 2, c.fusion.folds, "2 or more")
    need("metrics.sigmas", min(c.metrics.sigmas, default=0) > 0, c.metrics.sigmas, "one or more numbers over 0")
    need("metrics.floor", 0 < c.metrics.floor < 1, c.metrics.floor, "between 0 and 1")
    trains = {
        "counting.train": c.counting.train, "localization.train": loc.train, "attention.train": c.attention.train,
        "raz.train": c.raz.train, "raz.attention_train": c.raz.attention_train,
    }  # fmt: skip
    for name, t in trains.items():
        need(f"{name}.epochs", t.epochs >= 1, t.epochs, "1 or more")
        need(f"{name}.lr", t.lr > 0, t.lr, "more than 0")
        need(f"{name}.momentum", 0 <= t.momentum < 1, t.momentum, "0 to 1")
        need(f"{name}.weight_decay", t.weight_decay >= 0, t.weight_decay, "0 or more")
        need(f"{name}.batch", t.batch >= 1, t.batch, "1 or more")
        need(f"{name}.batch", t.crop > 0 or t.batch == 1, t.batch, "1 with whole images (crop: 0)")
        need(f"{name}.crop", t.crop >= 0 and t.crop % 8 == 0, t.crop, "a multiple of 8, or 0 for whole images")
        need(f"{name}.crops_per_image", t.crops_per_image >= 1, t.crops_per_image, "1 or more")
        need(f"{name}.plateau", t.plateau >= 1, t.plateau, "1 or more")
        need(f"{name}.stop", t.stop >= 1, t.stop, "1 or more")
        need(f"{name}.average", 0 <= t.average < 1, t.average, "0 (none) to 1")
        need(f"{name}.clip", t.clip >= 0, t.clip, "0 (any) or more")
    return faults


def from_parameters(values: Mapping[str, Any]) -> TrialConfig:
    """The inverse of `parameters`, for what was stored: a later field that is lacking has its value of before, any
    other its default. Raises RazError when a name is unknown or a value illegal."""
    return configure(TrialConfig(), completed(values), "stored configuration")


def diff(a: TrialConfig, b: TrialConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted names whose values differ, each with both values."""
    left, right = parameters(a), parameters(b)
    return {
        name: (left.get(name), right.get(name))
        for name in left.keys() | right.keys()
        if left.get(name) != right.get(name)
    }
