"""Scores of a table in a file: the same table again without the store, and what does not count or cannot be read."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from typer.testing import CliRunner

from raz.cli.main import app
from raz.config import ZoomingConfig, added, parameters
from raz.errors import RazError
from raz.paper.metrics import THRESHOLDS
from raz.paper.zoom import Points
from raz.pipeline import graph, tiling
from raz.pipeline.graph import Node
from raz.pipeline.keys import stage_keys
from raz.pipeline.passes import PassResult
from raz.pipeline.scoring import SplitPredictions, score_split
from raz.report.figures.table_figures import table_figures
from raz.report.fill import FilledTable, fill_table
from raz.report.per_image import PerImage
from raz.report.render import FORMATS
from raz.report.resample import make_resamples, resampled
from raz.report.score_file import image_columns, read_scores
from raz.report.score_transfer import fill_from_file, write_scores
from raz.report.tables import table_report
from raz.spec.ablation import AblationTable
from raz.spec.ablation_yaml import load_table, parse_table
from raz.store.cache import StageCache, write_json
from raz.store.manifest import Manifest
from raz.utils.shipped import find_shipped
from raz.utils.yamlfile import parse
from tests.crowds import write_crowd
from tests.fields import with_field

ROOT = Path(__file__).resolve().parents[1]
TABLE = """\
table: passes
metrics: [test.mae, test.rmse, test.mae_localization, test.map@5, test.ar50@40, test.bias, test.f1@8, test.recall_q4@4]
seeds: [0, 1]
profiles:
  toy: {base: {preset: tiny, set: {fusion.theta_f: shared, fusion.cells: 2}}, datasets: [toy]}
  photos: {base: {preset: tiny}, datasets: [shanghaitech_a], seeds: [0]}
rows:
  main: {set: {depth: 1, fusion.rule: localization}}
  zoomed: {set: {depth: 2, fusion.rule: localization}}
  fused: {set: {depth: 2, fusion.rule: grid}}
  other: {source: another paper, paper: {shanghaitech_a: [1, 2, 3, null, null, null, null, null]}}
base_row: main
claims:
  - {say: Zooming localizes better, rows: {zoomed: 1, main: -1}, expect: more, metrics: [test.map@5]}
  - {say: Fusion counts better, rows: {fused: 1, main: -1}, expect: less, metrics: [test.mae]}
"""


def table_of(text: str = TABLE) -> AblationTable:
    return parse_table(parse(text, "t.yaml"))


def predictions(rng: np.random.Generator, images: int, depth: int) -> SplitPredictions:
    """Heads, and points near them: closer and fewer wrong ones in a deeper pass; some scores are equal."""
    heads = [rng.uniform(1, 63, size=(int(rng.integers(3, 25)), 2)) for _ in range(images)]
    heads[0] = np.zeros((0, 2))  # an image of nobody
    passes = []
    for n in range(depth):
        of_pass = []
        for true in heads:
            found = true[rng.random(len(true)) < 0.9] + rng.normal(0, 6 / (n + 1), size=(1, 2))
            wrong = rng.uniform(0, 64, size=(int(rng.integers(0, 4)), 2))
            xy = np.concatenate([found, wrong])
            score = rng.integers(5, 20, len(xy)).astype(np.float32) / 20
            points = Points(xy, score, np.zeros(len(xy), np.int8), np.ones(len(xy), np.int8))
            of_pass.append(PassResult(points, rng.uniform(0, 64, size=(int(rng.integers(0, 3)) if n else 0, 4))))
        passes.append(of_pass)
    density = [np.full((8, 8), len(true) * rng.uniform(0.7, 1.3) / 64, np.float32) for true in heads]
    ids = tuple(f"IMG_{i}" for i in range(images))
    truth = np.array([len(true) for true in heads], dtype=np.int64)
    return SplitPredictions(
        ids, heads, [(64, 64)] * images, [(1.0, 1.0)] * images, density, 8, passes, np.minimum(truth, 20)
    )


def fill_store(store: Path, table: AblationTable, profile: str, data_root: Path | None = None) -> FilledTable:
    """A store with a score of every trial, from random predictions; rows of a seed share what they would share."""
    of = table.profile(profile)
    for trial in table.trials(of):
        split, val = (predictions(np.random.default_rng([trial.seed, i]), 30, trial.config.depth) for i in (0, 1))
        config = trial.config
        scores = score_split("test", split, val, None, config.depth, config.peaks, config.fusion, config.metrics)
        key = stage_keys(config, data_root=data_root, splits=("test",))[Node("score", "test")]

        def write(folder: Path, scores=scores) -> None:  # type: ignore[no-untyped-def]
            write_json(folder / "metrics.json", scores.metrics)
            np.savez(folder / "per_image.npz", **scores.per_image)  # type: ignore[arg-type]

        versions = {"commit": f"c{trial.seed}", "torch": "2.9"}
        StageCache(store).publish(key, write, Manifest("score@test", 1.0, "cpu", versions, parameters(config)))
    return fill_table(table, of, store, data_root=data_root)


@pytest.mark.parametrize("over", [None, "seeds", "images"])
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_from_its_file_is_the_table_from_the_store(suffix: str, over: str | None, tmp_path: Path) -> None:
    table = table_of()
    filled = fill_store(tmp_path / "store", table, "toy")
    file = tmp_path / f"passes{suffix}"
    assert write_scores(filled, file) == 6
    of_store, figures = table_report(filled, "fill it", over=over), table_figures(filled, over)  # type: ignore[arg-type]
    shutil.rmtree(tmp_path / "store")
    imported = fill_from_file(table, table.profile("toy"), file)
    of_file = table_report(imported, "fill it", over=over)  # type: ignore[arg-type]
    assert of_file.sheets == of_store.sheets
    assert of_file.records == of_store.records
    assert of_file.notes == (*of_store.notes, f"All 6 scores are imported from {file.name}; none is from a store.")
    assert of_file.title == f"{of_store.title} (imported from {file.name})"
    assert of_file.facts == {**of_store.facts, "imported": file.name}
    unmarked = replace(of_file, title=of_store.title, notes=of_store.notes, facts=of_store.facts)
    for name, render in FORMATS.items():
        assert render(unmarked) == render(of_store), name
    differences = next(sheet for sheet in of_store.sheets if sheet.title == "Toy crowd, differences")
    assert all("[" in line[2] for line in differences.lines)  # every difference has its interval
    assert len(differences.lines) == 16
    assert table_figures(imported, over) == figures  # type: ignore[arg-type]
    assert len(figures) > 6


def test_points_keep_what_metrics_at_other_sigmas_need(tmp_path: Path) -> None:
    """Brute force on many points: distances at a radius, just below and just above it, in single precision."""
    rng = np.random.default_rng(3)
    radii = np.array([s * math.sqrt(-2 * math.log(t)) for s in (40, 20, 5, 7.5) for t in THRESHOLDS])
    near = np.float32(rng.choice(radii, 4000))
    steps = rng.integers(-2, 3, 4000)
    for _ in range(2):
        near = np.where(steps < 0, np.nextafter(near, np.float32(0)), near)
        near = np.where(steps > 0, np.nextafter(near, np.float32(np.inf)), near)
    ends = np.cumsum(rng.multinomial(4000, np.full(20, 0.05)))
    arrays = {
        "ids": np.array([f"i{n}" for n in range(20)]), "truth": np.full(20, 150.0), "regions": np.zeros((20, 0), int),
        "match_ends": ends, "match_score": rng.integers(0, 300, 4000).astype(np.float32),
        "match_distance": np.where(rng.random(4000) < 0.05, np.float32(np.inf), near),
        "match_before": rng.choice(np.float32([np.inf, 0.0, *radii]), 4000),
    }  # fmt: skip
    columns = image_columns(arrays, (7.5,))
    assert set(columns["points.distance"]) <= set(columns["points.distance"].round(2))  # short in CSV
    table = table_of()
    file = tmp_path / "s.parquet"
    write_scores(fill_store(tmp_path / "store", table, "toy"), file)
    frame = pandas.read_parquet(file)
    for name, value in columns.items():
        frame.at[0, name] = list(value)
    frame.iloc[:1].drop(columns=[n for n in frame if n.startswith("images.") and n not in columns]).to_parquet(file)
    (score,) = read_scores(file, "passes", "toy")
    before = PerImage.from_arrays(arrays)
    weights = make_resamples(tuple(before.ids.tolist())).boot[:40]
    for metric in ("map@40", "ap75@20", "mar@5", "ap50@7.5", "ar75@7.5"):
        np.testing.assert_array_equal(
            resampled(metric, score.images, weights), resampled(metric, before, weights), metric
        )


def test_pandas_reads_both_kinds(tmp_path: Path) -> None:
    table = table_of()
    filled = fill_store(tmp_path / "store", table, "toy")
    for suffix in (".parquet", ".csv"):
        write_scores(filled, tmp_path / f"s{suffix}")
    frame, text = pandas.read_parquet(tmp_path / "s.parquet"), pandas.read_csv(tmp_path / "s.csv")
    assert list(frame) == list(text)
    assert list(zip(frame.row, frame.seed, frame.split, strict=True)) == [
        (row, seed, "test") for row in ("main", "zoomed", "fused") for seed in (0, 1)
    ]
    trial = filled.cells["zoomed", "toy"].scores[1]
    line = frame[(frame.row == "zoomed") & (frame.seed == 1)].iloc[0]
    assert line["metrics.map@5"] == trial.metrics["test.map@5"]
    assert (line.key, line.device, line.threads) == (trial.keys["test"], "cpu", 1)
    assert json.loads(line.versions) == {"commit": "c1", "torch": "2.9"}
    images = trial.per_image("test")
    assert np.array_equal(line["images.fused"], images.counts["fused"])
    assert json.loads(text["images.density"][3]) == images.counts["density"].tolist()
    assert np.abs(line["images.fused"] - line["images.truth"]).mean() == line["metrics.mae"]


# ------------------------------------------------------------------------------------ what does not count


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """All scores of the toy's table."""
    write_scores(fill_store(tmp_path / "store", table_of(), "toy"), tmp_path / "passes.parquet")
    return tmp_path / "passes.parquet"


def imported(file: Path, text: str = TABLE) -> FilledTable:
    table = table_of(text)
    return fill_from_file(table, table.profile("toy"), file)


def test_stale_scores_are_left_out_and_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert imported(file).missing == 0
    with monkeypatch.context() as now:  # another meaning of what only the deeper rows have
        now.setitem(graph.STAGES, "zoom", replace(graph.STAGES["zoom"], version=99))
        filled = imported(file)
        assert [bool(filled.cells[row, "toy"].scores) for row in ("main", "zoomed", "fused")] == [True, False, False]
        (note,) = filled.import_notes
        assert note == (
            "Stale, so left out: 4 scores of the file, of rows zoomed (2), fused (2): stage zoom2@test has another"
            " version or other settings now."
        )
        report = table_report(filled, "fill it")
        assert "4 of 6 trials (row x data set x seed) are not in passes.parquet." in report.notes
        assert report.command == "fill it"
    with monkeypatch.context() as now:
        now.setitem(graph.STAGES, "counting", replace(graph.STAGES["counting"], version=99))
        with pytest.raises(
            RazError, match=r"passes.parquet: Stale, so left out: 6 scores .* stage counting has another"
        ):
            imported(file)
    with monkeypatch.context() as now:
        real = "raz.pipeline.keys._fingerprint"
        now.setattr(real, lambda name, root, split: "0" * 64)
        with pytest.raises(RazError, match=r"they are of other data \(test, train, val images\)"):
            imported(file)
    changed = TABLE.replace("fused: {set: {depth: 2,", "fused: {set: {depth: 2, peaks.threshold: 0.4,")
    assert imported(file, changed).import_notes == (
        "Stale, so left out: 2 scores of the file, of rows fused (2): stage score@test has another version or other"
        " settings now.",
    )
    with with_field(ZoomingConfig, "later", float, added(default=0.0, before=0.0)):  # a new option moves no key
        assert imported(file).import_notes == ()


def test_scores_of_no_row_or_seed_are_left_out_and_named(file: Path) -> None:
    filled = imported(file, TABLE.replace("seeds: [0, 1]", "seeds: [0]").replace("zoomed", "deeper"))
    assert filled.import_notes == (
        "Of no row, data set or seed of the profile, so left out: 4 scores (main on toy, seed 1; zoomed on toy, seed 0;"
        " zoomed on toy, seed 1; fused on toy, seed 1).",
    )
    assert (filled.wanted, filled.missing) == (3, 1)


@pytest.mark.parametrize("limit", [tiling.TILE_PIXELS, 1 << 10])  # with the second, images go by tiles
def test_without_the_data_set_code_and_settings_are_checked(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "TILE_PIXELS", limit)
    monkeypatch.delenv("RAZ_DATA_ROOT", raising=False)
    crowd = write_crowd(tmp_path / "crowd", train=16, test=4)
    table = table_of()
    photos = table.profile("photos")
    file = tmp_path / "passes.csv"
    of_store = fill_store(tmp_path / "store", table, "photos", crowd)
    write_scores(of_store, file)
    there, absent = (fill_from_file(table, photos, file, data_root=root) for root in (crowd, None))
    assert there.import_notes == ()
    (note,) = absent.import_notes
    assert note.startswith(
        "shanghaitech_a: code and settings of its scores are those of now; whether images and weights are the same was"
        " not checked (shanghaitech_a: "
    )
    assert table_report(absent).sheets == table_report(there).sheets == table_report(of_store).sheets
    monkeypatch.setitem(graph.STAGES, "score", replace(graph.STAGES["score"], version=99))
    with pytest.raises(RazError, match="stage score@test has another version"):
        fill_from_file(table, photos, file)


def test_a_file_tells_no_paths(tmp_path: Path) -> None:
    table = table_of()
    filled = fill_store(tmp_path / "store", table, "toy")
    cell = filled.cells["main", "toy"]
    made = replace(
        cell.scores[0].provenance["test"], config={"backbone.weights": str(tmp_path / "vgg.pt"), "threads": 1}
    )
    scores = {**cell.scores, 0: replace(cell.scores[0], provenance={"test": made})}
    cells = {**filled.cells, ("main", "toy"): replace(cell, scores=scores)}
    write_scores(replace(filled, cells=cells), tmp_path / "s.csv")
    text = (tmp_path / "s.csv").read_text()
    assert "vgg.pt" in text
    assert str(tmp_path) not in text


# ------------------------------------------------------------------------------------ what cannot be read


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_damaged_files_are_one_message(suffix: str, tmp_path: Path) -> None:
    table = table_of()
    file = tmp_path / f"s{suffix}"
    write_scores(fill_store(tmp_path / "store", table, "toy"), file)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for cut in [0, 1, 10, *rng.integers(0, len(whole), 12).tolist()]:
        file.write_bytes(whole[:cut])
        with pytest.raises(RazError) as caught:
            read_scores(file, "passes", "toy")
        assert str(caught.value).startswith(f"{file}: ")
        assert "\n  try: " in str(caught.value)


def test_other_files_are_one_message(file: Path, tmp_path: Path) -> None:
    def complaint(path: Path, table: str = "passes", profile: str = "toy") -> str:
        with pytest.raises(RazError) as caught:
            read_scores(path, table, profile)
        return str(caught.value).replace(str(tmp_path), "D")

    assert complaint(file, "recurrence", "small") == (
        "D/passes.parquet: has scores of passes (toy), and none of recurrence (small)\n"
        "  try: --table passes --profile toy"
    )
    assert complaint(tmp_path / "no.csv") == (
        "D/no.csv: no such file\n  try: raz-sweep report --table passes --scores-out D/no.csv writes one"
    )
    assert complaint(tmp_path / "s.txt").startswith("--scores: D/s.txt ends with .txt, expected .parquet or .csv")
    (tmp_path / "a.csv").write_text("table,row\npasses,main\n")
    assert complaint(tmp_path / "a.csv").startswith(
        "D/a.csv: no file of a table's scores: it lacks profile, dataset, seed, split, key,"
    )
    frame = pandas.read_parquet(file)
    for column, value, message in (
        ("points.image", [99], "score 1: points.image has an index that is no image"),
        ("points.distance", [1.0], "score 1: points.distance has 1 values for"),
        ("images.truth", [1.0], "score 1: its images differ in number"),
        ("stages", "[]", "score 1: stages is a list, expected an object"),
        ("key", None, "score 1: key is null or missing, expected a string"),
    ):
        wrong = frame.copy()
        wrong.at[0, column] = value
        wrong.to_parquet(tmp_path / "w.parquet")
        assert message in complaint(tmp_path / "w.parquet")


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RAZ_STORE", "RAZ_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "t.yaml").write_text(TABLE)

    def call(*words: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["report", *words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    code, _, err = call("--table", "t.yaml", "--scores-out", "s.csv")
    assert (code, err) == (
        2,
        "--scores-out: raz-store has no scores of table passes (toy)\n  try: run the table first\n",
    )
    fill_store(tmp_path / "raz-store", table_of(), "toy")
    code, of_store, err = call("--table", "t.yaml", "--format", "md", "--scores-out", "s.parquet")
    assert (code, err) == (0, "wrote 6 scores to s.parquet\n")
    code, of_file, _ = call("--table", "t.yaml", "--format", "md", "--scores", "s.parquet", "--store", "nowhere")
    assert code == 0
    lines = of_file.replace(" (imported from s.parquet)", "").splitlines()
    assert [line for line in lines if line != lines[-1]] == of_store.splitlines()
    assert lines[-1] == "- All 6 scores are imported from s.parquet; none is from a store."
    assert call("--table", "t.yaml", "--scores", "s.parquet", "--out", "t.html")[0] == 0
    assert "imported from s.parquet" in (tmp_path / "t.html").read_text()
    for words, message in (
        (["fusion", "--scores", "s.csv"], "--scores: belongs to a table"),
        (["--list", "--scores-out", "s.csv"], "--scores-out: belongs to a table"),
        (["--table", "t.yaml", "--scores-out", "s.json"], "--scores-out: s.json ends with .json, expected"),
        (["--table", "t.yaml", "--scores", "s.parquet", "--scores-out", "s.csv"], "--scores-out: the scores are from"),
        (
            ["--table", "t.yaml", "--scores", "s.parquet", "--photo", "0", "--png", "d"],
            "--photo: photographs are drawn",
        ),
    ):
        code, _, err = call(*words)
        assert code == 2
        assert err.startswith(message), err


# ------------------------------------------------------------------------------------ committed files

COMMITTED = sorted((ROOT / "docs" / "results" / "scores").glob("*.parquet"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_scores_are_of_a_shipped_table_and_show_it(path: Path) -> None:
    name, _, profile = path.stem.rpartition("-")
    file = find_shipped(name, ("ablations",))
    table = load_table(file, file.name)
    scores = read_scores(path, name, profile)
    rows = {row.name for row in table.run_rows}
    assert {score.row for score in scores} <= rows
    assert {score.dataset for score in scores} <= set(table.profile(profile).datasets)
