"""Reads the class table of a development kit, a MATLAB file, with scipy, whose reader crashes on some damaged files."""

from __future__ import annotations

import importlib.util
import io
from typing import Any, NamedTuple

import numpy as np

from lmdali.pipeline.errors import InputError, MissingExtraError
from lmdali.tools.guarded_calls import guarded_call

_MAX_SHOWN = 200


class ClassRow(NamedTuple):
    """A row of the table, as it was found: nothing is checked yet."""

    number: Any
    wnid: Any
    num_children: Any


def read_class_table(data: bytes, id_field: str, where: str) -> list[ClassRow]:
    """The rows of `synsets` in a `meta.mat`.

    Args:
        data: the file.
        id_field: name of the field of ids, "ILSVRC2012_ID".
        where: what it is, for messages.

    Raises:
        InputError: it is damaged, or has no such table.
        MissingExtraError: scipy is not installed.
    """
    if importlib.util.find_spec("scipy") is None:
        raise MissingExtraError("scipy", "imagenet", "reading the class table of a development kit")
    return guarded_call(_rows, where, data, id_field, where, parser="the reader of its class table")


def _rows(data: bytes, id_field: str, where: str) -> list[ClassRow]:
    from scipy.io import loadmat

    try:
        table = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        columns = [np.atleast_1d(table[field]).tolist() for field in (id_field, "WNID", "num_children")]
        return [ClassRow(*map(_plain, row)) for row in zip(*columns, strict=True)]
    except MemoryError:
        raise
    except Exception as error:  # scipy raises whatever comes to hand
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_SHOWN]
    raise InputError(
        f"{where}: no class table with {id_field}, WNID and num_children ({reason}): is it the development kit of this "
        "challenge? If so, download it again"
    )


def _plain(value: Any) -> Any:
    """A value as it is if it is a number or a text; of anything else, which is no good anyway, what it looks like."""
    return value if isinstance(value, int | float | str) else repr(value)[:_MAX_SHOWN]
