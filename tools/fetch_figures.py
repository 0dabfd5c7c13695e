"""What fetching shards does to a run: how fast they come, how long somebody waits, what would keep it fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmdali.pipeline.fetch_counts import FetchCounts
from lmdali.tools.measurement import Rate

FETCH_STAGE = "fetch"
"""Time in which a loader's threads waited for shards, among the stages of a loader of a dataset at an address."""

WAIT_OF_NOTE = 0.1
"""Share of the threads' time in which they may wait for shards before anybody has to hear of it."""


@dataclass(frozen=True, kw_only=True)
class FetchFigures:
    """Of a dataset at an address. MB are 10^6 bytes.

    Attributes:
        fetched_bytes: that came while this was measured, from the first batch on.
        megabytes_per_second: how fast they came while any did; None where none came.
        cache_hit_share: shards that were in the cache when they were needed, 0..1; None where none was needed.
        loader_stall: share of its time in which the loader alone waited for shards, 0..1.
        step_stall: the same of training steps fed by the loader; None without a model.
        needed_megabytes_per_second: that a first epoch must get for nobody to wait: images/s of loader and model where
            shards are there, times the bytes of shards an image.
    """

    fetched_bytes: int
    megabytes_per_second: float | None
    cache_hit_share: float | None
    loader_stall: float
    step_stall: float | None
    needed_megabytes_per_second: float

    @classmethod
    def of(
        cls,
        counts: FetchCounts,
        rates: Mapping[str, Rate],
        *,
        bytes_per_image: float,
        num_threads: int,
        num_cpus: int,
        on_gpu: bool,
    ) -> FetchFigures:
        """From what a loader counted, and the rates of it, a model and both together (the last two may be missing)."""
        loader, model, together = rates["loader"], rates.get("model"), rates.get("together")
        stall = stall_share(loader, num_threads)
        limits = [loader.images_per_second / max(1 - stall, 1 / (1 + loader.steps))]
        cpu_seconds = loader.cpu_seconds_per_image
        if model is not None:
            limits.append(model.images_per_second)
            cpu_seconds += 0.0 if on_gpu else model.cpu_seconds_per_image
        if cpu_seconds:
            limits.append(num_cpus / cpu_seconds)
        came = counts.bytes_per_second
        return cls(
            fetched_bytes=counts.fetched_bytes,
            megabytes_per_second=None if came is None else came / 1e6,
            cache_hit_share=counts.hit_share,
            loader_stall=stall,
            step_stall=None if together is None else stall_share(together, num_threads),
            needed_megabytes_per_second=min(limits) * bytes_per_image / 1e6,
        )

    @property
    def is_too_slow(self) -> bool:
        """Whether shards that have to be fetched come more slowly than a run would use them."""
        return self.megabytes_per_second is not None and self.megabytes_per_second < self.needed_megabytes_per_second


def stall_share(rate: Rate, num_threads: int) -> float:
    """Share of its time in which a loader's consumer waited because its threads waited for shards, 0..1.

    A thread that waits does no harm as long as batches are ready, and a consumer also waits for other things: it is the
    smaller of the two shares.
    """
    stages = rate.stage_seconds_per_image
    threads = (stages.get(FETCH_STAGE) or 0.0) * rate.images_per_second / num_threads
    consumer = (stages.get("wait") or 0.0) * rate.images_per_second
    return min(threads, consumer, 1.0)


def waits_for_shards(loader: Rate, model: Rate | None, num_threads: int, others: Mapping[str, float]) -> bool:
    """Whether fetching is what a loader would have to be rid of.

    Args:
        loader: alone.
        model: alone; None without one.
        num_threads: of the loader.
        others: seconds per image of the other stages of its threads.
    """
    waiting, share = loader.stage_seconds_per_image.get(FETCH_STAGE) or 0.0, stall_share(loader, num_threads)
    if share < WAIT_OF_NOTE:
        return False
    feeds = model is not None and loader.images_per_second >= (1 - share) * model.images_per_second
    return feeds or waiting >= max(others.values(), default=0.0)


def fetch_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`FetchFigures`, as they are in a report, as names and words."""
    came, hits = figures["megabytes_per_second"], figures["cache_hit_share"]
    steps = figures["step_stall"]
    return [
        (
            "fetched",
            f"{figures['fetched_bytes'] / 1e6:,.0f} MB" + ("" if came is None else f" at {came:,.0f} MB/s"),
        ),
        ("cache hits", "no shard was needed" if hits is None else f"{hits:.0%} of the shards"),
        (
            "stall by fetch",
            f"{figures['loader_stall']:.0%} of the loader's time alone"
            + ("" if steps is None else f", {steps:.0%} of a step fed by it"),
        ),
        ("to stay fed", f"{figures['needed_megabytes_per_second']:,.0f} MB/s while shards are not in the cache"),
    ]


def fetch_cautions(figures: FetchFigures) -> tuple[str, ...]:
    """What limits a profile of a dataset at an address."""
    if figures.fetched_bytes == 0:
        return (
            "nothing was fetched, all shards were in the cache or brought by others: a first epoch has to fetch them",
        )
    if figures.is_too_slow and figures.loader_stall < WAIT_OF_NOTE:
        return (
            "shards come more slowly than this run would use them: it will wait for them, though hardly in these "
            "seconds",
        )
    return ()
