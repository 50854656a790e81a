"""Ranges of a configuration's values."""

from __future__ import annotations

from raz.config.trial import PAPER_BACKBONE, BackboneConfig, TrialConfig, ZoomingConfig
from raz.config.value_types import Leaf
from raz.errors import RazError


def validate_ranges(config: TrialConfig, where: str) -> list[RazError]:
    """A fault for every value that has the right type and is out of range: the paper's ranges and the code's limits.

    Each fault has this `where` and names its parameter.
    """
    faults: list[RazError] = []

    def need(name: str, ok: bool, value: Leaf, expected: str) -> None:
        if not ok:
            faults.append(RazError(where, f"{name} is {value!r}, expected {expected}", parameter=name))

    c = config.resolved()
    need("seed", c.seed >= 0, c.seed, "0 or more")
    need("threads", 1 <= c.threads <= 1024, c.threads, "1 to 1024")
    need("depth", 1 <= c.depth <= 8, c.depth, "1 to 8 passes")
    need("input.scale", 0 < c.input.scale <= 4, c.input.scale, "more than 0, at most 4")
    need("input.max_side", c.input.max_side >= 0, c.input.max_side, "0 (any) or more")
    need("predict.scale", 0.1 <= c.predict.scale <= 4, c.predict.scale, "0.1 to 4")
    need("backbone.width", 0 < c.backbone.width <= 4, c.backbone.width, "more than 0, at most 4")
    need(
        "backbone.width", c.backbone.width == 1 or c.backbone.weights == "none", c.backbone.width,
        "1 with pretrained weights (set backbone.weights: none for another width)",
    )  # fmt: skip
    need("backbone.name", bool(c.backbone.name), c.backbone.name, "vgg16, or a network of timm")
    need("backbone.neck", 0 <= c.backbone.neck <= 4096, c.backbone.neck, "0 (features as they are) to 4096")
    if c.backbone.name == PAPER_BACKBONE:
        default = BackboneConfig().neck
        need(
            "backbone.neck",
            c.backbone.neck == default,
            c.backbone.neck,
            f"{default} with {PAPER_BACKBONE}: it has none",
        )
    else:
        need("backbone.width", c.backbone.width == 1, c.backbone.width, f"1 with {c.backbone.name}")
        frozen = c.counting.unfreeze == "none" and c.backbone.neck > 0
        need(
            "counting.unfreeze",
            not frozen,
            c.counting.unfreeze,
            "backbone where backbone.neck is above 0: a frozen neck would never be trained (or set backbone.neck: 0)",
        )
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
    need("metrics.radii", min(c.metrics.radii, default=0) > 0, c.metrics.radii, "one or more numbers over 0")
    need("metrics.floor", 0 < c.metrics.floor < 1, c.metrics.floor, "between 0 and 1")
    trains = {
        "counting.train": c.counting.train, "localization.train": loc.train, "attention.train": c.attention.train,
        "raz.train": c.raz.train, "raz.attention_train": c.raz.attention_train,
    }  # fmt: skip
    learns = [
        f"{name}.train" for name, part in (("counting", c.counting), ("localization", loc), ("raz", c.raz))
        if part.unfreeze == "backbone"
    ]  # fmt: skip
    for name, sizes, t in (("counting", c.counting.sizes, c.counting.train), ("localization", loc.sizes, loc.train)):
        need(f"{name}.sizes", not t.scales or sizes == (1.0,), sizes, f"[1.0] with {name}.train.scales")
    for name, t in trains.items():
        need(f"{name}.epochs", t.epochs >= 1, t.epochs, "1 or more")
        need(f"{name}.lr", t.lr > 0, t.lr, "more than 0")
        need(f"{name}.momentum", 0 <= t.momentum < 1, t.momentum, "0 to 1")
        need(f"{name}.weight_decay", t.weight_decay >= 0, t.weight_decay, "0 or more")
        need(f"{name}.batch", t.batch >= 1, t.batch, "1 or more")
        need(f"{name}.batch", t.crop > 0 or t.batch == 1, t.batch, "1 with whole images (crop: 0)")
        need(f"{name}.crop", t.crop >= 0 and t.crop % 8 == 0, t.crop, "a multiple of 8, or 0 for whole images")
        rising = not t.scales or (len(t.scales) == 2 and 0.1 <= t.scales[0] < t.scales[1] <= 8)
        need(f"{name}.scales", rising, t.scales, "[] or two rising numbers from 0.1 to 8")
        need(f"{name}.scales", not t.scales or t.crop > 0, t.scales, "[] with whole images (crop: 0)")
        need(
            f"{name}.scales",
            not t.scales or name in learns,
            t.scales,
            "[] where the backbone is frozen",
        )
        need(f"{name}.crops_per_image", t.crops_per_image >= 1, t.crops_per_image, "1 or more")
        need(f"{name}.plateau", t.plateau >= 1, t.plateau, "1 or more")
        need(f"{name}.stop", t.stop >= 1, t.stop, "1 or more")
        need(f"{name}.average", 0 <= t.average < 1, t.average, "0 (none) to 1")
        need(f"{name}.backbone_lr", t.backbone_lr >= 0, t.backbone_lr, "0 (as lr) or more")
        need(f"{name}.warmup", t.warmup >= 0, t.warmup, "0 or more steps")
        need(f"{name}.warmup", not t.warmup or t.optimizer == "schedule-free", t.warmup, "0 unless schedule-free")
        need(
            f"{name}.average",
            not t.average or t.optimizer != "schedule-free",
            t.average,
            "0 with schedule-free, which averages the weights itself",
        )
        need(f"{name}.grey", 0 <= t.grey <= 1, t.grey, "0 to 1")
        need(f"{name}.grey", not t.grey or name in learns, t.grey, "0 where the backbone is frozen")
        own = not t.backbone_lr or name in learns
        need(f"{name}.backbone_lr", own, t.backbone_lr, "0 where the backbone is frozen")
        need(f"{name}.clip", t.clip >= 0, t.clip, "0 (any) or more")
    return faults
