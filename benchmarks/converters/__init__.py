"""Who converts: lmdali, the parts of its work alone, and other people's converters, each in a module of its own.

A module has `convert(job)`, which writes all pictures of a job somewhere below `job.out`, and where its pixels are its
own `picture(data, job)`, which makes the JPEG of one source file; the table's PSNR is measured on those.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Job:
    """One conversion.

    Attributes:
        source: folder of class folders.
        out: folder to write to; does not exist yet.
        workers: processes or threads.
        size: side of the pictures, pixels.
        quality: of the JPEGs.
    """

    source: str
    out: str
    workers: int
    size: int = 256
    quality: int = 90

    def files(self) -> list[tuple[Path, int]]:
        """Every source file and its label."""
        folders = sorted(path for path in Path(self.source).iterdir() if path.is_dir())
        return [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]

    def to_json(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Converter:
    """One row of the table.

    Attributes:
        key: what the command line calls it.
        label: what the table calls it.
        module: in this package.
        pixels: module whose `picture` makes its pixels.
        window: "center" where it resizes and then crops, "center-first" the other way round.
        is_peer: somebody else's, which may be missing.
    """

    key: str
    label: str
    module: str
    pixels: str
    window: str = "center"
    is_peer: bool = True


CONVERTERS = (
    Converter(key="parts-area", label="parts of area alone", module="parts_area", pixels="parts_area", is_peer=False),
    Converter(key="area", label="lmdali, area", module="lmdali_area", pixels="parts_area", is_peer=False),
    Converter(
        key="parts-bicubic",
        label="parts of bicubic alone",
        module="parts_bicubic",
        pixels="parts_bicubic",
        window="center-first",
        is_peer=False,
    ),
    Converter(
        key="bicubic",
        label="lmdali, bicubic",
        module="lmdali_bicubic",
        pixels="parts_bicubic",
        window="center-first",
        is_peer=False,
    ),
    Converter(key="threads", label="simplejpeg + OpenCV threads, LMDB", module="thread_pool", pixels="opencv_area"),
    Converter(key="mosaicml", label="MosaicML MDSWriter + OpenCV", module="mosaic_writer", pixels="opencv_area"),
    Converter(key="ffcv", label="FFCV DatasetWriter + OpenCV", module="ffcv_writer", pixels="opencv_area"),
    Converter(key="litdata", label="LitData optimize + OpenCV", module="litdata_optimize", pixels="opencv_area"),
    Converter(
        key="img2dataset", label="img2dataset's Resizer", module="img2dataset_resizer", pixels="img2dataset_resizer"
    ),
    Converter(key="tensorflow", label="TensorFlow, area", module="tensorflow_area", pixels="tensorflow_area"),
    Converter(key="pillow", label="Pillow Lanczos processes", module="pillow_lanczos", pixels="pillow_lanczos"),
    Converter(key="pyvips", label="pyvips thumbnail", module="pyvips_thumbnail", pixels="pyvips_thumbnail"),
)
