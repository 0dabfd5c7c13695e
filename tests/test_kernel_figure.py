from __future__ import annotations

import numpy as np
import pytest
import torch

from lmdali.model.figures import kernel_grid
from lmdali.model.kernel_figure import _HEADING_HEIGHT, _MARGIN, chroma_energy, draw_tower_kernels, tower_kernels
from lmdali.model.pen import Pen
from lmdali.pipeline.errors import ConfigError


def gray_and_coloured() -> torch.Tensor:
    """Eight kernels: four gray ones, then four whose channels cancel."""
    weights = torch.zeros(8, 3, 11, 11)
    weights[:4] = torch.randn(4, 1, 11, 11, generator=torch.Generator().manual_seed(0))
    weights[4:, 0], weights[4:, 2] = 1.0, -1.0
    return weights


def test_chroma_energy_by_hand() -> None:
    gray, coloured = tower_kernels(gray_and_coloured(), 2)
    assert chroma_energy(gray) == pytest.approx(0.0, abs=1e-12)
    assert chroma_energy(coloured) == 1.0
    red = np.zeros((1, 3, 2, 2))
    red[0, 0] = 3.0  # mean 1: (2, -1, -1) of 9 is 6/9
    assert chroma_energy(red) == pytest.approx(2 / 3)
    assert chroma_energy(np.zeros((1, 3, 2, 2))) == 0.0


def test_energies_are_summed_before_they_are_divided() -> None:
    kernels = np.zeros((2, 3, 1, 1))
    kernels[0, 0], kernels[1] = 3.0, 1.0
    assert chroma_energy(kernels) == pytest.approx(6 / 12)


def test_towers_have_grids_of_their_own_on_one_gray_scale() -> None:
    weights = gray_and_coloured()
    sheet = draw_tower_kernels(weights, 2, scale=7)
    whole = kernel_grid(weights)[:, : 1 + 12 * 4]
    assert sheet.shape[1] == 2 * _MARGIN + 7 * (1 + 12 * 4)
    top = _MARGIN + _HEADING_HEIGHT
    seen = sheet[top : top + 7 * 13, _MARGIN:-_MARGIN][::7, ::7]
    assert (seen == whole).all()
    last = sheet[-_MARGIN - 7 * 13 : -_MARGIN, _MARGIN:-_MARGIN][::7, ::7]
    assert (last == kernel_grid(weights)[:, 12 * 4 : 12 * 8 + 1]).all()


def test_the_papers_kernels_fill_three_rows_each() -> None:
    sheet = draw_tower_kernels(torch.randn(96, 3, 11, 11), 2, scale=3)
    assert sheet.shape[1] == 2 * _MARGIN + 3 * 193


def test_a_sheet_of_few_kernels_is_wide_enough_for_its_headings() -> None:
    sheet = draw_tower_kernels(gray_and_coloured()[[0, 4]], 2, scale=1)
    pen = Pen(sheet)
    heading = pen.width("tower 1", 18, bold=True)
    detail = pen.width("1 kernels, chroma energy 0.000", 14)
    assert sheet.shape[1] >= 2 * _MARGIN + heading + detail
    line = sheet[_MARGIN : _MARGIN + 24]
    assert (line[:, : _MARGIN - 1] == 255).all() and (
        line[:, _MARGIN + heading + 4 : -_MARGIN - detail - 4] == 255
    ).all()


def test_kernels_that_towers_cannot_share_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 kernels"):
        tower_kernels(torch.zeros(5, 3, 2, 2), 2)
