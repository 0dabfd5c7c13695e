"""Where JPEG records are decoded when batches go to a GPU: by CPU threads, or on the GPU. Measured once, remembered.

There are two ways to the same batches. CPU threads decode and crop, uint8 crosses the bus, and the GPU normalises (the
cpu backend); or encoded bytes cross, and the GPU's decode engines and cores do the rest (the dali backend). Which one
is faster depends on the number of cores, the GPU and the size of the records, so `decode="auto"` tries both on records
of the dataset at hand. Raw records have nothing to decode. Ranks may come to different choices, and their decoders may
then differ by a gray level here and there: name the way where that matters.

| backend | decode     | on a GPU                                                    | on a CPU            |
|---------|------------|-------------------------------------------------------------|---------------------|
| auto    | auto       | the faster of both; raw records or no DALI: cpu             | cpu                 |
| auto    | cpu / gpu  | cpu / dali                                                  | cpu / ConfigError   |
| cpu     | auto, cpu  | CPU threads decode, the GPU normalises                      | cpu                 |
| cpu     | gpu        | ConfigError                                                 | ConfigError         |
| dali    | auto, gpu  | decoded on the GPU                                          | CPU operators / ConfigError |
| dali    | cpu        | ConfigError (raw records: nothing to decode, dali)          | CPU operators       |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from time import perf_counter
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentConfig, draw_params
from lmdali.pipeline.backend import Backend, BackendName, BatchPlan, OutputSpec
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.cpu_budget import cpu_name, usable_cpus
from lmdali.pipeline.errors import ConfigError, LmdaliError, install_line
from lmdali.pipeline.manifest import Manifest
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.rate_memory import RateKey, RateMemory, memory_file, rounded_bytes, software_versions
from lmdali.pipeline.sampler import RankSlice, SampleOrder

Decode = Literal["auto", "gpu", "cpu"]
Way = Literal["cpu", "gpu"]

MARGIN = 1.2
"""A way is taken without trying the other one where it delivers this many times the rate that is required."""

GPU_ADVANTAGE = 1.05
"""Decoding on the GPU takes time from the model that trains on it, so it must be faster by this factor."""

_BACKEND_OF_WAY: dict[Way, BackendName] = {"cpu": "cpu", "gpu": "dali"}
_PLACE = {"cpu": "on CPU threads", "gpu": "on the GPU"}
_SAMPLE_RECORDS = 512


class Choice(NamedTuple):
    """A backend and, in words, why."""

    backend: BackendName
    reason: str


def fixed_choice(backend: BackendName, decode: Decode, *, device: str, raw: bool, has_dali: bool) -> Choice | None:
    """The choice where nothing needs to be measured, else None.

    Args:
        backend: what was asked for.
        decode: what was asked for.
        device: "cpu" or "cuda:N".
        raw: whether the dataset holds raw records.
        has_dali: whether DALI is installed.

    Raises:
        ConfigError: backend, decode and device contradict each other.
    """
    on_gpu = device != "cpu"
    if decode == "gpu" and not on_gpu:
        raise ConfigError('decode="gpu" needs a GPU, and the device is cpu: leave decode at "auto"')
    if decode == "gpu" and backend == "cpu":
        raise ConfigError('backend "cpu" decodes on CPU threads: for decode="gpu" take backend "auto" or "dali"')
    if decode == "cpu" and backend == "dali" and on_gpu and not raw:
        raise ConfigError(
            'backend "dali" decodes JPEG on the GPU: for decode="cpu" take backend "auto" or "cpu", which normalises '
            "on the GPU all the same"
        )
    if backend != "auto":
        return Choice(backend, "asked for")
    if not on_gpu:
        return Choice("cpu", "the device is the CPU")
    if decode != "auto":
        return Choice(_BACKEND_OF_WAY[decode], f'decode="{decode}" was asked for')
    if raw:
        return Choice("cpu", "raw records need no decoder, and only their crops cross the bus")
    if not has_dali:
        return Choice("cpu", f"the device is {device}, but DALI is not installed: {install_line('dali-cuda13')}")
    return None


def measured_choice(
    make_backend: Callable[[BackendName], Backend],
    augment: AugmentConfig,
    transform: PixelTransform,
    spec: OutputSpec,
    manifest: Manifest,
    *,
    records: NDArray[np.int64],
    gpu: str,
    num_threads: int,
    prefetch: int,
    required: float | None,
    seconds: float = 1.0,
) -> Choice:
    """`choose_way` for one dataset and one GPU, through real backends.

    Args:
        make_backend: opens one; it is closed here.
        augment: what the loader draws.
        transform: the arithmetic.
        spec: form and place of the batches.
        manifest: of the dataset.
        records: (n,) int64, from `first_records`.
        gpu: name of the GPU.
        num_threads: of the loader.
        prefetch: of the loader.
        required: images per second that the consumer takes at most, where that is known.
        seconds: to measure each way, not counting opening and warm-up.
    """
    key = RateKey(
        gpu=gpu,
        cpu=cpu_name(),
        num_cpus=usable_cpus(),
        num_threads=num_threads,
        prefetch=prefetch,
        batch_size=spec.batch_size,
        dtype=spec.dtype,
        layout=spec.layout,
        crop_size=spec.crop_size,
        num_views=spec.num_views,
        resized=spec.resized,
        image_size=manifest.image_size,
        encoding=manifest.encoding,
        mean_record_bytes=rounded_bytes(manifest.mean_record_bytes),
        versions=software_versions(),
    )
    plan = sample_plan(augment, transform, records, batch_size=spec.batch_size, image_size=manifest.image_size)

    def measure(way: Way) -> float:
        with closing(make_backend(_BACKEND_OF_WAY[way])) as backend:
            # Labels follow the images in the consumer's stream: once they are here, the images are made.
            return measure_rate(
                backend, plan, prefetch=prefetch, wait=lambda batch: batch.labels.cpu(), seconds=seconds
            )

    return choose_way(key, RateMemory(memory_file()), measure, required=required)


def choose_way(
    key: RateKey, memory: RateMemory, measure: Callable[[Way], float], *, required: float | None = None
) -> Choice:
    """Take the faster way, measuring only what is not known yet.

    CPU threads are tried first, as they leave the GPU to the model. Where a rate is required and they deliver it with
    `MARGIN`, that settles it.

    Args:
        key: what is to be loaded, and where.
        memory: of earlier runs.
        measure: images per second of a way; an error of lmdali or DALI means that this way does not work here.
        required: images per second that the consumer takes at most.
    """
    remembered = memory.load(key)
    rates: dict[Way, float] = {way: remembered[way] for way in get_args(Way) if way in remembered}
    when, failures = "measured before", dict[Way, str]()
    while (way := _next_way(rates, failures, required)) is not None:
        when = "measured now"
        try:
            rates[way] = measure(way)
        except (LmdaliError, RuntimeError) as error:
            failures[way] = str(error).partition("\n")[0]
    if when == "measured now" and rates:
        memory.store(key, {str(way): rate for way, rate in rates.items()})
    taken, why = _verdict(rates, required)
    numbers = [f"{rates[way]:,.0f} images/s {_PLACE[way]}" for way in get_args(Way) if way in rates]
    numbers += [f"{_PLACE[way]} it failed ({failure})" for way, failure in failures.items()]
    return Choice(_BACKEND_OF_WAY[taken], f"decoding {_PLACE[taken]}: {why}; {', '.join(numbers)}, {when}")


def _next_way(rates: Mapping[Way, float], failures: Mapping[Way, str], required: float | None) -> Way | None:
    """What to measure next; None where enough is known."""
    if "cpu" not in rates and "cpu" not in failures:
        return "cpu"
    if _suffices(rates.get("cpu"), required) or "gpu" in rates or "gpu" in failures:
        return None
    return "gpu"


def _suffices(rate: float | None, required: float | None) -> bool:
    return rate is not None and required is not None and rate >= MARGIN * required


def _verdict(rates: Mapping[Way, float], required: float | None) -> tuple[Way, str]:
    cpu, gpu = rates.get("cpu"), rates.get("gpu")
    if _suffices(cpu, required):
        return "cpu", f"enough for the {required:,.0f} images/s required, and the GPU is left to the model"
    if gpu is None:
        return "cpu", "the other way does not work here" if cpu is not None else "neither way could be measured"
    if cpu is None:
        return "gpu", "the other way does not work here"
    if gpu > GPU_ADVANTAGE * cpu:
        return "gpu", "the faster way"
    return "cpu", "the faster way" if cpu >= gpu else "nearly as fast, and the GPU is left to the model"


def measure_rate(
    backend: Backend,
    plan: Callable[[int], BatchPlan],
    *,
    prefetch: int,
    wait: Callable[[Batch], object],
    seconds: float,
    warmup_batches: int = 8,
    clock: Callable[[], float] = perf_counter,
) -> float:
    """Images per second that a backend delivers.

    Args:
        backend: stays open.
        plan: of batch 0, 1, 2, ...
        prefetch: batches in flight beyond the one that is waited for.
        wait: returns when the device has made this batch.
        seconds: to measure, after the warm-up; at least two batches are counted.
        warmup_batches: not counted, at least 1.
        clock: for tests.
    """
    in_flight: deque[Any] = deque()
    step = counted = images = 0
    start = 0.0
    try:
        while True:
            while len(in_flight) <= prefetch:
                in_flight.append(backend.start(plan(step)))
                step += 1
            batch = backend.finish(in_flight.popleft())
            if warmup_batches > 0:
                warmup_batches -= 1
                if warmup_batches == 0:
                    wait(batch)
                    start = clock()
                continue
            counted, images = counted + 1, images + len(batch.labels)
            if counted >= 2 and clock() - start >= seconds:
                wait(batch)
                return images / (clock() - start)
    finally:
        for pending in in_flight:
            backend.cancel(pending)


def first_records(order: SampleOrder, rank_slice: RankSlice) -> NDArray[np.int64]:
    """(n,) int64, n >= 1: a few hundred records with which a rank begins an epoch.

    No shard is fetched for a measurement with these that the epoch could do without.
    """
    steps = range(min(rank_slice.num_steps(), -(-_SAMPLE_RECORDS // rank_slice.largest_batch)))
    own = np.concatenate([rank_slice.positions(step) for step in steps])
    return order.at(own if len(own) else np.zeros(1, np.int64))


def sample_plan(
    augment: AugmentConfig,
    transform: PixelTransform,
    records: NDArray[np.int64],
    *,
    batch_size: int,
    image_size: int,
) -> Callable[[int], BatchPlan]:
    """Plans of batches that go round some records: after one round they are in memory.

    Args:
        augment: what is drawn.
        transform: the arithmetic.
        records: (n,) int64.
        batch_size: samples per step.
        image_size: side of the stored images, pixels.
    """

    def plan(step: int) -> BatchPlan:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        indices = records[positions % len(records)]
        params = draw_params(augment, seed=0, epoch=0, indices=indices, positions=positions, image_size=image_size)
        return BatchPlan(indices, params, transform.shifts(params), transform.at(0).scale)

    return plan
