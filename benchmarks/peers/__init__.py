"""Who takes part: ceilings, lmdali, and the peers, each in a module of its own that imports what it needs.

A module has `batches(task, variant)`, which yields batches without end, and, where it reads a copy of its own,
`convert(task)`, which makes that copy below `task.folder` outside of all timing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["ceiling", "part", "lmdali", "peer"]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One row of the table, for each form.

    Attributes:
        name: what the command line calls it; variants share it.
        label: what the table calls it.
        setting: the best documented setting found; `{n}` is the number of threads.
        module: in this package.
        package: on PyPI, "" where nothing else is needed.
        variant: handed to `batches`.
        kind: a "part" does less than a loader's work, so no plot puts it beside one; only peers can be left out.
        forms: it can deliver.
        encodings: it can read.
        copy: name of the folder that `convert` fills, "" where the dataset itself is read; the same name, same copy.
    """

    name: str
    label: str
    setting: str
    module: str
    package: str = ""
    variant: str = ""
    kind: Kind = "peer"
    forms: tuple[str, ...] = ("uint8", "float32")
    encodings: tuple[str, ...] = ("jpeg", "raw")
    copy: str = ""

    @property
    def key(self) -> str:
        """Unique name of the row."""
        return f"{self.name}:{self.variant}" if self.variant else self.name


def _lmdali(variant: str, label: str, setting: str, kind: Kind = "lmdali", **limits: tuple[str, ...]) -> Contestant:
    return Contestant(
        name="lmdali",
        label=label,
        setting=setting,
        module="lmdali_loader",
        variant=variant,
        kind=kind,
        **limits,  # type: ignore[arg-type]
    )


def _ceiling(variant: str, label: str, setting: str, kind: Kind = "ceiling", **limits: tuple[str, ...]) -> Contestant:
    return Contestant(
        name="ceiling",
        label=label,
        setting=setting,
        module="compiled_ceilings",
        variant=variant,
        kind=kind,
        **limits,  # type: ignore[arg-type]
    )


_PROCESSES = "{n} worker processes"
_COMPILED = "ceiling of the form: pixels in memory, {n} threads, no Python per sample"
_PASS = "ceiling of the form: simplejpeg, compiled pass; {n} threads, no loader"
_PAPER = "backend cpu, {n} threads; more work: mean image and lighting"

CONTESTANTS: tuple[Contestant, ...] = (
    _ceiling("decode", "decode only", "libjpeg-turbo (simplejpeg), accurate IDCT, {n} threads", encodings=("jpeg",)),
    _ceiling(
        "compiled",
        "compiled loop",
        _COMPILED,
        encodings=("raw",),
    ),
    _ceiling(
        "pass",
        "decode + one pass",
        _PASS,
        encodings=("jpeg",),
    ),
    _ceiling("memcpy", "memcpy", "whole stored images, {n} threads", "part", encodings=("raw",)),
    _ceiling("read", "LMDB read only", "lmdali's reader, every byte copied once, {n} threads", "part"),
    _lmdali("cpu", "lmdali", "backend cpu, {n} threads"),
    _lmdali("paper", "lmdali, paper", _PAPER, forms=("float32",)),
    # No decoding is left from the second epoch on: no figure to put beside loaders that decode.
    _lmdali("cached", "lmdali, decoded cache", "every image fits, {n} threads", "part", encodings=("jpeg",)),
    _lmdali("dali", "lmdali, DALI backend", "backend dali on the CPU, {n} threads"),
    Contestant(
        name="thread-pool",
        label="plain thread pool",
        setting="LMDB, simplejpeg, numba; {n} threads, ring of reused batches",
        module="thread_pool",
        copy="lmdb",
    ),
    Contestant(
        name="torch-folder",
        label="torch ImageFolder",
        setting=f"DataLoader, Pillow, torchvision; {_PROCESSES}, persistent",
        module="torch_folder",
        copy="folder",
        package="torchvision",
    ),
    Contestant(
        name="torch-lmdb",
        label="torch over LMDB",
        setting=f"DataLoader, OpenCV; {_PROCESSES} that build whole batches",
        module="torch_lmdb",
        copy="lmdb",
    ),
    Contestant(
        name="dali",
        label="DALI readers.caffe",
        setting="our very shards; {n} threads, queue of 2, DALIGenericIterator",
        module="dali_caffe",
        package="nvidia-dali-cuda130",
        variant="whole",
    ),
    Contestant(
        name="dali",
        label="DALI, region decode",
        setting="our very shards; the same with decoders.image_crop",
        module="dali_caffe",
        package="nvidia-dali-cuda130",
        variant="roi",
        encodings=("jpeg",),
    ),
    Contestant(
        name="webdataset",
        label="WebDataset",
        setting=f"OpenCV; {_PROCESSES} that build whole batches",
        module="webdataset_tar",
        copy="tar",
        package="webdataset",
    ),
    Contestant(
        name="spdl",
        label="SPDL",
        setting="simplejpeg, numba; {n} threads, a task is a batch, reused batches",
        module="spdl_pipeline",
        copy="lmdb",
        package="spdl",
    ),
    Contestant(
        name="litdata",
        label="LitData",
        setting=f"OpenCV; {_PROCESSES}, StreamingDataLoader, persistent",
        module="litdata_chunks",
        copy="litdata",
        package="litdata",
    ),
    Contestant(
        name="mosaic",
        label="MosaicML Streaming",
        setting=f"OpenCV; {_PROCESSES}, persistent",
        module="mosaic_shards",
        copy="mds",
        package="mosaicml-streaming",
    ),
    Contestant(
        name="grain",
        label="Grain",
        setting=f"OpenCV; {_PROCESSES}, mp_prefetch",
        module="grain_records",
        copy="arrayrecord",
        package="grain",
    ),
    Contestant(
        name="tf.data",
        label="tf.data",
        setting="private pool of {n} threads, AUTOTUNE",
        module="tf_records",
        copy="tfrecord",
        package="tensorflow-cpu",
    ),
    Contestant(
        name="ffcv",
        label="FFCV as documented",
        setting="{n} threads, OS cache, stock operations",
        module="ffcv_beton",
        copy="beton",
        package="ffcv",
        variant="stock",
    ),
    Contestant(
        name="ffcv",
        label="FFCV, hand-written",
        setting="{n} threads, OS cache; decode and one jitted pass as one operation",
        module="ffcv_beton",
        copy="beton",
        package="ffcv",
        variant="fused",
    ),
)

STREAMING: tuple[Contestant, ...] = (
    _lmdali("streamed", "lmdali", "order block, 4 fetches, a cache on disk; {n} threads"),
    _lmdali("unhurried", "lmdali, no prefetch", "the same, 1 fetch, and no shard before its block's turn"),
    *(contestant for contestant in CONTESTANTS if contestant.name in ("mosaic", "litdata", "webdataset")),
)
"""Those of streamed.py."""

PEER_NAMES = tuple(dict.fromkeys(c.name for c in CONTESTANTS if c.kind == "peer"))


def find(key: str) -> Contestant:
    """The contestant with this key."""
    return next(contestant for contestant in (*CONTESTANTS, *STREAMING) if contestant.key == key)
