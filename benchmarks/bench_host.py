"""What a training step costs beside the networks: windows, crops or kept features, ground truth, one batch of them.

Both sides do it for the same windows: `load` of the stage's task with the normalisation of its pixels, against each
window by itself with nothing kept of its image but its distances to heads. The images are noise of the size of
ShanghaiTech A's, with its crowd; stage `raz` has the regions that attention proposes on them, more than fit into the
memory for regions. Features are random: what they cost does not depend on their values.

The aim, 2 ms of a processor a step, is preset `paper`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _alt import Bench
from bench_model import Pictures
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from raz.config import PRESETS, TrainConfig, TrialConfig
from raz.data.contract import Sample
from raz.data.frames import Frames
from raz.paper.attention import attention_map
from raz.paper.groundtruth import density_window
from raz.paper.networks import IMAGENET, STRIDE, AttentionBranch, CountingBranch, LocalizationBranch, VggBackbone
from raz.pipeline.feature_cache import FeatureCache
from raz.pipeline.malloc import keep_freed_memory
from raz.pipeline.regions import image_candidates, region_images
from raz.pipeline.samples import GroundTruth, Images, Window, extents, mirrored_heads, normalised_crops
from raz.pipeline.tasks import (
    Batch,
    Source,
    Tensors,
    TrainingData,
    attention_task,
    counting_task,
    features_from,
    localization_task,
)
from raz.pipeline.tiling import round_up_to_stride
from raz.pipeline.training_loop import TrainingTask

CPU = torch.device("cpu")
PICTURES = 8
AIM = 2.0  # ms
Call = Callable[[], object]


class KeptFeatures(FeatureCache):
    """Random features of each image, in memory as a file's mapped pages are."""

    def get(self, index: int, mirrored: bool = False) -> Tensor:
        if (index, mirrored) not in self._open:
            rows, cols = (round_up_to_stride(side) // STRIDE for side in self.images.size(index))
            self._open[index, mirrored] = torch.rand(self.backbone.channels, rows, cols).half()
        return self._open[index, mirrored]


def frames_of(pictures: Pictures) -> Frames:
    def heads() -> NDArray[np.float64]:
        return pictures.crowd.heads

    return Frames(
        [Sample(f"train/{i}", name, partial(pictures.pixels, i), heads, name) for i, name in enumerate(pictures.ids)]
    )


def regions_of(pictures: Pictures, config: TrialConfig) -> Images:
    zooming = config.raz.regions
    assert not isinstance(zooming, str)
    crowd = pictures.crowd
    attention = attention_map(crowd.heads, crowd.height, crowd.width, config.attention.sigma_z)
    proposed = [image_candidates(attention, zooming, 0, name, 2) for name in pictures.ids]
    return region_images(frames_of(pictures), zooming, proposed)


# ------------------------------------------------------------------ each window by itself


def plain_pixels(images: Images, w: Window) -> Tensor:
    pixels = images.pixels(w.index)
    if w.mirrored:
        pixels = pixels[:, ::-1]
    if w.side:
        square = np.ascontiguousarray(pixels[w.y0 : w.y0 + w.side, w.x0 : w.x0 + w.side])
        part = np.asarray(Image.fromarray(square).resize((w.width, w.height), Image.Resampling.BILINEAR))
    else:
        part = np.ascontiguousarray(pixels[w.y0 : w.y0 + w.height, w.x0 : w.x0 + w.width])
    if w.grey:
        part = np.repeat(np.rint(part.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    x = (torch.from_numpy(part.copy()).permute(2, 0, 1)[None].float() / 255.0 - mean) / std
    return nn.functional.pad(x, (0, w.width - x.shape[3], 0, w.height - x.shape[2]))


def plain_features(cache: FeatureCache, w: Window) -> Tensor:
    y, x, h, wd = w.y0 // STRIDE, w.x0 // STRIDE, w.height // STRIDE, w.width // STRIDE
    out = cache.get(w.index, w.mirrored)[:, y : y + h, x : x + wd].float()[None]
    return nn.functional.pad(out, (0, wd - out.shape[3], 0, h - out.shape[2]))


def plain_density(truth: GroundTruth, config: TrialConfig, w: Window) -> NDArray[np.float32]:
    c = config.counting
    stride = c.output_stride
    if w.side:
        return truth.density(w, stride, c.beta, c.kernel)
    heads, distances, height, width = truth.of_image(w.index)
    if w.mirrored:
        heads = mirrored_heads(heads, width)
    out = np.zeros((w.height // stride, w.width // stride), np.float32)
    limits = zip((height, width), (w.y0, w.x0), out.shape, strict=True)
    rows, cols = (min(-(-(size - at) // stride), n) for size, at, n in limits)
    out[:rows, :cols] = density_window(
        heads, distances, height, width, w.x0, w.y0, rows * stride, cols * stride,
        stride=stride, beta=c.beta, kernel=c.kernel,
    )  # fmt: skip
    return out


# ------------------------------------------------------------------ the two sides


def branch_of(kind: type[nn.Module]) -> nn.Module:
    """A branch that is never called."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def sides(config: TrialConfig, stage: str, images: Images) -> tuple[Call, Call, Callable[[], float]]:
    """A step's host work as it is done, plainly, and the greatest difference between the two."""
    backbone = VggBackbone(config.backbone.width).eval()
    data = TrainingData(images, images, 0, CPU)
    cache = KeptFeatures(Path(), backbone, images, CPU)
    trains = {
        "counting": (config.counting.train, config.counting.unfreeze),
        "localization": (config.localization.train, config.localization.unfreeze),
        "attention": (config.attention.train, "none"),
        "raz": (config.raz.train, config.raz.unfreeze),
    }
    settings, unfrozen = trains[stage]
    frozen = unfrozen == "none"
    source = features_from(backbone, images, CPU, cache if frozen else None)
    # What the device would do with the pixels belongs to this work on a CPU.
    prepare = Source(CPU, source.load, lambda w, loaded: loaded[0]) if frozen else source
    truth = GroundTruth(images)
    task: TrainingTask[Batch]
    target: Callable[[Window], NDArray[np.float32]]
    if stage == "counting":
        counting = branch_of(CountingBranch)
        assert isinstance(counting, CountingBranch)
        counting.output_stride = config.counting.output_stride
        task = counting_task(
            data, nn.ModuleDict(), counting, prepare, prepare, settings,
            beta=config.counting.beta, kernel=config.counting.kernel, kind=config.counting.loss,
        )  # fmt: skip
        target = partial(plain_density, truth, config)
    elif stage == "attention":
        attention = branch_of(AttentionBranch)
        assert isinstance(attention, AttentionBranch)
        sigma = config.attention.sigma_z

        def none(windows: Batch, loaded: Tensors) -> tuple[Tensor, Tensor | None]:
            return loaded[0], None

        rich = Source(CPU, source.load, none)
        task = attention_task(data, stage, nn.ModuleDict(), attention, rich, rich, settings, sigma_z=sigma, kind="mse")
        target = partial(truth.attention, sigma_z=sigma)
    else:
        localization = branch_of(LocalizationBranch)
        assert isinstance(localization, LocalizationBranch)
        task = localization_task(
            data, stage, nn.ModuleDict(), localization, prepare, prepare, settings, gamma=config.localization.gamma
        )
        target = truth.labels
    load = task.load
    assert load is not None

    def ours(batch: Batch) -> list[Tensor]:
        tensors = load(batch).tensors
        if frozen:
            return [tensors[0].float(), tensors[-1]]
        return [pixels_of(batch, tensors), tensors[-1]]

    def pixels_of(batch: Batch, tensors: Tensors) -> Tensor:
        return normalised_crops(tensors[0], extents(images, batch))

    def plainly(batch: Batch) -> list[Tensor]:
        read = [plain_features(cache, w) if frozen else plain_pixels(images, w) for w in batch]
        return [torch.cat(read), torch.from_numpy(np.stack([target(w) for w in batch])[:, None])]

    def difference() -> float:
        batch = next(iter(task.batches(1)))
        return max(float((a - b).abs().max()) for a, b in zip(ours(batch), plainly(batch), strict=True))

    def call(of: Callable[[Batch], list[Tensor]]) -> Call:
        batches = endless(task, settings)
        return lambda: of(next(batches))

    return call(ours), call(plainly), difference


def endless(task: TrainingTask[Batch], settings: TrainConfig) -> Iterator[Batch]:
    epoch = 0
    while True:
        epoch += 1
        yield from task.batches(epoch)


def main() -> int:
    torch.set_num_threads(1)
    keep_freed_memory()  # as a trial does
    bench = Bench(f"host: the work of a step beside its networks; torch {torch.__version__}")
    pictures = Pictures(PICTURES)
    slow = []
    for preset in ("paper", "small", "tiny"):
        config = replace(PRESETS[preset]).resolved()
        for stage in ("counting", "localization", "attention", "raz"):
            label = f"{preset} {stage}"
            if bench.options.only not in label:
                continue
            images: Images = regions_of(pictures, config) if stage == "raz" else pictures
            ours, plainly, difference = sides(config, stage, images)
            bench.exact(f"{label}, against each window by itself", difference(), 0.0)
            for _ in range(8 * PICTURES):  # what is computed once a training
                ours(), plainly()
            bench.compare(label, ours, plainly, against="each window by itself")
            if preset == "paper" and bench.results[-1]["cpu_ms"] > AIM:
                slow.append(label)
    print(f"  above {AIM} ms: {', '.join(slow)}" if slow else f"  preset paper: below {AIM} ms a step")
    return bench.done()


if __name__ == "__main__":
    sys.exit(main())
