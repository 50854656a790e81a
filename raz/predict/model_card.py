"""The model card of a trained model: what it is, of which data, how good it was found to be, and what it cannot do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raz._version import __version__
from raz.config import PRESETS, TrialConfig, parameters
from raz.data import reader_of
from raz.errors import RazError
from raz.pipeline.keys import WITH_VALIDATION
from raz.store.cache import Artifact, StageCache
from raz.store.manifest import Manifest, read_manifest
from raz.store.paths import METRICS, PER_IMAGE
from raz.utils.atomic import atomic_write
from raz.utils.formatting import number
from raz.utils.json_types import Json, JsonObject, object_or_empty, parse_object
from raz.utils.markdown import escape, one_line, table

if TYPE_CHECKING:
    from raz.pipeline.model import Model

# Metrics on the card, by patterns of their names, in order.
_SHOWN = tuple(map(re.compile, ("images", "heads", "mae.*", "rmse.*", "bias", "f1@.*", "map@.*", "mar@.*")))
_OWN_WORDS = ("imagenet", "none")  # of backbone.weights, beside paths


def card_path(model: Path) -> Path:
    """Where the card of a model's file is written: `model.safetensors` -> `model.card.md`."""
    return model.with_suffix(".card.md")


# ------------------------------------------------------------------ what the store knows


def with_measurements(model: Model, store: Path) -> Model:
    """The model with all that a card says and only a store knows, in `about["measured"]`.

    `splits`: of each scored split its metrics, its true counts (least, median, most), the error of always guessing the
    median count of the validation images, and how many true counts of test images lie in their interval. Of a model of
    `--final` these are the scores of its search. `data`: the fingerprints of the images; `epochs`: of each stage, that
    whose weights it holds. Raises RazError where the store lacks the model's score.
    """
    key = str(object_or_empty(model.about.get("search") or model.about.get("stages")).get("score", ""))
    cache = StageCache(store)
    scores = _scores_of(cache, key)
    if not scores:
        raise RazError(f"store {store}", f"score {key[:12]} is not there, or damaged", "run the study again")
    images = {split: _per_image(artifact) for split, artifact in scores.items()}
    guess = float(np.median(images["val"]["truth"])) if "val" in images else None
    splits: dict[str, Json] = {}
    for split, artifact in scores.items():
        metrics = parse_object((artifact.folder / METRICS).read_text("utf-8"))
        truth, fused = images[split]["truth"], images[split]["fused"]
        found: JsonObject = {
            "score": artifact.folder.name,
            "metrics": {name: value for name, value in metrics.items() if _place(name) is not None},
            "truth": [float(truth.min()), float(np.median(truth)), float(truth.max())],
        }
        if guess is not None:
            found["mae_of_median"] = float(np.abs(truth - guess).mean())
        if split == "test":
            ends = [model.interval(float(count), model.config.depth) for count in fused]
            inside = [end[0] <= true <= end[1] for end, true in zip(ends, truth, strict=True) if end is not None]
            found |= {"covered": sum(map(int, inside))} if inside else {}
        splits[split] = found
    data: dict[str, Json] = {}
    epochs: dict[str, Json] = {}
    for stage, trained in model.trained.items():
        made = cache.get(stage, trained.key)
        if made is not None:
            data |= made.manifest.data
            epochs[stage] = made.manifest.best_epoch
    data |= {"test": scores["test"].manifest.data["test"]} if "test" in scores else {}
    measured: JsonObject = {"splits": splits, "data": data, "epochs": epochs}
    return replace(model, about={**model.about, "measured": measured})


def _scores_of(cache: StageCache, key: str) -> dict[str, Artifact]:
    """Split -> score of the same networks, fitted values and settings as those of the score with this key."""
    own = cache.get("score", key) if key else None
    if own is None:
        return {}
    out: dict[str, Artifact] = {}
    for folder in sorted((cache.paths.stages / "score").iterdir()):
        try:
            other = read_manifest(folder)
        except (OSError, ValueError):  # damaged: a score that a card cannot tell of
            continue
        split = other.stage.partition("@")[2]
        if split in ("val", "test") and _serves_as(other, own.manifest):
            artifact = cache.get("score", folder.name)
            out |= {split: artifact} if artifact is not None else {}
    return {split: out[split] for split in ("val", "test") if split in out}


def _serves_as(other: Manifest, own: Manifest) -> bool:
    def on_validation(manifest: Manifest) -> dict[str, str]:
        return {node: key for node, key in manifest.needs.items() if node.endswith("@val")}

    same = all(other.key.get(name) == own.key.get(name) for name in ("inputs", "version"))
    return same and on_validation(other) == on_validation(own)


def _per_image(artifact: Artifact) -> dict[str, NDArray[np.float64]]:
    with np.load(artifact.folder / PER_IMAGE, allow_pickle=False) as arrays:
        return {name: np.asarray(arrays[name], dtype=np.float64) for name in ("truth", "fused")}


# ------------------------------------------------------------------ the card


def write_with_card(model: Model, out: Path) -> Path:
    """Write the model's file with its card inside, and the card beside it; the card's path.

    Raises RazError where one of them cannot be written.
    """
    from raz.pipeline.model import save_model

    carded = replace(model, card=model_card(model, out.name))
    save_model(carded, out)
    path = card_path(out)
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(carded.card, encoding="utf-8")
    except OSError as error:
        raise RazError(str(path), f"cannot be written ({error.strerror or error})", "choose another --out") from error
    return path


def model_card(model: Model, file: str = "model.safetensors") -> str:
    """The card in Markdown. What `with_measurements` would add is said to be missing where it is."""
    name = _name(model)
    parts = [
        f"# Model card: {escape(name)}", "",
        f"It counts heads in images and says where they are: RAZ-Net (Liu, Weng and Mu, CVPR 2019), as raz-sweep "
        f"{escape(_made(model).get('raz-sweep', __version__))} trains it. {escape(file)} holds all that it needs:", "",
        f"    raz-sweep predict IMAGE --weights {shlex.quote(one_line(file))}", "",
        *_what_it_is(model), *_data(model), *_training(model), *_measured(model), *_interval(model), *_limits(model),
        *_provenance(model),
    ]  # fmt: skip
    return "\n".join(parts).rstrip() + "\n"


# What the localization stream counts, by `peaks.count`.
_POINTS = {"threshold": "the points above a threshold", "expected": "the heads that the response map expects"}


def _fitted(config: TrialConfig) -> str:
    """Which values were fitted to images, and to which."""
    of_val: list[str] = []
    of_train: list[str] = []
    if config.peaks.count == "threshold" and config.peaks.threshold == "fitted":
        of_val.append("thresholds")
    if config.fusion.rule == "grid" and isinstance(config.fusion.theta_f, str):
        (of_val if config.fusion.fit_on == "val" else of_train).append("theta_f")
    parts = [(of_val, "validation"), (of_train, "training")]
    return "; ".join(f"{' and '.join(names)} on {images} images" for names, images in parts if names) or "nothing"


def _name(model: Model) -> str:
    about = model.about
    if "study" in about:
        name = f"trial {about.get('trial')} of study {about['study']}"
    else:
        score = object_or_empty(about.get("stages")).get("score", "")
        name = f"score {str(score)[:12]}" if score else "a trained model"
    return f"{name}, trained again on training and validation images" if about.get("final") else name


def _what_it_is(model: Model) -> list[str]:
    config = model.config
    weights = sum(value.numel() for trained in model.trained.values() for value in trained.weights.values())
    pretrained = {"imagenet": "pretrained on ImageNet (its weights have terms of their own)", "none": "from scratch"}
    told = object_or_empty(model.about.get("made")).get("weights") or Path(config.backbone.weights).name
    backbone = pretrained.get(config.backbone.weights, f"from the file {told}")
    size = config.input.times(config.predict.scale)
    longest = f", at most {size.max_side} px a side" if size.max_side else ""
    rows = [
        ("networks", ", ".join(model.trained)), ("trained weights", f"{weights:,}"),
        ("backbone", f"{config.backbone.name}, {backbone}"),
        ("passes", f"{config.depth}" + (" (no zooming)" if config.depth == 1 else "")),
        ("count", f"fusion rule {config.fusion.rule}, of the density map and {_POINTS[config.peaks.count]}"),
        ("input", f"RGB images of any size, at scale {size.scale:g}{longest}"),
    ]  # fmt: skip
    return ["## What it is", "", *table(("", ""), rows), ""]


def _data(model: Model) -> list[str]:
    name = model.config.dataset.removesuffix(WITH_VALIDATION)
    try:
        reader = reader_of(name)
        title = reader.title
        terms = reader.source or ("generated, no terms" if reader.find is None else "not known")
    except RazError:  # a folder of one's own, which is not at hand
        title, terms = name, "a folder of one's own: whoever made it knows its terms"
    final = bool(model.about.get("final"))
    images = model.about.get("images")
    trained = "training and validation images" if final else "training images"
    rows = [
        ("data set", f"{title} ({name})"), ("source and terms", terms),
        ("trained on", f"{trained}{f' ({images})' if isinstance(images, int) else ''}"),
        ("fitted beside weights", _fitted(model.config) + (", in the search" if final else "")),
    ]  # fmt: skip
    data = object_or_empty(object_or_empty(model.about.get("measured")).get("data"))
    rows += [(f"fingerprint of {split}", str(fingerprint)[:16]) for split, fingerprint in data.items()]
    note = "Terms of a data set may bind what was trained on it."
    return ["## Data", "", *table(("", ""), rows), "", note, ""]


def _training(model: Model) -> list[str]:
    config = parameters(model.config)
    preset, differences = _nearest_preset(config)
    epochs = object_or_empty(model.about.get("epochs") or object_or_empty(model.about.get("measured")).get("epochs"))
    stages = [(stage, trained.key[:16], number(epochs.get(stage))) for stage, trained in model.trained.items()]
    threads = f"{model.config.threads} thread" + ("s" if model.config.threads > 1 else "")
    lines = [
        "## Training", "",
        f"Seed {model.config.seed} (one seed: others give other numbers), {threads} a stage. "
        f"Preset `{preset}`" + (", but:" if differences else "."), "",
    ]  # fmt: skip
    if differences:
        lines += [*table(("parameter", "preset", "here"), differences), ""]
    return [*lines, *table(("stage", "key", "epochs"), stages, right=(2,)), ""]


def _nearest_preset(config: Mapping[str, Json]) -> tuple[str, list[tuple[str, str, str]]]:
    """The preset with the fewest differences, and these: parameter, value of the preset, value here."""
    apart = ("dataset", "seed", "threads")  # said elsewhere on the card
    best: tuple[str, list[tuple[str, str, str]]] | None = None
    for name, preset in PRESETS.items():
        base = parameters(preset)
        found = [
            (key, _value(key, base.get(key)), _value(key, config.get(key)))
            for key in sorted({*base, *config}) if key not in apart and base.get(key) != config.get(key)
        ]  # fmt: skip
        if best is None or len(found) < len(best[1]):
            best = name, found
    assert best is not None
    return best


def _value(name: str, value: Json) -> str:
    if name == "backbone.weights" and isinstance(value, str) and value not in _OWN_WORDS:
        return Path(value).name  # folders of one machine are nobody else's business
    return number(value)


def _measured(model: Model) -> list[str]:
    splits = object_or_empty(object_or_empty(model.about.get("measured")).get("splits"))
    lines = ["## Measured", ""]
    if not splits:
        return [*lines, "Not known to this file: it was written without its store.", ""]
    if model.about.get("final"):
        lines += [
            "These are the numbers of the search's model, which did not see the validation images. This one has no "
            "validation numbers of its own: it was trained on them.", "",
        ]  # fmt: skip
    chosen = "the epochs" + (" and the trial" if "study" in model.about else "")
    test = "Nothing was chosen on test images." if "test" in splits else "Test images were not scored."
    lines += [f"Validation images also chose {chosen}, so their numbers are a little too good. {test}", ""]
    of = {split: object_or_empty(found) for split, found in splits.items()}
    metrics = {split: object_or_empty(found.get("metrics")) for split, found in of.items()}
    names = sorted({name for each in metrics.values() for name in each}, key=lambda name: (_place(name) or 0, name))
    rows = [(name, *(number(metrics[split].get(name)) for split in of)) for name in names]
    rows.append(("MAE of guessing the median of val", *(number(found.get("mae_of_median")) for found in of.values())))
    return [*lines, *table(("metric", *of), rows, right=range(1, len(of) + 1)), ""]


def _place(metric: str) -> int | None:
    """The place of a metric on the card; None for one that it leaves out."""
    return next((i for i, pattern in enumerate(_SHOWN) if pattern.fullmatch(metric)), None)


def _interval(model: Model) -> list[str]:
    test = object_or_empty(object_or_empty(object_or_empty(model.about.get("measured")).get("splits")).get("test"))
    line = model.about_intervals()
    lines = ["## Intervals of counts", "", escape(line[0].upper() + line[1:]) + "."]
    if "covered" in test:
        images = number(object_or_empty(test.get("metrics")).get("images"))
        of = " of the search's model" if model.about.get("final") else ""
        lines.append(f"Of {images} test images {test['covered']} had their true count in the interval{of}.")
    return [*lines, ""]


def _limits(model: Model) -> list[str]:
    splits = object_or_empty(object_or_empty(model.about.get("measured")).get("splits"))
    truth = object_or_empty(splits.get("val")).get("truth")
    counts = "Counts were measured on its validation images only"
    if isinstance(truth, list) and len(truth) == 3:
        least, median, most = map(number, truth)
        counts = (
            f"Validation images held {least} to {most} heads, half of them at most {median}: beyond, nothing is known"
        )
    ceiling = object_or_empty(object_or_empty(splits.get("val")).get("metrics")).get("mae_ceiling")
    cost = f", which alone costs {number(ceiling)} heads an image" if isinstance(ceiling, float) else ""
    items = [
        "It was trained and measured on one data set. Other cameras, heights, crowds and light were not tried; errors "
        "there may be many times as large, and intervals do not hold.",
        f"{counts}.",
        "Heads much smaller or larger than those of the data set are missed. Heads nearer than 4 px of the input "
        f"become one point{cost}.",
        "It finds what the labels call a head. People whose heads are hidden are not counted, and an image without "
        "anybody may get a count above 0.",
        "It says how many and where, never who: nobody is told apart, recognised or followed from image to image.",
        "Where safety hangs on a count, measure it first on labelled images of your own (`raz-sweep score`).",
    ]
    return ["## Limits", "", *(f"- {item}" for item in items), ""]


def _provenance(model: Model) -> list[str]:
    about, made = model.about, object_or_empty(model.about.get("made"))
    rows = [(name, str(version)) for name, version in sorted(_made(model).items())]
    rows += [("device", str(made["device"]))] if made.get("device") else []
    scores = object_or_empty(object_or_empty(about.get("measured")).get("splits"))
    rows += [(f"score of {split}", str(object_or_empty(found).get("score"))) for split, found in scores.items()]
    rows += [(name, number(about[name])) for name in ("study", "trial", "value") if about.get(name) is not None]
    rows += [(name, number(value)) for name, value in object_or_empty(about.get("values")).items()]
    return ["## Provenance", "", *table(("", ""), rows), ""] if rows else []


def _made(model: Model) -> dict[str, str]:
    versions = object_or_empty(object_or_empty(model.about.get("made")).get("versions"))
    return {name: str(version) for name, version in versions.items()}
