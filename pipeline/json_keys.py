"""Whether JSON that a person may have edited has the keys that are needed, and of the kinds that are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmdali.pipeline.errors import InputError, IntegrityError
from lmdali.pipeline.files import read_json

_MISSING = object()

_KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "a whole number": lambda value: type(value) is int,  # True is an int, too
    "a number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "an object": lambda value: isinstance(value, dict),
    "a list": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
    "nothing": lambda value: value is _MISSING,
}


def require_keys(document: Mapping[str, Any], kinds: Mapping[str, str], *, where: str, cure: str) -> None:
    """Refuse a document that lacks a key, or has something of another kind there.

    Args:
        document: a JSON object.
        kinds: of each key: "a text", "a whole number", "a number" (finite), "an object", "a list", "null" or
            "nothing" (the key may be missing), or several of them with " or " between them. A key with dots is looked
            for in the objects that its parts name.
        where: file, and place in it, for the error.
        cure: what to do, for the error.

    Raises:
        InputError: naming the key.
    """
    for key, kind in kinds.items():
        found: Any = document
        for part in key.split("."):
            found = found.get(part, _MISSING) if isinstance(found, Mapping) else _MISSING
        if not any(_KINDS[name](found) for name in kind.split(" or ")):
            said = f"has no {key}" if found is _MISSING else f"{key} is {_short(found)}"
            raise InputError(f"{where}: {said}, expected {kind}: it was edited or damaged: {cure}")


def read_keys(path: Path, kinds: Mapping[str, str], *, cure: str) -> dict[str, Any]:
    """`read_json` of a file that is there for people to read, with `require_keys`.

    Raises:
        InputError: there is no such file, it is no JSON object, or a key is missing or of another kind.
        StorageError: it cannot be read.
    """
    try:
        document = read_json(path)
    except IntegrityError as error:
        raise InputError(f"{error}: {cure}") from error
    require_keys(document, kinds, where=str(path), cure=cure)
    return document


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
