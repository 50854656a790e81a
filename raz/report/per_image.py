"""The per-image part of a score: counts, grid cells and ranked points of every image of a split.

`raz.pipeline.scoring.Scores.per_image` defines the arrays, which a score's artifact holds as `per_image.npz`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raz.errors import RazError

COUNTS = ("fused", "density", "localization", "ceiling")
CELLS = ("truth", "density", "localization")

Floats = NDArray[np.float64]
Reals = NDArray[np.floating]  # float32 as stored, float64 as computed


@dataclass(frozen=True)
class RankedPoints:
    """The ranked points of all images, image after image. Distances are in px of the original images.

    ends: (images,); the points of image i are `ends[i - 1]:ends[i]`. score, distance, best_before: (points,), see
    `raz.paper.metrics.Matches`.
    """

    ends: NDArray[np.int64]
    score: Reals
    distance: Reals
    best_before: Reals

    def order(self) -> NDArray[np.intp]:
        """(points,) indices of all points, the highest score first; equal scores keep the order of the images."""
        return np.argsort(-self.score, kind="stable")


@dataclass(frozen=True)
class OneToOne:
    """Counted points matched one to one with heads, by quartile of local density; see `raz.paper.one_to_one.Tally`.

    all_points: (images,). heads, points: (images, 4). found, correct: (images, 4, radii). radii: (radii,) px. edges:
    (3,) heads per px².
    """

    all_points: NDArray[np.int64]
    heads: NDArray[np.int64]
    points: NDArray[np.int64]
    found: NDArray[np.int64]
    correct: NDArray[np.int64]
    radii: Floats
    edges: Floats

    def at(self, radius: str) -> int | None:
        """The index of a radius, written as in `f1@8`; None for one that was not scored."""
        names = [f"{known:g}" for known in self.radii]
        return names.index(radius) if radius in names else None


@dataclass(frozen=True)
class PerImage:
    """Numbers of each image of a split, all in persons.

    ids: (images,) text. truth: (images,) heads. counts: name of `COUNTS` -> (images,). regions: (images, passes - 1)
    how many regions were zoomed. parts: (images,) text, empty where the data set's protocol has no parts, or None.
    cells: name of `CELLS` -> (images, cells²). points: None where the score has no localized points. one_to_one and
    gflop (images,): None in scores of an older version.
    """

    ids: NDArray[np.str_]
    truth: Floats
    counts: Mapping[str, Floats]
    regions: NDArray[np.int64]
    parts: NDArray[np.str_] | None = None
    cells: Mapping[str, Floats] | None = None
    points: RankedPoints | None = None
    one_to_one: OneToOne | None = None
    gflop: Floats | None = None

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> PerImage:
        """The arrays of `per_image.npz` by their stored names. Raises KeyError for a missing `ids`, `truth` or
        `regions`, and for points of which some arrays are missing."""
        points = None
        if "match_score" in arrays:
            points = RankedPoints(
                arrays["match_ends"], arrays["match_score"], arrays["match_distance"], arrays["match_before"]
            )
        one_to_one = None
        if "quartile_heads" in arrays:
            one_to_one = OneToOne(
                arrays["points"], arrays["quartile_heads"], arrays["quartile_points"], arrays["quartile_found"],
                arrays["quartile_correct"], arrays["radii"], arrays["quartile_edges"],
            )  # fmt: skip
        return cls(
            arrays["ids"], arrays["truth"], {name: arrays[name] for name in COUNTS if name in arrays},
            arrays["regions"], arrays.get("parts"),
            {name: arrays[f"cells_{name}"] for name in CELLS if f"cells_{name}" in arrays}, points, one_to_one,
            arrays.get("gflop"),
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> PerImage:
        """Read `per_image.npz`. Raises RazError where the file is missing, damaged or incomplete."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls.from_arrays({name: arrays[name] for name in arrays.files})
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise RazError(str(path), f"cannot be read: {error}", "delete its folder and run the table again") from None

    def cell_counts(self, name: str) -> Floats:
        """(images · cells²,) the counts of all grid cells, of `truth` or of a branch. Raises KeyError where the score
        has none."""
        return (self.cells or {})[name].ravel()
