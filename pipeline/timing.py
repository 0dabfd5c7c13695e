"""Stage timers: where a loader's seconds go, summed over threads, at well under 1 % of the time they measure."""

from __future__ import annotations

import threading
from time import perf_counter
from typing import NamedTuple, Protocol

STAGES = ("plan", "read", "verify", "decode", "augment", "collate", "copy", "wait")
"""plan: order and draws, as far as the consumer makes them or waits for the thread that does.

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


class StageCall(NamedTuple):
    """One stretch of one stage.

    Attributes:
        thread: identifier of the thread, as `threading` has it.
        stage: of `STAGES`.
        end: by `perf_counter`, seconds.
        seconds: it took.
    """

    thread: int
    stage: str
    end: float
    seconds: float


class QueueReading(NamedTuple):
    """What the consumer found when it asked for a batch.

    Attributes:
        at: by `perf_counter`, seconds.
        ready: batches that were done.
        started: batches that were begun.
    """

    at: float
    ready: int
    started: int


class Recording(NamedTuple):
    """Everything that happened between two moments.

    Attributes:
        calls: in the order in which they ended, all threads together.
        queue: readings, in order.
        threads: identifier -> name, of the threads that have calls.
    """

    calls: list[StageCall]
    queue: list[QueueReading]
    threads: dict[int, str]


class Ranges(Protocol):
    """Named ranges of the calling thread, one inside the other, as a tracing tool draws them: NVTX."""

    def push(self, name: str) -> None:
        """Begin a range."""
        ...

    def pop(self) -> None:
        """End the one that was begun last."""
        ...


class Stretch:
    """A block that is timed; made for one use, by `StageTimers.measure`."""

    __slots__ = ("_ranges", "_stage", "_start", "_timers")

    def __init__(self, timers: StageTimers, stage: str) -> None:
        self._timers, self._stage = timers, stage

    def __enter__(self) -> None:
        # Asked once: whoever switches ranges on or off meanwhile must not leave one open.
        self._ranges = self._timers._ranges
        if self._ranges is not None:
            self._ranges.push(self._stage)
        self._start = perf_counter()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._timers.add(self._stage, perf_counter() - self._start)
        if self._ranges is not None:
            self._ranges.pop()


class StageTimers:
    """Seconds per stage. Each thread adds to numbers of its own, so no lock is taken where time is measured.

    On demand every single call is recorded, too: some 0.1 kB each, so for seconds and not for days.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[dict[str, float]] = []
        self._names: dict[int, str] = {}
        self._recording: Recording | None = None
        self._ranges: Ranges | None = None

    def add(self, stage: str, seconds: float) -> None:
        """Count `seconds` of this thread for `stage`."""
        totals: dict[str, float] | None = getattr(self._local, "totals", None)
        if totals is None:
            totals = self._local.totals = dict.fromkeys(STAGES, 0.0)
            with self._lock:
                self._all.append(totals)
                self._names[threading.get_ident()] = threading.current_thread().name
        totals[stage] += seconds
        if (recording := self._recording) is not None:
            recording.calls.append(StageCall(threading.get_ident(), stage, perf_counter(), seconds))

    @property
    def is_recording(self) -> bool:
        """Whether calls are recorded."""
        return self._recording is not None

    def read_queue(self, ready: int, started: int) -> None:
        """Note how many batches were done, of those begun, when one was asked for."""
        if (recording := self._recording) is not None:
            recording.queue.append(QueueReading(perf_counter(), ready, started))

    def start_recording(self) -> None:
        """From now on keep every call."""
        self._recording = Recording([], [], {})

    def stop_recording(self) -> Recording:
        """What was kept, nothing if nothing was asked for; calls that end later are not in it."""
        recording, self._recording = self._recording or Recording([], [], {}), None
        calls = list(recording.calls)
        with self._lock:
            names = {thread: self._names[thread] for thread in {call.thread for call in calls}}
        return Recording(calls, list(recording.queue), names)

    def measure(self, stage: str) -> Stretch:
        """Time a block, `with timers.measure("read"):`, also where it raises."""
        return Stretch(self, stage)

    def annotate(self, ranges: Ranges | None) -> None:
        """From now on mark every stretch as a range for a tracing tool, too; None ends that."""
        self._ranges = ranges

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage so far, over all threads."""
        with self._lock:
            return {stage: sum(totals[stage] for totals in self._all) for stage in STAGES}
