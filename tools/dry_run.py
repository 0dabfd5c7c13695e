"""What a conversion would take, from a sample of its source; what the sample crashes or hangs is a child process."""

from __future__ import annotations

import pickle
from collections import Counter
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np

from lmdali.pipeline.files import free_bytes
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.pipeline.sampler import EpochOrder
from lmdali.tools.conversion import (
    ConvertConfig,
    PictureMemory,
    convert_image,
    make_plan,
    pays_compiling,
    prepare_pictures,
)
from lmdali.tools.guarded_calls import CallDied, GuardedChild
from lmdali.tools.source_entries import SourceEntry, own_name
from lmdali.tools.sources import Source, SourceReader
from lmdali.tools.worker_limits import WorkerLimits

_SAMPLES = 200


def estimate(
    source: Source, config: ConvertConfig, workers: int, out: Path, *, limits: WorkerLimits | None = None
) -> dict[str, Any]:
    """What a conversion would take: shards, bytes, seconds, room on the disk.

    Args:
        source: a sample spread over it is converted, in one child process.
        config: how.
        workers: that the conversion would have.
        out: where it would write.
        limits: of time and memory per image; None means those of `WorkerLimits`.
    """
    plan = make_plan(source, config)
    total = plan.num_sources
    order = EpochOrder(total, config.seed, 0, shuffle=True)
    # In the source's own order, so that a sample of rows reads no row group twice.
    sample = [source.entries[int(index)] for index in np.sort(order.indices(0, min(total, _SAMPLES)))]
    work = pickle.dumps((source.reader, config, pays_compiling(total)))
    stored_bytes, rejected, seconds = [], Counter[str](), 0.0
    with closing(GuardedChild(limits or WorkerLimits())) as child:
        for entry in sample:
            size, took = _try(child, work, entry)
            seconds += took
            if isinstance(size, Rejection):
                rejected[str(size)] += 1
            else:
                stored_bytes.append(size)
    sampled = len(sample)
    mean_bytes = sum(stored_bytes) / max(len(stored_bytes), 1)
    expected_bytes = round(total * (1 - rejected.total() / sampled) * (mean_bytes + 2048))
    return {
        "source": source.kind,
        "num_sources": total,
        "num_classes": len(plan.class_names),
        "num_shards": len(plan.shards()),
        "expected_bytes": expected_bytes,
        "expected_seconds": seconds / sampled * total / workers,
        "workers": workers,
        "sampled": sampled,
        "sampled_rejects": dict(rejected),
        "free_bytes": free_bytes(out),
        "fits": expected_bytes < free_bytes(out),
    }


def _try(child: GuardedChild, work: bytes, entry: SourceEntry) -> tuple[int | Rejection, float]:
    """Bytes that a source is stored in, or why it is not stored; and the seconds that took."""
    start = perf_counter()
    try:
        return child.call(_convert, work, entry)
    except CallDied as death:
        return child.limits.verdict(death.exit_code)[0], perf_counter() - start
    except MemoryError:
        return Rejection.OUT_OF_MEMORY, perf_counter() - start


def _convert(work: bytes, entry: SourceEntry) -> tuple[int | Rejection, float]:
    """In the child."""
    reader, config, memory = _prepared(work)
    start = perf_counter()
    try:
        size: int | Rejection = len(convert_image(reader.read(entry), own_name(entry), config, memory)[0])
    except SourceRejected as error:
        size = error.reason
    return size, perf_counter() - start


@lru_cache(maxsize=1)
def _prepared(work: bytes) -> tuple[SourceReader, ConvertConfig, PictureMemory]:
    """Once in a child: what readers keep open, compiled loops and memory are for all pictures."""
    cv2.setNumThreads(1)  # as in the workers of a conversion
    reader, config, compiled = pickle.loads(work)
    return reader, config, prepare_pictures(config, compiled=compiled)
