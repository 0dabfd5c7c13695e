"""`ThroughputReport`: everything a profile found, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lmdali.tools.cold_run import CacheState, ColdRun
from lmdali.tools.fetch_figures import FetchFigures
from lmdali.tools.measurement import Rate
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
        model: class name, None without a model.
        num_parameters: of the model.
    """

    dataset: str
    dataset_digest: str | None
    num_samples: int | None
    encoding: str | None
    mean_record_bytes: float | None
    batch_size: int
    steps_per_epoch: int | None
    num_threads: int | None
    backend: str
    backend_reason: str
    order: str | None
    prefetch: int | None
    verify: str | None
    decoded_cache_bytes: int | None
    readahead_bytes: int | None
    device: str
    dtype: str
    layout: str
    model: str | None
    num_parameters: int | None


@dataclass(frozen=True, kw_only=True)
class ThroughputReport:
    """What `lmdali profile run` measured. None means not measured, never zero.

    Attributes:
        setting: what was profiled.
        read: storage alone: every byte copied once.
        decode: libjpeg-turbo (simplejpeg) alone, to whole RGB images, on all threads; None for raw records. Our decoder
            leaves out what a crop does not need, so a loader may be faster than this.
        decode_one_thread: the same on one thread.
        memory_copy: memcpy alone; None for JPEG records.
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
        fetch: what fetching shards does to the run; None for a dataset on this machine.
    """

    setting: Setting
    read: Rate | None
    decode: Rate | None
    decode_one_thread: Rate | None
    memory_copy: Rate | None
    loader: Rate
    model: Rate | None
    together: Rate | None
    time_to_first_batch_seconds: float
    epoch_gap_seconds: float | None
    verdict: Verdict
    suggestion: Suggestion | None
    machine: dict[str, Any]
    cautions: tuple[str, ...] = ()
    cache: CacheState | None = None
    cold: ColdRun | None = None
    inside: StageDetail | None = None
    what_if: tuple[Prediction, ...] = ()
    optimizer: Rate | None = None
    fetch: FetchFigures | None = None

    @property
    def data_stall(self) -> float | None:
        """1 - ideal step / measured step, 0..1."""
        return self.verdict.data_stall

    def shares(self) -> dict[str, float | None]:
        """Each rate over the lowest ceiling above it, 0..1; None for what has no ceiling here."""
        parts = [rate for rate in (self.read, self.decode, self.memory_copy) if rate is not None]
        return {
            "loader": share_of(self.loader, parts),
            "together": share_of(self.together, [rate for rate in (self.loader, self.model) if rate is not None]),
        }

    def to_json(self) -> dict[str, Any]:
        """One JSON-able document."""
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "verdict": {**asdict(self.verdict), "word": self.verdict.word},
            "shares": self.shares(),
            "megabytes_per_second": {
                name: stored_megabytes(rate, self.setting)
                for name, rate in (("read", self.read), ("loader", self.loader))
            },
        }


def stored_megabytes(rate: Rate | None, setting: Setting) -> float | None:
    """MB/s of stored bytes; None where there is no rate, or nobody knows how large the records are."""
    if rate is None or setting.mean_record_bytes is None:
        return None
    return rate.images_per_second * setting.mean_record_bytes / 1e6


def share_of(rate: Rate | None, ceilings: list[Rate]) -> float | None:
    """A rate over the lowest of its ceilings; None without either."""
    if rate is None or not ceilings:
        return None
    return rate.images_per_second / min(ceiling.images_per_second for ceiling in ceilings)
