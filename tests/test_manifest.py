from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.errors import InputError, LmdaliError, ManifestError
from lmdali.pipeline.files import canonical_digest
from lmdali.pipeline.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    SHARDS_DIRECTORY,
    Manifest,
    RecordIndex,
    ShardInfo,
    load_manifest,
)

SHARD = ShardInfo(
    name="00000",
    num_records=3,
    first_position=0,
    num_sources=4,
    rejected=(1,),
    file_bytes=40_960,
    payload_bytes=1234,
    sha256="ab" * 32,
)
MANIFEST = Manifest(
    image_size=256,
    encoding="jpeg",
    class_names=("cat", "dög", "weird \udcff name"),
    class_counts=(2, 3, 0),
    num_records=5,
    num_rejected=1,
    shards=(SHARD, replace(SHARD, name="00001", first_position=4, num_records=2, num_sources=2, rejected=())),
    recipe={"resize": {"size": 256}, "quality": 95},
    source={"kind": "folder", "fingerprint": "cd" * 32, "plan": "ef" * 32},
    tables={"records.parquet": "12" * 32},
)


def saved(directory: Path) -> dict[str, Any]:
    MANIFEST.save(directory)
    document: dict[str, Any] = json.loads((directory / MANIFEST_FILE).read_text())
    return document


def write_with_digest(directory: Path, document: dict[str, Any]) -> None:
    """A forged manifest: its digest is right."""
    document = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(document | {"digest": canonical_digest(document)})
    (directory / MANIFEST_FILE).write_text(text)


def test_a_manifest_comes_back_from_the_disk(tmp_path: Path) -> None:
    manifest = MANIFEST.save(tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert manifest == replace(MANIFEST, digest=manifest.digest)
    assert len(manifest.digest) == 64
    (tmp_path / MANIFEST_FILE).read_bytes().decode("utf-8")


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    document = saved(tmp_path)
    assert (document["format"], document["format_version"], document["channel_order"]) == ("lmdali", [1, 0], "RGB")


def test_the_digest_is_sha256_over_sorted_compact_json(tmp_path: Path) -> None:
    document = saved(tmp_path)
    claimed = document.pop("digest")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest() == claimed


CHANGED: dict[str, Any] = {
    "image_size": 255,
    "encoding": "raw",
    "class_names": ("cat", "dog", "x"),
    "class_counts": (3, 2, 0),
    "num_records": 6,
    "num_rejected": 2,
    "shards": (SHARD,),
    "recipe": {"resize": {"size": 256}, "quality": 94},
    "source": {"kind": "list"},
    "tables": {},
}


def test_every_field_counts_for_the_digest() -> None:
    assert set(CHANGED) == {field.name for field in fields(Manifest)} - {"digest"}
    digests = {replace(MANIFEST, **{name: value}).with_digest().digest for name, value in CHANGED.items()}
    shard_changes: dict[str, Any] = {
        "name": "00007",
        "num_records": 4,
        "first_position": 9,
        "num_sources": 9,
        "rejected": (2,),
        "file_bytes": 1,
        "payload_bytes": 1,
        "sha256": "00" * 32,
    }
    assert set(shard_changes) == {field.name for field in fields(ShardInfo)}
    for name, value in shard_changes.items():
        shards = (replace(SHARD, **{name: value}), MANIFEST.shards[1])
        digests.add(replace(MANIFEST, shards=shards).with_digest().digest)
    assert len(digests) == len(CHANGED) + len(shard_changes)
    assert MANIFEST.with_digest().digest not in digests


def test_white_space_and_key_order_do_not_count(tmp_path: Path) -> None:
    document = saved(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(dict(reversed(document.items()))))
    assert load_manifest(tmp_path).num_records == 5


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    document = saved(tmp_path)
    document["class_names"][0] = "cow"
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(document))
    with pytest.raises(ManifestError, match=r"manifest\.json: its digest is .* edited or damaged"):
        load_manifest(tmp_path)


def test_a_newer_major_version_is_refused_and_a_newer_minor_is_read(tmp_path: Path) -> None:
    document = saved(tmp_path)
    major, minor = FORMAT_VERSION
    write_with_digest(tmp_path, document | {"format_version": [major + 1, 0]})
    with pytest.raises(ManifestError, match=r"manifest\.json: written by format 2\.0, .* upgrade"):
        load_manifest(tmp_path)
    document["shards"][0]["new_field"] = 1
    write_with_digest(tmp_path, document | {"format_version": [major, minor + 1], "new_field": {"x": 1}})
    assert load_manifest(tmp_path).shards == MANIFEST.shards


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b"\x00" * 100,
        b"{}",
        b'{"format": "webdataset"}',
        b'{"format": "lmdali"}',
        b'{"format": "lmdali", "format_version": 1}',
        b'{"format": "lmdali", "format_version": [1, 0], "x": NaN}',
        b'{"format": "lmdali", "format_version": [1, 0], "x": Infinity}',
        b'{"format": "lmdali", "format_version": [1, 0], "x": "\\ud800"}',
        b'{"format": "lmdali", "format_version": [true, 0]}',
        b'{"x": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": "lmdali", "format_version": [1, 0], "x": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_what_is_no_manifest_is_named_and_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(text)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_a_truncated_manifest_is_refused_at_every_length(tmp_path: Path) -> None:
    saved(tmp_path)
    whole = (tmp_path / MANIFEST_FILE).read_bytes()
    for length in range(0, len(whole) - 2, 23):
        (tmp_path / MANIFEST_FILE).write_bytes(whole[:length])
        with pytest.raises(ManifestError, match=r"manifest\.json"):
            load_manifest(tmp_path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST_FILE).open("wb") as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(ManifestError, match="1000000000000 bytes are more than any manifest has"):
        load_manifest(tmp_path)


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    path = tmp_path / MANIFEST_FILE
    path.write_text(path.read_text().replace('"encoding":', '"encoding": "raw",\n "encoding":', 1))
    with pytest.raises(ManifestError, match="the key 'encoding' comes twice"):
        load_manifest(tmp_path)


def test_no_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such directory.*lmdali convert"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no manifest\.json here"):
        load_manifest(tmp_path)
    (tmp_path / "list.txt").write_text("a.jpg 0")
    with pytest.raises(InputError, match=r"list\.txt: is a file: give the directory"):
        load_manifest(tmp_path / "list.txt")
    (tmp_path / SHARDS_DIRECTORY).mkdir()
    with pytest.raises(InputError, match=r"did not finish.*--resume"):
        load_manifest(tmp_path)


def forged(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed: Any = json.loads(json.dumps(document))
    target: Any = changed
    *parents, last = path.split(".")
    for key in parents:
        target = target[int(key)] if key.isdigit() else target[key]
    target[int(last) if last.isdigit() else last] = value
    return dict(changed)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("shards.0.name", "../../x"),
        ("shards.0.name", "/etc/"),
        ("shards.0.name", "0000\u0661"),
        ("shards.0.name", 5),
        ("shards.0.name", None),
        ("shards.1.name", "00000"),
        ("shards.0.num_records", 4),
        ("shards.0.num_records", "3"),
        ("shards.0.num_records", 3.0),
        ("shards.0.num_records", True),
        ("shards.0.num_sources", 2),
        ("shards.0.rejected", [9]),
        ("shards.0.rejected", ["1"]),
        ("shards.0.rejected", [-1]),
        ("shards.0.rejected", 1),
        ("shards.0.first_position", -3),
        ("shards.0.first_position", 1),
        ("shards.0.file_bytes", "1"),
        ("shards.0.file_bytes", -1),
        ("shards.0.sha256", 1),
        ("shards.0.sha256", "0" * 15 + "/../../../victim"),
        ("shards.0", []),
        ("shards", {}),
        ("shards", 3),
        ("num_records", 6),
        ("num_records", 5.0),
        ("num_records", None),
        ("num_rejected", 0),
        ("class_counts", [2, 3]),
        ("class_counts", [2, 3, "0"]),
        ("class_counts", [6, -1, 0]),
        ("class_counts", 5),
        ("class_names", ["a", "b"]),
        ("class_names", "abc"),
        ("class_names", ["a", "b", 3]),
        ("encoding", "webp"),
        ("encoding", ["jpeg"]),
        ("image_size", 0),
        ("image_size", "256"),
        ("image_size", 256.0),
        ("image_size", -256),
        ("image_size", 10**9),
        ("recipe", 3),
        ("source", []),
        ("tables", None),
        ("tables", {"../../victim.parquet": "12" * 32}),
        ("tables", {"/etc/victim.parquet": "12" * 32}),
        ("tables", {"records.parquet": 1}),
        ("tables", {"manifest.json": "12" * 32}),
        ("channel_order", "BGR"),
    ],
)
def test_a_forged_manifest_with_a_right_digest_is_still_checked(tmp_path: Path, path: str, value: Any) -> None:
    write_with_digest(tmp_path, forged(saved(tmp_path), path, value))
    with pytest.raises(ManifestError, match=r"manifest\.json: .*: the file was edited or damaged; restore it or conv"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("name", ["image_size", "shards", "num_records", "tables"])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    document = saved(tmp_path)
    del document[name]
    write_with_digest(tmp_path, document)
    with pytest.raises(ManifestError, match=name):
        load_manifest(tmp_path)


def test_thousands_of_random_edits_of_a_real_manifest_raise_nothing_of_anybody_elses(
    tmp_path: Path, jpeg_dataset: Path
) -> None:
    whole = (jpeg_dataset / MANIFEST_FILE).read_bytes()
    document = json.loads(whole)
    dice = random.Random(36)
    path = tmp_path / MANIFEST_FILE
    refused = 0
    for round_number in range(int(os.environ.get("LMDALI_MANIFEST_EDITS", "3000"))):
        if round_number % 2:
            text = bytearray(whole)
            for _ in range(dice.randint(1, 4)):
                at = dice.randrange(len(text))
                text[at : at + dice.choice((0, 1, 1, 8))] = dice.randbytes(dice.choice((0, 1, 1, 3)))
            path.write_bytes(text)
        else:
            changed = json.loads(whole)
            victim: Any = changed if dice.random() < 0.5 else dice.choice(changed["shards"])
            key = dice.choice(sorted(victim))
            victim[key] = dice.choice([None, -1, 0, 1.5, "", "x", [], [None], {}, {"a": 1}, 2**70, True])
            write_with_digest(tmp_path, changed)
        try:
            loaded = load_manifest(tmp_path)
        except LmdaliError as error:
            refused += 1
            assert MANIFEST_FILE in str(error)
        else:
            assert loaded.num_records == document["num_records"]
    assert refused > 140


# Where a record is.


def test_positions_skip_the_rejected() -> None:
    shard = replace(SHARD, first_position=10, num_sources=8, num_records=4, rejected=(10, 12, 13, 17))
    assert [shard.position(row) for row in range(4)] == [11, 14, 15, 16]


@given(st.integers(0, 50), st.sets(st.integers(0, 29)))
def test_the_nth_record_is_the_nth_source_that_was_not_rejected(first: int, missing: set[int]) -> None:
    rejected = tuple(sorted(first + offset for offset in missing))
    stored = [first + offset for offset in range(30) if offset not in missing]
    shard = replace(SHARD, first_position=first, num_sources=30, num_records=len(stored), rejected=rejected)
    assert [shard.position(row) for row in range(len(stored))] == stored


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_record_numbers_run_through_the_shards_and_past_empty_ones(counts: list[int]) -> None:
    shards = tuple(replace(SHARD, name=f"{n:05d}", num_records=count) for n, count in enumerate(counts))
    index = RecordIndex(replace(MANIFEST, shards=shards))
    assert [index.locate(i) for i in range(sum(counts))] == [
        (shard, row) for shard, count in enumerate(counts) for row in range(count)
    ]
    for outside in (-1, sum(counts)):
        with pytest.raises(IndexError, match="record"):
            index.locate(outside)
