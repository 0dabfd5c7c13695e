"""What every contestant is asked to do: the same stored bytes, the same views, the same arithmetic, the same form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.eigenbasis import load_eigenbasis
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.shard_walk import iterate_lmdb

Form = Literal["uint8", "float32"]
FORMS: tuple[Form, ...] = ("uint8", "float32")
FORM_TITLES: dict[str, str] = {
    "uint8": "uint8 NHWC: random crop and mirror",
    "float32": "float32 NCHW: random crop, mirror, mean and standard deviation",
}

# A batch of noise-free photographs, normalised with its own dataset's statistics, is near mean 0 and deviation 1.
_MEAN_LIMIT, _STD_RANGE, _GRAY_LIMIT = 0.5, (0.5, 1.6), 40.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One contestant's work.

    Attributes:
        dataset: made by `lmdali convert`.
        folder: where the contestant's own copy of the records lies.
        form: "uint8" is (B, S, S, 3) pixels, "float32" is (B, 3, S, S), `(pixel - mean) / std`.
        num_threads: threads or worker processes; the process is confined to as many CPUs.
        batch_size: samples per batch; the last, smaller batch of an epoch is dropped.
        crop_size: side S of a view, pixels.
        image_size: side of the stored images, pixels.
        encoding: "jpeg" or "raw" (binary PPM).
        num_records: in the dataset.
        mean: (3,) per channel, gray levels.
        std: (3,) per channel, gray levels.
        address: of a server of the folder of copies; "" where files are read as they lie.
        cache: folder for what is fetched from there.
    """

    dataset: str
    folder: str
    form: str
    num_threads: int
    batch_size: int
    crop_size: int
    image_size: int
    encoding: str
    num_records: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    address: str = ""
    cache: str = ""

    def to_json(self) -> str:
        """One line for a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """The inverse of `to_json`."""
        values = json.loads(text)
        values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """Of a whole batch."""
        size = self.crop_size
        image = (size, size, 3) if self.form == "uint8" else (3, size, size)
        return (self.batch_size, *image)

    @property
    def copy_address(self) -> str:
        """Where the contestant's own copy is served."""
        return f"{self.address}/{Path(self.folder).name}"

    @property
    def suffix(self) -> str:
        """File name ending of a record."""
        return ".ppm" if self.encoding == "raw" else ".jpg"

    @property
    def channel_mean(self) -> NDArray[np.float32]:
        """(3,) float32, gray levels."""
        return np.array(self.mean, np.float32)

    @property
    def channel_std(self) -> NDArray[np.float32]:
        """(3,) float32, gray levels."""
        return np.array(self.std, np.float32)

    def records(self) -> Iterator[tuple[bytes, int]]:
        """Every record's image file and label, in storage order."""
        reader = ShardReader(Path(self.dataset), load_manifest(Path(self.dataset)))
        for shard in reader.manifest.shards:
            for _, record in iterate_lmdb(reader.data_file(shard.name).parent):
                yield bytes(record.data), record.label


def make_task(
    dataset: Path, folder: Path, form: str, *, num_threads: int, batch_size: int, crop_size: int = 224
) -> Task:
    """The task of a dataset: its size, encoding and statistics filled in."""
    manifest, basis = load_manifest(dataset), load_eigenbasis(dataset)
    return Task(
        dataset=str(dataset),
        folder=str(folder),
        form=form,
        num_threads=num_threads,
        batch_size=batch_size,
        crop_size=crop_size,
        image_size=manifest.image_size,
        encoding=manifest.encoding,
        num_records=manifest.num_records,
        mean=tuple(basis.mean.tolist()),
        std=tuple(basis.std.tolist()),
    )


def check_batch(task: Task, images: Any, *, values: bool = True) -> None:
    """Refuse a batch that is not what the task asks for: a rate of other work must not stand in the table.

    Args:
        task: what was asked for.
        images: a NumPy array or a torch tensor on the CPU.
        values: whether they are normalised as the task says; False looks at the form alone.

    Raises:
        ValueError: saying what was delivered instead.
    """
    array = np.asarray(images)
    if array.shape != task.batch_shape or array.dtype != np.dtype(task.form) or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else ", not contiguous"
        raise ValueError(f"delivers {array.dtype} {array.shape}{order}, not {task.form} {task.batch_shape}")
    if not values:
        return
    axes = (0, 1, 2) if task.form == "uint8" else (0, 2, 3)
    mean, std = array.mean(axes, np.float64), array.std(axes, dtype=np.float64)
    off = np.abs(mean - task.channel_mean) / _GRAY_LIMIT if task.form == "uint8" else np.abs(mean) / _MEAN_LIMIT
    low, high = _STD_RANGE
    if off.max() > 1 or (task.form == "float32" and not (low < std.min() and std.max() < high)):
        raise ValueError(f"delivers values with mean {np.round(mean, 2)} and deviation {np.round(std, 2)}: other work")
