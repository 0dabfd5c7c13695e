"""`ThroughputReport`: everything a profile found, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from lmdali.tools.ceiling_ladder import shares_of_ceilings, shares_of_step
from lmdali.tools.cold_run import CacheState, ColdRun
from lmdali.tools.dali_operators import OperatorCost
from lmdali.tools.fetch_figures import FetchFigures
from lmdali.tools.lock_wait import LockWait
from lmdali.tools.measurement import Rate
from lmdali.tools.rank_report import RankReport
from lmdali.tools.stage_detail import StageDetail
from lmdali.tools.suggestion import Suggestion
from lmdali.tools.verdict import Verdict
from lmdali.tools.what_if import Prediction

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What was profiled. None is what a loader that is not ours does not tell.

    Attributes:
        dataset: directory, or MODULE:FUNCTION that made a loader.
        dataset_digest: identity of the dataset.
        num_samples: records.
        encoding: of the records, "jpeg" or "raw".
        mean_record_bytes: stored image bytes per record.
        batch_size: samples per step.
        steps_per_epoch: batches of an epoch.
        num_threads: of the loader; its worker processes where it is not ours.
        backend: that delivered the batches, or the class of a loader that is not ours.
        backend_reason: why it was taken.
        order: of the samples.
        prefetch: batches worked on ahead.
        verify: when CRCs are compared.
        decoded_cache_bytes: memory for decoded images.
        readahead_bytes: stored bytes asked of storage ahead of time.
        device: of the batches and the model.
        dtype: of the batches.
        layout: of the batches.
        augment: what the loader does to images, in words.
        model: class name, None without a model.
        num_parameters: of the model.
    """

    dataset: str
    dataset_digest: str | None = None
    num_samples: int | None
    encoding: str | None = None
    mean_record_bytes: float | None = None
    batch_size: int
    steps_per_epoch: int | None
    num_threads: int | None
    backend: str
    backend_reason: str
    order: str | None = None
    prefetch: int | None = None
    verify: str | None = None
    decoded_cache_bytes: int | None = None
    readahead_bytes: int | None = None
    device: str
    dtype: str
    layout: str
    augment: str | None = None
    model: str | None
    num_parameters: int | None


@dataclass(frozen=True, kw_only=True)
class ThroughputReport:
    """What `lmdali profile run` measured. None means not measured, never zero.

    Attributes:
        setting: what was profiled.
        storage_sequential: storage alone, in storage order: records' bytes read from the files.
        storage: the same shuffled; None for a loader that reads in storage order.
        read_sequential: LMDB records found in storage order, every byte copied once.
        read: the same shuffled; None as `storage`.
        decode: libjpeg-turbo (simplejpeg) alone, to whole RGB images, on all threads; None for raw records. Our decoder
            leaves out what a crop does not need, so a loader may be faster than this.
        decode_one_thread: the same on one thread; None where that is all there is.
        memory_copy: memcpy alone; None for JPEG records.
        augment: crop, flip and arithmetic alone, of decoded images in memory, on all threads; for a GPU crop and flip.
        augment_one_thread: the same on one thread; None where that is all there is.
        device_copy: batches of uint8 crops in pinned memory to the device; None on a CPU.
        loader: the loader alone.
        model: training steps on one cached batch.
        together: training steps fed by the loader.
        time_to_first_batch_seconds: from asking for a loader to its first batch.
        epoch_gap_seconds: median wait for the first batch of an epoch that follows another.
        verdict: what holds the run back, and what to do.
        suggestion: the setting to try next, with the rate that is predicted for it; None where none should help.
        machine: where this was measured.
        cautions: what limits these numbers.
        cache: where the bytes of the warm measurements came from; None where the loader is not ours.
        cold: the same without a page cache; None unless that was asked for.
        what_if: answers to what was asked; predictions.
        optimizer: updates of all weights alone, in images of a batch per second.
        inside: single calls of the loader's stages, alone; None where the loader is not ours.
        lock: how long threads wait for Python's lock while the loader runs; None where that was not sampled.
        ranks: all ranks of the job beside each other; everything else here is of the first one. None for one process.
        dali_operators: what each step of the DALI graph adds; None where DALI does not deliver.
        fetch: what fetching shards does to the run; None for a dataset on this machine.
    """

    setting: Setting
    loader: Rate
    time_to_first_batch_seconds: float
    epoch_gap_seconds: float | None
    verdict: Verdict
    suggestion: Suggestion | None
    machine: dict[str, Any]
    storage_sequential: Rate | None = None
    storage: Rate | None = None
    read_sequential: Rate | None = None
    read: Rate | None = None
    decode: Rate | None = None
    decode_one_thread: Rate | None = None
    memory_copy: Rate | None = None
    augment: Rate | None = None
    augment_one_thread: Rate | None = None
    device_copy: Rate | None = None
    optimizer: Rate | None = None
    model: Rate | None = None
    together: Rate | None = None
    cautions: tuple[str, ...] = ()
    cache: CacheState | None = None
    cold: ColdRun | None = None
    inside: StageDetail | None = None
    lock: LockWait | None = None
    ranks: RankReport | None = None
    dali_operators: tuple[OperatorCost, ...] | None = None
    what_if: tuple[Prediction, ...] = ()
    fetch: FetchFigures | None = None

    @property
    def data_stall(self) -> float | None:
        """1 - ideal step / measured step, 0..1."""
        return self.verdict.data_stall

    def rates(self) -> dict[str, Rate]:
        """Every rate that was measured by its path in the report's document."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.cold is not None:
            found |= {f"cold.{field.name}": getattr(self.cold, field.name) for field in fields(self.cold)}
        return {path: value for path, value in found.items() if isinstance(value, Rate)}

    def shares(self) -> dict[str, float | None]:
        """Each rate over its next ceiling, 0..1 or a little more; None for what has no ceiling here."""
        threads = self.setting.num_threads
        side_by_side = None if threads is None else min(threads, self.machine["num_cpus"])
        return {"loader": None, "together": None, **shares_of_ceilings(self.rates(), side_by_side)}

    def to_json(self) -> dict[str, Any]:
        """One JSON-able document."""
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "verdict": {**asdict(self.verdict), "word": self.verdict.word},
            "ranks": None if self.ranks is None else self.ranks.to_json(),
            "shares": self.shares(),
            "shares_of_step": shares_of_step(self.rates()),
            "megabytes_per_second": {
                name: stored_megabytes(rate, self.setting)
                for name, rate in (("storage", self.storage), ("read", self.read), ("loader", self.loader))
            },
        }


def stored_megabytes(rate: Rate | None, setting: Setting) -> float | None:
    """MB/s of stored bytes; None where there is no rate, or nobody knows how large the records are."""
    if rate is None or setting.mean_record_bytes is None:
        return None
    return rate.images_per_second * setting.mean_record_bytes / 1e6
