"""Class names that people can read: the first synonym, from the class's own name or from a synset file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.system_error import system_says

_WORDNET_ID = re.compile(r"n\d{8}")


def readable_class(name: str) -> str:
    """The first of several names of a class, without underscores."""
    first = name.split(",")[0].replace("_", " ").strip()
    return first or name


def readable_classes(class_names: Sequence[str], names: Path | None = None) -> tuple[str, ...]:
    """A readable name for each class, no two of them the same.

    Args:
        class_names: of a dataset, in label order.
        names: a synset file: lines `n01440764 tench, Tinca tinca` (class, white space, synonyms) in any order, of which
            some may be of other classes; or just one line of synonyms per class, in label order.
            None takes the class names themselves.

    Raises:
        InputError: the file cannot be read, or its lines are not about these classes.
    """
    if names is None:
        return _told_apart(map(readable_class, class_names), class_names)
    try:
        text = names.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{names}: the synset file cannot be read ({system_says(error)})") from error
    lines = [os.fsdecode(line).strip() for line in text.splitlines() if line.strip()]
    synonyms = dict(_split(line) for line in lines)
    missing = [name for name in class_names if name not in synonyms]
    if not missing:
        return _told_apart((readable_class(synonyms[name] or name) for name in class_names), class_names)
    is_plain = len(missing) == len(class_names) == len(lines) and not any(map(_WORDNET_ID.match, lines))
    if not is_plain:
        raise InputError(
            f"{names}: {len(lines)} lines, none for {len(missing)} of the {len(class_names)} classes (the first "
            f"is {missing[0]!r}): give lines `CLASS NAME, SYNONYM, ...`, or one line per class in label order"
        )
    return _told_apart(map(readable_class, lines), class_names)


def _told_apart(names: Iterable[str], class_names: Sequence[str]) -> tuple[str, ...]:
    """A name that several classes have gets the class behind it: two classes of ImageNet are a "crane"."""
    found = tuple(names)
    times = Counter(found)
    return tuple(name if times[name] == 1 else f"{name} ({own})" for name, own in zip(found, class_names, strict=True))


def _split(line: str) -> tuple[str, str]:
    """Class and synonyms; a tab parts them where there is one, because folder names may hold spaces."""
    name, _, synonyms = line.partition("\t") if "\t" in line else line.partition(" ")
    return name.strip(), synonyms.strip()
