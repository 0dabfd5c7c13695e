"""The argument that says where a dataset is written: a directory or an address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from lmdali.pipeline.remote_address import file_address_path, is_remote, scheme_of

_ONE_SLASH = re.compile(r"(s3|gs|https?|file):/?(?=[^/])")
"""An address with a slash too few, which would make a folder `s3:` here."""


class Output(click.ParamType[Path | str]):
    """A path, or an address as text: `Path("s3://bucket")` would lose a slash. `file://` is a path."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Tell one from the other."""
        if isinstance(value, Path):
            return value
        if not is_remote(value):
            if slip := _ONE_SLASH.match(value):
                self.fail(f"{value}: an address has two slashes ({slip[1]}://...), a path no colon here", param, ctx)
            return Path(value)
        return file_address_path(value) if scheme_of(value) == "file" else str(value)
