"""Drawing with signed distances: colours, coordinates, and the few shapes and textures the motifs are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours of one picture, each (3, 1, 1) float32, RGB, 0..255, so that they broadcast over planes.

    `main` and `mark` differ clearly in luminance, `accent` lies anywhere; `grounds` are the background's three.
    """

    main: Field
    mark: Field
    accent: Field
    grounds: tuple[Field, Field, Field]


@dataclass(kw_only=True)
class Sketch:
    """A drawing in progress: coordinates, colours so far, and the silhouette as a signed distance.

    `x` (right) and `y` (down) are (H, W) float32 in units of the motif's radius, `pixel` is the width of one pixel in
    that unit, `warp` a smooth (H, W) noise of unit variance, `colour` (3, H, W) float32, RGB, 0..255. `distance`
    is negative inside the silhouette, `relief` the depth that the light sees (by default the distance to the outline).
    """

    x: Field
    y: Field
    pixel: float
    warp: Field
    palette: Palette
    rng: np.random.Generator
    distance: Field = field(init=False)
    relief: Field | None = None
    colour: Field = field(init=False)
    part: Field = field(init=False)

    def __post_init__(self) -> None:
        self.distance = np.full(self.x.shape, 9, np.float32)
        self.colour = np.zeros((3, *self.x.shape), np.float32)
        self.part = np.zeros(self.x.shape, np.float32)

    def add(self, distance: Field, colour: Field) -> None:
        """Lay a new part over what is there and make it the one that `paint` marks."""
        self.distance = np.minimum(self.distance, distance)
        # One pixel wider than the silhouette, so that the outline blends this colour and not black with the background.
        self.part = coverage(distance - self.pixel, self.pixel)
        self.colour += self.part * (colour - self.colour)

    def paint(self, distance: Field, colour: Field, strength: float = 1.0) -> None:
        """Colour the inside of `distance`, on the newest part only."""
        mask = coverage(distance, self.pixel) * self.part * strength
        self.colour += mask * (colour - self.colour)


def coverage(distance: Field, pixel: float) -> Field:
    """Share of each pixel that lies inside: 0..1, antialiased over one pixel."""
    return (0.5 - distance * (1 / pixel)).clip(0, 1)


def norm(x: Field, y: Field) -> Field:
    """Length of the vector (x, y), in a third of the time of `np.hypot`, which guards against overflow."""
    length: Field = np.sqrt(x * x + y * y)
    return length


def ellipse(s: Sketch, centre: Point, radii: Point) -> Field:
    """Distance to an axis-parallel ellipse (exact for circles, nearly so near the outline of the others)."""
    x, y = (s.x - centre[0]) * (1 / radii[0]), (s.y - centre[1]) * (1 / radii[1])
    return (norm(x, y) - 1) * min(radii)


def limb(s: Sketch, start: Point, end: Point, start_radius: float, end_radius: float) -> Field:
    """Distance to a rod with round ends whose radius changes from `start` to `end`."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    x, y = s.x - start[0], s.y - start[1]
    along = np.clip((x * dx + y * dy) * (1 / (dx * dx + dy * dy)), 0, 1)
    return norm(x - along * dx, y - along * dy) - (start_radius + along * (end_radius - start_radius))


def triangle(s: Sketch, a: Point, b: Point, c: Point) -> Field:
    """Distance to the triangle a, b, c given clockwise on the screen (a bound at its corners)."""
    edges = []
    for (px, py), (qx, qy) in ((a, b), (b, c), (c, a)):
        length = math.hypot(qx - px, qy - py)
        edges.append(((s.x - px) * (qy - py) - (s.y - py) * (qx - px)) * (1 / length))
    return np.maximum(np.maximum(edges[0], edges[1]), edges[2])


def melt(a: Field, b: Field, softness: float = 0.1) -> Field:
    """Union of two distances with a rounded joint."""
    joint = np.maximum(softness - np.abs(a - b), 0)
    return np.minimum(a, b) - joint * joint * (0.25 / softness)


def stripes(s: Sketch, phase: Field, period: float) -> Field:
    """Distance to wavy bands; `phase` is a length, one band to a `period` of it."""
    waves = (phase + 0.16 * period * s.warp) * (1 / period)
    return (np.abs(waves - np.floor(waves) - 0.5) - 0.26) * period


def spots(s: Sketch, period: float, radius: float) -> Field:
    """Distance to the nearest of the spots that lie scattered, one to a cell of `period`; `radius` in periods."""
    across, down = (s.x + 0.03 * s.warp) * (1 / period), s.y * (1 / period)
    row = np.floor(down)
    across = across + 0.42 * row  # rows shifted like bricks, or the cells would show
    column = np.floor(across)
    scatter = s.rng.uniform(-0.5, 0.5, (2, 64, 64)).astype(np.float32) * (1 - 2 * radius)
    cell = (row.astype(np.int32) & 63, column.astype(np.int32) & 63)
    x, y = across - column - 0.5 - scatter[0][cell], down - row - 0.5 - scatter[1][cell]
    return (norm(x, y) - radius) * period
