"""Ranges for a tracing tool, seen by a fake NVTX."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.nvtx_ranges import find_nvtx, marked
from lmdali.pipeline.timing import STAGES, StageTimers
from lmdali.tools.profiler import ProfileConfig, profile_dataset


class FakeNvtx(ModuleType):
    """Keeps each thread's open ranges, and everything that was pushed."""

    def __init__(self) -> None:
        super().__init__("nvtx")
        self.open: dict[int, list[str]] = {}
        self.seen: list[tuple[str, ...]] = []

    def push_range(self, name: str) -> None:
        mine = self.open.setdefault(threading.get_ident(), [])
        mine.append(name)
        self.seen.append(tuple(mine))

    def pop_range(self) -> None:
        self.open[threading.get_ident()].pop()  # IndexError where nothing is open

    @property
    def all_closed(self) -> bool:
        return not any(self.open.values())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvtx:
    module = FakeNvtx()
    monkeypatch.setitem(sys.modules, "nvtx", module)
    monkeypatch.setitem(sys.modules, "torch.cuda.nvtx", None)  # as if torch had none
    return module


def test_stretches_are_ranges_one_inside_the_other(fake: FakeNvtx) -> None:
    timers = StageTimers()
    timers.annotate(find_nvtx())
    fake.seen.clear()
    with timers.measure("wait"), timers.measure("collate"):
        pass
    with pytest.raises(KeyError), timers.measure("copy"):
        raise KeyError
    assert fake.seen == [("lmdali wait",), ("lmdali wait", "lmdali collate"), ("lmdali copy",)]
    assert fake.all_closed
    assert min(timers.seconds()[stage] for stage in ("wait", "collate", "copy")) > 0


def test_switching_ranges_within_a_stretch_leaves_none_open(fake: FakeNvtx) -> None:
    timers = StageTimers()
    with timers.measure("read"):
        timers.annotate(find_nvtx())
    with timers.measure("read"):
        timers.annotate(None)
    assert fake.all_closed
    assert fake.seen[-1] == ("lmdali read",)


def test_threads_of_a_loader_push_and_pop_their_own(fake: FakeNvtx, small_jpeg_dataset: Path) -> None:
    config = LoaderConfig(
        dataset=small_jpeg_dataset, batch_size=8, num_threads=2, augment=AugmentConfig(crop_size=24), verify="always"
    )
    with create_loader(config, rank=0, world_size=1) as loader:
        loader.timers.annotate(find_nvtx())
        assert sum(len(batch.labels) for batch in loader) > 0
    assert fake.all_closed
    stages = {names[-1].removeprefix("lmdali ") for names in fake.seen}
    assert stages >= {"plan", "read", "verify", "decode", "augment", "collate", "wait"}
    # Only the consumer's wait has anything in it.
    assert {names for names in fake.seen if len(names) > 1} == {("lmdali wait", "lmdali collate")}


def test_a_profile_marks_stages_and_steps_if_asked(fake: FakeNvtx, small_jpeg_dataset: Path) -> None:
    config = ProfileConfig(batch_size=8, num_threads=1, steps=10, device="cpu", nvtx=True)
    report = profile_dataset(small_jpeg_dataset, config, model=None, augment=AugmentConfig(crop_size=24), quiet=True)
    assert ("lmdali decode",) in fake.seen and fake.all_closed
    assert not any("NVTX" in caution for caution in report.cautions)
    seen = len(fake.seen)
    profile_dataset(
        small_jpeg_dataset,
        ProfileConfig(batch_size=8, num_threads=1, steps=10, device="cpu"),
        model=None,
        augment=AugmentConfig(crop_size=24),
        quiet=True,
    )
    assert len(fake.seen) == seen


def test_a_marked_function_is_a_range_also_where_it_raises(fake: FakeNvtx) -> None:
    ranges = find_nvtx()
    assert ranges is not None and ranges.package == "nvtx"
    assert marked(ranges, "step", lambda a, b: a + b)(1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        marked(ranges, "step", lambda: 1 / 0)()
    assert fake.seen[-2:] == [("lmdali step",)] * 2 and fake.all_closed


def test_without_a_package_there_are_no_ranges(fake: FakeNvtx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    assert find_nvtx() is None
    assert set(STAGES) == set(StageTimers().seconds())
