"""Every protocol against a literal reading of its text, each way the public scripts differ, and broken files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat
from typer.testing import CliRunner

from raz.cli.main import app
from raz.errors import RazError
from raz.score import points, protocols
from raz.score.points import PointSet, box_sigmas, read_points
from raz.score.protocols import ScoreRow
from raz.score.table import pair_images, render, score_points
from tests.datasets import nwpu_boxes, nwpu_crowd, nwpu_json

Floats = NDArray[np.float64]


def most(edges: list[list[bool]]) -> int:
    """Maximum matching of points (rows) and heads (columns) by trying everything."""
    rows = [sum(1 << j for j, edge in enumerate(row) if edge) for row in edges]

    @cache
    def best(i: int, free: int) -> int:
        if i == len(rows):
            return 0
        value = best(i + 1, free)
        for j in range(free.bit_length()):
            if rows[i] & free & (1 << j):
                value = max(value, 1 + best(i + 1, free & ~(1 << j)))
        return value

    return best(0, (1 << len(edges[0])) - 1) if edges and edges[0] else 0


def near(points: Floats, heads: Floats, radius: Callable[[int], float]) -> list[list[bool]]:
    return [
        [math.dist(p, h) <= radius(j) for j, h in enumerate(heads.tolist())]
        for p in points.tolist()
    ]  # fmt: skip


def greedy(points: Floats, heads: Floats, radius: float) -> int:
    """Shortest pairs first, as Idrees et al. write."""
    every = sorted((math.dist(p, h), j, i) for i, p in enumerate(points.tolist()) for j, h in enumerate(heads.tolist()))
    used_points: set[int] = set()
    used_heads: set[int] = set()
    for d, j, i in every:
        if d <= radius and i not in used_points and j not in used_heads:
            used_points.add(i)
            used_heads.add(j)
    return len(used_points)


def ranked_hits(points: Floats, scores: Floats, heads: Floats, radius: float) -> list[tuple[float, float, float, bool]]:
    """The paper's rule: by rank, each point asks for its nearest head; (−score, y, x, hit)."""
    taken: set[int] = set()
    out = []
    for i in sorted(range(len(points)), key=lambda i: (-scores[i], points[i][1], points[i][0])):
        order = sorted((math.dist(points[i], h), j in taken, j) for j, h in enumerate(heads))
        hit = bool(order) and not order[0][1] and order[0][0] < radius
        if hit:
            taken.add(order[0][2])
        out.append((-scores[i], points[i][1], points[i][0], hit))
    return out


def average_precision(hits: list[bool], heads: int) -> float:
    """101 points of recall, each the best precision at this recall or beyond."""
    at = [(sum(hits[: k + 1]) / heads, sum(hits[: k + 1]) / (k + 1)) for k in range(len(hits))]
    return sum(max((p for r, p in at if r * 100 >= k - 1e-9), default=0.0) for k in range(101)) / 101


def crowds(seed: int, images: int = 6, grid: bool = False) -> list[tuple[PointSet, PointSet]]:
    """Small crowds: images without heads, without points, without both; twins; several points on one head."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(images):
        m, n = (0, 0) if k == 0 else (0, 3) if k == 1 else (4, 0) if k == 2 else rng.integers(1, 9, 2).tolist()
        heads = rng.random((m, 2)) * 30
        points = rng.random((n, 2)) * 30
        if k > 2 and m > 1 and n > 2:
            heads[1] = heads[0]
            points[:3] = heads[0] + rng.normal(0, 1, (3, 2))
        if grid:  # whole numbers: distances tie, and some pairs lie on the border of a radius
            heads, points = np.floor(heads), np.floor(points)
        sigma, level = box_sigmas(rng.random(m) * 16, rng.random(m) * 40)
        out.append((PointSet(points, rng.integers(0, 4, n) / 4.0), PointSet(heads, None, sigma, level)))
    return out


def row(rows: list[ScoreRow], setting: str) -> ScoreRow:
    (found,) = [r for r in rows if r.setting == setting]
    return found


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_fidtm_and_nwpu_are_the_most_pairs_that_there_are(seed: int, grid: bool) -> None:
    images = crowds(seed, grid=grid)
    n, m = sum(len(p) for p, _ in images), sum(len(h) for _, h in images)
    for radius in (4, 8):
        tp = sum(most(near(p.xy, h.xy, lambda j, r=radius: r)) for p, h in images)  # type: ignore[misc]
        found = row(protocols.fidtm(images), f"{radius} px")
        assert (found.precision, found.recall) == (pytest.approx(tp / n), pytest.approx(tp / m))
        assert found.f1 == pytest.approx(2 * tp / (n + m))
    nwpu = protocols.nwpu(images)
    for column, name in ((0, "sigma_s"), (1, "sigma_l")):
        tp = 0
        best = np.zeros(6)
        total = np.zeros(6)
        for p, h in images:
            sigma, level = h.sigma, h.level
            assert sigma is not None
            assert level is not None
            own = sigma[:, column].tolist()
            edges = near(p.xy, h.xy, own.__getitem__)
            tp += most(edges)
            for k in range(6):  # smallest heads first: what serving levels up to k adds to those below
                up_to = [[e and level[j] <= k for j, e in enumerate(line)] for line in edges]
                below = [[e and level[j] < k for j, e in enumerate(line)] for line in edges]
                best[k] += most(up_to) - most(below)
                total[k] += (level == k).sum()
        found = row(nwpu, name)
        assert (found.precision, found.recall) == (pytest.approx(tp / n), pytest.approx(tp / m))
        for k in np.flatnonzero(total):
            assert row(nwpu, f"{name} level {k}").recall == pytest.approx(best[k] / total[k])
        assert best.sum() == tp


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_qnrf_is_the_mean_over_a_hundred_radii(seed: int, grid: bool) -> None:
    images = [
        (PointSet(p.xy * 6, p.score), PointSet(h.xy * 6)) for p, h in crowds(seed + 100, grid=grid)
    ]  # distances up to 250 px
    n, m = sum(len(p) for p, _ in images), sum(len(h) for _, h in images)
    rows = protocols.qnrf(images)
    for name, count in (
        ("1-100 px", lambda p, h, r: most(near(p, h, lambda j: r))),
        ("1-100 px greedy", greedy),
    ):
        tp = np.array([sum(count(p.xy, h.xy, float(r)) for p, h in images) for r in range(1, 101)])
        found = row(rows, name)
        assert found.precision == pytest.approx((tp / n).mean())
        assert found.recall == pytest.approx((tp / m).mean())
        assert found.f1 == pytest.approx((2 * tp / (n + m)).mean())


@pytest.mark.parametrize("seed", range(4))
def test_raz_is_the_paper_s_metric_read_literally(seed: int) -> None:
    images = crowds(seed + 200)
    heads = sum(len(h) for _, h in images)
    rows = protocols.raz(images, (40.0, 5.0))
    for sigma in (40.0, 5.0):
        for setting, t in ((".50", 0.5), (".75", 0.75)):
            radius = sigma * math.sqrt(-2 * math.log(t))
            every = []
            for p, h in images:
                assert p.score is not None
                every += ranked_hits(p.xy, p.score, h.xy, radius)
            hits = [hit for *_, hit in sorted(every, key=lambda e: e[:3])]
            found = row(rows, f"sigma {sigma:g} {setting}")
            assert found.ar == pytest.approx(sum(hits) / heads)
            assert found.ap == pytest.approx(average_precision(hits, heads))


def one(points: list[list[float]], heads: list[list[float]], **more: Any) -> list[tuple[PointSet, PointSet]]:
    shape = [np.array(v, dtype=np.float64).reshape(-1, 2) for v in (points, heads)]
    return [(PointSet(shape[0], np.ones(len(points))), PointSet(shape[1], **more))]


def test_several_points_on_one_head_count_once() -> None:
    found = row(protocols.fidtm(one([[5, 5], [5, 6], [6, 5]], [[5, 5]])), "4 px")
    assert (found.precision, found.recall, found.f1) == (pytest.approx(1 / 3), 1.0, 0.5)


def test_the_most_pairs_may_take_a_point_from_its_nearest_head() -> None:
    # The left point is nearest to the middle head, which is all that the right point reaches.
    images = one([[3, 0], [7, 0]], [[0, 0], [4, 0]])
    assert row(protocols.fidtm(images), "4 px").recall == 1.0
    rows = protocols.raz(images, (5.0,))  # and the paper's rule gives it no second choice
    assert row(rows, "sigma 5 .50").ar == 0.5


def test_a_greedy_association_can_take_fewer_pairs() -> None:
    # Shortest first pairs (6, 0) with (5, 0), and (5, 0) was all that (0, 0) reached within 5 px.
    rows = protocols.qnrf(one([[0, 0], [6, 0]], [[5, 0], [11.5, 0]]))
    best, first = row(rows, "1-100 px"), row(rows, "1-100 px greedy")
    assert best.recall is not None
    assert first.recall is not None
    assert best.recall > first.recall


def test_the_border_of_a_radius_counts_but_not_in_the_paper_s_metric() -> None:
    assert row(protocols.fidtm(one([[4, 0]], [[0, 0]])), "4 px").f1 == 1.0
    assert row(protocols.fidtm(one([[np.nextafter(4, 5), 0]], [[0, 0]])), "4 px").f1 == 0.0
    r = 5 * math.sqrt(-2 * math.log(0.5))
    assert row(protocols.raz(one([[r, 0]], [[0, 0]]), (5.0,)), "sigma 5 .50").ar == 0.0


def test_whole_numbers_as_the_scripts_read_them_move_a_point_over_the_border() -> None:
    true = {"a": PointSet(np.array([[10.9, 0.0]]))}
    pred = {"a": PointSet(np.array([[15.1, 0.0]]))}  # 4.2 px away, 5 when floored
    near_by = {"a": PointSet(np.array([[14.95, 0.0]]))}  # 4.05 px away, 4 when floored
    plain = score_points(near_by, true, protocol=["fidtm"])
    assert row(list(plain.rows), "4 px").f1 == 0.0
    assert row(list(score_points(near_by, true, protocol=["fidtm"], floor=True).rows), "4 px").f1 == 1.0
    assert row(list(score_points(pred, true, protocol=["fidtm"], floor=True).rows), "4 px").f1 == 0.0


def test_nothing_to_divide_by_is_not_a_number() -> None:
    empty = one([], [])
    assert math.isnan(row(protocols.fidtm(empty), "4 px").f1)  # type: ignore[arg-type]
    no_points = row(protocols.fidtm(one([], [[1, 1]])), "4 px")
    assert math.isnan(no_points.precision)  # type: ignore[arg-type]
    assert (no_points.recall, no_points.f1) == (0.0, 0.0)
    no_heads = row(protocols.fidtm(one([[1, 1]], [])), "4 px")
    assert math.isnan(no_heads.recall)  # type: ignore[arg-type]
    assert no_heads.precision == 0.0
    scores = score_points({"a": PointSet(np.zeros((0, 2)))}, {"a": PointSet(np.zeros((0, 2)))})
    text = json.dumps(scores.as_json(), allow_nan=False)  # raises where nan is left
    assert json.loads(text)["scores"][0]["ap"] is None
    assert "-" in render(scores)


def test_sigmas_and_levels_of_boxes() -> None:
    sigma, level = box_sigmas(np.array([6.0, 1.0, 10, 10, 100, 3000]), np.array([8.0, 1, 1, 1.1, 10, 3000]))
    assert sigma[0].tolist() == [3.0, 5.0]
    assert level.tolist() == [1, 0, 0, 1, 2, 5]  # 48; 1 and 10 are level 0, 11 is 1, 1000 is still 2, 9e6 is 5


def test_counts_are_scored_beside() -> None:
    true = {"a": PointSet(np.zeros((4, 2))), "b": PointSet(np.zeros((0, 2)))}
    pred = {"a": PointSet(np.zeros((1, 2))), "b": PointSet(np.zeros((1, 2)))}
    counts = score_points(pred, true, protocol=["fidtm"]).counts
    assert counts["mae"] == 2.0
    assert counts["rmse"] == pytest.approx(math.sqrt(5))
    assert counts["nae"] == 0.75  # of the image that has heads


# ------------------------------------------------------------------ files


def same(a: dict[str, PointSet], b: dict[str, PointSet]) -> bool:
    return list(a) == list(b) and all(
        np.array_equal(a[k].xy, b[k].xy)
        and np.array_equal(np.asarray(a[k].score), np.asarray(b[k].score)) for k in a
    )  # fmt: skip


def test_every_form_of_a_file_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,x,y,score\nu,1.5,2,0.5\nv,,,\nu,3,4,0.25\n")
    first_, second = [1.5, 2], [3, 4]
    forms: dict[str, object] = {
        "a": [{"image": "u", "points": [[*first_, 0.5], [*second, 0.25]]}, {"image": "v", "points": []}],
        "b": {
            "images": [
                {"image": "u", "points": [first_, second], "scores": [0.5, 0.25], "count": 2.2},
                {"image": "v", "points": []},
            ]
        },
        "c": {"u": [[*first_, 0.5], [*second, 0.25]], "v": []},
        "d": [
            {"image": "u", "x": 1.5, "y": 2, "score": 0.5},
            {"image": "u", "x": 3, "y": 4, "score": 0.25},
            {"image": "v"},
        ],
    }
    for name, value in forms.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    first = read_points(tmp_path / "a.csv")
    assert first["u"].xy.tolist() == [[1.5, 2.0], [3.0, 4.0]]
    assert len(first["v"]) == 0
    for name in forms:
        assert same(first, read_points(tmp_path / f"{name}.json")), name


def test_a_large_file_says_the_same_read_at_once_as_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = [f"im{k % 7}.jpg,{x!r},{y!r},{s:.3f}" for k, (x, y, s) in enumerate((rng.random((500, 3)) * 99).tolist())]
    rows[100:100] = ["empty.jpg,,,", '"a, b",1e2,-3,.5', "", "im3.jpg,7,8,0"]
    text = "image,x,y,score\n" + "\n".join(rows) + "\n"
    path = tmp_path / "p.csv"
    spoilt = {
        "": "", "im9,1,nan,1\n": ":506: y is nan", "im9,1,,1\n": ":506: y is ''", "im9,1,2\n": ":506: 3 values",
        "im9,1,x,1\n": ":506: y is 'x'", "im9,nan,nan,nan\n": ":506: x is nan",
        ",1,2,3\n": ":506: the image has no name",
        "im9,inf,2,3\n": ":506: x is inf", "im9,1,-1e300,3\n": ":506: y is -1e+300, expected pixels",
    }  # fmt: skip
    for more, words in spoilt.items():
        path.write_text(text + more)
        faults, found = [], []
        for large in (1 << 30, 0):
            monkeypatch.setattr(points, "LARGE", large)
            if words:
                with pytest.raises(RazError) as caught:
                    read_points(path)
                faults.append(str(caught.value))
            else:
                found.append(read_points(path))
        if words:
            assert words in faults[0]
            assert faults[0] == faults[1]
        else:
            assert same(found[0], found[1])
            assert len(found[1]["empty.jpg"]) == 0
            assert found[1]["a, b"].xy.tolist() == [[100.0, -3.0]]


def test_the_benchmarks_text_files(tmp_path: Path) -> None:
    (tmp_path / "gt.txt").write_text("1 2 10 10 3 5 1 20 20 4 8 2\n2 0\n")
    (tmp_path / "pred.txt").write_text("1 3 10 12 20 29 50 50\n2 1 5 5\n")
    true, pred = read_points(tmp_path / "gt.txt"), read_points(tmp_path / "pred.txt")
    assert true["1"].sigma is not None
    assert true["1"].sigma.tolist() == [[3, 5], [4, 8]]
    small = row(list(score_points(pred, true, protocol=["nwpu"]).rows), "sigma_s")
    assert (small.precision, small.recall) == (0.25, 0.5)


def test_names_find_their_image(tmp_path: Path) -> None:
    true = {"test/IMG_1": PointSet(np.zeros((1, 2))), "test/IMG_2": PointSet(np.zeros((1, 2)))}
    found, notes = pair_images({"images/IMG_1.jpg": PointSet(np.ones((2, 2)))}, true, "pred")
    assert len(found["test/IMG_1"]) == 2
    assert len(found["test/IMG_2"]) == 0
    assert "1 of 2 images have no prediction" in notes[0]
    with pytest.raises(RazError, match="'IMG_3' is not among the true images"):
        pair_images({"IMG_3": PointSet(np.ones((2, 2)))}, true, "pred")
    with pytest.raises(RazError, match="match the same true image"):
        pair_images({"IMG_1.jpg": PointSet(np.ones((1, 2))), "IMG_1.png": PointSet(np.ones((1, 2)))}, true, "pred")


BROKEN = {
    "empty.csv": ("", [":1: the file is empty"]),
    "header.csv": ("file,x,y\n", [":1: the header is 'file,x,y', without a column 'image'", "unknown column 'file'"]),
    "twice.csv": ("image,x,x,y\n", [":1: column 'x' occurs twice"]),
    "rows.csv": (
        "image,x,y,score\na,1,2,x\na,1,2\n,1,2,3\na,nan,2,0.5\na,1,2,0.5\na,1,inf,0.5\n",
        [":2: score is 'x'", ":3: 3 values, expected 4", ":4: the image has no name", ":5: x is nan", ":7: y is inf"],
    ),
    "quote.csv": ('image,x,y\n"a,1,2\n', ["is not valid CSV"]),
    "none.csv": ("image,x,y\n", ["none.csv: holds no image"]),
    "far.csv": (
        "image,x,y,w,h\na,1e10,2,3,4\na,1,2,3,1e200\n",
        [":2: x is 1e+10, expected pixels", ":3: h is 1e+200, expected pixels"],
    ),
    "sigma.csv": ("image,x,y,w,h\na,1,2,-3,4\n", [":2: w is -3, expected 0 or more"]),
    "level.csv": ("image,x,y,sigma_s,sigma_l,level\na,1,2,3,4,6\n", [":2: level is 6, expected 0 to 5"]),
    "cut.json": ('[{"image": "a", "points": [[1, 2', [":1: is not valid JSON"]),
    "kind.json": ("3", ["holds a int, expected a list"]),
    "twice.json": ('{"a": [[1, 1, 0.5]], "a": [[2, 2, 0.5]]}', ["twice.json:1: 'a' occurs twice in one object"]),
    "records.json": (
        '[{"image": "a", "x": 1, "y": 2}, {"image": "a", "x": true, "y": 1}, 7, {"x": 1, "y": 1},'
        ' {"image": "b", "x": 1}]',
        ["[1]: x is True", "[2]: is a int", "[3]: image is None", "[4]: y is missing"],
    ),
    "images.json": (
        '[{"image": "a", "points": [[1, 2], [1], "x"]}, {"image": "a", "points": []}, {"points": []},'
        ' {"image": "c", "points": 4}, {"image": "d", "points": [[1, 2, 3]]}]',
        ["[0] point 1: is [1]", "[0] point 2: is x", "[1]: image 'a' occurs twice", "[2]: names no image",
         "[3]: points is int", "[4] point 0: has 3 numbers, the first had 2"],
    ),
    "lines.txt": (
        "1 2 3 4\n2\n2 1 5 x\n3 1 5 6\n3 1 5 6\n",
        [":1: 4 numbers for n = 2", ":2: ", ":3: y is 'x'", ":5: image '3' occurs twice"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_tells_all_its_faults_with_their_lines(name: str, tmp_path: Path) -> None:
    text, expected = BROKEN[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(RazError) as caught:
        read_points(tmp_path / name)
    for words in expected:
        assert words in str(caught.value)


def test_many_faults_are_counted_and_a_binary_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "many.csv").write_text("image,x,y\n" + "a,x,1\n" * 50)
    with pytest.raises(RazError, match="and 30 more faults"):
        read_points(tmp_path / "many.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RazError, match="not UTF-8 text"):
        read_points(tmp_path / "b.csv")
    with pytest.raises(RazError, match="cannot be read"):
        read_points(tmp_path / "absent.csv")


# ------------------------------------------------------------------ the command


def test_the_command_prints_one_table_for_all_protocols(tmp_path: Path) -> None:
    (tmp_path / "gt.csv").write_text("image,x,y,w,h\na,10,10,6,8\na,40,40,20,20\n")
    (tmp_path / "pred.csv").write_text("image,x,y,score\na,12,10,0.9\na,47,40,0.8\na,90,90,0.1\n")
    both = ["score", "--pred", str(tmp_path / "pred.csv"), "--gt", str(tmp_path / "gt.csv")]
    done = CliRunner().invoke(app, [*both, "--json"])
    assert done.exit_code == 0, done.output
    got = json.loads(done.stdout)
    rows = {(r["protocol"], r["setting"]): r for r in got["scores"]}
    assert rows["fidtm", "4 px"]["recall"] == 0.5
    assert rows["fidtm", "8 px"]["recall"] == 1.0
    assert rows["nwpu", "sigma_s"]["precision"] == pytest.approx(2 / 3)
    assert rows["raz", "sigma 40 .50"]["ar"] == 1.0
    assert (got["mae"], got["nae"]) == (1.0, 0.5)
    shown = CliRunner().invoke(app, both)
    assert "1 images, 2 heads, 3 points" in shown.stdout
    assert "nwpu      sigma_s" in shown.stdout


def test_the_command_scores_against_a_data_set(tmp_path: Path) -> None:
    from raz.data import open_dataset

    items = open_dataset("toy").items["test"]
    points = {item.id: [[x, y, 1.0] for x, y in item.load_heads().tolist()] for item in items}
    (tmp_path / "p.json").write_text(json.dumps(points))
    done = CliRunner().invoke(app, ["score", "--pred", str(tmp_path / "p.json"), "--dataset", "toy", "--json"])
    got = json.loads(done.stdout)
    assert got["mae"] == 0.0
    assert [r["f1"] for r in got["scores"] if r["protocol"] == "fidtm"] == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["mats", "jsons"])
def test_nwpu_is_scored_by_the_boxes_of_its_own_annotation(kind: str, tmp_path: Path) -> None:
    copy = nwpu_crowd(tmp_path)
    base = tmp_path / "NWPU-Crowd"
    (base / "jsons").mkdir()
    rng = np.random.default_rng(5)
    found, boxes = {}, {}
    for n, (item, label) in enumerate(copy.labels.items()):
        heads = np.vstack([copy.heads[item], [[39.0, 100.0]]])  # the last lies outside its image: left out, its box too
        corners = nwpu_boxes(heads, n)
        corners[0] = corners[0][[2, 1, 0, 3]]  # two corners, whichever comes first
        if kind == "mats":
            savemat(label, {"annPoints": heads, "annBoxes": corners})
        else:
            label.unlink()
            nwpu_json(base / "jsons" / f"{label.stem}.json", heads, corners)
        if item.startswith("val/"):
            boxes[item] = corners[:-1]
            points = np.vstack([copy.heads[item] + rng.normal(0, 6, copy.heads[item].shape), [[3.0, 3.0]]])
            points[0] += 60.0  # out of reach
            found[item] = [[*xy, 1.0] for xy in points.tolist()]
    (tmp_path / "p.json").write_text(json.dumps(found))
    words = ["score", "--pred", str(tmp_path / "p.json"), "--dataset", "nwpu_crowd", "--root", str(tmp_path)]
    done = CliRunner().invoke(app, [*words, "--protocol", "nwpu", "--json"])
    assert done.exit_code == 0, done.output
    got = {r["setting"]: r for r in json.loads(done.stdout)["scores"]}
    n, m = sum(map(len, found.values())), sum(map(len, boxes.values()))
    rows = ["image,x,y,w,h"]
    for setting, half in (
        ("sigma_s", lambda w, h: min(w, h) / 2),
        ("sigma_l", lambda w, h: math.sqrt(w * w + h * h) / 2),
    ):
        tp = 0
        for item, corners in boxes.items():
            radii = [half(abs(x1 - x0), abs(y1 - y0)) for x0, y0, x1, y1 in corners.tolist()]
            xy = np.array(found[item])[:, :2]
            tp += most(near(xy, copy.heads[item], radii.__getitem__))
        assert 0 < tp < m
        assert got[setting]["precision"] == pytest.approx(tp / n)
        assert got[setting]["recall"] == pytest.approx(tp / m)
    for item, corners in boxes.items():
        for (x, y), (x0, y0, x1, y1) in zip(copy.heads[item].tolist(), corners.tolist(), strict=True):
            rows.append(f"{item},{x!r},{y!r},{abs(x1 - x0)!r},{abs(y1 - y0)!r}")
    (tmp_path / "gt.csv").write_text("\n".join(rows))
    words = ["score", "--pred", str(tmp_path / "p.json"), "--gt", str(tmp_path / "gt.csv"), "--protocol", "nwpu"]
    by_file = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert {r["setting"]: r for r in by_file["scores"]} == got


@pytest.mark.parametrize(
    ("boxes", "told"),
    [
        (np.zeros((0, 4)), ""),
        (np.zeros((1, 4)), "its boxes have the shape (1, 4), expected (2, 4): ignored"),
        (np.full((2, 4), np.nan), "a box is not finite: its boxes are ignored"),
        (np.array(["a", "b"]), "its boxes are not all [x0, y0, x1, y1]: ignored"),
    ],
)
def test_boxes_that_do_not_fit_are_told_and_left_out(boxes: Any, told: str, tmp_path: Path) -> None:
    from raz.data import open_dataset

    copy = nwpu_crowd(tmp_path)
    heads = np.array([[5.0, 5.0], [9.0, 9.0]])
    savemat(copy.labels["val/0009"], {"annPoints": heads, "annBoxes": boxes})
    dataset = open_dataset("nwpu_crowd", tmp_path)
    item = dataset.items["test"][0]
    assert item.load_sizes is None
    assert np.array_equal(item.load_heads(), heads)
    assert (f"val/0009: {told}" in dataset.warnings) == bool(told)
    (tmp_path / "p.json").write_text(json.dumps({"val/0009": [[5, 5, 1]]}))
    words = ["score", "--pred", str(tmp_path / "p.json"), "--dataset", "nwpu_crowd", "--root", str(tmp_path)]
    refused = CliRunner().invoke(app, [*words, "--protocol", "nwpu"])
    assert refused.exit_code == 2
    assert "the true heads have no boxes" in refused.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--gt FILE or from --dataset NAME"),
        (["--gt", "GT", "--dataset", "toy"], "give one of them"),
        (["--gt", "GT", "--protocol", "nwpu"], "the true heads have no boxes"),
        (["--gt", "GT", "--protocol", "fidmt"], "did you mean fidtm"),
        (["--gt", "GT", "--sigma", "40;20"], "expected distinct numbers above 0, separated by commas"),
        (["--gt", "GT", "--protocol", "qnrf", "--sigma", "5"], "--sigma: belongs to protocol raz, not to qnrf"),
        (["--gt", "GT", "--sigma", "20,20"], "expected distinct numbers above 0, separated by commas"),
        (["--gt", "GT", "--split", "val"], "the heads of --gt have no splits"),
        (["--dataset", "toy", "--split", "tset"], "did you mean test"),
    ],
)
def test_a_wrong_command_is_told_in_one_message(options: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "gt.csv").write_text("image,x,y\na,1,1\n")
    given = [str(tmp_path / "gt.csv") if word == "GT" else word for word in options]
    done = CliRunner().invoke(app, ["score", "--pred", str(tmp_path / "gt.csv"), *given])
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.output
