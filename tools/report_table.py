"""Results on stdout: a table for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from lmdali.pipeline.tables import printable


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `run_command`: rich would end the program with exit code 1."""
        raise BrokenPipeError


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on one line."""
    print(json.dumps(document, allow_nan=False))


def print_pairs(title: str, pairs: Iterable[tuple[str, object]]) -> None:
    """A two-column table of names and values."""
    print_table(title, ("", ""), [(name, str(value)) for name, value in pairs], header=False)


def print_table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[str]],
    *,
    header: bool = True,
    align: Literal["left", "right"] = "right",
) -> None:
    """A table that fits its content; columns after the first are aligned, left without a header."""
    table = Table(title=_shown(title), title_justify="left", show_header=header, title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(_shown(column), justify="left" if number == 0 or not header else align, overflow="fold")
    for row in rows:
        table.add_row(*map(_shown, row))
    # Without a terminal rich would fold at 80 columns; results in a file or a pipe keep their lines. And what is shown
    # may be anybody's file name or `pip install '.[train]'`: brackets and colons are no markup in it.
    width = None if sys.stdout.isatty() else 120
    _Console(file=sys.stdout, width=width, soft_wrap=False, markup=False, emoji=False).print(table)


def _shown(text: str) -> str:
    """What the terminal can show: bytes of file names that are no text, and what its encoding lacks, as escapes."""
    text = "\n".join(map(printable, text.split("\n")))
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def megabytes(size_bytes: float) -> str:
    """Bytes as MB of 10**6 bytes."""
    return f"{size_bytes / 1e6:,.1f} MB"
