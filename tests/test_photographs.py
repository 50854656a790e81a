"""Figures 1 and 5 of artifacts that are written by hand, so that their truth is known; a table's learning curves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raz.config import PRESETS, TrialConfig, configure, parameters
from raz.data import open_dataset
from raz.errors import RazError
from raz.pipeline.graph import Node
from raz.pipeline.keys import stage_keys
from raz.report.figures.image_results import RADIUS, ImageResult, load_image_results, select_images
from raz.report.figures.photographs import SCALE, downsample, figure_1, figure_5
from raz.store.cache import StageCache, write_json
from raz.store.manifest import Manifest
from tests.test_report import record, report_output

CONFIG = replace(
    configure(PRESETS["tiny"], {"dataset": "shanghaitech_a", "depth": 2, "fusion.rule": "localization"}), seed=0
)
REGION = (10.0, 12.0, 50.0, 44.0)


@pytest.fixture(scope="module")
def store(crowd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per image: a point on each head but the first, the last of them of pass 2; two too many, one of them unsure
    enough not to count; one region; a density of a hundredth a cell."""
    store_path = tmp_path_factory.mktemp("store")
    publish(store_path, crowd, CONFIG)
    return store_path


def publish(store_path: Path, crowd: Path, config: TrialConfig, split: str = "test") -> None:
    cache, items = StageCache(store_path), open_dataset("shanghaitech_a", crowd).items[split]  # type: ignore[index]
    keys = stage_keys(config, data_root=crowd, splits=(split,))
    about = Manifest(seconds=1.0, config=parameters(config), device="cpu", best_epoch=2)
    xy, score, depth, ends = [], [], [], []
    density, truth = {}, []
    for i, item in enumerate(items):
        heads = item.load_heads()
        height, width = item.load_pixels().shape[:2]
        far = np.array([[width - 0.5, height - 0.5], [width - 2.5, height - 0.5]])
        xy.append(np.concatenate([heads[1:], far]))
        score.append(np.array([0.9] * (len(heads) - 1) + [0.8, 0.2], np.float32))
        depth.append(np.array([1] * (len(heads) - 2) + [2] + [1, 1], np.int8))
        ends.append(len(heads) + 1)
        density[f"d{i}"] = np.full((-(-height // 8), -(-width // 8)), 0.01, np.float32)
        truth.append(len(heads))
    packed = {
        "xy": np.concatenate(xy), "score": np.concatenate(score), "depth": np.concatenate(depth),
        "network": np.zeros(sum(ends), np.int8), "ends": np.cumsum(ends),
    }  # fmt: skip
    regions = {"regions": np.array([REGION] * len(items)), "region_ends": np.arange(1, len(items) + 1)}
    for node, arrays in (
        (Node("density", split), density), (Node("points", split), packed), (Node("zoom", split, 2), packed | regions),
    ):  # fmt: skip
        cache.publish(keys[node], lambda f, a=arrays: np.savez(f / "arrays.npz", **a), about)  # type: ignore[misc]
    curve = [{"epoch": e, "loss": 1.0 / e, "value": 9.0 + abs(e - 2), "rate": 0.1, "seconds": 1.0} for e in (1, 2, 3)]
    cache.publish(keys[Node("counting")], lambda f: write_json(f / "curve.json", curve), about)

    def write(folder: Path) -> None:
        counts = np.array(truth, float)
        write_json(folder / "metrics.json", {"mae": 1.0, "rmse": 1.0})
        write_json(folder / "fitted.json", {"main": 0.5, "raz": 0.5, "theta_f": [0.0]})
        np.savez(
            folder / "per_image.npz", ids=np.array([item.id for item in items]), truth=counts,
            fused=counts + np.arange(len(items)), density=counts, localization=counts, regions=np.ones((len(items), 1)),
            **{f"cells_{name}": np.ones((len(items), 16)) for name in ("truth", "density", "localization")},
            match_ends=np.zeros(len(items), int),
            **{f"match_{name}": np.zeros(0) for name in ("score", "distance", "before")},
        )  # fmt: skip

    cache.publish(keys[Node("score", split)], write, about)


def results_of(store: Path, crowd: Path, *names: str) -> tuple[ImageResult, ...]:
    return load_image_results(CONFIG, store, names, data_root=crowd)


def test_an_image_result_holds_what_the_artifacts_say(store: Path, crowd: Path) -> None:
    (one,) = results_of(store, crowd, "0")
    item = open_dataset("shanghaitech_a", crowd).items["test"][0]
    heads = item.load_heads()
    assert one.id == item.id
    assert np.array_equal(one.heads, heads)
    assert len(one.points) == len(heads)  # one missed, one wrong, and the unsure one does not count
    assert one.head_found.sum() == one.correct.sum()
    assert {tuple(p) for p in one.points.tolist()} >= {tuple(h) for h in heads[1:].tolist()}
    # against the definition: each point and its distance to every head
    for point, right in zip(one.points, one.correct, strict=True):
        near = np.hypot(*(heads - point).T).min() < RADIUS
        assert near or not right
    assert (one.passes == 2).sum() == 1
    assert one.regions[0].tolist() == [list(REGION)]
    assert one.truth.sum() == pytest.approx(len(heads), rel=1e-4)
    assert one.truth.shape == one.density.shape


def test_heads_at_one_place_are_matched_one_by_one() -> None:
    from raz.report.figures.image_results import _matched_heads

    heads = np.array([[10.0, 10.0], [10.0, 10.0], [90.0, 10.0]])
    assert _matched_heads(np.array([[11.0, 10.0], [10.0, 11.0]]), heads).tolist() == [True, True, False]
    assert _matched_heads(np.zeros((0, 2)), heads).sum() == 0


def test_images_are_selected_by_name_index_or_word() -> None:
    ids = ["test/IMG_1", "test/IMG_2", "test/IMG_3"]
    truth, fused = np.array([5.0, 900.0, 40.0]), np.array([5.0, 880.0, 140.0])
    words = ["densest", "median", "sparsest", "worst", "best"]
    assert [select_images([word], ids, truth, fused) for word in words] == [[1], [2], [0], [2], [0]]
    assert select_images(["2", "IMG_1", "test/IMG_3"], ids, truth, fused) == [2, 0]  # each once
    with pytest.raises(RazError, match=r"'IMG_9' is no image of these 3: expected densest, .* 0 to 2") as caught:
        select_images(["IMG_9"], ids, truth, fused)
    assert "IMG_" in caught.value.hint


def test_figure_1_keeps_the_sums_and_figure_5_every_head_and_point(store: Path, crowd: Path) -> None:
    (one,) = results_of(store, crowd, "densest")
    first, fifth = figure_1(one, "a trial"), figure_5(one, "a trial")
    assert sum(row["true"] for row in first.rows) == pytest.approx(float(one.truth.sum()), rel=1e-5)
    assert sum(row["estimated"] for row in first.rows) == pytest.approx(float(one.density.sum()), rel=1e-5)
    kinds = [row["kind"] for row in fifth.rows]
    assert (kinds.count("head"), kinds.count("point"), kinds.count("region")) == (len(one.heads), len(one.points), 1)
    assert fifth.spec["layout"]["xaxis2"]["range"] == [REGION[0], REGION[2]]
    assert fifth.spec["layout"]["yaxis2"]["range"] == [REGION[3], REGION[1]]  # y downwards
    for drawn in (first, fifth):
        text = json.dumps(drawn.spec, allow_nan=False)
        assert text.count("data:image/jpeg;base64,") == 2
        assert "http" not in text
    assert SCALE[0][0] == 0
    assert SCALE[-1][0] == 1


def test_a_large_map_is_added_up_and_loses_nothing() -> None:
    values = np.random.default_rng(0).random((333, 170)).astype(np.float32)
    small, factor = downsample(values)
    assert (factor, small.shape) == (3, (111, 57))
    assert small[0, 0] == pytest.approx(values[:3, :3].sum(), rel=1e-6)
    assert small.sum() == pytest.approx(values.sum(dtype=np.float64), rel=1e-6)


TABLE = """\
table: two
metrics: [test.mae]
seeds: [0, 1]
profiles: {toy: {base: {preset: tiny}, datasets: [shanghaitech_a]}}
rows:
  one: {set: {depth: 1, fusion.rule: localization}}
  two: {set: {depth: 2, fusion.rule: localization}}
"""


def test_a_page_holds_photographs_only_on_request(store: Path, crowd: Path, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(TABLE, encoding="utf-8")
    options = ["--table", str(file), "--store", str(store), "--data-root", str(crowd)]
    page = tmp_path / "t.html"
    assert report_output(*options, "--out", str(page)) == f"wrote {page}\n"
    plain = page.read_text(encoding="utf-8")
    assert "data:image/jpeg" not in plain
    assert "Learning curves: counting" in plain
    report_output(*options, "--out", str(page), "--photo", "densest", "--photo", "0")
    shown = page.read_text(encoding="utf-8")
    assert shown.count("(the paper's Figure 1), row two, seed 0, image ") == shown.count("(the paper's Figure 5)") >= 1
    assert "data:image/jpeg" in shown
    assert (
        report_output(*options, "--photo", "0")
        == "--photo: photographs need a page or image files\n  try: --out page.html, or --png DIR"
    )
    assert "try: --photo densest --of two" in report_output(*options, "--of", "two", "--out", str(page))
    page_of = [*options, "--out", str(page), "--photo", "0", "--of"]
    assert report_output(*page_of, "tow").startswith("--of: table two runs no row 'tow'\n  try: did you mean two")
    assert report_output(*page_of, "two@7").startswith("--of: '7' is no seed of the table\n  try: one of 0, 1")
    assert report_output(*page_of, "two@1").startswith("--photo: two@1 has no results in")


def test_a_studys_best_trial_is_shown_or_the_one_that_is_named(store: Path, crowd: Path) -> None:
    from raz.report.figures.photo_request import PhotoRequest
    from raz.study.index import StudySnapshot

    trials = (
        record(0, "complete", 9.0, config=parameters(replace(CONFIG, seed=5))),
        record(1, "complete", 7.0, config=parameters(CONFIG)),
        record(2, "failed"),
    )
    study = StudySnapshot("s", store, False, ("minimize",), {}, trials, ({}, {}, {}))
    drawn = PhotoRequest(["0"]).of_study(study, crowd)
    assert [figure.title.partition(", image")[0] for figure in drawn] == [
        "Density and locations (the paper's Figure 1), s#1", "Predicted and true heads (the paper's Figure 5), s#1",
    ]  # fmt: skip
    for whose, message in (
        ("0", "is not in .*, so there is nothing to draw"), ("2", "s#2: is failed: it has no predictions"),
        ("7", "has no trial 7"), ("best", "'best' is no trial's number"),
    ):  # fmt: skip
        with pytest.raises(RazError, match=message):
            PhotoRequest(["0"], whose).of_study(study, crowd)


def test_learning_curves_have_a_line_a_network(store: Path, crowd: Path, tmp_path: Path) -> None:
    from raz.report.figures.learning_curves import learning_curves
    from raz.report.fill import fill_table
    from raz.report.used_stages import used_stages
    from raz.spec.ablation_yaml import load_table

    file = tmp_path / "two.yaml"
    file.write_text(TABLE, encoding="utf-8")
    store_path = tmp_path / "store"
    for seed in (0, 1):
        publish(store_path, crowd, replace(CONFIG, seed=seed))
    table = load_table(file)
    uses = used_stages(fill_table(table, table.profile(), store_path, data_root=crowd), crowd)
    (drawn,) = learning_curves(uses)  # only the counting branch has a curve here
    assert drawn.title.startswith("Learning curves: counting")
    assert [(row["network"], row["epoch"], row["value"], row["best"]) for row in drawn.rows] == [
        (f"seed {seed}", e, 9.0 + abs(e - 2), e == 2) for seed in (0, 1) for e in (1, 2, 3)
    ]
    assert [trace["name"] for trace in drawn.spec["data"]] == ["seed 0", "seed 1"] * 2
