"""Scoring a theta_f from prepared counts, and fitting it exactly, against loops and re-evaluations."""

from __future__ import annotations

import sys

import numpy as np
from _alt import Bench
from numpy.typing import NDArray

from raz.paper.fusion import RULES, FusionInputs, fit_theta, grid_density

Floats = NDArray[np.float64]
Rows = Floats | list[list[float]]
Row = Floats | list[float]
IMAGES, CELLS = 1500, 16
TRIED = 200  # thresholds of the sample of re-evaluations


def counts() -> tuple[Floats, Floats, Floats]:
    """Density overshoots in sparse cells, localization falls short in dense ones: what Eq. 4 is for."""
    rng = np.random.default_rng(0)
    truth = rng.poisson(rng.gamma(1.0, 25.0, (IMAGES, 1)) * rng.gamma(2.0, 0.5, (IMAGES, CELLS))).astype(np.float64)
    den = truth * rng.normal(1.0, 0.12, truth.shape) + rng.gamma(2.0, 1.0, truth.shape)
    loc = np.floor(truth / (1 + truth / 150) * rng.normal(1.0, 0.05, truth.shape).clip(0.5))
    return den, loc, truth


def loop(den: Rows, loc: Rows, true: Row, theta: Row) -> float:
    """Eq. 4 as it is printed."""
    total = 0.0
    for density, points, count in zip(den, loc, true, strict=True):
        fused = 0.0
        for d, p, t in zip(density, points, theta, strict=True):
            mean = (d + p) / 2
            fused += d if mean >= t else mean
        total += abs(fused - count)
    return total / len(den)


def slices(density: Floats, height: int, width: int) -> Floats:
    """Cells by whole bins, as if they aligned: what the fractional grid must not cost much more than."""
    rows = np.minimum(np.arange(density.shape[0]) * 8 * 4 // height, 3)
    columns = np.minimum(np.arange(density.shape[1]) * 8 * 4 // width, 3)
    out = np.zeros((4, 4))
    for row in range(4):
        for column in range(4):
            out[row, column] = density[rows == row][:, columns == column].sum()
    return out.ravel()


def main() -> int:
    bench = Bench("fusion: Eq. 4 and its thresholds")
    den, loc, truth = counts()
    true = truth.sum(axis=1)
    inputs = FusionInputs.of(den, loc, truth)
    theta = np.random.default_rng(1).uniform(5, 80, CELLS)
    lists = den.tolist(), loc.tolist(), true.tolist(), theta.tolist()
    bench.exact("one theta against the loop, relative", abs(inputs.mae(theta) / loop(*lists) - 1), 1e-12)

    def evaluate(t: float) -> float:
        fused = RULES["grid"](den, loc, np.full(CELLS, t))
        return float(np.abs(fused.sum(axis=1) - true).mean())

    # Every threshold that can matter, among 120 images.
    few = slice(0, 120)
    means = np.unique((den[few] + loc[few]) / 2)
    least = min(FusionInputs.of(den[few], loc[few], truth[few]).mae(t) for t in means)
    fitted = fit_theta(den[few], loc[few], truth[few], "shared")
    error = FusionInputs.of(den[few], loc[few], truth[few]).mae(fitted) / least - 1
    bench.exact(f"shared theta against all {len(means)}, relative", abs(error), 1e-12)
    tried = np.quantile((den + loc) / 2, np.linspace(0, 1, TRIED))
    losses = {kind: inputs.mae(fit_theta(den, loc, truth, kind)) for kind in ("cell", "shared", "image")}
    bench.exact("shared is no worse than a grid search", losses["shared"] - min(map(evaluate, tried)), 1e-9)
    bench.exact("image is no worse than shared or cell", losses["image"] - min(losses.values()), 0.0)
    print("  mean absolute error: " + ", ".join(f"{kind} {loss:.2f}" for kind, loss in losses.items()))

    work = f"{IMAGES * CELLS * 16 / 1e3:.0f} kB read"
    bench.compare(
        "one trial, loop",
        lambda: inputs.mae(theta),
        lambda: loop(den, loc, true, theta),
        against="loop over the arrays",
        target=100,
        work=work,
    )
    bench.compare(
        "one trial, lists", lambda: inputs.mae(theta), lambda: loop(*lists), against="loop over lists of floats"
    )
    bench.compare(
        "one trial, numpy",
        lambda: inputs.mae(theta),
        lambda: np.abs(RULES["grid"](den, loc, theta).sum(axis=1) - true).mean(),
        against="Eq. 4 with np.where",
    )
    for row in bench.results[:1]:
        print(f"  {1e3 / row['cpu_ms']:,.0f} trials a second on one core, target 5,000")
    for kind, target in (("cell", None), ("shared", 150), ("image", None)):
        bench.compare(
            f"fit {kind}",
            lambda kind=kind: fit_theta(den, loc, truth, kind),  # type: ignore[misc]
            lambda: [evaluate(t) for t in tried],
            against=f"{IMAGES * CELLS} re-evaluations",
            target=target,
            scale=IMAGES * CELLS / TRIED,
            reps=5,
        )
    height, width = 589, 868
    density = np.random.default_rng(2).random((-(-height // 8), -(-width // 8)))
    bench.exact("grid keeps the sum", abs(grid_density(density, height, width, 8, 4).sum() / density.sum() - 1), 1e-12)
    bench.compare(
        "grid of a density map",
        lambda: grid_density(density, height, width, 8, 4),
        lambda: slices(density, height, width),
        against="sums of whole bins, cell by cell",
        work=f"{density.nbytes / 1e3:.0f} kB read",
    )
    return bench.done()


if __name__ == "__main__":
    sys.exit(main())
