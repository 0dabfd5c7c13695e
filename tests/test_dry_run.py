"""A dry run survives what a conversion survives: each danger costs its image, named, and the child that had it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_shard_pool import DangerousReader, FailingReader

from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.dry_run import estimate
from lmdali.tools.sources import open_source
from lmdali.tools.worker_limits import WorkerLimits

CONFIG = ConvertConfig(size=64, encoding="raw")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_photo_folder: Callable[..., Path]) -> Path:
    return make_photo_folder(tmp_path_factory.mktemp("dry") / "source", ("a",), 8, broken=1, sides=(70, 90))


def test_images_that_kill_a_decoder_are_rejects_of_the_sample(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    dangers = {"a/001.jpg": "crash", "a/003.jpg": "hang", "a/004.jpg": "bloat", "a/006.jpg": "abort while decoding"}
    dangerous = replace(source, reader=DangerousReader(source.reader, dangers))
    found = estimate(dangerous, CONFIG, 2, tmp_path, limits=WorkerLimits(seconds=2, memory_mb=300))
    assert found["sampled_rejects"] == {"decoder_crashed": 2, "timed_out": 1, "out_of_memory": 1, "truncated": 1}
    assert found["sampled"] == found["num_sources"] == 9
    assert found["expected_seconds"] > 2 / 2  # a conversion waits for that one, too
    assert found["expected_bytes"] == pytest.approx(4 * (64 * 64 * 3 + 13 + 2048), abs=1)


def test_an_error_that_is_no_image_s_comes_out_as_it_is(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        estimate(replace(source, reader=FailingReader("foreign")), CONFIG, 1, tmp_path)
