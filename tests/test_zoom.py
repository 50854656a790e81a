"""Proposals against direct sums, suppression against the textbook loop, merging against point-by-point ownership."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raz.errors import RazError, RazErrorGroup
from raz.paper.zoom import (
    ANCHOR_SETS,
    Points,
    candidate_regions,
    generator_for,
    merge_points,
    owned_points,
    select_regions,
)

Floats = NDArray[np.float64]


# -------------------------------------------------------------------------------------------- generators


def test_random_numbers_depend_on_seed_content_and_pass_only() -> None:
    first = generator_for(3, "a1#0", 2).random(4)
    generator_for(9, "another", 1).random(100)
    assert np.array_equal(generator_for(3, "a1#0", 2).random(4), first)
    others = [(4, "a1#0", 2), (3, "a2#0", 2), (3, "a1#1", 2), (3, "a1#0", 3), (32, "a1#0", 2)]
    assert all(not np.array_equal(generator_for(*other).random(4), first) for other in others)


def test_the_stream_is_the_one_recorded() -> None:
    """Stored studies rest on these numbers: they may change with no version of Python, NumPy or this code."""
    digest = hashlib.sha256(b"0\n2\n0f3b").hexdigest()
    expected = np.random.Generator(np.random.PCG64(int(digest, 16))).random(3)
    assert np.array_equal(generator_for(0, "0f3b", 2).random(3), expected)


# --------------------------------------------------------------------------------------------- proposals


def test_the_papers_anchors() -> None:
    """Three ratios of equal area, 1:1 a third of the shorter edge, and the same twice larger (16)."""
    height, width = 300, 420
    attention = np.zeros((height, width), np.float32)
    attention[150, 210] = 1.0
    boxes, means = candidate_regions(attention, generator_for(0, "a", 2), samples=1)
    sides = [(int(y1 - y0), int(x1 - x0)) for x0, y0, x1, y1 in boxes]
    assert sides == [(100, 100), (71, 141), (141, 71), (200, 200), (141, 283), (283, 141)]
    for (h, w), (x0, y0, _, _), mean in zip(sides, boxes.tolist(), means.tolist(), strict=True):
        assert abs(x0 + w / 2 - 210.5) <= 0.5
        assert abs(y0 + h / 2 - 150.5) <= 0.5
        assert mean == pytest.approx(1 / (h * w))


@pytest.mark.parametrize("name", sorted(ANCHOR_SETS))
@pytest.mark.parametrize("sampling", ["attention", "uniform"])
@pytest.mark.parametrize("size", [(40, 60), (61, 37), (3, 90), (1, 1)])
def test_boxes_lie_in_the_map_and_means_are_direct_means(name: str, sampling: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    attention = rng.random(size, dtype=np.float32) ** 6
    boxes, means = candidate_regions(attention, rng, anchors=name, samples=50, sampling=sampling)  # type: ignore[arg-type]
    assert boxes.dtype == np.int64
    assert boxes.shape == (50 * len(ANCHOR_SETS[name]), 4)
    for (x0, y0, x1, y1), mean in zip(boxes.tolist(), means.tolist(), strict=True):
        assert 0 <= x0 < x1 <= size[1]
        assert 0 <= y0 < y1 <= size[0]
        assert mean == pytest.approx(attention[y0:y1, x0:x1].mean(dtype=np.float64), rel=1e-9)


def test_points_are_drawn_in_proportion_to_the_attention() -> None:
    attention = np.array([[0, 1, 0, 3], [0, 0, 0, 0], [4, 0, 2, 0]], np.float32)
    samples = 40_000
    # The shorter edge is 3, so the small square anchor is the sampled pixel itself.
    boxes, _ = candidate_regions(attention, generator_for(1, "x", 2), anchors="square", samples=samples)
    corner = boxes[::2]
    assert (corner[:, 2:] - corner[:, :2] == 1).all()
    seen = np.zeros(attention.shape)
    np.add.at(seen, (corner[:, 1], corner[:, 0]), 1)
    assert (seen[attention == 0] == 0).all()
    p = attention / 10
    assert (np.abs(seen / samples - p) <= 4.5 * np.sqrt(p * (1 - p) / samples)).all()
    boxes, _ = candidate_regions(
        attention, generator_for(1, "x", 2), anchors="square", samples=samples, sampling="uniform"
    )
    seen = np.zeros(attention.shape)
    np.add.at(seen, (boxes[::2, 1], boxes[::2, 0]), 1)
    assert (np.abs(seen / samples - 1 / 12) <= 4.5 * math.sqrt(11 / 144 / samples)).all()


def test_no_attention_no_boxes() -> None:
    boxes, means = candidate_regions(np.zeros((30, 30), np.float32), generator_for(0, "a", 2))
    assert boxes.shape == (0, 4)
    assert means.shape == (0,)
    assert len(select_regions(boxes, means, theta_z=0.0, iou=0.5, k_z=10)) == 0


def test_bad_proposal_settings_are_told_at_once() -> None:
    with pytest.raises(RazErrorGroup) as caught:
        candidate_regions(
            -np.ones((4, 4)), generator_for(0, "a", 2), anchors="tall", samples=0, sampling="best"  # type: ignore[arg-type]
        )  # fmt: skip
    assert len(caught.value.faults) == 4
    assert "one-scale" in str(caught.value)
    with pytest.raises(RazError, match="not finite"):
        candidate_regions(np.full((4, 4), np.nan), generator_for(0, "a", 2))


# ----------------------------------------------------------------------------------------------- suppression


def textbook(boxes: Floats, means: Floats, theta_z: float, iou: float, k_z: int) -> list[int]:
    ranked = sorted(range(len(boxes)), key=lambda i: (-means[i], *boxes[i].tolist()))
    kept: list[int] = []
    for i in ranked:
        if means[i] < theta_z:
            continue
        for j in kept:
            w = min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0])
            h = min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1])
            common = max(w, 0) * max(h, 0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
            if common / (sum(areas) - common) > iou:
                break
        else:
            kept.append(i)
    return kept[:k_z]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 60),
    theta_z=st.sampled_from([0.0, 0.25, 0.5]),
    iou=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
    k_z=st.integers(1, 20),
    fractional=st.booleans(),
)
def test_suppression_equals_the_textbook_loop(
    seed: int, n: int, theta_z: float, iou: float, k_z: int, fractional: bool
) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12, (n, 2)).astype(float) + (rng.random((n, 2)) if fractional else 0)
    boxes = np.concatenate([corner, corner + rng.integers(1, 9, (n, 2))], axis=1)
    means = rng.integers(0, 5, n) / 4  # many ties
    got = select_regions(boxes, means, theta_z=theta_z, iou=iou, k_z=k_z)
    # Equal boxes of equal mean are interchangeable, so compare what was chosen, not its index.
    expected = textbook(boxes, means, theta_z, iou, k_z)
    assert [(*boxes[i], means[i]) for i in got] == [(*boxes[i], means[i]) for i in expected]


def test_the_choice_does_not_depend_on_the_order_of_the_boxes() -> None:
    rng = np.random.default_rng(5)
    corner = rng.integers(0, 40, (80, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 20, (80, 2))], axis=1)
    means = rng.integers(0, 6, 80) / 5
    chosen = boxes[select_regions(boxes, means, theta_z=0.2, iou=0.3, k_z=6)]
    for _ in range(5):
        mixed = rng.permutation(80)
        again = boxes[mixed][select_regions(boxes[mixed], means[mixed], theta_z=0.2, iou=0.3, k_z=6)]
        assert np.array_equal(again, chosen)


def test_boxes_and_means_must_belong_together() -> None:
    with pytest.raises(RazError, match=r"expected \(m, 4\)"):
        select_regions(np.zeros((3, 4)), np.zeros(2), theta_z=0.0, iou=0.5, k_z=1)


# ------------------------------------------------------------------------------------------------- merge


def points(xy: object, score: object = 0.5, network: int = 1, depth: int = 2) -> Points:
    at = np.array(xy, dtype=np.float64).reshape(-1, 2)
    n = len(at)
    return Points(
        at,
        np.broadcast_to(np.asarray(score, np.float32), (n,)).copy(),
        np.full(n, network, np.int8),
        np.full(n, depth, np.int8),
    )


def main_net(xy: object, score: object = 0.5) -> Points:
    return points(xy, score, network=0, depth=1)


def test_a_zoomed_region_replaces_what_was_inside() -> None:
    before = main_net([[10, 10], [50, 50], [90, 20]])
    found = points([[49, 50], [52, 50]])
    merged = merge_points(before, np.array([[40.0, 40, 60, 60]]), [found], 100, 100, zoom=2, border=8, seam=3)
    assert sorted(merged.xy.tolist()) == [[10, 10], [49, 50], [52, 50], [90, 20]]
    assert merged.network.tolist() == [0, 0, 1, 1]  # by y, then x, at equal scores
    assert merged.depth.tolist() == [1, 1, 2, 2]
    empty = merge_points(before, np.array([[40.0, 40, 60, 60]]), [points([])], 100, 100, zoom=2, border=8, seam=3)
    assert sorted(empty.xy.tolist()) == [[10, 10], [90, 20]]


def test_the_inner_border_belongs_to_the_outside_except_at_the_images_edge() -> None:
    region = np.array([[0.0, 40, 60, 80]])
    before = main_net([[1, 42], [1, 60], [57, 60], [30, 78]])
    found = points([[2, 42], [2, 60], [55.9, 61], [56.1, 62], [30, 76]])
    merged = merge_points(before, region, [found], 100, 100, zoom=2, border=8, seam=0)
    # Four input px at the top, right and bottom stay with Main-Net; x = 0 is the image's edge.
    kept = {(x, y) for (x, y), network in zip(merged.xy.tolist(), merged.network, strict=True) if network == 0}
    assert kept == {(1, 42), (57, 60), (30, 78)}
    assert {tuple(p) for p in merged.xy.tolist()} - kept == {(2, 60), (55.9, 61)}


def test_the_better_region_owns_the_overlap() -> None:
    regions = np.array([[20.0, 20, 60, 60], [40, 20, 80, 60]])
    first, second = points([[50, 40], [30, 40]], 0.6), points([[51, 40], [70, 40]], 0.9)
    merged = merge_points(main_net([[52, 40]]), regions, [first, second], 100, 100, zoom=2, border=4, seam=0)
    assert sorted(merged.xy.tolist()) == [[30, 40], [50, 40], [70, 40]]
    # In the first region's border strip (58 to 60) the second owns.
    first, second = points([[59, 40]]), points([[59, 41]])
    merged = merge_points(main_net([]), regions, [first, second], 100, 100, zoom=2, border=4, seam=0)
    assert merged.xy.tolist() == [[59, 41]]


def test_points_nearer_than_the_seam_are_one_only_across_it() -> None:
    region = np.array([[40.0, 0, 100, 100]])
    # The seam lies at x = 44; 3 zoomed px are 1.5 px.
    before, found = main_net([[43.8, 10], [43.8, 30], [43.8, 50]], [0.9, 0.4, 0.6]), points([])
    found = points([[44.2, 10], [44.2, 30], [45.4, 50], [60, 60], [60.5, 60]], [0.5, 0.8, 0.7, 0.3, 0.3])
    merged = merge_points(before, region, [found], 100, 100, zoom=2, border=8, seam=3)
    assert merged.xy.tolist() == [[43.8, 10], [44.2, 30], [45.4, 50], [43.8, 50], [60, 60], [60.5, 60]]


@pytest.mark.parametrize("zoom", [2.0, 4.0, 8.0, 27.0])
def test_a_seam_is_at_least_one_input_pixel_wide(zoom: float) -> None:
    """At pass 4, of 8 times the size, 3 zoomed px are .375 px: a head that Main-Net sees .25 px this side of the seam
    and RAZ-Net .25 px that side is one head, also where both sides are crops."""
    region = np.array([[40.0 - 8 / zoom, 0, 100, 100]])  # its core begins at 40
    before, found = main_net([[39.75, 10], [39.25, 30]], [0.9, 0.8]), points([[40.25, 10], [40.25, 30]], [0.5, 0.4])
    how = {"zoom": zoom, "border": 8.0}
    merged = merge_points(before, region, [found], 100, 100, **how, seam=3)
    wide = zoom == 2  # there it is 1.5 px
    assert merged.xy.tolist() == [[39.75, 10], [39.25, 30]] + ([] if wide else [[40.25, 30]])
    neighbours = np.array([[0, 0, 40 + 8 / zoom, 100], [40 - 8 / zoom, 0, 100, 100.0]])
    cores = [points([[39.75, 10]], 0.9), points([[40.25, 10]], 0.5)]
    assert merge_points(main_net([]), neighbours, cores, 100, 100, **how, seam=3).xy.tolist() == [[39.75, 10]]
    assert len(merge_points(before, region, [found], 100, 100, **how, seam=0)) == 4  # 0 still means none


def test_a_dropped_point_drops_no_other() -> None:
    region = np.array([[44.0, 0, 100, 100]])
    before = main_net([[43.9, 10], [43.9, 12]], [0.9, 0.5])
    found = points([[44.1, 11]], [0.7])  # dropped by 0.9, so it may not drop 0.5
    merged = merge_points(before, region, [found], 100, 100, zoom=1, border=0, seam=1.5)
    assert merged.xy.tolist() == [[43.9, 10], [43.9, 12]]


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 60), r=st.integers(0, 6), border=st.sampled_from([0.0, 4.0, 8.0]))
def test_every_head_is_counted_once(seed: int, n: int, r: int, border: float) -> None:
    """Whoever sees a head reports it, some px off where it was not zoomed: the merged points are the heads again."""
    rng = np.random.default_rng(seed)
    height, width = 90, 120
    grid = np.stack(np.meshgrid(np.arange(5, 120, 10.0), np.arange(5, 90, 10.0)), axis=-1).reshape(-1, 2)
    heads = rng.permutation(grid)[:n] + rng.uniform(-2, 2, (min(n, len(grid)), 2))
    corner = rng.integers(0, [width - 20, height - 20], (r, 2))
    side = rng.integers(20, 60, (r, 2))
    regions = np.concatenate([corner, np.minimum(corner + side, [width, height])], axis=1).astype(np.float64)
    # Both sides see the head within 0.5 px: under the seam of 1.5 px, while heads are 6 px apart and more.
    seen = heads + rng.uniform(-0.5, 0.5, heads.shape)
    before = main_net(seen, rng.random(len(heads)))
    inside = []
    for x0, y0, x1, y1 in regions:
        held = heads[(heads[:, 0] >= x0) & (heads[:, 0] < x1) & (heads[:, 1] >= y0) & (heads[:, 1] < y1)]
        inside.append(points(held, rng.random(len(held))))
    merged = merge_points(before, regions, inside, height, width, zoom=2, border=border, seam=3)
    distance = np.hypot(*(merged.xy[:, None] - heads[None]).transpose(2, 0, 1)).reshape(len(merged), len(heads))
    near = distance < 0.8
    assert (near.sum(axis=0) <= 1).all()  # never twice
    assert (near.sum(axis=1) == 1).all()  # and nothing invented
    # Missed only when it straddles a seam and each side puts it on the other's ground.
    for i in np.flatnonzero(near.sum(axis=0) == 0):
        edges = np.concatenate([regions[:, ::2].ravel(), (regions[:, ::2] + [border / 2, -border / 2]).ravel()])
        rows = np.concatenate([regions[:, 1::2].ravel(), (regions[:, 1::2] + [border / 2, -border / 2]).ravel()])
        assert min(np.abs(edges - heads[i, 0]).min(initial=9), np.abs(rows - heads[i, 1]).min(initial=9)) <= 0.5


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    border=st.sampled_from([0.0, 6.0]),
    seam=st.sampled_from([0.0, 1.0, 4.0, 12.0]),
    zoom=st.sampled_from([2.0, 3.0, 8.0]),
)
def test_merging_equals_the_rules_point_by_point(seed: int, border: float, seam: float, zoom: float) -> None:
    rng = np.random.default_rng(seed)
    height, width = 40, 50
    apart = max(seam / zoom, 1.0) if seam else 0.0
    corner = rng.integers(0, [35, 25], (3, 2))
    regions = np.concatenate([corner, corner + rng.integers(8, 16, (3, 2))], axis=1).astype(np.float64)
    groups = [main_net(rng.random((40, 2)) * [50, 40], rng.integers(1, 5, 40) / 4)]
    groups += [points(corner[i] + rng.random((15, 2)) * 15, rng.integers(1, 5, 15) / 4) for i in range(3)]

    def owner(x: float, y: float) -> int:
        for rank, (x0, y0, x1, y1) in enumerate(regions.tolist()):
            b = border / zoom
            left, top = (x0 + b if x0 > 0 else x0), (y0 + b if y0 > 0 else y0)
            right, bottom = (x1 - b if x1 < width else x1), (y1 - b if y1 < height else y1)
            if left <= x < right and top <= y < bottom:
                return rank
        return -1

    rows = []
    for source, group in enumerate(groups, start=-1):
        for (x, y), score, network in zip(group.xy.tolist(), group.score.tolist(), group.network, strict=True):
            if owner(x, y) == source:
                rows.append((-score, y, x, int(network), source))
    kept: list[tuple[float, float, float, int, int]] = []
    for row in sorted(rows):
        if all(row[4] == k[4] or math.hypot(row[1] - k[1], row[2] - k[2]) >= apart for k in kept):
            kept.append(row)
    # Points beyond the image would be owned by a region that reaches it; the crops here end inside or at it.
    merged = merge_points(groups[0], np.minimum(regions, [50, 40, 50, 40]), groups[1:], 40, 50, zoom=zoom,
                          border=border, seam=seam)  # fmt: skip
    inside_image = [k for k in kept if k[2] < 50 and k[1] < 40]
    got = [
        (-s, y, x, n)
        for (x, y), s, n in zip(merged.xy.tolist(), merged.score.tolist(), merged.network.tolist(), strict=True)
        if x < 50 and y < 40
    ]
    assert got == [k[:4] for k in inside_image]
    # The same when each region's points are sorted out before, and the pairs gone through a few at a time.
    clipped, how = np.minimum(regions, [50, 40, 50, 40]), {"zoom": zoom, "border": border}
    own = [owned_points(found, rank, clipped, 40, 50, **how) for rank, found in enumerate(groups[1:])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raz.paper.zoom.BLOCK", 2)
        again = merge_points(groups[0], clipped, own, 40, 50, **how, seam=seam)
    assert np.array_equal(merged.xy, again.xy)
    assert np.array_equal(merged.score, again.score)


def test_the_result_does_not_depend_on_the_order_of_the_points() -> None:
    rng = np.random.default_rng(2)
    region = np.array([[10.0, 10, 40, 40]])
    a = main_net(rng.random((60, 2)) * 50, rng.integers(1, 4, 60) / 4)
    b = points(rng.random((60, 2)) * 30 + 10, rng.integers(1, 4, 60) / 4)
    first = merge_points(a, region, [b], 50, 50, zoom=2, border=2, seam=6)
    again = merge_points(
        a.take(rng.permutation(60)), region, [b.take(rng.permutation(60))], 50, 50, zoom=2, border=2, seam=6
    )
    assert np.array_equal(first.xy, again.xy)
    assert np.array_equal(first.network, again.network)


def test_without_regions_the_points_are_only_sorted() -> None:
    before = main_net([[3, 4], [1, 4], [2, 2]], [0.5, 0.5, 0.9])
    merged = merge_points(before, np.zeros((0, 4)), [], 10, 10, zoom=2, border=8, seam=3)
    assert merged.xy.tolist() == [[2, 2], [1, 4], [3, 4]]
    assert len(merge_points(main_net([]), np.zeros((0, 4)), [], 10, 10, zoom=2, border=8, seam=3)) == 0


def test_bad_merges_are_named() -> None:
    with pytest.raises(RazErrorGroup) as caught:
        merge_points(main_net([]), np.zeros((2, 4)), [], 10, 10, zoom=0, border=-1, seam=3)
    assert len(caught.value.faults) == 3
    with pytest.raises(RazError, match="expected"):
        Points(np.zeros((2, 2)), np.zeros(1, np.float32), np.zeros(2, np.int8), np.zeros(2, np.int8))
