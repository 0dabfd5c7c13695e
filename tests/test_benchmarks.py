from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import cold  # benchmarks are scripts, not a package
import contestant_process
import contestant_run
import decoding
import loaders
import many_threads
import overheads
import profile_overhead
import quality
import resized
from peers import CONTESTANTS, find, opencv_view
from peers.task import Task, check_batch, make_task
from process_tree import cpu_seconds, memory_bytes
from ratios import Row, results

from lmdali.pipeline.record_codec import decode_stored
from lmdali.tools.measurement import WindowPlan

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks read /proc")


def task_for(dataset: Path, folder: Path, form: str) -> Task:
    # A peer takes any of the records: of six, now and then, the mean was too far from that of all for the same work.
    return make_task(dataset, folder / "copy", form, num_threads=2, batch_size=20)


# What contestants do.

NEEDS_NOTHING = ("thread-pool", "lmdali:cpu", "lmdali:paper", "lmdali:cached")


@pytest.mark.parametrize(
    ("key", "form"),
    [
        (contestant.key, form)
        for contestant in CONTESTANTS
        for form in contestant.forms
        if contestant.key in ("thread-pool", "lmdali:cpu", "lmdali:paper", "lmdali:cached")
        or contestant.name == "ceiling"
    ],
)
def test_contestants_without_packages_of_their_own_do_the_task(
    key: str,
    form: str,
    jpeg_dataset: Path,
    raw_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WARM_UP_SECONDS", "LONGEST_WARM_UP_SECONDS"):
        monkeypatch.setattr(contestant_run, name, 0.0)
    contestant = find(key)
    for encoding, dataset in (("jpeg", jpeg_dataset), ("raw", raw_dataset)):
        if encoding in contestant.encodings:
            task = task_for(dataset, tmp_path / encoding, form)
            Path(task.folder).parent.mkdir(exist_ok=True)
            assert contestant_run.convert(contestant, task) == {"version": ""}
            batches = contestant_run.start(contestant, task)
            window = contestant_run.window(batches, 0.01)
            assert window["images_per_second"] > 0
            assert window["memory_bytes"] > 1e6
            batches.close()  # type: ignore[attr-defined]


def test_the_users_part_of_the_peers_is_the_tasks_arithmetic(
    jpeg_dataset: Path, raw_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "randint", lambda low, high: high)
    monkeypatch.setattr(random, "getrandbits", lambda bits: 1)
    for dataset in (jpeg_dataset, raw_dataset):
        task = task_for(dataset, tmp_path, "uint8")
        data, _ = next(task.records())
        expected = decode_stored(data, 256)[32:, 32:][:, ::-1]
        assert np.array_equal(opencv_view.make_array(task, [data])[0], expected)
        assert np.array_equal(opencv_view.make_shared_tensor(task, [data, data])[1].numpy(), expected)
        task = task_for(dataset, tmp_path, "float32")
        normalized = ((expected - np.array(task.mean)) / np.array(task.std)).transpose(2, 0, 1)
        assert np.allclose(opencv_view.make_array(task, [data])[0], normalized, atol=1e-5)


def test_other_work_is_refused(jpeg_dataset: Path, tmp_path: Path) -> None:
    task = task_for(jpeg_dataset, tmp_path, "float32")
    noise = np.random.default_rng(0).normal(0, 1, task.batch_shape).astype(np.float32)
    check_batch(task, noise)
    for wrong in (noise[:3], noise.astype(np.float64), np.ascontiguousarray(noise.transpose(0, 2, 3, 1))):
        with pytest.raises(ValueError, match="not float32"):
            check_batch(task, wrong)
    with pytest.raises(ValueError, match="not contiguous"):
        check_batch(task, noise.transpose(0, 1, 3, 2))
    for wrong in (noise * 60, noise + 3):
        with pytest.raises(ValueError, match="other work"):
            check_batch(task, wrong)
    check_batch(task, noise * 60, values=False)


def test_a_task_crosses_a_command_line(jpeg_dataset: Path, tmp_path: Path) -> None:
    task = task_for(jpeg_dataset, tmp_path, "uint8")
    assert Task.from_json(task.to_json()) == task
    assert len(list(task.records())) == task.num_records == 60


# Processes.


def test_a_contestant_answers_from_a_process_of_its_own_and_a_missing_package_is_a_reason(
    jpeg_dataset: Path, tmp_path: Path
) -> None:
    task = task_for(jpeg_dataset, tmp_path, "uint8")
    assert contestant_process.ask("convert", find("thread-pool"), task, timeout_seconds=250) == {"version": ""}
    assert (tmp_path / "copy" / "data.mdb").is_file()
    late = contestant_process.ask("measure", find("thread-pool"), task, "9", timeout_seconds=0.01)
    assert "no answer within" in late["error"]
    modules = {"ffcv": "ffcv", "litdata": "litdata", "webdataset": "webdataset"}
    absent = [name for name, module in modules.items() if find_spec(module) is None]
    if not absent:
        pytest.skip("all peers are installed here")
    key = next(contestant.key for contestant in CONTESTANTS if contestant.name == absent[0])
    answer = contestant_process.ask("convert", find(key), task, timeout_seconds=250)
    assert f"No module named '{absent[0]}'" in answer["error"]


def test_cpu_time_and_memory_of_child_processes_count() -> None:
    # More than is waited for: /proc counts in ticks, of each kind of time the whole ones.
    burn = "import time\nblock = bytearray(30_000_000)\nwhile time.process_time() < 0.4: pass\n"
    script = f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {burn + 'input()'!r}]).wait())"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            while cpu_seconds(process.pid) < 0.3:
                assert process.poll() is None
            assert memory_bytes(process.pid) > 30_000_000
        finally:
            os.killpg(process.pid, 9)


# From windows to a table.


def window(rate: float, reference: float = 100.0, number: int = 0) -> dict[str, Any]:
    return {
        "images_per_second": rate,
        "cpu_seconds_per_image": 2 / rate,
        "memory_bytes": 1000,
        "round": number,
        "reference_images_per_second": reference,
    }


def test_ratios_are_taken_round_by_round() -> None:
    rows = [Row(find("ceiling:pass"), "uint8"), Row(find("thread-pool"), "uint8"), Row(find("spdl"), "uint8")]
    rows[0].windows = [window(80, 100, 0), window(40, 50, 1), window(160, 200, 2)]
    rows[1].windows = [window(40, 100, 0), window(40, 50, 1), window(120, 200, 2)]
    rows[2].error = "crashed"
    document = results(find("ceiling:decode"), [window(100), window(200)], rows, "uint8")
    first, ceiling, pool, spdl = document["rows"]
    assert first["ratio"] == 1.0 and first["images_per_second"] == 150
    assert ceiling["ratio"] == pytest.approx(0.8) and ceiling["of_ceiling"] == pytest.approx(1.0)
    assert (pool["ratio_low"], pool["ratio"], pool["ratio_high"]) == pytest.approx((0.4, 0.6, 0.8))
    assert pool["of_ceiling"] == pytest.approx(0.75) and pool["images_per_second"] == 40
    assert pool["cpu_ratio"] == pytest.approx(0.015 / 0.05)
    assert spdl["error"] == "crashed" and "ratio" not in spdl


class FakeReference:
    def __init__(self, contestant: Any, task: Task) -> None:
        self.rate = 100.0

    def __enter__(self) -> FakeReference:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def measure(self, seconds: float) -> dict[str, Any]:
        return {"images_per_second": self.rate, "cpu_seconds_per_image": 0.01, "memory_bytes": 1}


def fake_ask(mode: str, contestant: Any, task: Task, *arguments: str, timeout_seconds: float) -> dict[str, Any]:
    if contestant.name == "ffcv":
        return {"error": "ModuleNotFoundError: No module named 'ffcv'"}
    if mode == "convert":
        return {"version": "1.2"}
    if contestant.name == "spdl" and task.form == "float32":
        return {"error": "ended with code -11: no output"}
    return {"images_per_second": 50.0, "cpu_seconds_per_image": 0.02, "memory_bytes": 2_000_000}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(contestant_process, "ask", fake_ask)
    monkeypatch.setattr(contestant_process, "Reference", FakeReference)
    yield


def test_a_run_prints_every_contestant_or_why_it_is_missing(
    measured: None, jpeg_dataset: Path, raw_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is the extra 'report'")
    from rates_plot import plot

    documents = []
    for dataset in (jpeg_dataset, raw_dataset):
        report, figure = tmp_path / "report.json", tmp_path / "figure.png"
        arguments = ["--batch-size", "6", "--rounds", "2", "--peers", "spdl,ffcv", "--scratch", str(tmp_path)]
        loaders.main([str(dataset), *arguments, "--json", str(report), "--plot", str(figure)])
        printed = capsys.readouterr().out
        assert "No module named 'ffcv'" in printed and "ended with code -11" in printed
        assert "lmdali" in printed and "0.50" in printed and "± 0%" in printed
        documents.append(json.loads(report.read_text()))
        assert [form["form"] for form in documents[-1]["forms"]] == ["uint8", "float32"]
        assert {row["key"] for row in documents[-1]["forms"][0]["rows"]} >= {"lmdali:cpu", "spdl", "ffcv:stock"}
        assert len(documents[-1]["forms"][0]["rows"][1]["windows"]) == 2
        assert figure.read_bytes().startswith(b"\x89PNG")
    plot(documents, tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > figure.stat().st_size
    assert not list(tmp_path.glob("lmdali-loaders-*"))


@pytest.mark.parametrize("wrong", [["--peers", "nobody"], ["--forms", "int4"], ["--rounds", "0"]])
def test_a_wrong_option_is_named(wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        loaders.main([str(tmp_path), *wrong])
    assert wrong[0] in capsys.readouterr().err


def test_a_dataset_too_small_for_its_batches_is_refused(jpeg_dataset: Path) -> None:
    with pytest.raises(SystemExit, match="lower --batch-size"):
        loaders.main([str(jpeg_dataset)])


# Quality.


def test_quality_measures_bytes_psnr_and_rates(
    photo_folder: Path,
    raw_dataset: Path,
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    datasets = {f"JPEG {q}": make_dataset(photo_folder, tmp_path / str(q), quality=q) for q in (50, 95)}
    monkeypatch.setattr(quality, "convert_all", lambda *arguments: datasets | {"raw": raw_dataset})
    for path in (*datasets.values(), raw_dataset):
        assert (path / "statistics.json").is_file()
    rows = quality.compare(
        photo_folder, tmp_path, (50, 95), 256, WindowPlan(steps=1, windows=1), num_threads=2, batch_size=128
    )
    low, high, raw = rows.values()
    assert 25 < low["psnr_db"] < high["psnr_db"] < 60 and raw["psnr_db"] is None
    assert low["bytes_per_image"] < high["bytes_per_image"] < raw["bytes_per_image"] == pytest.approx(196_623, abs=9)
    assert all(row[part]["images_per_second"] > 0 for row in rows.values() for part in ("decode", "uint8", "float32"))
    quality.print_rows(rows, "title")
    assert "exact" in capsys.readouterr().out


# Overheads.


def test_what_timers_cost_is_counted_and_tried(jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rounds", "2", "--steps", "2", "--threads", "2", "--batch-size", "20"]
    code = profile_overhead.main([str(jpeg_dataset), *arguments])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = document["overhead"]
    assert found["calls_per_image"] * 20 >= 4  # plan, wait, and at least one stage of two in the threads
    assert found["counted"] == pytest.approx(
        found["calls_per_image"] * found["seconds_per_call"] / found["cpu_seconds_per_image"]
    )
    assert code == int(max(found["counted"], found["recorded"]) >= document["limit"])
    assert found["recorded"] > 0 and (found["marked"] is None or found["marked"] > 0)
    assert found["tried"]["low"] is None  # two rounds tell no interval


def test_overheads_are_told_beside_the_loader_as_it_comes(
    jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--seconds", "0.05", "--rounds", "1", "--threads", "2", "--batch-size", "8"]
    overheads.main([str(jpeg_dataset), *arguments])
    *table, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)["rows"]
    assert len(found) == 7 and found[0]["cpu_ratio"] == found[0]["rate_ratio"] == 1
    assert any("no stage timers" in line for line in table)
    assert all(row["images_per_second"] > 0 for row in found)


def test_resized_windows_are_told_beside_crops_and_libraries(
    jpeg_dataset: Path, raw_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--seconds", "0.05", "--rounds", "2", "--threads", "1", "--batch-size", "8"]
    resized.main([str(jpeg_dataset), *options])
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["rows"]
    assert [row["contestant"] for row in rows[:2]] == ["crops, cpu backend", "resized windows, cpu backend"]
    assert [row["contestant"] for row in rows[-2:]] == [
        "resized windows, simplejpeg + OpenCV",
        "resized windows, Pillow",
    ]
    assert rows[0]["rate_ratio"] == 1 and all(row["images_per_second"] > 0 for row in rows)
    with pytest.raises(SystemExit, match="give a dataset of encoding jpeg"):
        resized.main([str(raw_dataset), *options])


def test_threads_that_sleep_in_kernels_are_no_faster_than_that(
    jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Few images in flight: where the consumer is kept waiting, they are ready when a window of 0.1 s begins.
    arguments = ["--threads", "2", "4", "--batch-size", "4", "--prefetch", "1", "--microseconds", "1000"]
    many_threads.main([str(jpeg_dataset), *arguments, "--seconds", "0.5"])
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["rows"]
    assert [(row["threads"], row["consumer"]) for row in rows] == [
        (threads, consumer) for threads in (2, 4) for consumer in ("trains on the CPU", "sends to a GPU")
    ]
    # Of 1 ms an image no thread makes more than 1,000 a second.
    in_flight = 2 * 4
    assert all(0 < row["images_per_second"] <= 1000 * row["threads"] + in_flight / 0.1 for row in rows)


# Cold storage.


def test_cold_and_warm_are_measured_on_the_same_records(
    jpeg_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold, "DEPTHS", (1, 4))
    cold.main([str(jpeg_dataset), "--records", "60", "--rounds", "1", "--threads", "2", "--batch-size", "10"])
    document = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert document["num_records"] == 60
    names = [
        "device, 1 reads in flight",
        "device, 4 reads in flight",
        "page faults",
        "loader without readahead",
        "loader",
    ]
    assert list(document["rows"]) == [f"cold: {name}" for name in names] + [f"warm: {name}" for name in names[-2:]]
    assert all(row["images_per_second"] > 0 for row in document["rows"].values())
    assert document["rows"]["warm: loader without readahead"]["ratio"] == 1


# The decoder beside libjpeg-turbo.


def test_every_step_of_decoding_does_what_libjpeg_turbo_does(
    photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [path.read_bytes() for path in sorted(photo_folder.rglob("*")) if path.is_file()]
    steps = decoding.source_steps(files) | decoding.record_steps(files, 90)  # which compare the pixels
    assert "54 of 60 sources" in capsys.readouterr().out
    assert {count for _, count in steps.values()} == {54, 56}  # six are no such JPEGs; records are taken by eights
    for step, _ in steps.values():
        step()
