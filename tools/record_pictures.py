"""Single pictures, from records of a dataset or from files, and as a network sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentConfig, draw_params
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.dataset_place import Place, open_reader, place_directory, place_shown
from lmdali.pipeline.decode import DecodePolicy, Pixels, decode_source
from lmdali.pipeline.eigenbasis import load_eigenbasis
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.manifest import RECORDS_FILE, Manifest, load_manifest
from lmdali.pipeline.pixel_transform import pixel_transform
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.rejection import SourceRejected
from lmdali.pipeline.system_error import system_says
from lmdali.pipeline.table_reader import take_rows
from lmdali.tools.resize import ResizeRecipe, resize_and_crop


@dataclass(frozen=True, eq=False)
class RecordPictures:
    """Some records of a dataset.

    Attributes:
        manifest: of the dataset.
        indices: record numbers.
        pixels: `(n, H, W, 3)` uint8 RGB, as stored.
        labels: class numbers.
        keys: LMDB keys.
    """

    manifest: Manifest
    indices: tuple[int, ...]
    pixels: Pixels
    labels: tuple[int, ...]
    keys: tuple[str, ...]


def read_records(
    dataset: Place, indices: Sequence[int], *, cache_dir: Place | None = None, cache_bytes: int | None = None
) -> RecordPictures:
    """Read and decode some records, each once even where it is asked for twice.

    Args:
        dataset: of the records.
        indices: record numbers.
        cache_dir, cache_bytes: where shards of a dataset at an address are kept, as of `LoaderConfig`.

    Raises:
        ConfigError: there is no such record.
        InputError: not a finished dataset.
        IntegrityError: the dataset is damaged.
    """
    directory = place_directory(dataset, tables=True, cache_dir=cache_dir)
    manifest = load_manifest(directory)
    require_records(indices, manifest.num_records, dataset)
    rows = record_rows(directory, indices)
    reader = open_reader(dataset, cache_dir=cache_dir, room_bytes=cache_bytes)
    decoded = {
        index: reader.read(index, lambda record: decode_stored(record.data, manifest.image_size)) for index in indices
    }
    reader.close()
    side = manifest.image_size
    pixels = np.stack([decoded[index] for index in indices]) if indices else np.empty((0, side, side, 3), np.uint8)
    labels, keys = tuple(label for _, label in rows), tuple(key for key, _ in rows)
    return RecordPictures(manifest, tuple(indices), pixels, labels, keys)


def record_rows(dataset: Place, indices: Sequence[int], *, cache_dir: Place | None = None) -> list[tuple[str, int]]:
    """Key and label of some records.

    Raises:
        IntegrityError: the table is damaged.
    """
    if not indices:
        return []
    directory = place_directory(dataset, tables=True, cache_dir=cache_dir)
    rows = take_rows(directory / RECORDS_FILE, ["key", "label"], list(indices))
    return [(row["key"], row["label"]) for row in rows]


def require_records(indices: Sequence[int], num_records: int, where: Place) -> None:
    """Refuse a record number that is not there.

    Raises:
        ConfigError: naming it.
    """
    wrong = [index for index in indices if not 0 <= index < num_records]
    if wrong:
        raise ConfigError(f"{place_shown(where)}: there is no record {wrong[0]}, the last one is {num_records - 1}")


def spread_indices(count: int, num_records: int) -> list[int]:
    """`count` record numbers at even distances, or all that there are."""
    count = min(count, num_records)
    return [(2 * place + 1) * num_records // (2 * count) for place in range(count)]


def read_picture_file(path: Path, size: int, recipe: Mapping[str, Any]) -> Pixels:
    """A picture file as a dataset stores its own: `(size, size, 3)` uint8 RGB.

    Args:
        path: the file.
        size: side of the dataset's images, pixels.
        recipe: of the dataset's manifest; what is missing in it is as `lmdali convert` has it by default.

    Raises:
        InputError: it cannot be read, or is no picture.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the picture cannot be read ({system_says(error)})") from error
    try:
        decoded = decode_source(data, DecodePolicy(orientation=recipe.get("orientation", DecodePolicy().orientation)))
        resize = recipe.get("resize")
        kept = {name: resize[name] for name in ("down", "up", "crop") if isinstance(resize, dict) and name in resize}
        return resize_and_crop(decoded.pixels, ResizeRecipe(size=size, **kept))
    except SourceRejected as error:
        raise InputError(f"{path}: {error}") from error


def central_crop(pixels: Pixels, crop_size: int) -> Pixels:
    """The central patch of `(..., H, H, 3)` pixels: the one that a network is shown at test time."""
    start = (pixels.shape[-2] - crop_size) // 2
    return pixels[..., start : start + crop_size, start : start + crop_size, :]


def central_views(pixels: Pixels, augment: AugmentConfig, basis: Path | None) -> NDArray[np.float32]:
    """Pictures as the loader delivers them for evaluation with one view.

    Args:
        pixels: `(n, H, H, 3)` uint8 RGB.
        augment: with crop "center".
        basis: directory with the training set's statistics, where the normalisation needs them.

    Returns:
        `(n, S, S, 3)` float32, normalised.

    Raises:
        ConfigError: the crop is larger than the pictures, or these have another size than the mean image.
    """
    size = pixels.shape[1]
    transform = pixel_transform(augment, None if basis is None else load_eigenbasis(basis), size)
    numbers = np.arange(len(pixels))
    params = draw_params(augment, seed=0, epoch=0, indices=numbers, positions=numbers, image_size=size)
    return apply_params(pixels, params, transform, augment.crop_size)
