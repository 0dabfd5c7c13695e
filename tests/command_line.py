"""The program as a user runs it, in this process."""

from __future__ import annotations

from lmdali.tools.cli import cli
from lmdali.tools.exit_codes import run_command


def run(*args: object) -> int:
    """The exit code of `lmdali ARGS`."""
    return run_command(lambda: cli([str(arg) for arg in args], standalone_mode=False))
