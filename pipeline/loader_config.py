"""`LoaderConfig`: what to load, and in which form; every rule about it that needs no dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import BackendName, DType, Layout
from lmdali.pipeline.batch_tasks import default_prefetch
from lmdali.pipeline.block_order import (
    DEFAULT_BLOCK_SHARDS,
    ORDERS,
    OrderName,
    create_order,
    drops_last,
    require_listable,
)
from lmdali.pipeline.cpu_budget import rank_cpus
from lmdali.pipeline.dataset_identity import DatasetIdentity
from lmdali.pipeline.decode_choice import Decode
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.readahead import DEPTH_BYTES
from lmdali.pipeline.record_list import Records, as_numbers
from lmdali.pipeline.sampler import SampleOrder
from lmdali.pipeline.shard_fetch import DEFAULT_FETCHES
from lmdali.pipeline.verify_policy import Verify
from lmdali.pipeline.whole_number import check_choices, check_fields


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What to load, and in which form.

    Attributes:
        dataset: directory made by `lmdali convert`, or the address of one (http, https, s3, gs, ...), whose shards are
            fetched into a cache when their turn comes; for the synthetic backend also "synthetic:SAMPLESxCLASSES".
        batch_size: samples per device and step.
        seed: decides order and draws, 0 to 2**64 - 1.
        augment: crops, flips, lighting, normalisation.
        order: "shuffled" is a new full permutation each epoch; "shuffled_once" that of epoch 0 each time, so that
            minibatches keep their members (the 2012 code); "block" permutes within blocks of whole shards, for storage
            that must be read sequentially; "sequential" delivers records in storage order, for evaluation.
        block_shards: shards in a block of the block order.
        block_nodes: machines that the block order gives shards of their own, K: where K divides the number of ranks, a
            K-th of these needs a K-th of the shards, the same in every epoch. K decides the order, so a run keeps it;
            any number of ranks goes on with it.
        drop_last: leave out the last, smaller global batch; None means yes, unless the order is sequential.
        backend: "cpu", "dali", "synthetic", or "auto": cpu on a CPU, and on a GPU what `decode` says.
        decode: where JPEG is decoded when the device is a GPU: "cpu" on threads of the cpu backend, "gpu" by the dali
            backend, or "auto": both are measured once (a few seconds) and the faster one is taken; it is remembered,
            and `backend_reason` says why. The table in decode_choice.py has all combinations.
        required_images_per_second: what the consumer takes at most; where CPU threads deliver it with a margin,
            decode "auto" leaves the GPU alone.
        dtype: of the images; "uint8" holds pixels, so it takes neither normalisation nor lighting.
        layout: "NCHW" or "NHWC", the order of the tensor's axes.
        num_threads: worker threads; None means every CPU this process may use, divided among those that torchrun
            started on this machine.
        prefetch: batches worked on ahead of the consumer; None means 3, or up to 7 where threads are many for a batch.
        decoded_cache_bytes: memory in which decoded images of JPEG records are kept, as many as fit; from the second
            epoch on these cost a copy. Pixels are the same. 0 keeps none; needs the cpu backend.
        readahead_bytes: stored bytes that the kernel is asked for ahead of the loader, in whole batches, 2 to 64 of
            them; where all is in memory, hardly any of it is asked for. 0 leaves reading to page faults.
        verify: compare a record's CRC the "first" time this process reads it, "always" or "never".
        cache_dir: directory of that cache; None means LMDALI_CACHE_DIR, or `lmdali` in the user's cache directory.
        cache_bytes: room for shards in it, whoever put them there; None means LMDALI_CACHE_BYTES, or all but a
            twentieth of the disk. It must hold all shards of the order "shuffled", and two blocks of the order "block".
        fetches: shards fetched at once.
        basis: dataset whose statistics normalise and light; None means `dataset`. Validation takes its training set's.
        records: the only records to deliver, each at most once: their numbers, a file with one a line, or an `.npy`
            file; None means all. "sequential" has the list's order, "block" takes none. Draws are those that a record
            has anyway, and statistics those of all.
    """

    dataset: str | Path
    batch_size: int = 128
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig.paper)
    order: OrderName = "shuffled"
    block_shards: int = DEFAULT_BLOCK_SHARDS
    block_nodes: int = 1
    drop_last: bool | None = None
    backend: BackendName = "auto"
    decode: Decode = "auto"
    required_images_per_second: float | None = None
    dtype: DType = "float32"
    layout: Layout = "NCHW"
    num_threads: int | None = None
    prefetch: int | None = None
    decoded_cache_bytes: int = 0
    readahead_bytes: int = DEPTH_BYTES
    verify: Verify = "first"
    cache_dir: str | Path | None = None
    cache_bytes: int | None = None
    fetches: int = DEFAULT_FETCHES
    basis: str | Path | None = None
    records: Records | None = None

    def __post_init__(self) -> None:
        check_fields(self, numbers=_NUMBERS, switches=("drop_last",))
        self._check_kinds()
        check_choices(self, _CHOICES)
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, found {value}")
        if self.required_images_per_second is not None and not self.required_images_per_second > 0:
            raise ConfigError(f"required_images_per_second must be over 0, found {self.required_images_per_second}")
        for name in ("decoded_cache_bytes", "readahead_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, found {getattr(self, name)}")
        if self.decoded_cache_bytes and (self.backend in ("dali", "synthetic") or self.decode == "gpu"):
            raise ConfigError(
                "decoded_cache_bytes keeps images that CPU threads decoded: use backend cpu, or set it to 0"
            )
        require_listable(self.order, self.records)
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed must be in 0..2**64 - 1, found {self.seed}")
        if self.dtype == "uint8" and (self.augment.normalize, self.augment.lighting) != ("none", "none"):
            raise ConfigError(
                'uint8 batches hold pixels: use AugmentConfig.pixels(), or normalize="none" and lighting="none", or a '
                "float dtype"
            )

    def _check_kinds(self) -> None:
        if not isinstance(self.augment, AugmentConfig):
            raise ConfigError(f"augment must be an AugmentConfig, as AugmentConfig.paper() is; found {self.augment!r}")
        for name in ("dataset", "basis", "cache_dir"):
            place = getattr(self, name)
            if not isinstance(place, str | os.PathLike) and (place is not None or name == "dataset"):
                raise ConfigError(f"{name} must be a path or an address, found {place!r}")
        if self.records is not None and not isinstance(self.records, str | os.PathLike):
            object.__setattr__(self, "records", as_numbers(self.records))
        rate = self.required_images_per_second
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float | np.number)):
            raise ConfigError(f"required_images_per_second must be a number, found {rate!r}")

    def order_of(self, identity: DatasetIdentity, epoch: int) -> SampleOrder:
        """The order of one epoch of a dataset."""
        return create_order(
            self.order,
            num_samples=identity.num_samples,
            seed=self.seed,
            epoch=epoch,
            shard_sizes=identity.shard_sizes,
            block_shards=self.block_shards,
            block_nodes=self.block_nodes,
            records=identity.records,
        )

    @property
    def drops_last(self) -> bool:
        """`drop_last` with its default filled in."""
        return drops_last(self.drop_last, self.order)

    @property
    def threads(self) -> int:
        """`num_threads` with its default filled in."""
        return self.num_threads or rank_cpus()

    @property
    def depth(self) -> int:
        """`prefetch` with its default filled in; ten views of an image take the memory of ten."""
        return self.prefetch or default_prefetch(self.batch_size * self.augment.num_views, self.threads)


_POSITIVE = ("batch_size", "block_shards", "block_nodes", "fetches", "prefetch", "cache_bytes", "num_threads")

_NUMBERS = (*_POSITIVE, "seed", "decoded_cache_bytes", "readahead_bytes")

_CHOICES: dict[str, tuple[str, ...]] = {
    "order": ORDERS,
    "backend": get_args(BackendName),
    "decode": get_args(Decode),
    "dtype": get_args(DType),
    "layout": get_args(Layout),
    "verify": get_args(Verify),
}
