from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lmdali.model.picture_file import check_suffix, save_picture
from lmdali.pipeline.errors import ConfigError


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.webp"])
def test_a_picture_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    pixels = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    save_picture(pixels, tmp_path / "new" / name)
    found = cv2.imread(str(tmp_path / "new" / name))
    assert found is not None and np.abs(found[:, :, ::-1].astype(int) - pixels).max() <= 2


@pytest.mark.parametrize(("suffix", "largest"), [(".webp", 16_383), (".jpg", 65_500)])
def test_a_picture_that_is_too_large_for_its_format_is_refused(suffix: str, largest: int, tmp_path: Path) -> None:
    save_picture(np.zeros((largest, 1, 3), np.uint8), tmp_path / f"fits{suffix}")
    with pytest.raises(ConfigError, match=f"has at most {largest} on a side"):
        save_picture(np.zeros((1, largest + 1, 3), np.uint8), tmp_path / f"large{suffix}")
    save_picture(np.zeros((largest + 1, 1, 3), np.uint8), tmp_path / "large.png")


def test_a_name_of_no_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="ends in"):
        check_suffix(Path("a.gif"))
