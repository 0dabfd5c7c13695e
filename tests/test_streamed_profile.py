"""Profiles of datasets at an address: a line that is too slow is found and named, one that is not is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from profile_document import profile_report
from remote_server import Fault, RemoteServer, serving
from slow_model import SlowModel
from virtual_time import VirtualTime

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.manifest import Manifest, load_manifest
from lmdali.tools.profile_config import ProfileConfig
from lmdali.tools.profile_page import profile_page
from lmdali.tools.profiler import command, profile_dataset
from lmdali.tools.streamed_profile import profile_address
from lmdali.tools.throughput import ThroughputReport
from lmdali.tools.throughput_tables import print_report

LINE_BYTES_PER_SECOND = 150_000.0
"""So slow that a machine which does all else ten times as slowly as usual still waits for it most of the time."""
AUGMENT = AugmentConfig(crop_size=40)


@pytest.fixture(scope="module")
def manifest(small_jpeg_dataset: Path) -> Manifest:
    return load_manifest(small_jpeg_dataset)


@pytest.fixture(scope="module")
def server(small_jpeg_dataset: Path) -> Iterator[RemoteServer]:
    with serving(small_jpeg_dataset) as running:
        yield running


@pytest.fixture(scope="module")
def slow_line(
    small_jpeg_dataset: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> ThroughputReport:
    """A loader that has to fetch every shard again and again, over a slow line."""
    with serving(small_jpeg_dataset) as server:
        for shard in manifest.shards:
            server.always(f"shards/{shard.name}/data.mdb", Fault(bytes_per_second=LINE_BYTES_PER_SECOND))
        room = 3 * max(shard.file_bytes for shard in manifest.shards)
        config = profile_config(tmp_path_factory.mktemp("cache"), cache_bytes=room, fetches=1)
        return profile_address(server.address, config, model=SlowModel(0.001), augment=AUGMENT, quiet=True)


@pytest.fixture(scope="module")
def fast_line(server: RemoteServer, tmp_path_factory: pytest.TempPathFactory) -> ThroughputReport:
    """The same with room for all, and a model that leaves time enough: nothing but its sleep takes any."""
    config = profile_config(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patched:
        VirtualTime(patched)
        return profile_address(server.address, config, model=SlowModel(0.02), augment=AUGMENT, quiet=True)


def profile_config(cache: Path, **options: Any) -> ProfileConfig:
    return ProfileConfig(
        batch_size=4, num_threads=2, steps=10, device="cpu", backend="cpu", order="block", block_shards=1, prefetch=1,
        cache_dir=cache, **options,
    )  # fmt: skip


def test_a_line_that_is_too_slow_is_what_holds_the_run_back(slow_line: ThroughputReport, manifest: Manifest) -> None:
    figures = slow_line.fetch
    assert slow_line.verdict.word == "INPUT-BOUND (fetch)"
    assert "--fetches" in slow_line.verdict.advice and "lmdali stage" in slow_line.verdict.advice
    assert figures is not None and figures.megabytes_per_second is not None and figures.step_stall is not None
    assert 0 < figures.megabytes_per_second <= LINE_BYTES_PER_SECOND / 1e6
    assert figures.is_too_slow and figures.needed_megabytes_per_second > figures.megabytes_per_second
    assert figures.loader_stall > 0.4 and figures.step_stall > 0.4
    assert figures.fetched_bytes > manifest.file_bytes, "there is no room for all, so some came twice"
    waited = slow_line.loader.stage_seconds_per_image
    assert (waited["fetch"] or 0) > (waited["read"] or 0) + (waited["decode"] or 0)


def test_a_line_that_keeps_up_is_not_blamed(fast_line: ThroughputReport, manifest: Manifest) -> None:
    figures = fast_line.fetch
    assert fast_line.verdict.bound == "COMPUTE-BOUND"
    assert figures is not None and figures.step_stall is not None and figures.step_stall < 0.1
    assert figures.fetched_bytes == manifest.file_bytes, "each shard once"
    assert fast_line.setting.dataset.startswith("http://") and fast_line.read is None and fast_line.cache is None


def test_a_cache_that_has_all_is_told(server: RemoteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = profile_config(tmp_path)
    VirtualTime(monkeypatch)  # in which it takes no time to be told that a shard is there, however busy the machine is
    profile_address(server.address, config, model=None, augment=AUGMENT, quiet=True)
    again = profile_address(
        server.address, replace(config, decoded_cache_bytes=10**6), model=None, augment=AUGMENT, quiet=True
    )
    assert again.fetch is not None and again.fetch.step_stall is None
    assert (again.fetch.fetched_bytes, again.fetch.megabytes_per_second, again.fetch.cache_hit_share) == (0, None, 1.0)
    assert again.loader.stage_seconds_per_image["fetch"] == pytest.approx(0, abs=1e-5), "measured, and nothing"
    for words in ("a first epoch has to fetch them", "the decoded cache filled meanwhile"):
        assert any(words in caution for caution in again.cautions)


def test_tables_json_and_page_have_the_figures(slow_line: ThroughputReport, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(slow_line)
    shown = capsys.readouterr().out
    document = json.loads(json.dumps(slow_line.to_json()))
    page = profile_page([("slow", document)])
    for words in ("INPUT-BOUND (fetch)", "stall by fetch", "cache hits", "to stay fed", "MB/s while shards"):
        assert words in shown and words in page
    assert "fetch: waiting for shards" in shown
    assert document["fetch"]["needed_megabytes_per_second"] > document["fetch"]["megabytes_per_second"]


def test_a_dataset_on_this_machine_has_none_of_it(small_jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ProfileConfig(batch_size=4, num_threads=2, steps=5, device="cpu", backend="cpu")
    report = profile_dataset(small_jpeg_dataset, config, model=None, augment=AUGMENT, quiet=True)
    document = report.to_json()
    print_report(report)
    assert document["fetch"] is None and "fetch" not in document["loader"]["stage_seconds_per_image"]
    assert "stall by fetch" not in (shown := capsys.readouterr().out) and "fetch:" not in shown
    assert "Fetching" not in profile_page([("local", profile_report().to_json())])


def test_what_needs_a_directory_is_refused(server: RemoteServer, tmp_path: Path) -> None:
    for options in ({"cold": True}, {"what_if": ("cpus=4",)}, {"parallel": "ddp"}):
        with pytest.raises(ConfigError, match="lmdali stage"):
            profile_address(server.address, profile_config(tmp_path, **options), model=None, quiet=True)
    refused = CliRunner().invoke(command, ["run", server.address, "--try"])
    assert refused.exit_code == 2 and "lmdali stage" in refused.output
