"""Figure 3 of the paper: the kernels of the first layer, the towers told apart, and how much colour each of them has.

The paper: "The kernels on GPU 1 are largely color-agnostic, while the kernels on GPU 2 are largely color-specific."
Chroma energy puts a number to that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmdali.model.figures import KERNELS_PER_ROW, kernel_grid
from lmdali.model.pen import BLACK, GRAY, Pen, Pixels
from lmdali.pipeline.errors import ConfigError

_MARGIN, _HEADING_HEIGHT, _TOWER_GAP, _TEXT_GAP = 24, 34, 22, 20
_HEADING_SIZE, _DETAIL_SIZE = 18, 14


def chroma_energy(kernels: NDArray[np.float64]) -> float:
    """Part of the kernels' energy that is colour: `||w - mean_rgb(w)||**2 / ||w||**2`, summed over all kernels.

    Args:
        kernels: `(N, 3, h, w)`.

    Returns:
        0 for gray kernels, up to 1 where the three channels cancel; 0 for kernels that are zero.
    """
    energy = float(np.square(kernels).sum())
    chroma = float(np.square(kernels - kernels.mean(axis=1, keepdims=True)).sum())
    return chroma / energy if energy else 0.0


def tower_kernels(weights: Tensor, towers: int) -> list[NDArray[np.float64]]:
    """The kernels of each tower: `(N / towers, 3, h, w)` float64.

    Raises:
        ConfigError: the kernels cannot be divided so.
    """
    kernels = weights.detach().double().cpu().numpy()
    if len(kernels) % towers:
        raise ConfigError(f"{len(kernels)} kernels cannot be divided into {towers} towers")
    return np.split(kernels, towers)


def draw_tower_kernels(weights: Tensor, towers: int, *, scale: int = 5) -> Pixels:
    """Draw each tower's kernels under a heading with its chroma energy; one gray scale for all of them.

    Args:
        weights: `(N, 3, h, w)` floating point, of the first layer.
        towers: halves that the kernels are in, in order.
        scale: side of a weight, pixels.

    Returns:
        `(H, W, 3)` uint8 RGB on white.

    Raises:
        ConfigError: the kernels cannot be divided so.
        InputError: not the weights of a first layer.
    """
    levels = (float(weights.min()), float(weights.max()))
    energies = [chroma_energy(kernels) for kernels in tower_kernels(weights, towers)]
    count = len(weights) // towers
    columns = 1 + min(count, KERNELS_PER_ROW) * (weights.shape[3] + 1)  # no more black than a full row needs
    grids = [kernel_grid(part, levels=levels)[:, :columns] for part in weights.chunk(towers)]
    grids = [grid.repeat(scale, axis=0).repeat(scale, axis=1) for grid in grids]
    heights = [len(grid) + _HEADING_HEIGHT for grid in grids]
    captions = _captions(energies, count)
    width = max(grids[0].shape[1], _text_width(captions))
    shape = (2 * _MARGIN + sum(heights) + (towers - 1) * _TOWER_GAP, 2 * _MARGIN + width, 3)
    sheet: Pixels = np.full(shape, 255, np.uint8)
    pen, top = Pen(sheet), _MARGIN
    for (heading, detail), grid in zip(captions, grids, strict=True):
        pen.write(heading, _MARGIN, top + 20, _HEADING_SIZE, BLACK, width, bold=True)
        start = _MARGIN + width - pen.width(detail, _DETAIL_SIZE)
        pen.write(detail, start, top + 20, _DETAIL_SIZE, GRAY, width)
        top += _HEADING_HEIGHT
        sheet[top : top + len(grid), _MARGIN : _MARGIN + grid.shape[1]] = grid
        top += len(grid) + _TOWER_GAP
    return sheet


def _captions(energies: Sequence[float], count: int) -> list[tuple[str, str]]:
    headings = ["first layer"] if len(energies) == 1 else [f"tower {number}" for number in range(1, len(energies) + 1)]
    details = [f"{count} kernels, chroma energy {energy:.3f}" for energy in energies]
    return list(zip(headings, details, strict=True))


def _text_width(captions: Sequence[tuple[str, str]]) -> int:
    """Pixels that a heading and what stands to the right of it need."""
    pen = Pen(np.empty((0, 0, 3), np.uint8))
    return max(
        pen.width(heading, _HEADING_SIZE, bold=True) + _TEXT_GAP + pen.width(detail, _DETAIL_SIZE)
        for heading, detail in captions
    )
