"""The scores of counted points that are matched one to one, and of each quartile of the heads by local density."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raz.paper.one_to_one import (
    QUARTILES,
    Tally,
    density_edges,
    local_density,
    one_to_one_scores,
    quartile_of,
    stack,
    tally,
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class QuartileScores:
    """Of n images: the tally, the local densities between the quartiles (3,) heads per px², and the radii px."""

    images: Tally
    edges: FloatArray
    radii: tuple[float, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """`f1@8`, `recall_q4@8` … as in `one_to_one_scores`, and `bias_points_q1` to `bias_points_q4`: the mean over
        images of points - heads of the quartile."""
        error = self.images.points - self.images.heads
        bias = {f"bias_points_q{q + 1}": float(error[:, q].mean()) for q in range(QUARTILES) if len(error)}
        return one_to_one_scores(self.images, self.radii) | bias

    @property
    def counts(self) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Suffix of `mae` and `rmse` (`_points_q1`) -> points and heads of each image in the quartile, (n,) each."""
        points, heads = self.images.points.astype(np.float64), self.images.heads.astype(np.float64)
        return {f"_points_q{q + 1}": (points[:, q], heads[:, q]) for q in range(QUARTILES)}

    @property
    def per_image(self) -> Mapping[str, NDArray[np.generic]]:
        """The arrays that a score keeps: see `raz.pipeline.scoring.Scores`."""
        return {
            "quartile_heads": self.images.heads, "quartile_points": self.images.points,
            "quartile_found": self.images.found, "quartile_correct": self.images.correct,
            "points": self.images.all_points, "quartile_edges": self.edges, "radii": np.array(self.radii),
        }  # fmt: skip


def quartile_scores(
    heads: Sequence[FloatArray], points: Sequence[FloatArray], radii: Sequence[float]
) -> QuartileScores:
    """The scores of the counted points (n, 2) of each image against its heads (m, 2), both in original px.

    The quartiles are those of all these heads.
    """
    densities = [local_density(image) for image in heads]
    edges = density_edges(densities)
    tallies = [
        tally(found, true, quartile_of(density, edges), radii)
        for found, true, density in zip(points, heads, densities, strict=True)
    ]
    return QuartileScores(stack(tallies, len(radii)), edges, tuple(radii))
