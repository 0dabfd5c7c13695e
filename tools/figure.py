"""`lmdali figure`: the paper's figures, for any dataset and checkpoint."""

from __future__ import annotations

import click

from lmdali.tools.figure_kernels import kernels_command
from lmdali.tools.figure_neighbours import neighbours_command
from lmdali.tools.figure_predictions import predictions_command


@click.group("figure")
def command() -> None:
    """Draw the paper's figures, each with its numbers in a JSON file beside it."""


command.add_command(kernels_command)
command.add_command(predictions_command)
command.add_command(neighbours_command)
