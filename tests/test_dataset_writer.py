from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kill_points import kill_script

from lmdali.pipeline.dataset_plan import DatasetPlan, Part
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.eigenbasis import load_moments
from lmdali.pipeline.errors import InputError, IntegrityError, LockedError, StorageError
from lmdali.pipeline.manifest import MANIFEST_FILE, load_manifest
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.output_lock import STAGING_DIRECTORY
from lmdali.pipeline.records import record_key
from lmdali.pipeline.shard_output import ShardContent
from lmdali.pipeline.table_reader import read_rows
from lmdali.pipeline.tables import RecordRow, RejectRow

PLAN = DatasetPlan(
    image_size=4,
    encoding="raw",
    class_names=("a", "b", "c"),
    num_sources=10,
    shard_sources=4,
    recipe={"quality": 95, "seed": 0},
    source={"kind": "folder", "fingerprint": "f"},
)
REJECTED = {2, 9}


def fill(writer: DatasetWriter, name: str, first: int, count: int) -> None:
    """One shard; the picture of source n is of gray level n, source 2 and 9 are rejected."""
    content = ShardContent([], [], Moments.zero(4, 4))
    with writer.open_shard(name, first, count) as shard:
        for position in range(first, first + count):
            if position in REJECTED:
                content.rejects.append(RejectRow(position, 1, f"{position}.jpg", "empty", "", 0, ""))
                continue
            shard.put(position, f"{position}.jpg", b"data%d" % position, label=position % 3, height=4, width=4)
            content.moments.add_image(np.full((4, 4, 3), position, np.uint8))
            key, row = record_key(position, f"{position}.jpg").decode(), len(content.records)
            content.records.append(RecordRow(position, name, row, key, position % 3, "", 1, "", 9, 9, "", 5, 0, 0))
        writer.finish_shard(name, shard, content)


def fill_all(writer: DatasetWriter) -> None:
    for shard in writer.unfinished():
        fill(writer, *shard)


def written(directory: Path, plan: DatasetPlan = PLAN) -> Path:
    writer = DatasetWriter(directory, plan)
    with writer.hold(resume=False, overwrite=False):
        fill_all(writer)
        writer.publish()
    return directory


def fingerprints(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_plan_cuts_its_sources_into_shards() -> None:
    assert PLAN.shards() == [("00000", 0, 4), ("00001", 4, 4), ("00002", 8, 2)]
    assert replace(PLAN, num_sources=8).shards() == [("00000", 0, 4), ("00001", 4, 4)]


def test_every_field_of_a_plan_counts() -> None:
    changes: dict[str, Any] = {
        "image_size": 5,
        "encoding": "jpeg",
        "class_names": ("a", "b", "d"),
        "num_sources": 11,
        "shard_sources": 5,
        "recipe": {"quality": 94, "seed": 0},
        "source": {"kind": "folder", "fingerprint": "g"},
    }
    assert set(changes) == set(PLAN.__dataclass_fields__)
    assert len({replace(PLAN, **{key: value}).fingerprint for key, value in changes.items()} | {PLAN.fingerprint}) == 8


def test_a_dataset_holds_what_was_put_in(tmp_path: Path) -> None:
    directory = written(tmp_path / "out")
    manifest = load_manifest(directory)
    assert (manifest.num_records, manifest.num_rejected) == (8, 2)
    assert [(s.num_records, s.rejected) for s in manifest.shards] == [(3, (2,)), (4, ()), (1, (9,))]
    assert manifest.class_counts == (3, 3, 2)
    assert manifest.source == {"kind": "folder", "fingerprint": "f", "plan": PLAN.fingerprint}
    assert [row["position"] for row in read_rows(directory / "records.parquet")] == [0, 1, 3, 4, 5, 6, 7, 8]
    assert [row["index"] for row in read_rows(directory / "records.parquet")] == list(range(8))
    assert [row["position"] for row in read_rows(directory / "rejects.parquet")] == [2, 9]
    moments, digest = load_moments(directory)
    assert digest == manifest.digest
    assert moments.num_images == 8
    assert moments.sums.tolist() == [16 * (0 + 1 + 3 + 4 + 5 + 6 + 7 + 8)] * 3
    for name, digest in manifest.tables.items():
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest


def test_nothing_but_the_dataset_is_left(tmp_path: Path) -> None:
    assert sorted(path.name for path in written(tmp_path / "out").iterdir()) == [
        "manifest.json",
        "mean.npy",
        "records.parquet",
        "rejects.parquet",
        "shards",
        "statistics.json",
    ]


def test_the_order_in_which_shards_are_made_does_not_matter(tmp_path: Path) -> None:
    expected = fingerprints(written(tmp_path / "one"))
    writer = DatasetWriter(tmp_path / "two", PLAN)
    with writer.hold(resume=False, overwrite=False):
        for name, first, count in reversed(PLAN.shards()):
            fill(writer, name, first, count)
        writer.publish()
    assert fingerprints(tmp_path / "two") == expected


def test_an_interrupted_run_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    expected = fingerprints(written(tmp_path / "one"))
    writer = DatasetWriter(tmp_path / "two", PLAN)
    with pytest.raises(KeyboardInterrupt), writer.hold(resume=False, overwrite=False):
        fill(writer, *PLAN.shards()[1])
        raise KeyboardInterrupt
    kept = (tmp_path / "two/shards/00001/data.mdb").stat()
    again = DatasetWriter(tmp_path / "two", PLAN)
    assert not again.is_complete()
    with again.hold(resume=True, overwrite=False):
        assert again.unfinished() == [shard for shard in PLAN.shards() if shard[0] != "00001"]
        fill_all(again)
        again.publish()
    assert again.is_complete()
    assert fingerprints(tmp_path / "two") == expected
    now = (tmp_path / "two/shards/00001/data.mdb").stat()
    assert (now.st_ino, now.st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns), "a finished shard is not touched"


def test_a_directory_with_content_is_refused_and_untouched(tmp_path: Path) -> None:
    written(tmp_path / "out")
    before = fingerprints(tmp_path / "out")
    with (
        pytest.raises(InputError, match="already holds a finished dataset: add --resume or --overwrite"),
        DatasetWriter(tmp_path / "out", PLAN).hold(resume=False, overwrite=False),
    ):
        raise AssertionError
    assert fingerprints(tmp_path / "out") == before


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_files_that_are_not_ours_are_never_touched(tmp_path: Path, flags: dict[str, bool]) -> None:
    out = written(tmp_path / "out")
    (out / "thesis.tex").write_text("years of work")
    before = fingerprints(out)
    with (
        pytest.raises(InputError, match=r"not ours \('thesis\.tex'\)"),
        DatasetWriter(out, PLAN).hold(**{"resume": False, "overwrite": False} | flags),
    ):
        raise AssertionError
    assert fingerprints(out) == before


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with (
        pytest.raises(InputError, match="not a directory"),
        DatasetWriter(tmp_path / "out", PLAN).hold(resume=True, overwrite=True),
    ):
        raise AssertionError
    assert (tmp_path / "out").read_text() == "x"


def test_overwrite_starts_again(tmp_path: Path) -> None:
    written(tmp_path / "out")
    other = replace(PLAN, num_sources=4)
    writer = DatasetWriter(tmp_path / "out", other)
    with writer.hold(resume=False, overwrite=True):
        assert not (tmp_path / "out" / MANIFEST_FILE).exists()
        assert writer.unfinished() == other.shards()
        fill_all(writer)
        writer.publish()
    assert fingerprints(tmp_path / "out") == fingerprints(written(tmp_path / "fresh", other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": {"quality": 90, "seed": 0}}, "quality: 95 then, 90 now"),
        ({"image_size": 8}, "image_size: 4 then, 8 now"),
        ({"encoding": "jpeg"}, "encoding: 'raw' then, 'jpeg' now"),
        ({"class_names": ("a", "b")}, "class_names: 3 then, 2 now"),
        ({"num_sources": 11, "source": {"kind": "list", "fingerprint": "g"}}, "num_sources: 10 .*kind: 'folder' then"),
    ],
)
def test_resuming_with_other_options_names_them(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    writer = DatasetWriter(tmp_path / "out", PLAN)
    with pytest.raises(KeyError), writer.hold(resume=False, overwrite=False):
        fill(writer, *PLAN.shards()[0])
        raise KeyError
    before = fingerprints(tmp_path / "out" / "shards")
    with (
        pytest.raises(InputError, match=message),
        DatasetWriter(tmp_path / "out", replace(PLAN, **changes)).hold(resume=True, overwrite=False),
    ):
        raise AssertionError
    assert fingerprints(tmp_path / "out" / "shards") == before
    with writer.hold(resume=True, overwrite=False):
        assert writer.unfinished() == PLAN.shards()[1:]


def test_resuming_a_finished_dataset_with_other_options_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "out")
    with (
        pytest.raises(InputError, match=r"made with other options \(num_sources: 10 then, 11 now\): use --overwrite"),
        DatasetWriter(tmp_path / "out", replace(PLAN, num_sources=11)).hold(resume=True, overwrite=False),
    ):
        raise AssertionError
    assert load_manifest(tmp_path / "out").num_records == 8


def test_where_one_shard_does_not_say_how_large_it_might_have_been_the_refusal_does(tmp_path: Path) -> None:
    written(tmp_path / "out", replace(PLAN, shard_sources=10))
    with (
        pytest.raises(InputError, match=r"made with other options \(shard size\): use --overwrite"),
        DatasetWriter(tmp_path / "out", replace(PLAN, shard_sources=20)).hold(resume=True, overwrite=False),
    ):
        raise AssertionError


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_second_writer_is_told_who_holds_the_output(tmp_path: Path, flags: dict[str, bool]) -> None:
    out = tmp_path / "out"
    with DatasetWriter(out, PLAN).hold(resume=False, overwrite=False):
        with (
            pytest.raises(LockedError, match=rf"another run is writing here \(pid {os.getpid()} on "),
            DatasetWriter(out, PLAN).hold(**{"resume": False, "overwrite": False} | flags),
        ):
            raise AssertionError
        assert (out / STAGING_DIRECTORY / "lock").exists()
    with DatasetWriter(out, PLAN).hold(resume=True, overwrite=False):
        pass


def test_a_disk_that_cannot_lock_is_an_error_and_not_a_gamble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(StorageError, match="cannot lock files"),
        DatasetWriter(tmp_path / "out", PLAN).hold(resume=False, overwrite=False),
    ):
        raise AssertionError


def test_a_shard_of_another_plan_is_not_published(tmp_path: Path) -> None:
    other = written(tmp_path / "other", replace(PLAN, recipe={"quality": 1}))
    writer = DatasetWriter(tmp_path / "out", PLAN)
    with writer.hold(resume=False, overwrite=False):
        fill_all(writer)
        shutil.rmtree(tmp_path / "out/shards/00001")
        shutil.copytree(other / "shards/00001", tmp_path / "out/shards/00001")
        with pytest.raises(IntegrityError, match="shard 00001 is of another plan"):
            writer.publish()
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()


@pytest.mark.parametrize("suffix", ["records", "rejects", "npy", "hashes"])
def test_what_was_damaged_between_two_runs_is_not_published(tmp_path: Path, suffix: str) -> None:
    expected = fingerprints(written(tmp_path / "whole"))
    writer = DatasetWriter(tmp_path / "out", PLAN)
    with writer.hold(resume=False, overwrite=False):
        fill_all(writer)
    staged = tmp_path / f"out/.staging/00001.{suffix}"
    content = bytearray(staged.read_bytes())
    content[len(content) // 2] ^= 1
    staged.write_bytes(content)
    with writer.hold(resume=True, overwrite=False):
        with pytest.raises(IntegrityError, match="shards/00001 and run the conversion again with --resume"):
            writer.publish()
        shutil.rmtree(tmp_path / "out/shards/00001")
        fill_all(writer)
        writer.publish()
    assert fingerprints(tmp_path / "out") == expected


def test_nothing_stored_is_nothing_published(tmp_path: Path) -> None:
    plan = replace(PLAN, num_sources=1)
    writer = DatasetWriter(tmp_path / "out", plan)
    with writer.hold(resume=False, overwrite=False):
        with writer.open_shard("00000", 0, 1) as shard:
            rejects = [RejectRow(0, 0, "x", "empty", "", 0, "")]
            writer.finish_shard("00000", shard, ShardContent([], rejects, Moments.zero(4, 4)))
        with pytest.raises(InputError, match="none of 1 sources could be stored: 1 empty; the first is 'x'"):
            writer.publish()
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()


KILLS = """
import sys
from pathlib import Path
from dataclasses import replace
import test_dataset_writer
from kill_points import in_child, kill_everywhere
from test_dataset_writer import DatasetWriter, fill_all, fingerprints, written

PLAN = replace(test_dataset_writer.PLAN, num_sources=7)
root = Path(sys.argv[1])
assert in_child(lambda: written(root / "whole", PLAN)) == 0
expected = fingerprints(root / "whole")

def run(out):
    if (out / "manifest.json").exists():  # killed behind it: what is published is whole
        found = fingerprints(out)
        assert all(found[name] == value for name, value in expected.items())
    writer = DatasetWriter(out, PLAN)
    if writer.is_complete():
        writer.tidy()
        return
    with writer.hold(resume=True, overwrite=False):
        fill_all(writer)
        writer.publish()

def check(out):
    found = fingerprints(out)
    assert found == expected, sorted(set(found) ^ set(expected))

print(kill_everywhere(root, lambda out: None, run, check))
"""


def test_a_run_killed_at_any_file_operation_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    kill_script(KILLS, tmp_path)


def test_leftovers_of_dead_runs_are_removed_and_others_kept(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    out = tmp_path / "out"
    writer = DatasetWriter(out, PLAN)
    with pytest.raises(KeyError), writer.hold(resume=False, overwrite=False):
        raise KeyError
    leftovers = [out / ".manifest.json.0123abcd.tmp", out / ".records.parquet.tmp", out / ".staging/.plan.json.1.tmp"]
    for leftover in leftovers:
        leftover.write_text("half")
    (out / "shards/.00000.0123abcd.tmp").mkdir()
    with writer.hold(resume=True, overwrite=False):
        fill_all(writer)
        writer.publish()
    assert fingerprints(out) == fingerprints(written(tmp_path / "whole"))
    assert sorted(path.name for path in (out / "shards").iterdir()) == ["00000", "00001", "00002"]
    (out / ".foreign.tmp").write_text("mine")
    with pytest.raises(InputError, match=r"not ours \('\.foreign\.tmp'\)"), writer.hold(resume=True, overwrite=False):
        raise AssertionError


# Parts.


def part_of(directory: Path, number: int, count: int, plan: DatasetPlan = PLAN) -> DatasetWriter:
    return DatasetWriter(directory, plan, Part(number, count))


def make(writer: DatasetWriter, **flags: bool) -> None:
    with writer.hold(**{"resume": False, "overwrite": False} | flags):
        fill_all(writer)


def test_parts_share_a_directory_and_a_whole_run_finishes_their_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(part_of(out, 1, 2))
    make(part_of(out, 2, 2))
    assert not (out / MANIFEST_FILE).exists()
    assert part_of(out, 1, 2).unfinished() == part_of(out, 2, 2).unfinished() == []
    whole = DatasetWriter(out, PLAN)
    with pytest.raises(InputError, match="already holds an unfinished conversion"):
        make(whole)
    with whole.hold(resume=True, overwrite=False):
        assert whole.unfinished() == []
        whole.publish()
    assert fingerprints(out) == fingerprints(written(tmp_path / "whole"))


def test_a_part_begun_again_needs_a_flag_and_overwrites_itself_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(part_of(out, 1, 2))
    make(part_of(out, 2, 2))
    with pytest.raises(InputError, match="already holds some of part 1/2: add --resume or --overwrite"):
        make(part_of(out, 1, 2))
    make(part_of(out, 1, 2), resume=True)
    inodes = {path.parent.name: path.stat().st_ino for path in out.glob("shards/*/data.mdb")}
    again = part_of(out, 1, 2)
    with again.hold(resume=False, overwrite=True):
        assert again.unfinished() == again.shards()
        assert not list(out.glob(".staging/00000.*")) and list(out.glob(".staging/00001.*"))
        fill_all(again)
    after = {path.parent.name: path.stat().st_ino for path in out.glob("shards/*/data.mdb")}
    assert after["00001"] == inodes["00001"]
    with pytest.raises(LockedError, match="making part 1/2 here"), again.hold(resume=True, overwrite=False):
        make(part_of(out, 1, 2))


def test_a_part_clears_only_its_own_leftovers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(part_of(out, 2, 2))
    mine, others = out / "shards/.00002.0123abcd.tmp", out / "shards/.00001.0123abcd.tmp"
    staged = [out / f".staging/.{name}.npy.0123abcd.tmp" for name in ("00002", "00001", "plan.json")]
    for directory in (mine, others):
        directory.mkdir()
    for path in staged:
        path.write_text("half")
    make(part_of(out, 1, 2))
    assert not mine.exists() and others.exists()
    assert [path.exists() for path in staged] == [False, True, True]


def test_parts_of_different_plans_are_told_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(part_of(out, 1, 2))
    before = fingerprints(out / "shards")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        other = part_of(out, 2, 2, replace(PLAN, recipe={"quality": 90, "seed": 0}))
        with pytest.raises(InputError, match=r"quality: 95 then, 90 now.*begin in an empty directory"):
            make(other, **flags)
    assert fingerprints(out / "shards") == before


def test_no_part_takes_a_finished_dataset_apart(tmp_path: Path) -> None:
    out = written(tmp_path / "out")
    before = fingerprints(out)
    with pytest.raises(InputError, match="already holds a finished dataset"):
        make(part_of(out, 1, 2))
    with pytest.raises(InputError, match="no part may take apart"):
        make(part_of(out, 1, 2), overwrite=True)
    assert part_of(out, 1, 2).is_complete()
    assert fingerprints(out) == before


OVERWRITES = """
import shutil, sys
from pathlib import Path
from dataclasses import replace
import test_dataset_writer
from kill_points import kill_everywhere
from test_dataset_writer import DatasetWriter, Part, fill_all, fingerprints, make, part_of, written

root, with_parts = Path(sys.argv[1]), sys.argv[2] == "part"
plan = replace(test_dataset_writer.PLAN, num_sources=7)
expected = fingerprints(written(root / "whole", plan))
(root / "begun").mkdir()
if with_parts:
    for number in (1, 2):
        make(part_of(root / "before", number, 2, plan))
else:
    shutil.copytree(root / "whole", root / "before")

def work(place):
    begun = root / "begun" / place.name
    again = begun.exists()
    begun.touch()
    writer = DatasetWriter(place, plan, Part(1, 2) if with_parts else None)
    if again and writer.is_complete():
        return writer.tidy()
    with writer.hold(resume=again, overwrite=not again):
        fill_all(writer)
        if not with_parts:
            writer.publish()

def check(place):
    if with_parts:
        writer = DatasetWriter(place, plan)
        with writer.hold(resume=True, overwrite=False):
            assert writer.unfinished() == []
            writer.publish()
    assert fingerprints(place) == expected, place

print(kill_everywhere(root, lambda place: shutil.copytree(root / "before", place), work, check))
"""


@pytest.mark.parametrize("how", ["whole", "part"])
def test_overwriting_killed_at_any_file_operation_is_resumed_to_the_same_bytes(tmp_path: Path, how: str) -> None:
    kill_script(OVERWRITES, tmp_path, how)
