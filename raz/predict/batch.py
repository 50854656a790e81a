"""Predict images one after the other, and write the results to files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raz.data.images import decode
from raz.errors import RazError
from raz.predict.image_files import unique_names
from raz.utils.atomic import atomic_write
from raz.utils.json_types import JsonObject

if TYPE_CHECKING:
    from raz.pipeline.model import Model, Prediction


@dataclass(frozen=True)
class PredictedImage:
    """One image with its prediction, or with the error if it could not be read."""

    name: str  # unique among the images
    path: Path
    prediction: Prediction | None
    error: RazError | None = None
    picture: Path | None = None  # the file of its picture, if one was drawn

    def as_json(self) -> JsonObject:
        """The image's entry in the document of `--json`."""
        entry: JsonObject = {"image": self.name, "path": str(self.path)}
        if self.prediction is None:
            return {**entry, "error": str(self.error)}
        return {**entry, **self.prediction.as_json()}


def predict_images(
    model: Model, paths: Sequence[Path], depth: int | None, out: Path | None
) -> Iterator[PredictedImage]:
    """Predict each image, in order. An image that cannot be read is yielded with its error.

    `depth`: number of passes, default: the model's. With a folder `out`, pictures of the predictions are written there.
    """
    used: set[str] = set()
    for name, path in zip(unique_names(paths), paths, strict=True):
        try:
            pixels = decode(_read(path), str(path))
        except RazError as error:
            yield PredictedImage(name, path, None, error)
            continue
        prediction = model.predict(pixels, depth=depth)
        picture = None
        if out is not None:
            from raz.predict.overlay import compute, draw

            stem = re.sub(r"[^\w.-]+", "_", name)
            while f"{stem}.png" in used:
                stem += "_"
            used.add(f"{stem}.png")
            picture = out / f"{stem}.png"
            _write(picture, partial(draw(compute(name, prediction), pixels).save, format="PNG", compress_level=1))
        yield PredictedImage(name, path, prediction, None, picture)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RazError(str(path), f"cannot be read ({error.strerror or error})", "check its permissions") from error


def to_json(model: Model, images: Sequence[PredictedImage], depth: int | None) -> JsonObject:
    """The document of `--json`, which `raz-sweep score --pred` reads: the model's provenance, and every image."""
    return {
        "model": {
            "about": dict(model.about), "rule": model.config.fusion.rule, "fitted": model.fitted.as_json(),
            "intervals": model.about_intervals(depth),
        },
        "images": [image.as_json() for image in images if image.prediction is not None],
        "failed": [image.as_json() for image in images if image.prediction is None],
    }  # fmt: skip


def write_files(out: Path, model: Model, images: Sequence[PredictedImage], depth: int | None) -> None:
    """Write predictions.json; counts.csv with a row per image, `low` and `high` being the interval's ends, empty where
    there is none; and points.csv with a row per point, or an empty one for an image without points."""

    def write_counts(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["image", "count", "low", "high", "density", "localization"])
            for image in images:
                if image.prediction is not None:
                    p = image.prediction
                    table.writerow([image.name, p.count, *(p.interval or ("", "")), p.density, p.localization])

    def write_points(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["image", "x", "y", "score"])
            for image in images:
                if image.prediction is not None:
                    points = np.column_stack([image.prediction.points, image.prediction.scores]).tolist()
                    table.writerows([image.name, *point] for point in points or [("", "", "")])

    document = json.dumps(to_json(model, images, depth), indent=1)
    _write(out / "counts.csv", write_counts)
    _write(out / "points.csv", write_points)
    _write(out / "predictions.json", lambda path: path.write_text(document, encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path, and rename it to `path`. Raises RazError if that fails."""
    try:
        with atomic_write(path) as temporary:
            write(temporary)
    except OSError as error:
        raise RazError(str(path), f"cannot be written ({error.strerror or error})", "choose another --out") from error
