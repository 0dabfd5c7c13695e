"""click's ParamType with the type of its values, which click itself has since 8.4 only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    ParamType = click.ParamType
else:

    class ParamType(click.ParamType):
        """Of values of the type that it is subscripted with; only type checkers look at that."""

        def __class_getitem__(cls, kind: object) -> type[ParamType]:
            return cls
