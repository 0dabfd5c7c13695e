"""What the label numbers of a table mean: by the table's own class names, by ImageNet's ids, or as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lmdali.pipeline.errors import InputError
from lmdali.tools.class_names import check_class_names, refuse_extra_classes
from lmdali.tools.list_file import MAX_CLASSES

_WNID = re.compile(r"n\d{8}")
# `n01440764_10026_n01440764.JPEG` and `ILSVRC2012_val_00000001_n01751748.JPEG` of the Hub, `n01440764_10026.JPEG`.
_WNID_OF_PATH = re.compile(r"(?:^|[/_])(n\d{8})(?:_\d+)?\.\w+$")


class TableLabels:
    """Turns the labels of a table into ours, and has the class names they are numbers of.

    Args:
        where: the source, for errors.
        classes: class names in label order, of a training set; default: the table's own.
        names: class names that the table brings along; None where it has none.
        first_path: path of its first image, if it has one: whether paths tell ImageNet's class ids.

    Raises:
        InputError: the table has a class that `classes` does not have, or names one twice.
    """

    def __init__(
        self, where: str, classes: Sequence[str] | None, names: Sequence[str] | None, first_path: str | None = None
    ) -> None:
        self._where, self._classes, self._names = where, classes, names
        self._number = {name: number for number, name in enumerate(classes or ())}
        self._wnid_of_label: dict[int, str] = {}
        self._largest = -1
        self._by_wnid = bool(
            classes
            and all(map(_WNID.fullmatch, classes))
            and first_path is not None
            and _WNID_OF_PATH.search(first_path)
        )
        if names is not None:
            check_class_names(names, where)
        if names is not None and classes is not None and not self._by_wnid:
            refuse_extra_classes(names, classes, where, "classes")

    def number(self, label: int, path: str | None, row: str) -> int:
        """Our label of a row.

        Args:
            label: the table's.
            path: of the image, if the row has one.
            row: names the row in errors.

        Raises:
            InputError: no class has this label, or the path contradicts it.
        """
        limit = len(self._names or ()) or (MAX_CLASSES if self._by_wnid else len(self._classes or ()) or MAX_CLASSES)
        if label >= limit:
            bound = f"labels go up to {limit - 1}" if limit == MAX_CLASSES else f"there are {limit} class names"
            raise InputError(f"{row}: label {label} is too large; {bound}, counted from 0")
        if self._by_wnid:
            return self._number_of_wnid(label, path, row)
        if self._names is not None and self._classes is not None:
            return self._number[self._names[label]]
        self._largest = max(self._largest, label)
        return label

    def class_names(self) -> tuple[str, ...]:
        """In label order; numbers as names where nobody names them."""
        names = self._classes if self._classes is not None else self._names
        return tuple(names if names is not None else map(str, range(self._largest + 1)))

    def _number_of_wnid(self, label: int, path: str | None, row: str) -> int:
        found = _WNID_OF_PATH.search(path or "")
        if found is None:
            raise InputError(f"{row}: its path {path!r} ends with no class id as those before do: check the labels")
        before = self._wnid_of_label.setdefault(label, found[1])
        if before != found[1]:
            raise InputError(
                f"{row}: label {label} is class {found[1]!r} by its path {path!r}, rows before say {before!r}: "
                "the labels are not to be trusted"
            )
        if found[1] not in self._number:
            refuse_extra_classes([found[1]], self._classes or (), row, "classes")
        return self._number[found[1]]
