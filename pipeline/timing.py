"""Stage timers: where a loader's seconds go, summed over threads, at well under 1 % of the time they measure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

STAGES = ("plan", "read", "verify", "decode", "augment", "collate", "copy", "wait")
"""plan: order and draws.

read: finding records in their shards.
verify: their CRCs, where these are compared.
decode: entropy decoding and IDCT, from a JPEG file to the planes it holds (where libjpeg-turbo steps in, to RGB). In
the dali backend, what the consumer waits for DALI, which decodes and augments.
augment: planes, raw pixels or cached ones to the batch: upsampling, colour, crop, flip, normalisation, layout.
collate: the consumer's work on a batch whose samples are all done; our threads write each sample where it belongs.
copy: to the device.
wait: what the consumer spends in `next()`, planning apart.

A page that is not in memory is paid for by the stage that touches it first: `verify` where CRCs are compared, otherwise
`decode`, or `augment` for raw pixels."""


class StageTimers:
    """Seconds per stage. Each thread adds to numbers of its own, so no lock is taken where time is measured."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[dict[str, float]] = []

    def add(self, stage: str, seconds: float) -> None:
        """Count `seconds` of this thread for `stage`."""
        totals: dict[str, float] | None = getattr(self._local, "totals", None)
        if totals is None:
            totals = self._local.totals = dict.fromkeys(STAGES, 0.0)
            with self._lock:
                self._all.append(totals)
        totals[stage] += seconds

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time a block."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(stage, perf_counter() - start)

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage so far, over all threads."""
        with self._lock:
            return {stage: sum(totals[stage] for totals in self._all) for stage in STAGES}
