"""Images through a model, one after the other, and the files that come of it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raz.data.images import decode
from raz.errors import RazError
from raz.predict.image_files import unique_names
from raz.utils.atomic import atomic_write

if TYPE_CHECKING:
    from raz.pipeline.model import Model, Prediction


@dataclass(frozen=True)
class PredictedImage:
    """One image: what was predicted, or why it could not be."""

    name: str
    path: Path
    prediction: Prediction | None
    error: RazError | None = None
    picture: Path | None = None

    def as_json(self) -> dict[str, Any]:
        about: dict[str, Any] = {"image": self.name, "path": str(self.path)}
        if self.prediction is None:
            return {**about, "error": str(self.error)}
        return about | self.prediction.as_json()


def predict_images(
    model: Model, paths: Sequence[Path], depth: int | None, out: Path | None
) -> Iterator[PredictedImage]:
    """Each image as it is done. A file that is no image is told in its turn and stops nothing.

    With `out`, each gets a picture there.
    """
    taken: set[str] = set()
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

            plain = re.sub(r"[^\w.-]+", "_", name)
            stem = plain
            while f"{stem}.png" in taken:
                stem += "_"
            taken.add(f"{stem}.png")
            picture = out / f"{stem}.png"
            _write(picture, partial(draw(compute(name, prediction), pixels).save, format="PNG", compress_level=1))
        yield PredictedImage(name, path, prediction, None, picture)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RazError(str(path), f"cannot be read ({error.strerror or error})", "check its permissions") from error


def to_json(model: Model, seen: Sequence[PredictedImage]) -> dict[str, Any]:
    """What `--json` prints: the model's origin, and every image. `raz-sweep score --pred` reads it."""
    done = [s for s in seen if s.prediction is not None]
    return {
        "model": {"about": dict(model.about), "rule": model.config.fusion.rule, "fitted": model.fitted.as_json()},
        "images": [s.as_json() for s in done],
        "failed": [s.as_json() for s in seen if s.prediction is None],
    }


def write_files(out: Path, given: dict[str, Any]) -> None:
    """`predictions.json`, and `points.csv` with a row for every point and one for every image without."""

    def points(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(["image", "x", "y", "score"])
            for image in given["images"]:
                rows.writerows([image["image"], *point] for point in image["points"] or [("", "", "")])

    _write(out / "points.csv", points)
    _write(out / "predictions.json", lambda path: path.write_text(json.dumps(given, indent=1), encoding="utf-8"))


def _write(path: Path, write: Any) -> None:
    """Aside and renamed, so that nothing is left half written."""
    try:
        with atomic_write(path) as aside:
            write(aside)
    except OSError as error:
        raise RazError(str(path), f"cannot be written ({error.strerror or error})", "choose another --out") from error
