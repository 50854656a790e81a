"""PRESETS: complete configurations that a file's `base` may start from."""

from __future__ import annotations

from dataclasses import replace

from raz.config.trial import (
    BackboneConfig,
    FusionConfig,
    PeaksConfig,
    RazConfig,
    TrainConfig,
    TrialConfig,
    ZoomingConfig,
)


def _presets() -> dict[str, TrialConfig]:
    paper = TrialConfig()
    # Real photographs on CPUs: a small backbone trained end to end at full size. The schedule-free optimizer never
    # looks at the end of the training. It keeps its rates, so the plateau is out of reach.
    free = TrainConfig(
        epochs=30, optimizer="schedule-free", lr=2e-3, backbone_lr=4e-4, warmup=200, weight_decay=1e-4, batch=6,
        crop=256, crops_per_image=1, grey=0.2, plateau=10_000, stop=10_000, clip=1.0, amp=False,
    )  # fmt: skip
    heads = replace(free, epochs=3, backbone_lr=0.0, warmup=50, grey=0.0, flip=False)  # on frozen branches
    zoomed = ZoomingConfig(anchors="small", k_z=4)
    small = replace(
        paper,
        backbone=BackboneConfig(name="tf_efficientnet_lite0", neck=96),
        counting=replace(
            paper.counting, init="kaiming-small", channels=(96, 64, 64, 32), kernel="cell", loss="pyramid-l1",
            train=replace(free, scales=(0.6, 1.5)),
        ),
        localization=replace(
            paper.localization, init="kaiming-small", channels=(96, 64), upsample=(48, 24, 16), unfreeze="backbone",
            train=replace(free, epochs=20, lr=3e-3, backbone_lr=6e-4, scales=(0.7, 1.5)),
        ),
        attention=replace(paper.attention, init="kaiming-small", channels=16, sigma_z=8.0, train=heads),
        raz=RazConfig(
            regions=replace(zoomed, k_z=2),
            train=replace(free, epochs=5, lr=3e-3, backbone_lr=6e-4, warmup=100, scales=(0.7, 1.4)),
            attention_train=heads,
        ),
        zooming=zoomed,
        peaks=PeaksConfig(count="expected"),
        fusion=FusionConfig(theta_f="shared", fit_on="val", cells=8),
    )  # fmt: skip
    # A narrow network from scratch: the generated crowd, and tests.
    tiny_train = TrainConfig(
        epochs=30, optimizer="adamw", lr=2e-3, weight_decay=1e-4, batch=4, crop=128, crops_per_image=2,
        plateau=6, stop=15, average=0.98, clip=1.0,
    )  # fmt: skip
    tiny = replace(
        paper,
        dataset="toy",
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
        fusion=FusionConfig(theta_f="cell", fit_on="val"),
    )
    return {"paper": paper, "small": small, "tiny": tiny}


PRESETS: dict[str, TrialConfig] = _presets()
