"""The program `lmdali`: one verb per file, imported when it is used."""

from __future__ import annotations

import io
import sys
import warnings
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import Any

import click

from lmdali.pipeline.errors import MachineError, MissingExtraError
from lmdali.tools.exit_codes import format_warning, run_command
from lmdali.tools.finding import first_line

VERBS = {
    "demo": "demo",
    "doctor": "doctor",
    "convert": "convert",
    "merge": "merge",
    "pca": "pca",
    "info": "describe",
    "verify": "verify",
    "repair": "repair",
    "audit": "audit",
    "preview": "preview",
    "order": "order",
    "train": "train",
    "eval": "evaluate",
    "ablate": "ablate",
    "report": "report",
    "figure": "figure",
    "features": "features",
    "search": "search",
    "codes": "codes",
    "profile": "profiler",
    "stage": "stage",
    "upload": "upload",
    "cache": "cache",
}
"""Verb -> module of `lmdali.tools` whose `command` it is, in the order of the journey."""


_SUMMARIES = {
    "demo": "The whole journey on a built-in dataset, on this machine.",
    "doctor": "Say what this machine can do, what it lacks, and what to do.",
    "convert": "Convert images into a dataset of LMDB shards.",
    "merge": "Join the parts of a conversion into one dataset.",
    "pca": "Compute the RGB eigenbasis and the mean image.",
    "info": "Show what a dataset is.",
    "verify": "Check a dataset against its manifest.",
    "repair": "Make damaged files of a dataset again.",
    "audit": "Find duplicates, leaks between datasets, and odd records.",
    "preview": "Draw augmented samples as the trainer sees them.",
    "order": "List which samples an epoch delivers, and measure its order.",
    "train": "Train an AlexNet.",
    "eval": "Measure networks, and their average, with 1 or 10 views.",
    "ablate": "Train variants of a network, beside the paper's claims.",
    "report": "Write a run as one HTML file.",
    "figure": "Draw the paper's figures for a checkpoint.",
    "features": "Compute the last hidden layer for every record.",
    "search": "Find the records nearest to a record or a picture.",
    "codes": "Compress features to binary codes, and search them.",
    "profile": "Measure where the time goes.",
    "stage": "Copy a dataset from an address to a local disk, for good.",
    "upload": "Write a dataset to an address, such as s3://bucket/folder.",
    "cache": "List or remove shards of remote datasets kept here.",
}


_TRAIN_PACKAGES = ("torch", "numba")
"""What modules of verbs import at their top, and an installation without extras lacks."""


class _Verbs(click.Group):
    """Looks a verb up when it is asked for: `lmdali convert` must not wait for torch to be imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        try:
            command = import_module(f"lmdali.tools.{VERBS[cmd_name]}").command
        except (ImportError, OSError) as error:  # OSError is what a library that another one needs is missed with
            name = error.name or "" if isinstance(error, ImportError) else ""
            if isinstance(error, ModuleNotFoundError) and name in _TRAIN_PACKAGES:
                raise MissingExtraError(name, "train", f"lmdali {cmd_name}") from None
            if name.startswith("lmdali"):  # a mistake of ours
                raise
            told = f"lmdali {cmd_name}: a package cannot be imported: {first_line(error)}"
            raise MachineError(f"{told}: `lmdali doctor` says which, and what to do") from error
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if near := get_close_matches(args[0], VERBS, n=2) if args[0] not in VERBS else []:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(map(repr, near))}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """A reader of our output that has left is told to `run_command`: click would make it exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise BrokenPipeError from None  # without the errno that click looks for

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click would import every verb, torch and all, to print one line about it.
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("lmdali"), prog_name="lmdali")
def cli() -> None:
    """LMDB shards and DALI loaders: from image files to training batches, and an AlexNet trained on them.

    Exit codes: 0 good, 1 any other error, 2 usage, 3 input refused, 4 disk, 5 integrity, 6 locked, 7 remote,
    8 environment, 9 threshold not met, 130 and 143 on signals.
    """


def main() -> None:
    """Entry point of the console script."""
    warnings.formatwarning = format_warning
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: the work is done, and a path may be any bytes
    sys.exit(run_command(lambda: cli(standalone_mode=False)))
