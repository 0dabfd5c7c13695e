"""`lmdali preview`: a contact sheet of augmented samples, as the trainer will see them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.model.picture_file import check_suffix, save_picture
from lmdali.model.presets import PRESETS
from lmdali.pipeline.augment import AugmentConfig, AugmentParams, draw_params
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.dataset_place import Place, place_directory, place_name
from lmdali.pipeline.eigenbasis import load_eigenbasis
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import Manifest, load_manifest
from lmdali.pipeline.pixel_transform import PixelTransform, pixel_transform
from lmdali.tools.augment_options import AUGMENTS, augment_options, draw_options, take_augment
from lmdali.tools.contact_sheet import Tile, draw_sheet
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.loader_options import cache_options
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.readable_names import readable_classes
from lmdali.tools.report_table import print_json


@dataclass(frozen=True)
class PreviewSummary:
    """What was drawn.

    Attributes:
        out: the picture.
        width: of it, pixels.
        height: of it, pixels.
        indices: record numbers, in the order of the sheet.
    """

    out: Path
    width: int
    height: int
    indices: tuple[int, ...]


def draw_preview(
    dataset: Place,
    out: Path,
    *,
    augment: str = "paper",
    drawn: AugmentConfig | None = None,
    rows: int = 4,
    columns: int = 6,
    seed: int = 0,
    epoch: int = 0,
    cache_dir: Place | None = None,
    cache_bytes: int | None = None,
) -> PreviewSummary:
    """Draw the first samples of an epoch, in a preset's order, cropped, flipped and lit as the loader delivers them.

    The loader's own batch is drawn. The mean, which would leave a gray relief, is added back; lighting stays.

    Args:
        dataset: made by `lmdali convert`.
        out: picture file to write; its suffix names the format.
        augment: a name in `AUGMENTS`; with "ten" a row holds the ten views of one sample.
        drawn: what a run has that differs from it; None is what it names.
        rows: of pictures.
        columns: of pictures, except with "ten".
        seed: of the run to look into.
        epoch: of that run.
        cache_dir, cache_bytes: for a dataset at an address, as of `LoaderConfig`.

    Raises:
        ConfigError: an argument is out of range, or the format is unknown.
        InputError: not a finished dataset.
        IntegrityError: the dataset is damaged.
        StorageError: `out` cannot be written.
    """
    _check(out, augment, rows, columns)
    directory = place_directory(dataset, cache_dir=cache_dir)
    config, manifest = drawn or AUGMENTS[augment](), load_manifest(directory)
    count = min(rows if config.num_views > 1 else rows * columns, manifest.num_records)
    order = PRESETS[augment].order if augment in PRESETS else LoaderConfig.order
    loader = LoaderConfig(dataset=dataset, batch_size=count, seed=seed, augment=config, order=order)
    batch = _load(replace(loader, cache_dir=cache_dir, cache_bytes=cache_bytes), epoch)
    params = draw_params(
        config,
        seed=seed,
        epoch=epoch,
        indices=batch.indices.numpy(),
        positions=np.arange(count),
        image_size=manifest.image_size,
    )
    transform = pixel_transform(config, load_eigenbasis(directory), manifest.image_size).at(epoch)
    sheet = draw_sheet(
        _tiles(batch, params, transform, manifest),
        columns=config.num_views if config.num_views > 1 else columns,
        title=place_name(dataset),
        detail=f"{manifest.num_records:,} records, digest {manifest.digest[:12]}    augment {augment}    "
        f"seed {seed}    epoch {epoch}",
    )
    save_picture(sheet, out)
    return PreviewSummary(out, sheet.shape[1], sheet.shape[0], tuple(batch.indices.tolist()))


def undo_normalization(
    images: NDArray[np.float32], params: AugmentParams, transform: PixelTransform
) -> NDArray[np.uint8]:
    """Pixels that people can look at: scale and mean undone, lighting kept.

    Args:
        images: (V, S, S, 3) float32, as the loader delivers them.
        params: their draws.
        transform: the arithmetic that was applied.

    Returns:
        (V, S, S, 3) uint8 RGB; what lighting pushed out of 0..255 is cut off.
    """
    size, constant = images.shape[1], transform.constant_mean
    pixels = images / transform.scale
    for view, corner in enumerate(params.crop_yx):
        mean = transform.view_mean(corner, bool(params.flip[view]), size) if constant is None else constant
        pixels[view] += mean
    visible: NDArray[np.uint8] = np.rint(pixels).clip(0, 255).astype(np.uint8)
    return visible


def _check(out: Path, augment: str, rows: int, columns: int) -> None:
    if augment not in AUGMENTS:
        raise ConfigError(f"augment must be one of {', '.join(AUGMENTS)}; found {augment!r}")
    if rows < 1 or columns < 1:
        raise ConfigError(f"a sheet needs at least one row and column, found {rows} x {columns}")
    check_suffix(out)


def _load(config: LoaderConfig, epoch: int) -> Batch:
    """The first batch of an epoch."""
    with create_loader(replace(config, backend="cpu", layout="NHWC", prefetch=1), rank=0, world_size=1) as loader:
        loader.set_epoch(epoch)
        return next(iter(loader))


def _tiles(batch: Batch, params: AugmentParams, transform: PixelTransform, manifest: Manifest) -> list[Tile]:
    pixels = undo_normalization(batch.images.to(torch.float32).numpy(), params, transform)
    views = len(pixels) // len(batch.labels)
    names, tiles = readable_classes(manifest.class_names), []
    for view, picture in enumerate(pixels):
        sample = view // views
        name = names[int(batch.labels[sample])]
        y, x = params.crop_yx[view]
        note = f"#{int(batch.indices[sample])}   y {y}  x {x}"
        if params.sides is not None:
            height, width = params.sides[view]
            note = f"#{int(batch.indices[sample])}  {y}, {x}  {height}x{width}"
        note += "  mirrored" if params.flip[view] else ""
        tiles.append(Tile(picture, name, note))
    return tiles


@click.command("preview")
@click.argument("dataset", type=DATASET)
@click.option("--out", type=OUTPUT_FILE, required=True, help="Picture to write: .png, .jpg or .webp.")
@augment_options("What is drawn: training crops of a preset, or as stored; the evaluation's central one or ten.")
@draw_options
@click.option("--rows", type=click.IntRange(1, 100), default=4, show_default=True, help="Rows of samples.")
@click.option("--columns", type=click.IntRange(1, 100), default=6, show_default=True, help="Samples in a row.")
@click.option("--seed", default=0, show_default=True, help="Seed of the run to look into.")
@click.option("--epoch", type=click.IntRange(0), default=0, show_default=True, help="Epoch of that run, from 0.")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(dataset: Place, out: Path, as_json: bool, **options: Any) -> None:
    """Draw the first samples of an epoch of DATASET as the trainer will see them.

    The mean is added back, so that the pictures can be recognised; crops, flips and lighting are as delivered. Under
    each: its class, record number, and the corner of its crop.
    """
    augment = options["augment"]
    summary = draw_preview(dataset, out, augment=augment, drawn=take_augment(options), **options)
    if as_json:
        print_json(
            {"out": str(out), "width": summary.width, "height": summary.height, "indices": list(summary.indices)}
        )
    else:
        print(f"{out}: {len(summary.indices)} samples, {summary.width} x {summary.height} pixels")
