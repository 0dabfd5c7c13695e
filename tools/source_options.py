"""The options that say what a source is and how it is labelled, the same for every verb that reads one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lmdali.tools.half_split import HALVES
from lmdali.tools.source_detection import SOURCE_FORMATS

_PATH = click.Path(path_type=Path)
_OPTIONS = (
    click.option(
        "--format",
        "source_format",
        type=click.Choice(SOURCE_FORMATS),
        default="auto",
        show_default=True,
        help="What the source is; auto looks, and says what it took.",
    ),
    click.option("--root", type=_PATH, help="Folder that the paths of a list file start from."),
    click.option(
        "--follow-links", is_flag=True, help="In class folders, also follow links to folders and to files outside."
    ),
    click.option("--devkit", type=_PATH, help="ILSVRC development kit.  [default: beside the images]"),
    click.option(
        "--ground-truth",
        type=_PATH,
        help="Class ids of ILSVRC images, one per line.  [default: from the kit, or beside test images]",
    ),
    click.option("--patch", type=_PATH, help="Archive of images that replace those of their name."),
    click.option("--split", help="Of a folder of Parquet files or WebDataset tars: train, validation, ..., or all."),
    click.option("--image-column", help="Column of images in Parquet files.  [default: looked for]"),
    click.option("--label-column", help="Column of class numbers or names in Parquet files.  [default: looked for]"),
    click.option("--split-half", type=click.Choice(HALVES), help="Only this half of each class, as for Fall 2009."),
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a click command, which gets `source_format` and fields of `SourceOptions` by their names."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
