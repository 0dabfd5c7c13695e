"""Whether an option was given: a default that was typed is a wish, one that was not is none."""

from __future__ import annotations

import click
from click.core import ParameterSource


def is_given(context: click.Context, name: str) -> bool:
    """Whether the parameter `name` of the command has its value from the command line or the environment."""
    return context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
