"""What stands for a dataset on a command line: a directory, or the address of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from lmdali.pipeline.dataset_place import Place, parse_place
from lmdali.pipeline.remote_address import redacted
from lmdali.tools.param_type import ParamType


class DatasetArgument(ParamType[Any]):
    """A `Path`, or an address as it is.

    Args:
        local_because: why this command needs a directory; None where an address will do.
    """

    name = "path"

    def __init__(self, local_because: str | None = None) -> None:
        self._local_because = local_because

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """Told apart by `://`."""
        place = parse_place(value)
        if self._local_because is not None and not isinstance(place, Path):
            shown = redacted(place)
            self.fail(
                f"{shown}: {self._local_because}: bring it here with `lmdali stage {shown} DIR`, and give DIR",
                param,
                ctx,
            )
        return place


DATASET = DatasetArgument()
