"""One picture: a motif in a scene with natural-image statistics, seen through a plain camera.

Backgrounds are fractal noise (amplitude falling as 1/frequency) and overlapping things in front of each other, which is
what gives photographs their spectrum (Ruderman 1997; Lee, Mumford and Huang 2001). Colours are drawn along the
principal axes of natural colour: much luminance, some blue against yellow, little red against green.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lmdali.tools.motifs import Motif
from lmdali.tools.sketch import Field, Palette, Sketch, coverage

Pixels = NDArray[np.uint8]

# Rows: luminance, blue-yellow, red-green, of unit length, in RGB.
COLOUR_AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32) / np.sqrt([[3], [2], [6]], dtype=np.float32)
TILE_PIXELS = 256
LONGEST_DRAWN_PIXELS = 400


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture being composed, before the camera.

    `canvas` (3, H, W) float32, RGB, 0..255, is drawn into in place. `texture` and `warp` are (H, W) float32 noise of
    unit variance, fractal and smooth. `light` points to where the light comes from.
    """

    canvas: Field
    texture: Field
    warp: Field
    palette: Palette
    light: tuple[float, float]
    rng: np.random.Generator


def render(motif: Motif, width: int, height: int, rng: np.random.Generator) -> Pixels:
    """A picture of `motif`: (height, width, 3) uint8, RGB. Everything about it comes from `rng`."""
    shrink = min(1.0, LONGEST_DRAWN_PIXELS / max(width, height))
    scene = _empty_scene(max(round(width * shrink), 16), max(round(height * shrink), 16), rng)
    for _ in range(int(rng.integers(0, 8))):
        _place_clutter(scene, rng.uniform(0.05, 0.3))
    for centre, radius in _positions(scene, motif):
        _place(scene, motif, centre, radius)
    for _ in range(int(rng.choice([0, 1, 2, 4], p=[0.5, 0.25, 0.15, 0.1]))):
        _place_clutter(scene, rng.uniform(0.03, 0.11))
    _illuminate(scene)
    return _photograph(scene, width, height)


def natural_colour(rng: np.random.Generator, luminance: float, vividness: float = 1.0) -> Field:
    """A colour of the given luminance, (3, 1, 1) float32, RGB, 0..255, with the chroma spread of photographs."""
    chroma = rng.laplace(0, (32 * vividness, 16 * vividness))
    rgb: Field = np.array([luminance * math.sqrt(3), *chroma], np.float32) @ COLOUR_AXES
    return rgb.clip(4, 251)[:, None, None]


def fractal_tiles(rng: np.random.Generator) -> Field:
    """Two independent periodic noise fields, (2, 256, 256) float32 of unit variance, amplitude ~ 1/frequency."""
    frequency = np.fft.fftfreq(TILE_PIXELS).astype(np.float32)
    radius = np.hypot(frequency[:, None], frequency)
    radius[0, 0] = np.inf
    parts = rng.standard_normal((2, TILE_PIXELS, TILE_PIXELS), np.float32)
    noise = np.fft.ifft2((parts[0] + 1j * parts[1]) / radius)
    tiles = np.stack([noise.real, noise.imag]).astype(np.float32)
    unit: Field = tiles / tiles.std(axis=(1, 2), keepdims=True)
    return unit


def _empty_scene(width: int, height: int, rng: np.random.Generator) -> Scene:
    palette = _draw_palette(rng)
    tiles = fractal_tiles(rng)
    texture, mixture = (_stretch(tile, width, height) for tile in tiles)
    warp = cv2.resize(cv2.resize(tiles[0], (24, 24), interpolation=cv2.INTER_AREA), (width, height))
    share = 0.5 + 0.3 * mixture
    if rng.random() < 0.4:  # a horizon: one ground above, another below
        slope = np.linspace(-1, 1, height, dtype=np.float32)[:, None] - rng.uniform(-0.4, 0.4)
        share = 0.35 * share + 0.32 + 0.5 * np.tanh(slope * rng.uniform(2, 12))
    first, second, third = palette.grounds
    canvas = first + share.clip(0, 1) * (second - first)
    patches = 0.6 * coverage(texture - rng.uniform(0.6, 2), 0.25)
    canvas += patches * (third - canvas)
    canvas += rng.uniform(8, 26) * texture
    direction = rng.uniform(-math.pi, 0)
    light = (math.cos(direction), math.sin(direction))
    return Scene(canvas=canvas, texture=texture, warp=warp, palette=palette, light=light, rng=rng)


def _draw_palette(rng: np.random.Generator) -> Palette:
    """Colours for any motif: two of clearly different luminance for the motif, three near each other for the ground."""
    dark, bright = rng.uniform(12, 95), rng.uniform(130, 240)
    base = rng.uniform(20, 215)
    first, second = (dark, bright) if rng.random() < 0.5 else (bright, dark)
    # Something of the motif must stand off from the ground, or nobody could see it.
    if abs(first - base) < 60:
        base = first - 75 if first > 125 else first + 75
    a, b, c = (natural_colour(rng, float(np.clip(base + rng.normal(0, 32), 8, 245)), 0.9) for _ in range(3))
    vividness = rng.uniform(0.5, 1.9)
    return Palette(
        main=natural_colour(rng, first, vividness),
        mark=natural_colour(rng, second, vividness),
        accent=natural_colour(rng, rng.uniform(20, 235), vividness),
        grounds=(a, b, c),
    )


def _stretch(tile: Field, width: int, height: int) -> Field:
    """The tile's upper left part in the picture's aspect ratio, enlarged to (height, width)."""
    scale = TILE_PIXELS / max(width, height)
    part = tile[: max(round(height * scale), 1), : max(round(width * scale), 1)]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32, copy=False)


def _positions(scene: Scene, motif: Motif) -> list[tuple[tuple[float, float], float]]:
    """Where the motif's copies stand: centre and radius in pixels, back to front."""
    rng, (height, width) = scene.rng, scene.texture.shape
    side = min(width, height)
    if motif.fills_frame:
        centre = (width * rng.uniform(0.3, 0.7), height * rng.uniform(0.3, 0.7))
        return [(centre, side * rng.uniform(0.4, 0.85))]
    count = int(rng.choice([1, 2, 3], p=[0.72, 0.18, 0.1]))
    positions = []
    for _ in range(count):
        radius = side * (rng.uniform(0.34, 0.54) if count == 1 else rng.uniform(0.26, 0.4))
        # People put what they photograph near the middle; part of it may still leave the picture.
        room = max(0.5 * side - 0.8 * radius, 0.06 * side)
        offset = rng.uniform(-room, room, 2) * (1 + 0.2 * (np.array([width, height]) > side))
        positions.append(((0.5 * width + float(offset[0]), 0.5 * height + float(offset[1])), radius))
    return sorted(positions, key=lambda position: position[0][1])


def _place(scene: Scene, motif: Motif, centre: tuple[float, float], radius: float) -> None:
    """Draw one copy of the motif, with its shadow, into the canvas."""
    rng, (height, width) = scene.rng, scene.texture.shape
    reach = 9.0 * radius if motif.fills_frame else 1.6 * radius
    left, right = max(int(centre[0] - reach), 0), min(int(centre[0] + reach) + 1, width)
    top, bottom = max(int(centre[1] - reach), 0), min(int(centre[1] + reach) + 1, height)
    window = np.s_[top:bottom, left:right]
    tilt, squeeze, shear = rng.uniform(-1, 1) * motif.tilt_radians, rng.uniform(0.82, 1.2), rng.uniform(-0.15, 0.15)
    side = rng.choice((-1.0, 1.0))
    x = (np.arange(left, right, dtype=np.float32) - centre[0])[None, :] / radius
    y = (np.arange(top, bottom, dtype=np.float32) - centre[1])[:, None] / radius
    cosine, sine = np.float32(math.cos(tilt)), np.float32(math.sin(tilt))
    across, down = cosine * x + sine * y, cosine * y - sine * x
    sketch = Sketch(
        x=(np.float32(side * squeeze) * across + np.float32(shear) * down),
        y=down,
        pixel=1.1 / radius,
        warp=scene.warp[window],
        palette=scene.palette,
        rng=rng,
    )
    motif.draw(sketch)
    mask = coverage(sketch.distance, sketch.pixel)
    depth = -sketch.distance if sketch.relief is None else sketch.relief
    shade = _relief_shade(depth, sketch.pixel, scene.light) + 0.07 * scene.texture[window]
    _composite(scene, window, mask, sketch.colour * shade, 0.06 * radius)


def _relief_shade(depth: Field, pixel: float, light: tuple[float, float]) -> Field:
    """Brightness factor of a rounded surface that rises inwards from its outline."""
    slope = np.clip(1 - depth * (1 / 0.32), 0, 1)
    dome = cv2.GaussianBlur(np.sqrt(1 - slope * slope), (0, 0), 1.2)
    # Sobel sums eight differences over two pixels each.
    scale = 0.32 / (8 * pixel)
    toward = cv2.Sobel(dome, cv2.CV_32F, 1, 0) * (-light[0] * scale)
    toward += cv2.Sobel(dome, cv2.CV_32F, 0, 1) * (-light[1] * scale)
    shade: Field = (0.93 - 0.35 * toward).clip(0.45, 1.4)
    return shade


def _composite(scene: Scene, window: tuple[slice, slice], mask: Field, colour: Field, shadow_pixels: float) -> None:
    """Put `colour` where `mask` is over the canvas; the background gets a soft shadow away from the light."""
    below = scene.canvas[:, *window]
    reach = max(shadow_pixels, 1.0)
    move = np.array([[1, 0, -2 * reach * scene.light[0]], [0, 1, -2 * reach * scene.light[1]]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(mask, move, (mask.shape[1], mask.shape[0])), (0, 0), reach)
    below *= 1 - 0.5 * shadow
    below += mask * (colour - below)


def _place_clutter(scene: Scene, size: float) -> None:
    """Something that says nothing about the class: a stone, a blade or a board."""
    rng, (height, width) = scene.rng, scene.texture.shape
    radius = size * min(width, height)
    centre = rng.uniform((0, 0), (width, height))
    turn = rng.uniform(0, math.pi)
    angles = np.arange(0, 2 * math.pi, 2 * math.pi / 24)
    kind = int(rng.integers(3))
    if kind == 0:  # stone
        bumps = np.stack([rng.normal(0, 0.22 / k) * np.cos(k * angles + rng.uniform(0, 6)) for k in range(2, 7)])
        outline = np.stack([np.cos(angles), 0.7 * np.sin(angles)], 1) * (1 + bumps.sum(axis=0))[:, None]
    elif kind == 1:  # blade
        along = np.cos(angles) * rng.uniform(2, 4)
        outline = np.stack([along, 0.22 * np.sin(angles) + 0.08 * rng.uniform(-1, 1) * along**2], 1)
    else:  # board
        outline = np.array([[-1.6, -0.5], [1.6, -0.5], [1.6, 0.5], [-1.6, 0.5]]) * rng.uniform(0.6, 1.2)
    cosine, sine = math.cos(turn), math.sin(turn)
    points = centre + radius * outline @ np.array([[cosine, sine], [-sine, cosine]])
    margin = 0.5 * radius + 4  # room for the shadow
    low = np.maximum(np.floor(points.min(0) - margin).astype(int), 0)
    high = np.minimum(np.ceil(points.max(0) + margin).astype(int), (width, height))
    if (high - low < 4).any():
        return
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    cv2.fillPoly(mask, [np.round((points - low) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    window = np.s_[low[1] : high[1], low[0] : high[0]]
    ground = scene.palette.grounds[int(rng.integers(3))]
    colour = 0.5 * ground + 0.5 * natural_colour(rng, rng.uniform(15, 240))
    lit = colour * (1 + 0.16 * scene.texture[window])
    _composite(scene, window, mask.astype(np.float32) * np.float32(1 / 255), lit, 0.12 * radius)


def _illuminate(scene: Scene) -> None:
    """Uneven light: a gradient across the picture, and now and then the edge of a large soft shadow."""
    rng, (height, width) = scene.rng, scene.texture.shape
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    across = x * scene.light[0] + y * scene.light[1]
    light = 1 + np.float32(rng.uniform(0.1, 0.4)) * across
    if rng.random() < 0.3:
        edge = across + 0.3 * scene.warp + rng.uniform(-0.5, 0.6)
        light *= 1 - np.float32(rng.uniform(0.25, 0.5)) * coverage(edge, rng.uniform(0.1, 0.5))
    light -= np.float32(rng.uniform(0, 0.12)) * (x * x + y * y)
    scene.canvas[...] *= light


def _photograph(scene: Scene, width: int, height: int) -> Pixels:
    """Exposure, white balance, defocus or sharpening, sensor noise, and the 8-bit result at full size."""
    rng = scene.rng
    balance = rng.uniform(0.85, 1.3) * (1 + rng.uniform(-0.06, 0.06, 3))
    exposed = scene.canvas * balance.astype(np.float32)[:, None, None] + rng.uniform(-8, 14)
    canvas = cv2.merge(list(exposed))
    if rng.random() < 0.2:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 1.5))
    else:  # cameras sharpen
        canvas += rng.uniform(0.4, 1.2) * (canvas - cv2.GaussianBlur(canvas, (0, 0), 1.0))
    if canvas.shape[:2] != (height, width):
        canvas = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.standard_normal((height, width), np.float32) * np.float32(rng.uniform(1, 6))
    return cv2.add(canvas, cv2.merge([grain, grain, grain]), dtype=cv2.CV_8U).astype(np.uint8, copy=False)
