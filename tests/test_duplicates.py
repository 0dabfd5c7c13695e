from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.tools import duplicates
from lmdali.tools.duplicates import DuplicatePair, compare_thumbnails, connected_groups, find_duplicates, thumbnail
from lmdali.tools.record_catalog import RecordCatalog


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda pair: pair[0] != pair[1])))
def test_groups_are_the_connected_components(links: list[tuple[int, int]]) -> None:
    groups = connected_groups([DuplicatePair(min(link), max(link), "near") for link in links])
    where = {number: place for place, group in enumerate(groups) for number in group}
    assert sorted(where) == sorted({number for link in links for number in link})
    assert all(where[one] == where[other] for one, other in links)
    # As many links as a forest needs, and no fewer: components cannot be larger than their links allow.
    reached: dict[int, set[int]] = {number: {number} for number in where}
    for _ in where:
        for one, other in links:
            reached[one] = reached[other] = reached[one] | reached[other]
    assert all(set(groups[where[number]]) == members for number, members in reached.items())


def test_thumbnails_of_a_lightened_picture_correlate_and_of_another_do_not() -> None:
    random = np.random.default_rng(0)
    one, other = (cv2.resize(random.integers(30, 200, (6, 6, 3), np.uint8), (96, 96)) for _ in range(2))
    difference, correlation = compare_thumbnails(thumbnail(one), thumbnail(one + np.uint8(10)))
    assert difference == pytest.approx(0, abs=0.01) and correlation == pytest.approx(1, abs=1e-5)
    assert compare_thumbnails(thumbnail(one), thumbnail(other))[1] < 0.9
    flat = np.zeros((16, 16), np.float32)
    assert compare_thumbnails(flat, flat) == (0.0, 0.0)


def dataset_of(root: Path, files: dict[str, np.ndarray], make_dataset: Callable[..., Path], **options: Any) -> Path:
    for name, pixels in files.items():
        (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / "source" / name), pixels)
    return make_dataset(root / "source", root / "set", size=64, **options)


def scene(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(20, 230, (7, 7, 3), np.uint8)
    return cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_CUBIC)


def test_other_files_of_the_same_pixels_are_told_from_copies(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    files = {"a/x.png": scene(0), "b/x.bmp": scene(0), "b/y.png": scene(0), "a/other.png": scene(1)}
    catalog = RecordCatalog([dataset_of(tmp_path, files, make_dataset, encoding="raw")], quiet=True)
    found = find_duplicates(catalog, quiet=True)
    assert sorted(pair.kind for pair in found.pairs) == ["same_file", "same_pixels"]
    ((*group,),) = found.groups
    assert set(catalog.sources(group).values()) == {"a/x.png", "b/x.bmp", "b/y.png"}
    assert {catalog.class_name(number) for number in group} == {"a", "b"}
    catalog.close()


def test_many_pictures_of_one_hash_are_one_group_without_all_their_pairs(
    tmp_path: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = scene(2).clip(0, 200)
    files = {f"a/{shift:02d}.png": base + np.uint8(shift) for shift in range(0, 20, 2)}  # light changes no bit
    catalog = RecordCatalog([dataset_of(tmp_path, files, make_dataset, encoding="raw")], quiet=True)
    assert len(set(catalog.hashes.tolist())) == 1
    assert len(find_duplicates(catalog, mirrored=False, quiet=True).pairs) == 10 * 9 // 2
    monkeypatch.setattr(duplicates, "_MAX_MEMBERS", 4)
    bounded = find_duplicates(catalog, mirrored=False, quiet=True)
    assert len(bounded.pairs) == 9 + 8 and bounded.groups == [tuple(range(10))]
    catalog.close()


def test_near_hashes_of_different_pixels_are_no_duplicates(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    # The hash does not see contrast: the same scene in black and white and in two grays has the same hash.
    strong = scene(3)
    weak = (strong.astype(np.int16) // 8 + 200).astype(np.uint8)
    catalog = RecordCatalog([dataset_of(tmp_path, {"a/x.png": strong, "a/y.png": weak}, make_dataset)], quiet=True)
    found = find_duplicates(catalog, mirrored=False, quiet=True)
    assert found.num_candidates == 1 and found.pairs == [] and found.groups == []
    catalog.close()


def test_copies_much_lighter_or_darker_are_duplicates(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    base = scene(4).clip(40, 190)
    light, strong, dark = (
        base + np.uint8(60),
        cv2.convertScaleAbs(base, alpha=1.25),
        cv2.convertScaleAbs(base, alpha=0.75),
    )
    files = {"a/base.png": base, "a/dark.png": dark, "a/light.png": light, "a/strong.png": strong}
    catalog = RecordCatalog([dataset_of(tmp_path, files, make_dataset)], quiet=True)
    found = find_duplicates(catalog, mirrored=False, quiet=True)
    assert found.groups == [(0, 1, 2, 3)] and {pair.kind for pair in found.pairs} == {"near"}
    catalog.close()
