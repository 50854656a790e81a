"""PRESETS: complete configurations that a file's `base` may start from."""

from __future__ import annotations

from dataclasses import replace

from raz.config.trial import (
    BackboneConfig,
    FusionConfig,
    InputConfig,
    RazConfig,
    TrainConfig,
    TrialConfig,
    ZoomingConfig,
)


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
