"""Rendering a table of 10,000 finished trials: through the index of scores, and by opening every artifact.

    python benchmarks/bench_report.py [--check] [--trials 10000]

A made-up store is written first (no training): the thirteen rows of `recurrence` under as many seeds as needed. Then
the table is filled and rendered with the index and without it, alternating; start-up of Python is not in either.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from raz.pipeline.graph import STAGES
from raz.pipeline.keys import score_keys
from raz.report.fill import FilledTable, fill_table
from raz.report.html import page
from raz.report.render import terminal
from raz.report.tables import table_report
from raz.spec.ablation import AblationTable
from raz.spec.ablation_yaml import load_table
from raz.store.cache import digest, file_digest
from raz.store.paths import MANIFEST
from raz.utils.shipped import shipped

LIMIT = 3.0  # seconds of CPU: one thread, and the same beside other work


def table_of(seeds: int) -> AblationTable:
    return replace(load_table(shipped("ablations")["recurrence"]), seeds=tuple(range(seeds)))


def write_store(store: Path, table: AblationTable, images: int = 40) -> int:
    """Scores as a run would leave them, with made-up numbers: deeper is a little better, seeds differ by more."""
    profile, written = table.profile("toy"), 0
    for r, row in enumerate(table.run_rows):
        config = table.config(profile, row, "toy", 0)
        for seed, keys in score_keys(config, table.seeds, splits=("test",)).items():
            rng = np.random.default_rng(1000 * seed + r)
            truth = np.random.default_rng(7).integers(5, 200, images).astype(float)
            shared = np.random.default_rng(seed).normal(0, 8, images)
            counts = {n: truth + shared + rng.normal(-r, 3, images) for n in ("fused", "density", "localization")}
            error = counts["fused"] - truth
            metrics = {"mae": abs(error).mean(), "rmse": float(np.sqrt((error**2).mean())), "images": images}
            metrics |= {"heads": truth.sum(), "regions_per_image": config.depth - 1.0, "images_zoomed": 0.5}
            metrics |= {"mae_ceiling": 1.0, "rmse_ceiling": 2.0}
            folder = store / "stages" / "score" / keys["test"]
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps({n: float(v) for n, v in metrics.items()}))
            cells = rng.poisson(truth[:, None] / 16, (images, 16)).astype(float)
            if seed < 3:
                np.savez(
                    folder / "per_image.npz", ids=np.array([f"test/{i:03d}" for i in range(images)]), truth=truth,
                    regions=np.ones((images, config.depth - 1)), cells_truth=cells,
                    cells_density=cells + rng.normal(0, 1),
                    cells_localization=cells * 0.9, match_ends=np.arange(1, images + 1) * 20,
                    match_score=rng.uniform(0.2, 1, 20 * images).astype(np.float32),
                    match_distance=rng.exponential(6, 20 * images).astype(np.float32),
                    match_before=np.full(20 * images, np.inf, np.float32), allow_pickle=False, **counts,
                )  # fmt: skip
            files = {p.name: file_digest(p) for p in sorted(folder.iterdir())}
            about = {
                "device": "cpu", "versions": {"commit": "0" * 40, "torch": "2"}, "seconds": 1.0, "config": {},
                "files": files,
                "key": {"stage": "score", "version": STAGES["score"].version, "data": {"test": digest(0)}},
            }  # fmt: skip
            (folder / MANIFEST).write_text(json.dumps(about))
            written += 1
    return written


def rendered(store: Path, table: AblationTable) -> tuple[FilledTable, str]:
    filled = fill_table(table, table.profile("toy"), store)
    return filled, terminal(table_report(filled))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--check", action="store_true", help="exit 1 when the indexed side takes more than 3 s of CPU")
    parser.add_argument("--store", type=Path, help="keep the made-up store here")
    options = parser.parse_args()
    table = table_of(-(-options.trials // 13))
    store = options.store or Path(tempfile.mkdtemp(prefix="bench-report-"))
    try:
        print(f"{write_store(store, table)} trials in a made-up store")
        times: dict[str, list[float]] = {"with the index": [], "without": []}
        texts = set()
        for side in ("without", "with the index") * 2:
            if side == "without":
                shutil.rmtree(store / "reports", ignore_errors=True)
            began = time.process_time()
            filled, text = rendered(store, table)
            times[side].append(time.process_time() - began)
            texts.add(text)
            assert filled.missing == 0
        assert len(texts) == 1, "both sides print the same"
        began = time.process_time()
        size = len(page(table_report(filled)).encode())
        for side, seconds in times.items():
            print(f"{side:>15}: {min(seconds):.2f} s of CPU")
        print(f"ratio {min(times['without']) / min(times['with the index']):.1f}")
        print(f"page of it: {size / 1e6:.1f} MB in {time.process_time() - began:.2f} s of CPU")
    finally:
        if options.store is None:
            shutil.rmtree(store, ignore_errors=True)
    return int(options.check and min(times["with the index"]) > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
