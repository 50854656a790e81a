"""The keys of a trial's stages, from its configuration and its data set. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from raz.config import PAPER_BACKBONE, BackboneConfig, InputConfig, TrialConfig
from raz.data import open_dataset
from raz.data.contract import Dataset
from raz.data.frames import input_size, zoomed_size
from raz.paper.zoom import ANCHOR_SETS, anchor_sizes
from raz.pipeline import tiling
from raz.pipeline.graph import STAGES, Node, node_keys
from raz.pipeline.weights import weights_file
from raz.store.cache import StageKey, canonical, file_digest

WITH_VALIDATION = "+val"


@lru_cache(maxsize=4)
def open_cached(name: str, root: Path | None) -> Dataset:
    """The data set, opened once per process. Raises RazError as `open_dataset`.

    `NAME+val` is NAME with the validation images added to the training images, for a final training. Its keys differ
    from NAME's, and its validation values say nothing about new images.
    """
    if not name.endswith(WITH_VALIDATION):
        return open_dataset(name, root)
    dataset = open_dataset(name.removesuffix(WITH_VALIDATION), root)
    items = {**dataset.items, "train": (*dataset.items["train"], *dataset.items["val"])}
    return replace(dataset, name=name, items=items)


@lru_cache(maxsize=16)
def _fingerprint(name: str, root: Path | None, split: str) -> str:
    return open_cached(name, root).fingerprint(split)  # type: ignore[arg-type]


def stage_keys(
    config: TrialConfig, *, data_root: Path | None = None, splits: tuple[str, ...] = ("val",)
) -> dict[Node, StageKey]:
    """The key of every stage of a trial, in topological order. Opens the data set, and raises as `open_dataset`."""
    return node_keys(
        config, splits, lambda split: _fingerprint(config.dataset, data_root, split), weights_identity,
        lambda node: _tiled(config, data_root, node),
    )  # fmt: skip


# ------------------------------------------------------------------ stages with large images


def _tiled(config: TrialConfig, root: Path | None, node: Node) -> bool:
    """Whether a stage has images whose last bits are those of tiles (`raz.pipeline.tiling`), and once were others.

    Validation and kept features went whole once, at any size. Maps of inferred stages have always gone by tiles, but
    not by halved ones.
    """

    def any_image(split: str, what: str, size: float = 1.0) -> bool:
        limits = tiling.TILE_PIXELS, tiling.LARGE
        return _any_image(config.dataset, root, split, config.input.times(size), what, regions, limits)

    zooming = config.zooming if config.raz.regions == "same" else config.raz.regions
    regions = zooming.anchors, zooming.factor
    stage = node.stage
    if STAGES[stage].kind != "trained":
        return STAGES[stage].kind == "inferred" and any_image(node.split, "halved", config.predict.scale)
    if stage in ("counting", "localization"):
        part = config.counting if stage == "counting" else config.localization
        kept = part.sizes if part.unfreeze == "none" else ()
        return any_image("val", "tiled") or any(any_image("train", "tiled", size) for size in kept)
    if stage == "attention":
        return any_image("train", "tiled") or any_image("val", "tiled")
    kept_too = stage == "raz_attention" or config.raz.unfreeze == "none"
    return (
        any(any_image(split, "halved") for split in ("train", "val"))
        or any_image("val", "region")
        or (kept_too and any_image("train", "region"))
    )


@lru_cache(maxsize=256)
def _any_image(
    name: str,
    root: Path | None,
    split: str,
    size: InputConfig,
    what: str,
    regions: tuple[str, int],
    limits: tuple[int, int],
) -> bool:
    """Whether any image of a split goes by tiles (`tiled`), by halved ones (`halved`), or may have a zoomed region that
    goes by tiles (`region`). regions: set of anchors, and factor. limits: those of `tiling`, for the cache alone."""

    def large(height: int, width: int) -> bool:
        if what == "halved":
            return tiling.halved(height, width)
        if what == "tiled":
            return not tiling.fits(height, width)
        sides = anchor_sizes(ANCHOR_SETS[regions[0]], height, width)
        return not all(tiling.fits(*zoomed_size((0, 0, min(w, width), min(h, height)), regions[1])) for h, w in sides)

    items = {str(key): samples for key, samples in open_cached(name, root).items.items()}[split]
    found = dict.fromkeys(item.original_size() for item in items)
    return any(large(*input_size(height, width, size.scale, size.max_side)) for height, width in found)


@lru_cache(maxsize=64)  # by path, size and time of last change, so that a changed file is digested again
def _file_identity(path: str, size: int, changed: int) -> str:
    return f"sha256:{file_digest(Path(path))}"


# Identities that the process has been given: it need not load torch, and a network, to find them.
_GIVEN: dict[BackboneConfig, str] = {}


def give_weights_identity(backbone: BackboneConfig, identity: str) -> None:
    """Let this process take what another has found as `weights_identity`."""
    _GIVEN[backbone] = identity


def weights_identity(backbone: BackboneConfig) -> str:
    """What a key holds for `backbone.weights`. VGG-16: the name, or the file's digest. A network of timm: the digest of
    the tensors that it loads. Raises RazError for a missing file, and for weights that cannot be fetched or do not fit.
    """
    if backbone in _GIVEN:
        return _GIVEN[backbone]
    if backbone.weights == "none" or (backbone.name == PAPER_BACKBONE and backbone.weights == "imagenet"):
        return backbone.weights
    if backbone.weights == "imagenet":
        return _tensors_identity(backbone, 0, 0)
    path = weights_file(backbone.weights)
    stat = path.stat()
    if backbone.name == PAPER_BACKBONE:
        return _file_identity(str(path), stat.st_size, stat.st_mtime_ns)
    return _tensors_identity(backbone, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)  # as `_file_identity`
def _tensors_identity(backbone: BackboneConfig, size: int, changed: int) -> str:
    from raz.pipeline.backbones import pretrained_identity  # imports torch

    return pretrained_identity(backbone)


_SEED_SENTINEL = 9_007_199_254_740_881  # a legal seed that occurs in no file


def score_keys(
    config: TrialConfig, seeds: Sequence[int], *, data_root: Path | None = None, splits: tuple[str, ...] = ("test",)
) -> dict[int, dict[str, str]]:
    """{seed: {split: key of the score}} of one trial under many seeds.

    The same as `stage_keys` for each seed, but 200 times as fast: only the seed and the keys that depend on it change
    in the hashed text, so the rest is formatted once. A table may have 10,000 trials.
    """
    keys = stage_keys(replace(config, seed=_SEED_SENTINEL), data_root=data_root, splits=splits)
    depends_on_seed = re.compile("|".join([f"({_SEED_SENTINEL}", *[key.key for key in keys.values()]]) + ")")
    pieces = {node: depends_on_seed.split(canonical(key.content)) for node, key in keys.items()}
    out = {}
    for seed in seeds:
        replacements = {str(_SEED_SENTINEL): str(seed)}
        for node, key in keys.items():
            text = "".join([replacements.get(piece, piece) for piece in pieces[node]])
            replacements[key.key] = hashlib.sha256(text.encode()).hexdigest()
        out[seed] = {split: replacements[keys[Node("score", split)].key] for split in splits}
    return out
