"""`OrderLedger`: which samples an epoch delivers, when, to whom and with which draws; no pixel is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.augment import WINDOW_DEFAULTS, AugmentConfig, AugmentParams, draw_params
from lmdali.pipeline.block_order import DEFAULT_BLOCK_SHARDS, OrderName, create_order, drops_last, order_nodes
from lmdali.pipeline.dataset_identity import DatasetIdentity
from lmdali.pipeline.dataset_place import Place, place_directory, place_manifest
from lmdali.pipeline.errors import ConfigError, IntegrityError
from lmdali.pipeline.manifest import RECORDS_FILE, RecordIndex
from lmdali.pipeline.order_digest import digest_text, epoch_digest
from lmdali.pipeline.record_list import Records
from lmdali.pipeline.sampler import MAX_EPOCH, RankSlice
from lmdali.pipeline.shuffle_quality import ideal_quality, shuffle_quality
from lmdali.pipeline.table_reader import take_rows

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """The run, or the part of one, whose order is asked for.

    Attributes:
        epoch: 0 to 2**32 - 1.
        seed: 0 to 2**64 - 1.
        order: a name in `ORDERS`.
        block_shards: shards in a block of the block order.
        block_nodes: machines that the block order gives shards of their own.
        batch_size: samples per rank and step.
        world_size: ranks that share each global batch.
        rank: the only one to look at; None looks at all.
        start: position in the epoch where steps begin, `sample_in_epoch` of the state that a run went on from.
        drop_last: leave out a last, smaller global batch; None means unless the order is sequential.
        augment: what is drawn.
        records: the only ones that are delivered, as `LoaderConfig.records`; None means all.
    """

    epoch: int = 0
    seed: int = 0
    order: OrderName = "shuffled"
    block_shards: int = DEFAULT_BLOCK_SHARDS
    block_nodes: int = 1
    batch_size: int = 128
    world_size: int = 1
    rank: int | None = None
    start: int = 0
    drop_last: bool | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig.paper)
    records: Records | None = None

    def __post_init__(self) -> None:
        for name, limit in (("epoch", MAX_EPOCH), ("seed", MAX_SEED)):
            if not 0 <= getattr(self, name) <= limit:
                raise ConfigError(f"{name} must be in 0..{limit}, found {getattr(self, name)}")

    def rank_slice(self, num_samples: int) -> RankSlice:
        """The steps of the rank asked for, or of rank 0."""
        drop_last = drops_last(self.drop_last, self.order)
        nodes = order_nodes(self.order, self.block_nodes)
        return RankSlice(num_samples, self.batch_size, self.rank or 0, self.world_size, drop_last, nodes)


class OrderLedger:
    """The order of one epoch of a dataset, and what follows from it."""

    def __init__(self, dataset: Place, config: OrderConfig, *, cache_dir: Place | None = None) -> None:
        """Read the manifest.

        Args:
            dataset: made by `lmdali convert`.
            config: which run, and what of it.
            cache_dir: for a dataset at an address, as of `LoaderConfig`.

        Raises:
            ConfigError: options that do not fit each other or the dataset.
            InputError: not a finished dataset, or a list of records of another one.
            IntegrityError: its manifest is damaged.
        """
        manifest = place_manifest(dataset, cache_dir=cache_dir)
        identity = DatasetIdentity.of(manifest).listing(config.records)
        count, shard_sizes = identity.num_samples, identity.shard_sizes
        self._config, self._manifest, self._dataset, self._cache_dir = config, manifest, dataset, cache_dir
        self._slice, self._shard_sizes, self._index = config.rank_slice(count), shard_sizes, RecordIndex(manifest)
        if not 0 <= config.start <= count:
            raise ConfigError(f"start is position {config.start} of an epoch of {count} samples")
        self._order = create_order(
            config.order,
            num_samples=count,
            seed=config.seed,
            epoch=config.epoch,
            shard_sizes=shard_sizes,
            block_shards=config.block_shards,
            block_nodes=config.block_nodes,
            records=identity.records,
        )

    @cached_property
    def _path(self) -> Path:
        """The table of records, which is brought here where the dataset is at an address."""
        return place_directory(self._dataset, tables=True, cache_dir=self._cache_dir) / RECORDS_FILE

    def describe(self) -> dict[str, Any]:
        """The run that was asked for and its number of steps, JSON-able."""
        config = {name: value for name, value in vars(self._config).items() if name != "augment"}
        augment = self._config.augment
        windows = WINDOW_DEFAULTS if augment.crop == "resized" else ()
        names = ("crop", "crop_size", *windows, "crop_chunk", "flip", "lighting_std")
        drawn = {name: getattr(augment, name) for name in names}
        drawn["lighting_std"] *= augment.is_lit(self._config.epoch)
        return {
            "manifest_digest": self._manifest.digest,
            "num_samples": self._order.num_samples,
            **config,
            "drop_last": self._slice.drop_last,
            "num_steps": self._slice.num_steps(self._config.start),
            "augment": drawn,
        }

    def in_run(self, step: int) -> tuple[int, int]:
        """Epoch and step in it of a step of the whole run; all steps are counted from 1."""
        epoch, before = divmod(step - 1, max(1, self._slice.num_steps()))
        return epoch, before + 1

    def rows(self, *, step: int | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """Delivered samples in the order of their positions, JSON-able.

        Each has its `position` in the epoch's global order, from 0; `step`, from 1; `rank`; `sample`, the record
        number; its `shard` and `row`, `key` and `source` path, `label` and `class_name`; and `views`, which have
        `crop_y`, `crop_x`, `flip` and `alphas`, and `height` and `width` of a window that is resized.

        Args:
            step: only this one, counted from 1 in this epoch and from the start asked for.
            limit: at most so many.

        Raises:
            ConfigError: no such step, or the crop is larger than the images.
            IntegrityError: the record table is damaged, or not that of the manifest.
        """
        num_steps = self._slice.num_steps(self._config.start)
        if step is not None and not 1 <= step <= num_steps:
            raise ConfigError(
                f"step {step} was asked for: epoch {self._config.epoch} has {num_steps} steps from position "
                f"{self._config.start} on, counted from 1"
            )
        rows: list[dict[str, Any]] = []
        for number in range(num_steps) if step is None else (step - 1,):
            positions = self._positions(number)
            rows += self._rows(positions if limit is None else positions[: limit - len(rows)])
            if len(rows) == limit:
                break
        return rows

    def _positions(self, step: int) -> NDArray[np.int64]:
        """What the rank asked for, or all of them, deliver in a step counted from 0."""
        start = self._config.start
        if self._config.rank is not None:
            return self._slice.positions(step, start)
        return np.arange(start + step * self._slice.global_batch_size, self._slice.position_after(step, start))

    def _rows(self, positions: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        if not len(positions):
            return
        config, samples = self._config, self._order.at(positions)
        params = draw_params(
            config.augment,
            seed=config.seed,
            epoch=config.epoch,
            indices=samples,
            positions=positions,
            image_size=self._manifest.image_size,
        )
        first = int(positions[0])
        owners = self._slice.owners(first, int(positions[-1]) + 1, config.start)
        steps, ranks = (column[positions - first].tolist() for column in owners)
        views = config.augment.num_views
        table = take_rows(self._path, ["shard", "row", "key", "source", "label"], samples.tolist())
        for number, (sample, stored) in enumerate(zip(samples.tolist(), table, strict=True)):
            yield {
                "position": int(positions[number]),
                "step": steps[number] + 1,
                "rank": ranks[number],
                "sample": sample,
                **self._checked(sample, stored),
                "views": _views(params.part(number * views, (number + 1) * views)),
            }

    def _checked(self, sample: int, stored: dict[str, Any]) -> dict[str, Any]:
        shard, row = self._index.locate(sample)
        place, names = (self._manifest.shards[shard].name, row), self._manifest.class_names
        label = stored["label"]
        if (stored["shard"], stored["row"]) != place or not isinstance(label, int) or not 0 <= label < len(names):
            raise IntegrityError(f"{self._path}: record {sample} is not that of manifest.json: run `lmdali verify`")
        return {**stored, "class_name": names[label]}

    def digest(self) -> dict[str, Any]:
        """What loaders that deliver the epoch from the start asked for will have counted: samples and digest."""
        counted = epoch_digest(
            self._order,
            self._slice,
            self._config.augment,
            seed=self._config.seed,
            image_size=self._manifest.image_size,
            start=self._config.start,
            all_ranks=self._config.rank is None,
        )
        return {"num_samples": counted.num_samples, "digest": digest_text(counted.digest)}

    def quality(self) -> dict[str, Any]:
        """How well the whole epoch is mixed, beside the ideal and storage order; the window is a global batch.

        Raises:
            ConfigError: of a list of records, for which there is no ideal.
        """
        if self._config.records is not None:
            raise ConfigError("the quality of an order is that of all records: leave the list of records out")
        sizes, window = self._shard_sizes, min(self._slice.global_batch_size, self._manifest.num_records)
        storage = create_order("sequential", num_samples=self._manifest.num_records, seed=0, epoch=0)
        return {
            "window": window,
            "order": asdict(shuffle_quality(self._order, sizes, window)),
            "ideal": asdict(ideal_quality(sizes, window)),
            "sequential": asdict(shuffle_quality(storage, sizes, window)),
        }


def _views(params: AugmentParams) -> list[dict[str, Any]]:
    draws = zip(params.crop_yx.tolist(), params.flip.tolist(), params.alphas.tolist(), strict=True)
    views = [{"crop_y": y, "crop_x": x, "flip": flip, "alphas": alphas} for (y, x), flip, alphas in draws]
    if params.sides is None:
        return views
    sides = params.sides.tolist()
    return [view | {"height": h, "width": w} for view, (h, w) in zip(views, sides, strict=True)]
