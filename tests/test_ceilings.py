from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from open_files import our_threads
from virtual_time import VirtualTime

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.tools import ceilings
from lmdali.tools.ceilings import ThreadedProbe, copy_probe, decode_probe, read_probe, sample_records
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.measurement import Window, WindowPlan, measure, summarize
from lmdali.tools.sources import open_source


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


class Sleeper:
    """Ten images a step, each step of a known time."""

    def __init__(
        self, time: VirtualTime, seconds: float, warmup_steps: int = 0, stages: dict[str, float] | None = None
    ) -> None:
        self.seconds, self.warmup_steps, self._stages, self._time = seconds, warmup_steps, stages or {}, time
        self.steps_done, self.windows_closed = 0, 0

    def run(self) -> Iterator[int]:
        try:
            while True:
                self._time.sleep(self.seconds)
                self.steps_done += 1
                yield 10
        finally:
            self.windows_closed += 1

    def stage_seconds(self) -> dict[str, float]:
        return {name: seconds * self.steps_done for name, seconds in self._stages.items()}


def make_dataset(root: Path, encoding: str) -> Path:
    rng = np.random.default_rng(0)
    (root / "source" / "only").mkdir(parents=True, exist_ok=True)
    for number in range(6):
        picture = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (64, 64))
        cv2.imwrite(str(root / "source" / "only" / f"{number}.png"), picture)
    config = ConvertConfig(encoding=encoding, size=64)
    convert(open_source(root / "source"), root / encoding, config, workers=1, quiet=True)
    return root / encoding


# How a rate is measured.


def test_a_rate_is_the_median_of_its_windows() -> None:
    windows = [Window(100, 2, seconds, seconds / 2, {"read": 0.5, "copy": 0.0}) for seconds in (1.0, 4.0, 2.0)]
    rate = summarize(windows)
    assert rate.per_window == (100, 25, 50)
    assert (rate.images_per_second, rate.low, rate.high, rate.steps) == (50, 25, 100, 6)
    assert rate.step_seconds == 1.0
    assert rate.cpu_seconds_per_image == 0.01
    assert rate.spread == pytest.approx(0.75)


def test_a_stage_that_never_ran_is_missing_and_not_zero() -> None:
    rate = summarize([Window(100, 2, 1.0, 1.0, {"read": 0.5, "copy": 0.0})])
    assert rate.stage_seconds_per_image == {"read": 0.005, "copy": None}


def test_the_measured_rate_is_the_true_one(time: VirtualTime) -> None:
    rate = measure([Sleeper(time, 0.01)], WindowPlan(seconds=0.3, windows=3))[0]
    assert rate.per_window == pytest.approx((1000, 1000, 1000), rel=0.001)
    assert rate.steps == 30


def test_warmup_steps_are_not_counted(time: VirtualTime) -> None:
    class SlowStart(Sleeper):
        def run(self) -> Iterator[int]:
            time.sleep(0.2)
            yield from super().run()

    probe = SlowStart(time, 0.005, warmup_steps=1)
    rate = measure([probe], WindowPlan(seconds=0.05, windows=2))[0]
    assert rate.per_window == pytest.approx((2000, 2000), rel=0.001)
    assert probe.steps_done == rate.steps + 2


def test_windows_take_turns_and_every_one_is_closed(time: VirtualTime) -> None:
    order: list[str] = []

    class Named(Sleeper):
        def __init__(self, name: str) -> None:
            super().__init__(time, 0.001)
            self.name = name

        def run(self) -> Iterator[int]:
            order.append(self.name)
            yield from super().run()

    done: list[int] = []
    probes = [Named("a"), Named("b")]
    measure(probes, WindowPlan(seconds=0.01, windows=3), progress=done.append)
    assert order == ["a", "b"] * 3
    assert [probe.windows_closed for probe in probes] == [3, 3]
    assert done == [1, 2, 3, 4, 5, 6]


def test_a_number_of_steps_is_kept_exactly(time: VirtualTime) -> None:
    probe = Sleeper(time, 0.0, warmup_steps=1)
    rate = measure([probe], WindowPlan(steps=17, windows=5))[0]
    assert rate.steps == 17
    assert probe.steps_done == 17 + 5


def test_a_window_has_two_steps_however_slow_they_are(time: VirtualTime) -> None:
    assert measure([Sleeper(time, 0.02)], WindowPlan(seconds=0.001, windows=2))[0].steps == 4


def test_stages_are_counted_within_the_windows_only(time: VirtualTime) -> None:
    rate = measure([Sleeper(time, 0.001, 5, {"decode": 0.2})], WindowPlan(steps=4, windows=2))[0]
    assert rate.stage_seconds_per_image["decode"] == pytest.approx(0.02)


def test_the_device_is_waited_for_at_both_ends_of_a_window(time: VirtualTime) -> None:
    calls: list[float] = []
    measure([Sleeper(time, 0.001)], WindowPlan(steps=4, windows=2), synchronize=lambda: calls.append(time.now))
    assert np.diff(calls) == pytest.approx((0.002, 0, 0.002), abs=1e-4)


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"windows": 0}, {"steps": 3, "windows": 5}])
def test_a_plan_that_measures_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"0|3"):
        WindowPlan(**wrong)


# The ceilings.


def test_the_sample_holds_the_stored_files_in_the_loaders_order(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, "jpeg")
    sample = sample_records(dataset, seed=1)
    assert len(sample) == len(set(sample)) == 6
    assert all(data[:3] == b"\xff\xd8\xff" for data in sample)
    assert sample_records(dataset, seed=1, max_bytes=1) == sample[:1]
    assert sorted(sample_records(dataset, seed=2)) == sorted(sample) != sample_records(dataset, seed=2)


def test_every_ceiling_does_all_of_its_work_on_all_of_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpeg, raw = make_dataset(tmp_path, "jpeg"), make_dataset(tmp_path, "raw")
    written: list[tuple[str, int]] = []
    take = ceilings.Scratch.take

    def noted(self: ceilings.Scratch, num_bytes: int) -> np.ndarray:
        written.append((threading.current_thread().name.split("_")[0], num_bytes))
        return take(self, num_bytes)

    monkeypatch.setattr(ceilings.Scratch, "take", noted)
    values = ShardReader(jpeg, load_manifest(jpeg)).locate(np.arange(6))
    sizes = set((values.stops - values.starts).tolist())
    for probe, expected in (
        (read_probe(jpeg, num_threads=2), sizes),
        (decode_probe(sample_records(jpeg), 64, num_threads=2), {64 * 64 * 3}),
        (copy_probe(sample_records(raw), 64, num_threads=2), {64 * 64 * 3}),
    ):
        written.clear()
        rate = measure([probe], WindowPlan(steps=10, windows=2))[0]
        assert rate.steps == 10 and rate.images_per_second > 0
        assert {size for _, size in written} == expected
        assert {name for name, _ in written} == {"lmdali-ceiling"}


def test_decoding_gives_the_pixels_that_opencv_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = sample_records(make_dataset(tmp_path, "jpeg"))[:1]
    buffer = np.zeros(64 * 64 * 3, np.uint8)
    monkeypatch.setattr(ceilings.Scratch, "take", lambda self, num_bytes: buffer)
    next(decode_probe(sample, 64, num_threads=1).run())
    expected = cv2.cvtColor(cv2.imdecode(np.frombuffer(sample[0], np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.array_equal(buffer.reshape(64, 64, 3), expected)


def test_threads_work_side_by_side_and_stop_when_the_window_does() -> None:
    met, here = threading.Barrier(4, timeout=250), threading.local()

    def work(first: int, stop: int) -> None:
        if not hasattr(here, "has_met"):
            here.has_met = met.wait()

    before = our_threads()
    assert measure([ThreadedProbe(work, num_threads=4)], WindowPlan(steps=12, windows=1))[0].steps == 12
    assert our_threads() <= before


def test_an_error_in_a_thread_comes_out() -> None:
    def work(first: int, stop: int) -> None:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        measure([ThreadedProbe(work, num_threads=2)], WindowPlan(seconds=0.1, windows=1))
