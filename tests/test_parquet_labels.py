from __future__ import annotations

import pytest

from lmdali.pipeline.errors import InputError
from lmdali.tools.parquet_labels import TableLabels

WNIDS = ("n01440764", "n01443537", "n01751748")
TRAIN, VALIDATION = "n01440764_10026_n01440764.JPEG", "val/ILSVRC2012_val_00000001_n01751748.JPEG"


def test_without_a_class_list_the_table_names_its_classes_or_numbers_do() -> None:
    named = TableLabels("t", None, ("tench, Tinca tinca", "goldfish"))
    assert [named.number(label, None, "row") for label in (1, 0)] == [1, 0]
    assert named.class_names() == ("tench, Tinca tinca", "goldfish")
    numbered = TableLabels("t", None, None)
    assert numbered.number(3, None, "row") == 3
    assert numbered.class_names() == ("0", "1", "2", "3")


def test_a_table_with_names_is_mapped_by_name_whatever_their_order() -> None:
    labels = TableLabels("t", ("a", "b", "c"), ("c", "a"))
    assert [labels.number(label, None, "row") for label in (0, 1)] == [2, 0]
    assert labels.class_names() == ("a", "b", "c")
    with pytest.raises(InputError, match=r"t: 1 classes are not in the class list of 2 names \('c'\)"):
        TableLabels("t", ("a", "b"), ("c", "a"))
    with pytest.raises(InputError, match="'a' is named twice"):
        TableLabels("t", None, ("a", "b", "a"))


def test_a_table_without_names_is_mapped_by_number() -> None:
    labels = TableLabels("t", ("a", "b"), None)
    assert labels.number(1, None, "row 4") == 1
    with pytest.raises(InputError, match="row 5: label 2 is too large; there are 2 class names"):
        labels.number(2, None, "row 5")
    with pytest.raises(InputError, match="row 6: label 1000000 is too large; labels go up to 999999"):
        TableLabels("t", None, None).number(1_000_000, None, "row 6")
    with pytest.raises(InputError, match="row 7: label 2 is too large; there are 2 class names"):
        TableLabels("t", None, ("a", "b")).number(2, None, "row 7")


@pytest.mark.parametrize("names", [None, ("sea snake", "goldfish", "tench, Tinca tinca")])
def test_imagenets_ids_at_the_end_of_paths_decide_and_are_checked(names: tuple[str, ...] | None) -> None:
    labels = TableLabels("t", WNIDS, names, TRAIN)
    assert labels.number(2, TRAIN, "row 0") == 0
    assert labels.number(0, VALIDATION, "row 1") == 2
    assert labels.number(1, "n01443537_77.JPEG", "row 2") == 1
    assert labels.class_names() == WNIDS
    with pytest.raises(InputError, match=r"row 3: label 0 is class 'n01440764' by its path .* before say 'n01751748'"):
        labels.number(0, TRAIN, "row 3")
    for path in (None, "photo.jpg"):
        with pytest.raises(InputError, match=r"row 4: its path .* ends with no class id"):
            labels.number(1, path, "row 4")


def test_an_id_that_the_class_list_does_not_have_is_named() -> None:
    labels = TableLabels("t", WNIDS[:2], None, TRAIN)
    with pytest.raises(InputError, match=r"row 9: 1 classes are not in the class list of 2 names \('n01751748'\)"):
        labels.number(2, VALIDATION, "row 9")


def test_words_are_not_taken_for_imagenets_ids() -> None:
    with pytest.raises(InputError, match="classes are not in the class list of 3 names"):
        TableLabels("t", WNIDS, ("tench", "goldfish", "sea snake"), "photo.jpg")
