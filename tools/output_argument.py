"""Where output goes: a dataset to a directory or an address, and not into its source; one file to a name here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.output_check import try_to_write
from lmdali.pipeline.output_file import check_output_file
from lmdali.pipeline.remote_address import file_address_path, is_remote, redacted, scheme_of
from lmdali.tools.param_type import ParamType

_ONE_SLASH = re.compile(r"(s3|gs|https?|file):/?(?=[^/])")
"""An address with a slash too few, which would make a folder `s3:` here."""


class Output(ParamType[Path | str]):
    """A path, or an address as text: `Path("s3://bucket")` would lose a slash. `file://` is a path."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Tell one from the other."""
        if isinstance(value, Path):
            return value
        if not value:
            self.fail("an empty path names no place", param, ctx)
        if not is_remote(value):
            if slip := _ONE_SLASH.match(value):
                self.fail(f"{value}: an address has two slashes ({slip[1]}://...), a path no colon here", param, ctx)
            return Path(value)
        return file_address_path(value) if scheme_of(value) == "file" else str(value)


class OutputFile(ParamType[Path]):
    """The path of one file to write, refused at once where it cannot be; folders above it are made with it."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Ask the disk.

        Raises:
            StorageError: see `check_output_file`.
        """
        check_output_file(path := _local_path(self, value, "file", param, ctx))
        return path


class OutputDirectory(ParamType[Path]):
    """The path of a directory to write a few files in, refused at once where they cannot be; it is made if missing."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Ask the disk.

        Raises:
            StorageError: it is a file, or cannot be written: read-only, full, or not allowed.
        """
        try_to_write(path := _local_path(self, value, "directory", param, ctx))
        return path


def _local_path(
    kind: click.ParamType[Path], value: Any, noun: str, param: click.Parameter | None, ctx: click.Context | None
) -> Path:
    if is_remote(value) or _ONE_SLASH.match(str(value)):
        kind.fail(f"{redacted(value)}: is an address, and this is written to a disk: name a {noun} here", param, ctx)
    if not str(value):
        kind.fail(f"an empty path names no {noun}", param, ctx)
    return Path(value)


OUTPUT_FILE = OutputFile()
OUTPUT_DIRECTORY = OutputDirectory()


def refuse_overlap(source: Path, place: Path) -> None:
    """Refuse to write into a source, which the next scan would find there, or to clear away the place it is in.

    Args:
        source: what is only to be read.
        place: directory to write in.

    Raises:
        ConfigError: one of them is the other, or lies in it, by whatever links.
    """
    # Not `resolve`, which fails on links in circles: those are for others to refuse.
    read, written = (Path(os.path.realpath(path)) for path in (source, place))
    if read.is_relative_to(written) or written.is_relative_to(read):
        raise ConfigError(
            f"the source {str(source)!r} and its output lie within each other ({str(place)!r}), and sources are only "
            "read: choose another output"
        )
