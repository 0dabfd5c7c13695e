"""`lmdali figure kernels`: figure 3 of the paper for any checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.kernel_figure import chroma_energy, draw_tower_kernels, tower_kernels
from lmdali.model.picture_file import check_suffix, save_picture
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.files import write_json
from lmdali.tools.checkpoint_network import read_checkpoint
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.report_table import print_json

_FIRST_LAYER = "conv1.weight"


def figure_kernels(checkpoint: Path, out: Path, *, scale: int = 5) -> dict[str, Any]:
    """Draw the kernels of a checkpoint's first layer, tower by tower, and measure their colour.

    Args:
        checkpoint: a checkpoint file, or a run directory.
        out: picture to write; the numbers go beside it as JSON.
        scale: side of a weight, pixels.

    Returns:
        The JSON document: for each tower its chroma energy, over all of its kernels and of each.

    Raises:
        ConfigError: no format for `out`.
        InputError: no such checkpoint, or its network has no first layer on RGB.
        IntegrityError: the checkpoint is damaged.
    """
    check_suffix(out)
    path, stored = read_checkpoint(checkpoint)
    weights = stored.model.get(_FIRST_LAYER)
    if weights is None:
        raise InputError(f"{path}: its network has no {_FIRST_LAYER}, so there are no kernels to draw")
    towers = AlexNetConfig.from_json(stored.model_config).groups
    save_picture(draw_tower_kernels(weights, towers, scale=scale), out)
    document = {
        "figure": "kernels",
        "checkpoint": str(path),
        "towers": [
            {
                "tower": number,
                "num_kernels": len(kernels),
                "chroma_energy": chroma_energy(kernels),
                "kernel_chroma_energies": [chroma_energy(kernel[None]) for kernel in kernels],
            }
            for number, kernels in enumerate(tower_kernels(weights, towers), 1)
        ],
    }
    write_json(out.with_suffix(".json"), document)
    return document


@click.command("kernels")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=OUTPUT_FILE, required=True, help="Picture to write: .png, .jpg or .webp; and .json.")
@click.option("--scale", type=click.IntRange(1, 40), default=5, show_default=True, help="Side of a weight, pixels.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def kernels_command(checkpoint: Path, out: Path, scale: int, as_json: bool) -> None:
    """Draw the first layer's kernels of CHECKPOINT, the towers told apart (figure 3).

    Chroma energy is the part of a tower's squared weights that is left when each position's mean over R, G and B is
    taken away: 0 for gray kernels. It goes into a JSON file beside the picture.
    """
    document = figure_kernels(checkpoint, out, scale=scale)
    if as_json:
        print_json(document)
        return
    shares = ", ".join(f"tower {tower['tower']} {tower['chroma_energy']:.3f}" for tower in document["towers"])
    print(f"{out}: chroma energy {shares}")
