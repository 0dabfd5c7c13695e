"""What a list of class names must be, alone and beside the classes that a source has."""

from __future__ import annotations

from collections.abc import Sequence

from lmdali.pipeline.errors import InputError

_MAX_SHOWN = 5


def check_class_names(names: Sequence[str], where: str) -> None:
    """Refuse a list that is empty or names a class twice.

    Raises:
        InputError: naming `where`.
    """
    if not names:
        raise InputError(f"{where}: no class names; expected one per line")
    if len(set(names)) != len(names):
        twice = next(name for position, name in enumerate(names) if name in names[:position])
        raise InputError(f"{where}: the class {twice!r} is named twice")


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
