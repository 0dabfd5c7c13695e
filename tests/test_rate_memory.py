"""Rates kept between runs: found under the same key only, and never a reason to fail."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from lmdali.pipeline.rate_memory import RateKey, RateMemory, memory_file, rounded_bytes, software_versions

KEY = RateKey(
    gpu="a GPU", cpu="a CPU", num_cpus=16, num_threads=16, prefetch=7, batch_size=128, dtype="float32",
    layout="NCHW", crop_size=224, num_views=1, resized=False, image_size=256, encoding="jpeg", mean_record_bytes=22_000,
    versions=("lmdali 1",),
)  # fmt: skip


def test_what_is_stored_is_found_beside_what_was_there(tmp_path: Path) -> None:
    memory = RateMemory(tmp_path / "not" / "yet" / "decode.json")
    other = replace(KEY, dtype="uint8")
    memory.store(KEY, {"cpu": 1.5})
    memory.store(other, {"gpu": 2.5})
    memory.store(KEY, {"cpu": 1.5, "gpu": 3.0})
    assert memory.load(KEY) == {"cpu": 1.5, "gpu": 3.0}
    assert memory.load(other) == {"gpu": 2.5}


@pytest.mark.parametrize("name", [field.name for field in fields(RateKey)])
def test_every_field_of_the_key_counts(tmp_path: Path, name: str) -> None:
    memory = RateMemory(tmp_path / "decode.json")
    memory.store(KEY, {"cpu": 1.5})
    value = getattr(KEY, name)
    changed = ("other",) if isinstance(value, tuple) else "other" if isinstance(value, str) else value + 1
    assert memory.load(replace(KEY, **{name: changed})) == {}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"version": 1}', '{"version": 2, "entries": {}}', '{"version": 1, "entries": []}', "\x00\xff"],
)
def test_a_file_that_means_nothing_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "decode.json"
    path.write_text(content)
    memory = RateMemory(path)
    assert memory.load(KEY) == {}
    memory.store(KEY, {"cpu": 2.0})
    assert memory.load(KEY) == {"cpu": 2.0}


@pytest.mark.parametrize("rates", [None, [], 3, {"cpu": "fast"}, {"cpu": -1.0}, {"cpu": 0.0}, {"cpu": True}])
def test_values_that_are_no_rates_are_left_out(tmp_path: Path, rates: object) -> None:
    path = tmp_path / "decode.json"
    path.write_text(json.dumps({"version": 1, "entries": {KEY.digest(): {"images_per_second": rates}}}))
    assert RateMemory(path).load(KEY) == {}


def test_where_nothing_can_be_written_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    memory = RateMemory(tmp_path / "file" / "decode.json")
    memory.store(KEY, {"cpu": 2.0})
    assert memory.load(KEY) == {}
    RateMemory(None).store(KEY, {"cpu": 2.0})
    assert RateMemory(None).load(KEY) == {}


def test_the_file_lies_in_the_users_cache_directory() -> None:
    assert memory_file({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/lmdali/decode.json")
    assert memory_file({"HOME": "/h"}) == Path("/h/.cache/lmdali/decode.json")
    assert memory_file({"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == Path("/h/.cache/lmdali/decode.json")
    assert memory_file({}) is None


def test_sizes_are_rounded_so_that_datasets_of_one_kind_share_a_rate() -> None:
    assert [rounded_bytes(size) for size in (21_731.4, 22_499, 196_623, 999, 7)] == [22_000, 22_000, 200_000, 1000, 7]


def test_versions_name_what_is_installed() -> None:
    assert any(text.startswith("torch ") for text in software_versions())
