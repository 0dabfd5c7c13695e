"""Single calls of a loader's stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lmdali.pipeline import DatasetLoader, LoaderConfig, create_loader
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.timing import QueueReading, Recording, StageCall
from lmdali.tools.measurement import WindowPlan
from lmdali.tools.profiler import command
from lmdali.tools.stage_detail import StageDetail, record_stages, write_trace
from lmdali.tools.step_probes import LoaderProbe

CALLS = [StageCall(7, "read", 10.0 + number, (number + 1) / 1000) for number in range(100)]
RECORDING = Recording(
    [*CALLS, StageCall(8, "decode", 10.5, 0.25)],
    [QueueReading(10.1, 0, 4), QueueReading(10.2, 3, 4), QueueReading(10.3, 0, 4), QueueReading(10.4, 1, 4)],
    {7: "reader", 8: "decoder"},
)


@pytest.fixture
def loader(small_jpeg_dataset: Path) -> Iterator[DatasetLoader]:
    config = LoaderConfig(
        dataset=small_jpeg_dataset,
        batch_size=8,
        num_threads=2,
        prefetch=3,
        augment=AugmentConfig(crop_size=24),
        verify="always",
    )
    with create_loader(config, rank=0, world_size=1) as made:
        yield made


def test_percentiles_are_those_of_the_calls_for_each_thread_and_for_all() -> None:
    detail = StageDetail.of(RECORDING)
    assert list(detail.stages) == ["read", "decode"]
    read = detail.threads["reader"]["read"]
    assert read == detail.stages["read"]
    assert (read.count, read.p50) == (100, pytest.approx(0.0505))
    assert read.percentiles == pytest.approx((0.0505, 0.0901, 0.09901))
    assert detail.threads["decoder"]["decode"].percentiles == (0.25, 0.25, 0.25)


def test_the_queue_is_described_by_what_was_found_when_a_batch_was_asked_for() -> None:
    queue = StageDetail.of(RECORDING).queue
    assert queue is not None
    assert (queue.mean_ready, queue.mean_started, queue.empty_share) == (1.0, 4.0, 0.5)
    assert StageDetail.of(Recording([], [], {})).queue is None


def test_a_trace_begins_at_zero_and_has_a_lane_for_each_thread(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", RECORDING)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {7: "reader", 8: "decoder"}
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 101 and min(event["ts"] for event in spans) == 0
    decoding = next(event for event in spans if event["name"] == "decode")
    assert (decoding["tid"], decoding["dur"]) == (8, pytest.approx(250_000))
    assert decoding["ts"] + decoding["dur"] == pytest.approx(1e6 * (10.5 - 9.999))
    assert [event["args"]["ready"] for event in events if event["ph"] == "C"] == [0, 3, 0, 1]
    write_trace(tmp_path / "absent" / "trace.json", RECORDING)
    assert (tmp_path / "absent" / "trace.json").read_bytes() == (tmp_path / "trace.json").read_bytes()


def test_a_window_begins_when_the_loaders_queue_is_full(small_jpeg_dataset: Path) -> None:
    config = LoaderConfig(dataset=small_jpeg_dataset, batch_size=2, augment=AugmentConfig(crop_size=24), prefetch=9)
    with create_loader(config) as loader:
        assert LoaderProbe(loader).warmup_steps == 10


def test_a_real_loader_is_recorded_only_while_that_is_asked_for(loader: DatasetLoader) -> None:
    recording = record_stages(loader, WindowPlan(steps=9))
    assert not loader.timers.is_recording
    detail = StageDetail.of(recording)
    assert {"plan", "read", "verify", "decode", "augment", "collate", "wait"} <= set(detail.stages)
    assert detail.stages["wait"].count == len(recording.queue) == 9
    assert all(0 <= reading.ready <= reading.started <= 4 for reading in recording.queue)
    workers = [stages for name, stages in detail.threads.items() if name.startswith("lmdali-cpu")]
    # Each has what it did: one that was kept waiting may have been in the middle of a batch all the time.
    assert 1 <= len(workers) <= 2 and not any("wait" in stages for stages in workers)
    assert sum(stages["decode"].count for stages in workers if "decode" in stages) == detail.stages["decode"].count
    for _ in loader:
        pass
    assert loader.timers.stop_recording() == Recording([], [], {})


def test_totals_are_the_same_with_a_recording_and_agree_with_it(loader: DatasetLoader) -> None:
    loader.timers.start_recording()
    for _ in loader:
        pass
    loader.close()  # what is loaded ahead ends, and is counted on both sides
    recording, seconds = loader.timers.stop_recording(), loader.stage_seconds()
    for stage in ("read", "verify", "decode", "augment", "collate"):
        recorded = sum(call.seconds for call in recording.calls if call.stage == stage)
        assert recorded == pytest.approx(seconds[stage])


def test_a_loader_that_is_not_ours_has_no_inside_to_trace() -> None:
    result = CliRunner().invoke(command, ["run", "--loader", "a:b", "--trace", "x.json"])
    assert result.exit_code == 2 and "--trace" in result.output
