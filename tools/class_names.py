"""What a list of class names must be, alone and beside the classes that a source has; names that samples bring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import InputError
from lmdali.tools.list_file import MAX_CLASSES

_MAX_SHOWN = 5


class TextLabels:
    """Names that samples have for labels, numbered as they come; `settle` brings them into an order.

    Args:
        where: the source, for errors.
    """

    def __init__(self, where: str) -> None:
        self._where, self._numbers = where, dict[str, int]()

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def number(self, text: str) -> int:
        """The name's number until they are settled.

        Raises:
            InputError: more names than there can be classes.
        """
        number = self._numbers.setdefault(text, len(self._numbers))
        if number >= MAX_CLASSES:
            raise InputError(
                f"{self._where}: more than {MAX_CLASSES} labels that differ, such as {text[:60]!r}: are these classes?"
            )
        return number

    def names(self) -> tuple[str, ...]:
        """All of them, as they came."""
        return tuple(self._numbers)

    def settle(self, classes: Sequence[str] | None) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        """Class names in label order, and the label of each number.

        Args:
            classes: the names in label order, of a training set; default: all that came, sorted as folders would be.

        Raises:
            InputError: a name that `classes` does not have.
        """
        if classes is None:
            classes = sorted(self._numbers)
        refuse_extra_classes(list(self._numbers), classes, self._where, "labels")
        label_of = {name: label for label, name in enumerate(classes)}
        return tuple(classes), np.array([label_of[name] for name in self._numbers], np.int32)


def check_class_names(names: Sequence[str], where: str) -> None:
    """Refuse a list that is empty or names a class twice.

    Raises:
        InputError: naming `where`.
    """
    if not names:
        raise InputError(f"{where}: no class names; expected one per line")
    if len(set(names)) != len(names):
        twice = next(name for position, name in enumerate(names) if name in names[:position])
        raise InputError(f"{where}: the class {twice!r} is named twice: keep one of the lines")


def refuse_extra_classes(found: Sequence[str], classes: Sequence[str], where: str, what: str) -> None:
    """Refuse a source with a class that the training set does not have: its images would get no right label.

    Args:
        found: class names of the source.
        classes: the class list asked for.
        where: the source, for the message.
        what: what its classes are: "class folders", ...

    Raises:
        InputError: naming the first few.
    """
    extra = sorted(set(found) - set(classes))
    if extra:
        raise InputError(
            f"{where}: {len(extra)} {what} are not in the class list of {len(classes)} names ({_shown(extra)}): "
            "use the class list that belongs to this data, or remove them"
        )


def refuse_missing_classes(missing: Sequence[str], where: str) -> None:
    """Refuse a source without a single image of a class that the training set has.

    Raises:
        InputError: naming the first few.
    """
    if missing:
        raise InputError(
            f"{where}: no image of {len(missing)} classes of the class list ({_shown(missing)}): use the class list "
            "that belongs to this data, or allow missing classes (--allow-missing-classes)"
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_MAX_SHOWN])) + (", ..." if len(names) > _MAX_SHOWN else "")
