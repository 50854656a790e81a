"""Zoom passes over an image, and zoomed regions as training images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raz.config import ZoomingConfig
from raz.data.frames import Frames, zoomed_size
from raz.paper.expected import main_expected, merge_expected, region_expected
from raz.paper.peaks import find_peaks
from raz.paper.zoom import (
    Points,
    candidate_regions,
    generator_for,
    merge_points,
    owned_points,
    select_regions,
)
from raz.pipeline.feature_cache import Candidates
from raz.pipeline.passes import PassResult

PEAK_FLOOR = 0.05  # least score of a stored peak; thresholds and `points: all` select among these
# Of how regions are drawn: in the names of what is stored of them apart from stages (2: by content, not by id).
REGIONS_VERSION = 2
CUT_BYTES = 1 << 28  # most bytes of the zoomed regions of a split that are held at once
MapFunction = Callable[[NDArray[np.uint8], str], NDArray[np.float32]]  # pixels, id in the memo -> (H, W)


def image_candidates(
    attention: NDArray[np.float32], config: ZoomingConfig, seed: int, content: str, zoom_pass: int
) -> Candidates:
    """The candidate regions of an image (15). They depend on its attention map, the anchors and the sampling, which is
    seeded by `content` (see `generator_for`)."""
    return candidate_regions(
        attention, generator_for(seed, content, zoom_pass),
        anchors=config.anchors, samples=config.samples, sampling=config.sampling,
    )  # fmt: skip


def select_candidates(proposed: Candidates, config: ZoomingConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The selected regions of an image, ranked: (r, 4) x0, y0, x1, y1 input px, and their mean attention (15, 16)."""
    boxes, means = proposed
    best = select_regions(boxes, means, theta_z=config.theta_z, iou=config.iou, k_z=config.k_z)
    return boxes[best].astype(np.float64), means[best]


def points_of(response: NDArray[np.float32], network: int, zoom_pass: int) -> Points:
    """The peaks of a response map (H, W) as points of one network at one pass."""
    xy, score = find_peaks(response, PEAK_FLOOR)
    n = len(score)
    return Points(xy, score, np.full(n, network, np.int8), np.full(n, zoom_pass, np.int8))


def first_pass(response: NDArray[np.float32], count: Literal["threshold", "expected"], gamma: float) -> PassResult:
    """What Main-Net finds on an image, from its response map (H, W). gamma: with which it was trained."""
    expected = main_expected(response, gamma) if count == "expected" else None
    return PassResult(points_of(response, 0, 1), expected=expected)


def zoom_image(
    frames: Frames,
    index: int,
    before: PassResult,
    regions: NDArray[np.float64],  # (r, 4) input px, ranked
    config: ZoomingConfig,
    zoom_pass: int,
    response_of: MapFunction,
    gamma: float,
) -> PassResult:
    """What is found after RAZ-Net was applied to the image's regions at factor^(pass - 1) times their size (17).

    gamma: with which RAZ-Net was trained; used where `before` has expected heads.
    """
    zoom = float(config.factor ** (zoom_pass - 1))
    height, width = frames.size(index)
    inside, found = [], []
    for rank, (x0, y0, x1, y1) in enumerate(regions):
        pixels = frames.zoomed(index, (x0, y0, x1, y1), zoom)
        per_px = np.array([pixels.shape[1] / (x1 - x0), pixels.shape[0] / (y1 - y0)])
        response = response_of(pixels, f"{frames.ids[index]}#{zoom_pass}.{rank}")
        del pixels  # a crop of a large image is as large: free it early
        points = points_of(response, 1, zoom_pass)
        if before.expected is not None:
            found.append(
                region_expected(response, gamma, rank, regions, height, width, zoom=zoom, border=config.border)
            )
        del response
        points = Points(points.xy / per_px + [x0, y0], points.score, points.network, points.depth)
        inside.append(owned_points(points, rank, regions, height, width, zoom=zoom, border=config.border))
    if not len(regions):
        return PassResult(before.points, regions, before.expected)
    points = merge_points(
        before.points, regions, inside, height, width, zoom=zoom, border=config.border, seam=config.seam
    )
    expected = before.expected
    if expected is not None:
        expected = merge_expected(expected, regions, found, height, width, zoom=zoom, border=config.border)
    return PassResult(points, regions, expected)


def boxes_in_image(
    boxes: NDArray[np.float64], region: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Boxes (n, 4) in px of a region's crop of height x width, in px of the image; the region is x0, y0, x1, y1 there.

    A side along the crop's edge is put exactly on the region's: rounding may neither leave the region nor take a box
    off the edge of the image, along which it has no inner border (17).
    """
    low, high = np.tile(region[:2], 2), np.tile(region[2:], 2)
    crop = np.array([width, height, width, height])
    inside = np.clip(boxes / (crop / (high - low)) + low, low, high)
    return np.where(boxes == 0, low, np.where(boxes == crop, high, inside))


def propose_inside(
    frames: Frames,
    index: int,
    regions: NDArray[np.float64],
    config: ZoomingConfig,
    seed: int,
    zoom_pass: int,
    attention_of: MapFunction,
) -> NDArray[np.float64]:
    """Regions of pass 3 and later, (r, 4) input px, ranked.

    RAZ-Net's attention on each crop of the previous pass proposes regions inside the crop. All proposals of one image
    compete for its k_z regions (17).
    """
    zoom = float(config.factor ** (zoom_pass - 2))
    boxes, means = [np.zeros((0, 4))], [np.zeros(0)]
    for rank, (x0, y0, x1, y1) in enumerate(regions):
        pixels = frames.zoomed(index, (x0, y0, x1, y1), zoom)
        name = f"{frames.ids[index]}#{zoom_pass - 1}.{rank}"
        inner_candidates = image_candidates(
            attention_of(pixels, name), config, seed, f"{frames.content(index)}#{rank}", zoom_pass
        )
        selected, selected_means = select_candidates(inner_candidates, config)
        boxes.append(boxes_in_image(selected, regions[rank], pixels.shape[0], pixels.shape[1]))
        del pixels
        means.append(selected_means)
    all_boxes, all_means = np.concatenate(boxes), np.concatenate(means)
    return all_boxes[select_regions(all_boxes, all_means, theta_z=config.theta_z, iou=config.iou, k_z=config.k_z)]


def zoom_pass(
    frames: Frames,
    index: int,
    number: int,
    before: PassResult,
    config: ZoomingConfig,
    seed: int,
    proposed: Candidates | None,  # by Main-Net, for pass 2
    attention_of: MapFunction,
    response_of: MapFunction,
    gamma: float,
) -> PassResult:
    """What is found on one image after pass `number`."""
    if proposed is not None:
        regions, _ = select_candidates(proposed, config)
    else:
        regions = propose_inside(frames, index, before.regions, config, seed, number, attention_of)
    return zoom_image(frames, index, before, regions, config, number, response_of, gamma)


@dataclass(frozen=True)
class RegionImages:
    """Zoomed regions as images with heads, on which RAZ-Net is trained (section 3.1).

    A region is cut from its packed image when it is read: all regions of a split take many times the memory of its
    images. Beyond CUT_BYTES, the least recently read ones are dropped.
    """

    ids: tuple[str, ...]
    frames: Frames
    zoom: float  # zoomed pixels per input pixel
    places: tuple[tuple[int, tuple[float, float, float, float]], ...]  # image, and its box x0, y0, x1, y1 input px
    _heads: tuple[NDArray[np.float64], ...]
    _recent: OrderedDict[int, NDArray[np.uint8]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self.ids)

    def size(self, index: int) -> tuple[int, int]:
        return zoomed_size(self.places[index][1], self.zoom)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        if index in self._recent:
            self._recent.move_to_end(index)
            return self._recent[index]
        image, box = self.places[index]
        region = self._recent[index] = self.frames.zoomed(image, box, self.zoom)
        while len(self._recent) > 1 and sum(recent.nbytes for recent in self._recent.values()) > CUT_BYTES:
            self._recent.popitem(last=False)
        return region

    def heads(self, index: int) -> NDArray[np.float64]:
        return self._heads[index]


def region_images(frames: Frames, config: ZoomingConfig, proposed: Sequence[Candidates]) -> RegionImages:
    """The regions selected among Main-Net's candidates, zoomed by `config.factor` from the original pixels."""
    ids: list[str] = []
    places: list[tuple[int, tuple[float, float, float, float]]] = []
    heads: list[NDArray[np.float64]] = []
    for index, image in enumerate(frames.ids):
        regions, _ = select_candidates(proposed[index], config)
        all_heads = frames.heads(index)
        for rank, (x0, y0, x1, y1) in enumerate(regions.tolist()):
            height, width = zoomed_size((x0, y0, x1, y1), float(config.factor))
            x, y = all_heads[:, 0], all_heads[:, 1]
            inner = all_heads[(x >= x0) & (x < x1) & (y >= y0) & (y < y1)]
            moved = (inner - [x0, y0]) * [width / (x1 - x0), height / (y1 - y0)]
            ids.append(f"{image}#{rank}")
            places.append((index, (x0, y0, x1, y1)))
            heads.append(np.minimum(moved, np.nextafter([width, height], 0.0)))
    return RegionImages(tuple(ids), frames, float(config.factor), tuple(places), tuple(heads))
