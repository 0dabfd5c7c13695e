"""Reads the class table of a development kit, a MATLAB file, with scipy, in a process of its own.

scipy's reader crashes, and not only raises, on some damaged files; here that is an error like any other.
"""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np

from lmdali.pipeline.errors import InputError, MissingExtraError

_COMMAND = ("-m", "lmdali.tools.class_table")
_MAX_SECONDS = 120
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
    command = [sys.executable, *_COMMAND, id_field]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_MAX_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"{where}: its class table was not read within {_MAX_SECONDS} s: download it again") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        reason = lines[-1][:_MAX_SHOWN] if lines and done.returncode > 0 else f"the reader died: {done.returncode}"
        raise InputError(
            f"{where}: no class table with {id_field}, WNID and num_children ({reason}): is it the development kit of "
            "this challenge? If so, download it again"
        )
    return [ClassRow(*row) for row in json.loads(done.stdout)]


def main() -> None:
    """Read a `meta.mat` from stdin, write its rows as JSON to stdout; the id field is the argument."""
    from scipy.io import loadmat

    table = loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)["synsets"]
    columns = [np.atleast_1d(table[field]).tolist() for field in (sys.argv[1], "WNID", "num_children")]
    print(json.dumps(list(zip(*columns, strict=True)), default=repr))


if __name__ == "__main__":
    main()
