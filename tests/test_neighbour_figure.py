from __future__ import annotations

import numpy as np

from lmdali.model.neighbour_figure import TILE_SIDE, Picture, draw_neighbours


def picture(level: int, side: int = 224) -> Picture:
    return Picture(np.full((side, side, 3), level, np.uint8), "a", "b")


def block(sheet: np.ndarray, level: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a gray level."""
    rows, columns = np.nonzero((sheet == level).all(axis=2))
    top, left = int(rows.min()), int(columns.min())
    return top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1


def test_each_query_has_a_row_and_its_neighbours_stand_in_order() -> None:
    sheet = draw_neighbours(
        [(picture(10), [picture(20), picture(30)]), (picture(40, side=48), [picture(50), picture(60)])]
    )
    places = {level: block(sheet, level) for level in (10, 20, 30, 40, 50, 60)}
    assert all(place[2:] == (TILE_SIDE, TILE_SIDE) for place in places.values())
    tops = {level: place[0] for level, place in places.items()}
    lefts = {level: place[1] for level, place in places.items()}
    assert tops[10] == tops[20] == tops[30] < tops[40] == tops[50] == tops[60]
    assert lefts[10] == lefts[40] < lefts[20] == lefts[50] < lefts[30] == lefts[60]


def test_a_legend_that_is_too_long_is_shortened() -> None:
    sheet = draw_neighbours([(picture(10), [picture(20)])], legend="words and words " * 40)
    assert (sheet[:, :20] == 255).all() and (sheet[:, -20:] == 255).all()
