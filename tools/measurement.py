"""How a rate is measured: several windows after a warm-up, interleaved with those of whatever it is compared with.

Machines drift (turbo clocks, neighbours on the same host), so measuring A for ten seconds and then B compares two
moments, not two things. Here every round gives each probe one window, and medians are taken over the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median
from time import perf_counter
from typing import Protocol

from lmdali.pipeline.errors import ConfigError
from lmdali.tools.page_cache import device_bytes
from lmdali.tools.worker_cpu import cpu_seconds

MIN_STEPS_PER_WINDOW = 2


class Probe(Protocol):
    """Something that handles images in steps, for as long as it is asked to."""

    warmup_steps: int
    """Steps at the start of each window that are not counted: until queues are as full as they will be."""

    def run(self) -> Iterator[int]:
        """Every step yields the images it handled. Endless, or else its end is the window's. Closing the iterator
        stops all work in progress."""
        ...

    def stage_seconds(self) -> dict[str, float]:
        """Seconds per stage so far, over all threads; empty where stages are not told apart."""
        return {}


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """How long to measure.

    Attributes:
        seconds: per probe, all windows together; a window has at least `MIN_STEPS_PER_WINDOW` steps all the same.
        windows: windows per probe.
        steps: steps per probe instead of seconds, spread over the windows.
    """

    seconds: float = 3.0
    windows: int = 5
    steps: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.seconds < inf:
            raise ConfigError(f"seconds must be more than 0 and finite, found {self.seconds}")
        if self.windows < 1:
            raise ConfigError(f"windows must be at least 1, found {self.windows}")
        if self.steps is not None and self.steps < self.windows:
            raise ConfigError(f"steps must be at least {self.windows}, one for each window; found {self.steps}")


@dataclass(frozen=True)
class Window:
    """What happened between two readings of the clock.

    Attributes:
        images: handled.
        steps: done.
        seconds: wall time.
        cpu_seconds: user and system time of all threads of this process, and of its worker processes.
        stages: seconds per stage, over all threads.
        device_bytes: that storage devices delivered for this process; None where the system does not say.
    """

    images: int
    steps: int
    seconds: float
    cpu_seconds: float
    stages: Mapping[str, float]
    device_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Medians over the windows of one probe.

    Attributes:
        images_per_second: median.
        low: slowest window, images/s.
        high: fastest window, images/s.
        per_window: every window's, in the order of the rounds: windows of one number belong together.
        steps: counted steps, all windows together.
        step_seconds: median wall time of a step.
        cpu_seconds_per_image: median, user and system time of the whole process and of those below it.
        stage_seconds_per_image: thread time per stage; None for a stage that was not timed.
        device_bytes_per_image: that storage devices delivered, all windows together; None where that is not told.
    """

    images_per_second: float
    low: float
    high: float
    per_window: tuple[float, ...]
    steps: int
    step_seconds: float
    cpu_seconds_per_image: float
    stage_seconds_per_image: dict[str, float | None]
    device_bytes_per_image: float | None = None

    @property
    def spread(self) -> float:
        """Half the distance between the slowest and the fastest window, as a share of the median."""
        return (self.high - self.low) / 2 / self.images_per_second


def measure(
    probes: Sequence[Probe],
    plan: WindowPlan,
    *,
    synchronize: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Rate]:
    """Measure probes against each other: one window of each in turn, until each has all of its windows.

    Args:
        probes: what to measure.
        plan: how long.
        synchronize: waits until the device has done all it was given; called at both ends of a window.
        progress: told how many windows are done.
    """
    windows: list[list[Window]] = [[] for _ in probes]
    for number in range(plan.windows):
        for position, probe in enumerate(probes):
            windows[position].append(_measure_window(probe, plan, number, synchronize))
            progress(number * len(probes) + position + 1)
    return [summarize(of_probe) for of_probe in windows]


def summarize(windows: Sequence[Window]) -> Rate:
    """Medians of some windows."""
    rates = [window.images / window.seconds for window in windows]
    images = sum(window.images for window in windows)
    stages = {name: sum(window.stages[name] for window in windows) for name in windows[0].stages}
    delivered = [window.device_bytes for window in windows if window.device_bytes is not None]
    return Rate(
        images_per_second=median(rates),
        low=min(rates),
        high=max(rates),
        per_window=tuple(rates),
        steps=sum(window.steps for window in windows),
        step_seconds=median(window.seconds / window.steps for window in windows),
        cpu_seconds_per_image=median(window.cpu_seconds / window.images for window in windows),
        # A stage whose timer never ran was not free, it was not measured.
        stage_seconds_per_image={name: seconds / images if seconds else None for name, seconds in stages.items()},
        device_bytes_per_image=sum(delivered) / images if len(delivered) == len(windows) else None,
    )


def _measure_window(probe: Probe, plan: WindowPlan, number: int, synchronize: Callable[[], None]) -> Window:
    seconds = plan.seconds / plan.windows
    wanted = (
        None if plan.steps is None else plan.steps * (number + 1) // plan.windows - plan.steps * number // plan.windows
    )
    running = probe.run()
    try:
        for _ in range(probe.warmup_steps):
            next(running)
        synchronize()
        delivered = device_bytes()
        stages, cpu, start = probe.stage_seconds(), cpu_seconds(), perf_counter()
        images = steps = 0
        while (
            steps < wanted if wanted is not None else steps < MIN_STEPS_PER_WINDOW or perf_counter() - start < seconds
        ):
            done = next(running, None)
            if done is None:
                break
            images += done
            steps += 1
        synchronize()
        elapsed, cpu = perf_counter() - start, cpu_seconds() - cpu
        after, delivered_after = probe.stage_seconds(), device_bytes()
    finally:
        running.close()  # type: ignore[attr-defined]  # probes are generators
    return Window(
        images,
        steps,
        elapsed,
        cpu,
        {name: after[name] - stages[name] for name in after},
        None if delivered is None or delivered_after is None else delivered_after - delivered,
    )
