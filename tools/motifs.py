"""The ten things the built-in pictures show, each drawn in its own unit coordinates.

Shapes and textures are shared on purpose: zebra and leopard have one body, zebra and fish one kind of stripes, leopard,
ladybird and toadstool all wear spots. Colours come from outside and mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmdali.tools.sketch import Field, Sketch, ellipse, limb, melt, norm, spots, stripes, triangle


def _quadruped(s: Sketch) -> None:
    """Body, neck, head, legs and tail of a standing animal that looks right; ends with the body as newest part."""
    main, mark, draw = s.palette.main, s.palette.mark, s.rng.uniform
    neck_x, neck_y = draw(0.56, 0.7), draw(-0.66, -0.42)
    body = limb(s, (-0.42, 0), (0.36, draw(-0.06, 0.04)), draw(0.25, 0.31), draw(0.24, 0.28))
    body = melt(body, limb(s, (0.4, -0.08), (neck_x, neck_y), 0.17, 0.11))
    body = melt(body, limb(s, (neck_x, neck_y), (neck_x + 0.27, neck_y + 0.13), 0.13, 0.075), 0.05)
    for hip in (-0.52, -0.36, 0.3, 0.46):
        foot = hip + draw(-0.13, 0.13)
        body = melt(body, limb(s, (hip, 0.1), (foot, 0.86), 0.1, 0.055))
    body = np.minimum(body, limb(s, (neck_x - 0.06, neck_y - 0.08), (neck_x - 0.11, neck_y - 0.24), 0.055, 0.015))
    tail_x, tail_y = draw(-0.98, -0.8), draw(-0.1, 0.45)
    s.add(limb(s, (-0.62, -0.12), (tail_x, tail_y), 0.035, 0.03), main)
    s.add(ellipse(s, (tail_x, tail_y), (0.07, 0.09)), mark)
    s.add(body, main)
    s.paint(ellipse(s, (neck_x + 0.1, neck_y - 0.01), (0.032, 0.032)), mark)
    s.paint(ellipse(s, (neck_x + 0.33, neck_y + 0.16), (0.08, 0.07)), mark)


def zebra(s: Sketch) -> None:
    """A quadruped with stripes: upright on the body, level on the legs."""
    _quadruped(s)
    below = np.maximum(s.y - 0.18, 0)
    phase = s.x * np.exp(-4 * below) + 1.1 * below + s.rng.uniform(-0.3, 0.3) * s.y
    s.paint(stripes(s, phase, s.rng.uniform(0.15, 0.21)), s.palette.mark)


def leopard(s: Sketch) -> None:
    """The same quadruped with rosettes: rings around a darker middle."""
    _quadruped(s)
    spot = spots(s, s.rng.uniform(0.17, 0.23), 0.33)
    s.paint(spot, s.palette.mark)
    s.paint(spot + 0.052, 0.5 * (s.palette.main + s.palette.accent))


def fish(s: Sketch) -> None:
    """A striped fish that looks right: lens-shaped body, forked tail, fins, eye."""
    main, mark, accent, draw = s.palette.main, s.palette.mark, s.palette.accent, s.rng.uniform
    height = draw(0.34, 0.5)
    root, span = draw(-0.5, -0.42), draw(0.34, 0.5)
    s.add(triangle(s, (root, 0), (-0.98, span), (-0.82, 0)), accent)
    s.add(triangle(s, (root, 0), (-0.82, 0), (-0.98, -span)), accent)
    s.add(ellipse(s, (-0.05, -height * 0.8), (draw(0.28, 0.42), 0.22)), accent)
    s.add(ellipse(s, (0, height * 0.85), (0.2, 0.17)), accent)
    bow = 0.5 * (0.62 / height - height)
    body = np.maximum(ellipse(s, (0.06, bow), (0.8, height + bow)), ellipse(s, (0.06, -bow), (0.8, height + bow)))
    s.add(body, main)
    s.paint(stripes(s, s.x + draw(-0.15, 0.15) * s.y * s.y, draw(0.17, 0.26)), mark)
    s.paint(ellipse(s, (0.72, 0), (0.26, 0.5)), main)
    s.paint(ellipse(s, (0.58, -0.08), (0.085, 0.085)), _light(s))
    s.paint(ellipse(s, (0.595, -0.08), (0.05, 0.05)), _dark(s))


def ladybird(s: Sketch) -> None:
    """A round beetle from above: split wing case with a few spots in pairs, head, six legs."""
    main, mark, draw = s.palette.main, s.palette.mark, s.rng.uniform
    for side in (-1, 1):
        for hip, foot in ((-0.3, -0.55), (0.05, 0.1), (0.4, 0.72)):
            s.add(limb(s, (side * 0.4, hip), (side * draw(0.8, 0.92), foot + draw(-0.1, 0.1)), 0.06, 0.035), mark)
        s.add(limb(s, (side * 0.1, -0.75), (side * draw(0.22, 0.4), -1.05), 0.03, 0.03), mark)
    s.add(ellipse(s, (0, -0.62), (0.36, 0.3)), mark)
    s.paint(ellipse(s, (-0.2, -0.66), (0.08, 0.08)), s.palette.accent)
    s.paint(ellipse(s, (0.2, -0.66), (0.08, 0.08)), s.palette.accent)
    s.add(ellipse(s, (0, 0.1), (draw(0.62, 0.7), draw(0.66, 0.76))), main)
    s.paint(np.abs(s.x) - 0.022, mark)
    size = draw(0.12, 0.17)
    centres = [(0.26, -0.2), (0.42, 0.18), (0.2, 0.5), (0.16, 0.14)][: int(s.rng.integers(2, 5))]
    for x, y in centres:
        wobble_x, wobble_y = x + draw(-0.04, 0.04), y + draw(-0.04, 0.04)
        for side in (-1, 1):
            s.paint(ellipse(s, (side * wobble_x, wobble_y), (size, size)), mark)


def snail(s: Sketch) -> None:
    """A creeping snail that looks right: a round shell wound in a spiral on a long body, two stalked eyes."""
    main, mark, accent, draw = s.palette.main, s.palette.mark, s.palette.accent, s.rng.uniform
    head_x, head_y = draw(0.68, 0.84), draw(0.1, 0.3)
    body = melt(limb(s, (-0.85, 0.66), (0.45, 0.6), 0.05, 0.15), limb(s, (0.45, 0.6), (head_x, head_y), 0.15, 0.12))
    for lean in (draw(-0.2, -0.05), draw(0.08, 0.25)):
        body = np.minimum(body, limb(s, (head_x, head_y), (head_x + lean, head_y - 0.36), 0.04, 0.03))
        body = np.minimum(body, ellipse(s, (head_x + lean, head_y - 0.36), (0.06, 0.06)))
    s.add(body, accent)
    x, y, radius = -0.14, -0.02, draw(0.54, 0.64)
    s.add(ellipse(s, (x, y), (radius, radius)), main)
    r, angle = norm(s.x - x, s.y - y), np.arctan2(s.y - y, s.x - x)
    turns = draw(2.2, 3.4)
    winding = r * (turns / radius) + angle * (0.5 / math.pi) + draw(0, 1)
    gap = np.abs(winding - np.floor(winding) - 0.5) * (radius / turns)
    s.relief = np.where(s.part > 0, np.minimum(0.5 * radius / turns - gap, radius - r), -body)
    s.paint(gap - draw(0.05, 0.075), mark)


def toadstool(s: Sketch) -> None:
    """A mushroom: a domed, spotted cap on a stem with a ring."""
    main, mark, accent, draw = s.palette.main, s.palette.mark, s.palette.accent, s.rng.uniform
    width, height, brim = draw(0.7, 0.92), draw(0.62, 0.9), draw(0.0, 0.14)
    lean = draw(-0.1, 0.1)
    s.add(limb(s, (lean, 0), (0, 0.82), draw(0.12, 0.2), draw(0.17, 0.26)), accent)
    s.paint(limb(s, (lean - 0.3, 0.34), (lean + 0.3, 0.34), 0.035, 0.035), mark)
    s.add(ellipse(s, (lean, brim), (width * 0.95, 0.13)), 0.5 * (mark + accent))
    s.paint(stripes(s, s.x, 0.09), accent)
    s.add(np.maximum(ellipse(s, (lean, brim), (width, height)), s.y - brim - 0.04 + 0.08 * s.x * s.x), main)
    s.paint(spots(s, draw(0.26, 0.36), draw(0.28, 0.34)), mark)


def daisy(s: Sketch) -> None:
    """A flower seen from the front: a wreath of petals around a dotted heart, sometimes on a stem."""
    main, mark, accent, draw = s.palette.main, s.palette.mark, s.palette.accent, s.rng.uniform
    if draw() < 0.5:
        s.add(limb(s, (0, 0.2), (draw(-0.4, 0.4), 1.12), 0.05, 0.06), accent)
    petals, heart, length = int(s.rng.integers(7, 15)), draw(0.24, 0.36), draw(0.82, 1.0)
    r, angle = norm(s.x, s.y), np.arctan2(s.y, s.x) + draw(0, 6)
    sector = angle * (petals / (2 * math.pi))
    sideways = np.abs(sector - np.floor(sector) - 0.5) * (2 * math.pi / petals) * r
    middle, half = 0.5 * (heart + length), 0.5 * (length - heart) + 0.06
    width = draw(0.8, 1.1) * math.pi * middle / petals
    bloom = (norm((r - middle) * (1 / half), sideways * (1 / width)) - 1) * min(half, width)
    s.add(bloom, main)
    s.paint(sideways - 0.012, mark, 0.6)
    s.add(ellipse(s, (0, 0), (heart, heart)), mark)
    s.paint(spots(s, 0.1, 0.3), accent)


def starfish(s: Sketch) -> None:
    """A star with five tapering, slightly curved arms that carry rows of knobs."""
    main, mark, draw = s.palette.main, s.palette.mark, s.rng.uniform
    r = norm(s.x, s.y)
    angle = np.arctan2(s.y, s.x) + draw(-0.5, 0.5) * r + 0.06 * s.warp
    sector = angle * (5 / (2 * math.pi))
    folded = np.abs(sector - np.floor(sector) - 0.5) * (2 * math.pi / 5)
    along, sideways = r * np.cos(folded), r * np.sin(folded)
    thick = draw(0.26, 0.34)
    arm = norm(along - np.clip(along, 0, 0.92), sideways) - thick + 0.27 * np.clip(along, 0, 0.92)
    s.add(arm, main)
    s.paint(arm + 0.4 * thick, 0.6 * main + 0.4 * s.palette.accent)
    step = draw(0.13, 0.19)
    place = along - np.floor(along * (1 / step)) * step - 0.5 * step
    s.paint(norm(place, sideways) - draw(0.035, 0.05), mark)
    s.paint(norm(place, sideways - 0.62 * (thick - 0.27 * along)) - 0.028, mark)


def bricks(s: Sketch) -> None:
    """A wall in running bond, each brick of its own shade; the wall may end below the picture's top."""
    main, mark, draw = s.palette.main, s.palette.mark, s.rng.uniform
    height = draw(0.17, 0.3)
    width, seam = height * draw(1.9, 2.8), draw(0.018, 0.032)
    top = -3.0 if draw() < 0.6 else draw(-0.6, 0.1)
    s.add(top - s.y, mark)
    course = np.floor(s.y * (1 / height))
    shifted = s.x + course * (0.5 * width) + 0.01 * s.warp
    column = np.floor(shifted * (1 / width))
    inside_x = 0.5 * width - np.abs(shifted - column * width - 0.5 * width)
    inside_y = 0.5 * height - np.abs(s.y - course * height - 0.5 * height)
    depth = np.minimum(inside_x, inside_y) - seam
    shades = draw(0.72, 1.12, (64, 64)).astype(np.float32)[course.astype(np.int32) & 63, column.astype(np.int32) & 63]
    s.paint(-depth, main * shades)
    s.relief = np.minimum(depth, s.y - top)


def cobweb(s: Sketch) -> None:
    """Spokes and sagging rounds of thread, with its spider near the middle."""
    main, mark, draw = s.palette.main, s.palette.mark, s.rng.uniform
    spokes, rounds, thread = int(s.rng.integers(8, 14)), draw(0.13, 0.19), draw(0.013, 0.02)
    r, angle = norm(s.x, s.y), np.arctan2(s.y, s.x) + 0.05 * s.warp + draw(0, 6)
    sector = angle * (spokes / (2 * math.pi))
    offset = np.abs(sector - np.floor(sector) - 0.5)
    sag = r * (1 + draw(0.5, 0.9) * (offset - 0.5) * (offset + 0.5)) * (1 / rounds) + sector * (1 / spokes)
    ring = np.abs(sag - np.floor(sag) - 0.5) * rounds
    spoke = (0.5 - offset) * (2 * math.pi / spokes) * r
    net = np.minimum(np.maximum(ring, r - 1.05), np.maximum(spoke, r - 1.3)) - thread
    s.add(net, main)
    x, y = draw(-0.2, 0.2), draw(-0.2, 0.2)
    for turn in range(8):
        lean = (turn + 0.5) * math.pi / 4
        s.add(limb(s, (x, y), (x + 0.2 * math.cos(lean), y + 0.24 * math.sin(lean)), 0.018, 0.014), mark)
    s.add(ellipse(s, (x, y), (0.08, 0.11)), mark)


def _light(s: Sketch) -> Field:
    return max(s.palette.main, s.palette.mark, key=np.sum)


def _dark(s: Sketch) -> Field:
    return min(s.palette.main, s.palette.mark, key=np.sum)


@dataclass(frozen=True, kw_only=True)
class Motif:
    """A class of pictures: how to draw it and how it stands in the scene.

    `tilt_radians` bounds the rotation either way; `fills_frame` motifs are drawn once, about as large as the picture.
    """

    draw: Callable[[Sketch], None]
    tilt_radians: float
    fills_frame: bool = False

    @property
    def name(self) -> str:
        """Name of the class and of its folder."""
        return self.draw.__name__


MOTIFS: tuple[Motif, ...] = (
    Motif(draw=bricks, tilt_radians=0.25, fills_frame=True),
    Motif(draw=cobweb, tilt_radians=math.pi, fills_frame=True),
    Motif(draw=daisy, tilt_radians=0.6),
    Motif(draw=fish, tilt_radians=0.5),
    Motif(draw=ladybird, tilt_radians=math.pi),
    Motif(draw=leopard, tilt_radians=0.2),
    Motif(draw=snail, tilt_radians=0.3),
    Motif(draw=starfish, tilt_radians=math.pi),
    Motif(draw=toadstool, tilt_radians=0.3),
    Motif(draw=zebra, tilt_radians=0.2),
)
