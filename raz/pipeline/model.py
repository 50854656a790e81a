"""A trained model that predicts images, from a store's artifacts or from an exported file.

The file is safetensors: the tensors of every trained stage (`counting/backbone.…`, `raz/localization.…`), and JSON
texts in its metadata: the configuration, the fitted thresholds and theta_f, and the provenance; and its model card. A
prediction needs no store, no data set and no backbone weights. Loading executes no code.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from raz.config import TrialConfig, from_parameters, parameters
from raz.data.contract import Sample
from raz.data.frames import Frames
from raz.data.images import decode
from raz.errors import RazError
from raz.paper import fusion as fuse
from raz.pipeline import builders
from raz.pipeline.assembly import TrainedStage, main_net, raz_net
from raz.pipeline.device import compute_device
from raz.pipeline.graph import TRAINED, declared_inputs, stage_of
from raz.pipeline.inference import FeatureLru, Network
from raz.pipeline.passes import PassResult
from raz.pipeline.regions import MapFunction, first_pass, image_candidates, zoom_pass
from raz.pipeline.scoring import FittedThresholds, SplitPredictions, cell_counts
from raz.pipeline.tiling import tile_pixels
from raz.pipeline.weights import weights_text
from raz.store.cache import Artifact, StageCache
from raz.store.paths import FITTED, WEIGHTS
from raz.utils.atomic import atomic_write
from raz.utils.json_types import Json, JsonObject, parse_object

FORMAT = "raz-sweep model 1"
CROP_BYTES = 1 << 28  # most bytes of memoised features of one image's crops
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image. Coordinates are px of the original image (27)."""

    count: float  # by the configuration's fusion rule
    density: float  # the density map's sum
    localization: int  # number of counted points
    points: NDArray[np.float64]  # (n, 2) x, y of the counted points, by descending score
    scores: NDArray[np.float32]  # (n,)
    passes: NDArray[np.int8]  # (n,) the pass that found each point, from 1
    density_map: NDArray[np.float32]  # (ceil(h/s), ceil(w/s)) persons per cell, at the network's input size
    regions: tuple[NDArray[np.float64], ...]  # of pass 2, 3, …: (r, 4) x0, y0, x1, y1
    size: tuple[int, int]  # (H, W)
    seconds: float  # time of the prediction
    # 90 % of images have their true count in it (`raz.pipeline.conformal`); None: `Model.about_intervals` says why
    interval: tuple[float, float] | None = None

    def as_json(self) -> JsonObject:
        """JSON values: counts, the count's interval, points as [x, y, score], regions; without the map."""
        points = np.column_stack([self.points, self.scores]).tolist() if len(self.points) else []
        return {
            "count": self.count, "interval": None if self.interval is None else [*self.interval],
            "density": self.density, "localization": self.localization,
            "height": self.size[0], "width": self.size[1], "seconds": round(self.seconds, 3),
            "regions": [r.tolist() for r in self.regions], "points": points,
        }  # fmt: skip


@dataclass(frozen=True)
class Model:
    """Trained stages with their configuration, the values fitted on validation images, and the provenance `about`."""

    config: TrialConfig
    trained: Mapping[str, TrainedStage]
    fitted: FittedThresholds
    about: Mapping[str, Json]
    card: str = ""  # its model card in Markdown, of a file that has one (`raz.predict.model_card`)

    @property
    def max_depth(self) -> int:
        """The most passes that it can make. From pass 3 on, RAZ-Net's attention is needed."""
        if "raz" not in self.trained:
            return 1
        return 8 if "raz_attention" in self.trained else 2

    @cached_property
    def device(self) -> torch.device:
        return compute_device()

    @cached_property
    def main(self) -> Network:
        through = "attention" if "attention" in self.trained else "localization"
        return main_net(self.trained.__getitem__, through, self.device)

    @cached_property
    def raz(self) -> Network:
        return raz_net(self.trained.__getitem__, "raz_attention" in self.trained, self.device)

    def interval(self, count: float, depth: int) -> tuple[float, float] | None:
        """The 90 % interval of a count after `depth` passes; None where `about_intervals` says why."""
        if self.fitted.conformal is None or depth != self.config.depth:
            return None
        return self.fitted.conformal.interval(count)

    def about_intervals(self, depth: int | None = None) -> str:
        """One line for people on the intervals after `depth` passes: what they are, or why there are none."""
        if self.fitted.conformal is None:
            return "no intervals: the model holds no errors of validation images"
        if depth not in (None, self.config.depth):
            return f"no intervals: errors are known after {self.config.depth} passes, not after {depth}"
        of_search = "; the search's: this model was trained on these images too" if self.about.get("final") else ""
        return self.fitted.conformal.describe() + of_search

    def predict(self, image: str | os.PathLike[str] | NDArray[np.uint8], *, depth: int | None = None) -> Prediction:
        """Count and localize the heads of one image.

        image: a file, or (H, W, 3) uint8 RGB.
        depth: number of passes, by default as configured; the thresholds are those fitted at the configured depth.

        The sampling of regions is seeded by the image's content (15), in studies as here: the same picture gives the
        same points under any file name, and those that a study found on it.

        Uses the configured number of threads, on which the last bits depend. Raises RazError for a file that is no
        image, a wrong array, or a depth that the model was not trained for.
        """
        pixels = _pixels(image)
        depth = self.config.depth if depth is None else depth
        if not 1 <= depth <= self.max_depth:
            raise RazError("depth", f"{depth}, but this model can make 1 to {self.max_depth} passes", "a lower --depth")
        threads = torch.get_num_threads()
        torch.set_num_threads(self.config.threads)
        try:
            return self._predict(pixels, depth)
        finally:
            torch.set_num_threads(threads)

    def _predict(self, pixels: NDArray[np.uint8], depth: int) -> Prediction:
        began = time.monotonic()
        config = self.config
        item = Sample("image", "", lambda: pixels, lambda: np.zeros((0, 2)), "")
        size = config.input.times(config.predict.scale)
        frames = Frames([item], scale=size.scale, max_side=size.max_side)
        memo = FeatureLru(CROP_BYTES)
        wanted = ("density", "response", "attention") if depth > 1 else ("density", "response")
        limit = tile_pixels(*frames.size(0))  # of crops too, as in the stage `zoom`
        maps = self.main.maps(frames.pixels(0), wanted, self.device, limit=limit)
        gamma = config.localization.gamma
        passes = [first_pass(maps.pop("response"), config.peaks.count, gamma)]

        def raz_map(kind: str) -> MapFunction:
            # Pass 3 proposes regions inside the crops of pass 2: their features stay in the memo.
            shared = memo if depth > 2 else None
            return lambda crop, part: self.raz.maps(crop, (kind,), self.device, shared, part, limit)[kind]

        proposed = None
        if depth > 1:  # the map of a large image is 0.2 GB: it is freed after use
            proposed = image_candidates(maps.pop("attention"), config.zooming, config.seed, frames.content(0), 2)
        for number in range(2, depth + 1):
            found = zoom_pass(
                frames, 0, number, passes[-1], config.zooming, config.seed, proposed,
                raz_map("attention"), raz_map("response"), gamma,
            )  # fmt: skip
            proposed = None  # deeper passes propose inside the crops
            passes.append(found)
        return self._count(frames, maps["density"], passes, began)

    def _count(
        self,
        frames: Frames,
        density: NDArray[np.float32],
        passes: list[PassResult],
        began: float,
    ) -> Prediction:
        fusion, depth = self.config.fusion, len(passes)
        per_px = 1 / np.array(frames.scale(0))
        assert self.main.counting is not None
        split = SplitPredictions(
            frames.ids, [np.zeros((0, 2))], [frames.size(0)], [(float(per_px[0]), float(per_px[1]))], [density],
            self.main.counting.output_stride, [[found] for found in passes], np.zeros(1, np.int64),
        )  # fmt: skip
        counts = cell_counts(split, self.fitted, [0], depth, fusion.cells)
        fused = fuse.RULES[fusion.rule](counts.density, counts.localization, self.fitted.theta_f)
        last = passes[-1]
        counted = last.points.take(np.flatnonzero(self.fitted.counted(last)))
        order = np.lexsort((counted.xy[:, 0], counted.xy[:, 1], -counted.score))
        counted = counted.take(order)
        return Prediction(
            float(fused.sum()), float(counts.density.sum()), len(counted), counted.xy * per_px, counted.score,
            counted.depth, density, tuple(found.regions * np.tile(per_px, 2) for found in passes[1:]),
            frames.original_size(0), time.monotonic() - began,
            self.interval(float(fused.sum()), depth),
        )  # fmt: skip


def _pixels(image: str | os.PathLike[str] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise RazError("image", f"is {image.dtype} of shape {image.shape}, expected uint8 (H, W, 3) RGB")
        return image
    path = Path(image)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RazError(str(path), f"cannot be read ({error.strerror or error})", "check the path") from error
    return decode(data, str(path))


# ------------------------------------------------------------------ from a store


def stored_model(store: Path, score: str, about: Mapping[str, Json] | None = None) -> Model:
    """The model behind a score of a store, given the score's key (hex). Opens no data set.

    Raises RazError when the store lacks the score, its version stored no thresholds, or one of its trained stages is
    missing or damaged.
    """
    cache = StageCache(store)

    def artifact_of(stage: str, key: str) -> Artifact:
        artifact = cache.get(stage, key) if _KEY.fullmatch(key) else None
        if artifact is None:
            hint = "run the study again: what is missing is made, the rest is served"
            raise RazError(f"store {store}", f"stage {stage} {key[:12]} is not there, or damaged", hint)
        return artifact

    manifest = artifact_of("score", score).manifest
    config = from_parameters(manifest.config)
    keys: dict[str, str] = {}  # node ("counting", "zoom3@val") -> key

    def visit(needs: Mapping[str, str]) -> None:
        for node, key in needs.items():
            if node not in keys:
                keys[node] = key
                visit(artifact_of(stage_of(node), key).manifest.needs)

    visit(manifest.needs)
    trained = {}
    for stage in TRAINED:
        if stage in keys:
            artifact = artifact_of(stage, keys[stage])
            weights = builders.read_state(artifact.folder / WEIGHTS)
            inputs = declared_inputs(from_parameters(artifact.manifest.config), stage)
            trained[stage] = TrainedStage(keys[stage], inputs, weights)
    try:
        fitted = FittedThresholds.from_json(
            parse_object((artifact_of("score", score).folder / FITTED).read_text("utf-8"))
        )
    except FileNotFoundError:
        hint = "run the study again: scores are made anew, in seconds, nothing is trained"
        raise RazError(f"store {store}", "this score keeps no thresholds: it is of an older version", hint) from None
    stages: JsonObject = {**{stage: result.key for stage, result in trained.items()}, "score": score}
    told = weights_text(artifact_of("counting", keys["counting"]).manifest.weights)
    source: JsonObject = {
        "stages": stages,
        "made": {"versions": {**manifest.versions}, "device": manifest.device, **({"weights": told} if told else {})},
    }
    return Model(config, trained, fitted, {**(about or {}), **source})


# ------------------------------------------------------------------ one file


def save_model(model: Model, out: Path) -> None:
    """Write a model to one safetensors file, atomically. Raises RazError where it cannot be written."""
    tensors: dict[str, Tensor] = {}
    for stage, trained in model.trained.items():
        tensors |= {f"{stage}/{name}": value.detach().cpu().contiguous() for name, value in trained.weights.items()}
    if not model.trained["counting"].has("backbone"):  # frozen: the stage does not store it
        state = model.main.backbone.state_dict()
        tensors |= {f"counting/backbone.{n}": v.detach().cpu().contiguous() for n, v in state.items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(parameters(model.config), sort_keys=True),
        "stages": json.dumps({stage: trained.key for stage, trained in model.trained.items()}),
        "fitted": json.dumps(model.fitted.as_json()),
        "about": json.dumps(dict(model.about), sort_keys=True),
        **({"card": model.card} if model.card else {}),
    }
    try:
        with atomic_write(out) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RazError(str(out), f"cannot be written ({reason})", "choose another --out") from error


def load_model(path: str | os.PathLike[str]) -> Model:
    """A model from an exported file. Raises RazError for another file, or a damaged one."""
    path = Path(path)
    hint = "raz-sweep export STORE#study#trial --out model.safetensors"
    if path.is_dir():
        raise RazError(str(path), "is a folder, expected a file", hint)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except OSError as error:
        raise RazError(str(path), f"cannot be read ({error.strerror or error})", hint) from error
    except (SafetensorError, struct.error) as error:
        raise RazError(str(path), f"is no exported model ({error})", hint) from error
    if metadata.get("format") != FORMAT:
        what = "weights without a configuration" if "format" not in metadata else f"a {metadata['format']!r}"
        raise RazError(str(path), f"holds {what}, expected a {FORMAT!r}", hint)
    try:
        config = from_parameters(json.loads(metadata["config"]))
        keys = json.loads(metadata["stages"])
        fitted, about = FittedThresholds.from_json(json.loads(metadata["fitted"])), json.loads(metadata["about"])
        trained = {
            stage: TrainedStage(str(key), declared_inputs(config, stage), {
                name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(f"{stage}/")
            })
            for stage, key in keys.items() if stage in TRAINED
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RazError(str(path), f"its description is damaged ({type(error).__name__}: {error})", hint) from error
    if not {"counting", "localization"} <= set(trained):
        raise RazError(str(path), "holds no counting and localization stage", hint)
    model = Model(config, trained, fitted, about, metadata.get("card", ""))
    if config.depth > model.max_depth:
        raise RazError(str(path), f"is of depth {config.depth}, but holds networks for {model.max_depth}", hint)
    _ = model.main  # raise for tensors of another shape here, not at the first image
    if "raz" in trained:
        _ = model.raz
    return model
