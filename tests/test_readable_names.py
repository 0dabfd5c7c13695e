from __future__ import annotations

from pathlib import Path

import pytest

from lmdali.pipeline.errors import InputError
from lmdali.tools.readable_names import readable_class, readable_classes


def test_a_class_is_called_by_the_first_of_its_names() -> None:
    assert readable_class("great_white_shark, white shark, man-eater") == "great white shark"
    assert readable_class("n01491361") == "n01491361"
    assert readable_class("_") == "_"


def test_without_a_file_the_folder_names_are_used() -> None:
    assert readable_classes(("tench, Tinca tinca", "hot_dog")) == ("tench", "hot dog")


def test_classes_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    names = tmp_path / "synsets.txt"
    names.write_text("n02012849 crane\nn03126707 crane\nn01440764 tench, Tinca tinca\n")
    classes = ("n01440764", "n02012849", "n03126707")
    assert readable_classes(classes, names) == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert readable_classes(("hot dog", "hot_dog")) == ("hot dog (hot dog)", "hot dog (hot_dog)")
    names.write_text("crane\ncrane, Grus\n")
    assert readable_classes(("a", "b"), names) == ("crane (a)", "crane (b)")


def test_a_synset_file_is_read_by_class_in_any_order_and_may_know_more(tmp_path: Path) -> None:
    names = tmp_path / "synsets.txt"
    names.write_text("n3 stingray\nn2 great white shark, white shark\n\nn1 tench, Tinca tinca\n")
    assert readable_classes(("n1", "n2"), names) == ("tench", "great white shark")


def test_a_tab_parts_classes_with_spaces_from_their_names(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(b"\xef\xbb\xbfhot dog\tfrankfurter, wiener\r\nbun\troll\r\n")
    assert readable_classes(("bun", "hot dog"), names) == ("roll", "frankfurter")


def test_plain_names_are_taken_in_label_order(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("tench, Tinca tinca\ngreat white shark\n")
    assert readable_classes(("n1", "n2"), names) == ("tench", "great white shark")


@pytest.mark.parametrize(
    "text",
    ["n01440764 tench\nn01491361 great white shark\n", "tench\n", "a tench\nn9 shark\n", ""],
    ids=["other synsets", "too few", "one of two", "empty"],
)
def test_a_file_of_other_classes_is_refused(tmp_path: Path, text: str) -> None:
    names = tmp_path / "names.txt"
    names.write_text(text)
    with pytest.raises(InputError, match=r"of the 2 classes \(the first is"):
        readable_classes(("a", "b"), names)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt"):
        readable_classes(("a",), tmp_path / "none.txt")
