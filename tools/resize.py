"""The geometry of conversion: any picture becomes a square of one size, by a recipe that the manifest names.

`area`, the recipe the 2012 data were made with: the shorter side becomes `size`, the other keeps its proportion, and
the central square is cut out: the paper's section 2, with OpenCV's area filter down and cubic filter up as the author's
own batch maker used them. The area filter gives the same bytes whatever the threads and instruction set, and whether
OpenCV or `area_kernel` computes it; the cubic one whatever the threads, but a build of OpenCV without vector code
differs by one gray level here and there.

`bicubic`, sharper: the central square is cut out of the source first, so that nothing is computed in vain, and resized
by torch's antialiased bicubic filter, up and down, or to the same bytes by `bicubic_kernel`. The window is the same to
within half a pixel of the source and half a pixel of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import cv2
import numpy as np

from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import ConfigError
from lmdali.tools.area_filter import AreaFilter
from lmdali.tools.bicubic_filter import BicubicFilter

FilterName = Literal["area", "bicubic"]
FILTERS: tuple[FilterName, ...] = get_args(FilterName)

AREA, BICUBIC = AreaFilter(), BicubicFilter()
"""Resize all pictures of this process; worth compiling for many."""

EXTREME_ASPECT = 4
"""Where the longer side is more than this many times the shorter, the central square shows less than a quarter of the
picture: its subject is likely outside. Panoramas, banners and strips of film are beyond it, photographs are not."""


@dataclass(frozen=True, kw_only=True)
class ResizeRecipe:
    """How pixels are made, for the manifest.

    Attributes:
        size: side of the stored square, pixels.
        down: filter where the picture shrinks.
        up: filter where it grows.
        crop: which part is kept: "center" of the resized picture, or the "center-first" of the source.
        max_resized_side: a picture that must grow so far that its longer side would pass this many pixels loses its
            ends first, because the whole would need memory out of all proportion: 1 x 65500 pixels would grow to
            12.9 GB. What is kept reaches far beyond the central square on both sides, so the square shows the same
            pixels, moved by half of one of its pixels at most. At the default this begins at 256 : 1.
    """

    size: int = 256
    down: Literal["area", "bicubic"] = "area"
    up: Literal["cubic", "bicubic"] = "cubic"
    crop: Literal["center", "center-first"] = "center"
    max_resized_side: int = 65536

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise ConfigError(f"size is {self.size}: choose 1 to 4096 pixels")
        steps = (self.down, self.up, self.crop)
        if steps not in _STEPS.values():
            raise ConfigError(f"down, up and crop are {steps}: choose one of {', '.join(map(str, _STEPS.values()))}")
        if self.max_resized_side < 4 * self.size:
            raise ConfigError(
                f"max_resized_side is {self.max_resized_side}: choose at least 4 * size = {4 * self.size}"
            )

    @classmethod
    @cache
    def named(cls, name: FilterName, size: int = 256) -> ResizeRecipe:
        """The recipe of a filter's name.

        Raises:
            ConfigError: no such filter, or an impossible size.
        """
        if name not in _STEPS:
            raise ConfigError(f"filter is {name!r}: choose among {', '.join(FILTERS)}")
        down, up, crop = _STEPS[name]
        return cls(size=size, down=down, up=up, crop=crop)


_STEPS: dict[
    str,
    tuple[Literal["area", "bicubic"], Literal["cubic", "bicubic"], Literal["center", "center-first"]],
] = {"area": ("area", "cubic", "center"), "bicubic": ("bicubic", "bicubic", "center-first")}


def resize_and_crop(pixels: Pixels, recipe: ResizeRecipe | None = None) -> Pixels:
    """Resize by the shorter side and cut out the central square, in the order that the recipe says.

    Args:
        pixels: `(H, W, 3)` uint8.
        recipe: default: `ResizeRecipe()`.

    Returns:
        `(size, size, 3)` uint8, C-contiguous, never a view of `pixels`.

    Raises:
        MissingExtraError: the recipe is `bicubic` and torch is not installed.
    """
    recipe = recipe or ResizeRecipe()
    size = recipe.size
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if recipe.crop == "center-first":
        return BICUBIC.central_square(pixels, size)
    if shorter < size:
        pixels = _central_strip(pixels, recipe.max_resized_side * shorter // size)
        height, width = pixels.shape[:2]
    new_height, new_width = scaled_sides(height, width, size)
    if shorter > size:
        return AREA.central_square(pixels, (new_height, new_width), size)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    if shorter < size:
        pixels = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
    return np.array(pixels[top : top + size, left : left + size], order="C")


def geometry_oddities(height: int, width: int, size: int) -> tuple[str, ...]:
    """Names of what is unusual about a picture's sides, given those of the stored square.

    "upscaled": the shorter side is below `size`, so the stored pixels are interpolated. "extreme_aspect": the longer
    side is more than `EXTREME_ASPECT` times the shorter.
    """
    shorter, longer = sorted((height, width))
    names = {"upscaled": shorter < size, "extreme_aspect": longer > EXTREME_ASPECT * shorter}
    return tuple(name for name, holds in names.items() if holds)


def scaled_sides(height: int, width: int, size: int) -> tuple[int, int]:
    """Sides after resizing: floor(scale * side + 0.5) with scale = size / shorter side, in exact integer arithmetic.

    The shorter side comes out as `size` and the other as at least that.
    """
    shorter = min(height, width)
    return (2 * size * height + shorter) // (2 * shorter), (2 * size * width + shorter) // (2 * shorter)


def _central_strip(pixels: Pixels, longest: int) -> Pixels:
    """A view of `pixels` whose sides are at most `longest` (or one more), with as much cut off at either end."""
    height, width = pixels.shape[:2]
    if width > longest:
        keep = longest + (width - longest) % 2
        return pixels[:, (width - keep) // 2 : (width + keep) // 2]
    if height > longest:
        keep = longest + (height - longest) % 2
        return pixels[(height - keep) // 2 : (height + keep) // 2]
    return pixels
