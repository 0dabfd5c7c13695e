"""Conversions to an address: the bytes of a local one, on a small disk, from wherever they were left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from s3_server import BUCKET, S3Server

from lmdali.pipeline import shard_publisher
from lmdali.pipeline.dataset_plan import Part
from lmdali.pipeline.errors import ConfigError, InputError, RemoteError
from lmdali.pipeline.fsspec_store import FsspecStore
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.remote_retry import RetryConfig
from lmdali.pipeline.remote_store import WritableStore
from lmdali.pipeline.shard_figures import SHARD_FILE
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.shard_index import OFFSETS_FILE
from lmdali.pipeline.shard_publisher import read_remote
from lmdali.tools import conversion_upload
from lmdali.tools.conversion import ConvertConfig, ShardJob, make_plan
from lmdali.tools.conversion_upload import convert_part_to_address, convert_to_address
from lmdali.tools.shard_making import make_shard
from lmdali.tools.sources import Source, open_source

CONFIG = ConvertConfig(size=48, encoding="raw", shard_bytes=1_000_000)
OPTIONS = ("--size", "48", "--encoding", "raw", "--shard-bytes", "1000000")


class Here:
    """Makes shards in this process; calls `after` with how many are done."""

    def __init__(self, after: Callable[[int], object] = lambda done: None) -> None:
        self.after = after
        self.made: list[str] = []

    def run(self, jobs: Iterator[ShardJob], progress: Callable[[int], None]) -> None:
        for job in jobs:
            make_shard(job)
            self.made.append(job.name)
            self.after(len(self.made))


@pytest.fixture(scope="module")
def photos(make_photo_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("to_address") / "photos"
    return make_photo_folder(folder, ("a", "b"), 159, broken=2, sides=(40, 90))


@pytest.fixture(scope="module")
def source(photos: Path) -> Source:
    return open_source(photos)


@pytest.fixture(scope="module")
def whole(photos: Path) -> dict[str, str]:
    """Hashes of the files of a local conversion."""
    out = photos.parent / "whole"
    assert run("convert", photos, out, *OPTIONS, "-j2", "--quiet") == 0
    assert len(load_manifest(out).shards) == 5
    return {str(path.relative_to(out)): digest(path.read_bytes()) for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def place(s3: S3Server, request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.originalname}"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hashes_at(address: str) -> dict[str, str]:
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(address)
    filesystem.invalidate_cache()
    return {name.removeprefix(f"{root}/"): digest(filesystem.cat_file(name)) for name in filesystem.find(root)}


def twice(s3: S3Server) -> list[str]:
    """Files of the dataset that were written more than once."""
    return [key for key, count in s3.written.items() if count > 1 and "/lock" not in key and "part-" not in key]


def interrupt_at(count: int) -> Callable[[int], None]:
    def after(done: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return after


def test_the_command_makes_the_dataset_of_a_local_conversion_and_leaves_nothing(
    s3: S3Server,
    place: str,
    photos: Path,
    whole: dict[str, str],
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ("convert", photos, place, *OPTIONS, "-j2", "--scratch", scratch, "--json", "--quiet")
    assert run(*command) == 0
    summary = json.loads(capsys.readouterr().out)
    assert hashes_at(place) == whole
    assert summary["num_shards"] == 5 and summary["num_stored"] == 318 and summary["out"] == place
    assert not twice(s3) and list(scratch.iterdir()) == []
    order = [key for key in s3.written if "/.staging/" not in key]
    assert order[-1].endswith("/manifest.json")
    assert run(*command) == 3
    assert "already holds a finished dataset: add --resume" in capsys.readouterr().err
    assert run(*command, "--resume") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["resumed_shards"] == 5 and summary["images_per_second"] == 0
    assert run(*command, "--resume", "--size", "32") == 3
    assert "made with other options" in capsys.readouterr().err
    assert hashes_at(place) == whole


def test_the_disk_holds_a_few_shards_at_any_time(
    source: Source, whole: dict[str, str], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"memory://disk{scratch}"
    monkeypatch.setattr("lmdali.tools.shard_sender.SENDERS", 1)
    most = 0

    def look(_: int) -> None:
        nonlocal most
        most = max(most, len(list(scratch.glob("*/shards/*/data.mdb"))))

    convert_to_address(source, place, CONFIG, scratch=scratch, executor=Here(look), quiet=True)
    assert most <= 3, "one that is made, one that is sent, one that waits"
    assert hashes_at(place) == whole


@pytest.mark.parametrize("is_lost", [False, True], ids=["same disk", "another machine"])
def test_an_interrupted_run_goes_on_from_the_shards_that_are_there(
    is_lost: bool, s3: S3Server, place: str, source: Source, whole: dict[str, str], scratch: Path
) -> None:
    place += str(is_lost)

    def after(done: int) -> None:
        if done == 3:
            prefix = place.removeprefix(f"s3://{BUCKET}/")
            while not {f"{prefix}/.staging/0000{number}.hashes" for number in (0, 1)} <= s3.written.keys():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_to_address(source, place, CONFIG, scratch=scratch, executor=Here(after), quiet=True)
    assert "manifest.json" not in hashes_at(place) and ".staging/lock" not in hashes_at(place)
    with pytest.raises(InputError, match="already holds an unfinished conversion: add --resume"):
        convert_to_address(source, place, CONFIG, scratch=scratch, executor=Here(), quiet=True)
    with pytest.raises(InputError, match="begun with other options"):
        convert_to_address(source, place, ConvertConfig(size=32), scratch=scratch, resume=True, quiet=True)
    again = Here()
    elsewhere = scratch / "elsewhere" if is_lost else scratch
    convert_to_address(source, place, CONFIG, scratch=elsewhere, executor=again, resume=True, quiet=True)
    assert hashes_at(place) == whole
    assert not set(again.made) & {"00000", "00001"} and "00004" in again.made
    assert not twice(s3)


def test_a_killed_run_goes_on(
    s3: S3Server, place: str, photos: Path, whole: dict[str, str], scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("convert", photos, place, *OPTIONS, "-j2", "--scratch", scratch, "--quiet")
    held = s3.hold("PUT", "/shards/00003/data.mdb")
    process = subprocess.Popen(
        [sys.executable, "-m", "lmdali.tools", *map(str, command)], env=os.environ | s3.environment
    )
    try:
        assert held.reached.wait(100), "it did not come so far"
        assert run(*command, "--resume") == 6
        assert f"pid {process.pid} on " in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()
        held.release.set()
    assert "manifest.json" not in hashes_at(place)
    assert run(*command, "--resume") == 0
    assert hashes_at(place) == whole and list(scratch.iterdir()) == []
    assert {key.rpartition("/shards/")[2] for key in twice(s3)} <= {"00003/data.mdb"}


def test_a_run_that_was_cut_while_it_published_only_publishes(
    s3: S3Server, place: str, source: Source, whole: dict[str, str], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion_upload, "RetryConfig", lambda: RetryConfig(tries=1))
    s3.fail("PUT", "/records.parquet", "500 InternalError")
    with pytest.raises(RemoteError, match=r"records.parquet.*given up after 1 tries"):
        convert_to_address(source, place, CONFIG, scratch=scratch, executor=Here(), quiet=True)
    again = Here()
    convert_to_address(source, place, CONFIG, scratch=scratch, executor=again, resume=True, quiet=True)
    assert again.made == [] and hashes_at(place) == whole and not twice(s3)


def test_a_store_that_refuses_in_the_middle_ends_the_run_and_what_arrived_counts(
    s3: S3Server, place: str, source: Source, whole: dict[str, str], scratch: Path
) -> None:
    s3.fail("PUT", "/shards/00002/data.mdb", "403 AccessDenied")
    with pytest.raises(RemoteError, match=r"shards/00002/data.mdb: access denied"):
        convert_to_address(source, place, CONFIG, scratch=scratch, executor=Here(), quiet=True)
    again = Here()
    convert_to_address(source, place, CONFIG, scratch=scratch, executor=again, resume=True, quiet=True)
    assert "00002" not in again.made and hashes_at(place) == whole and not twice(s3)


def test_other_stores_are_converted_to_as_well(source: Source, whole: dict[str, str], scratch: Path) -> None:
    place = f"memory://there{scratch}"
    with pytest.raises(KeyboardInterrupt):
        convert_to_address(source, place, CONFIG, scratch=scratch, executor=Here(interrupt_at(4)), quiet=True)
    convert_to_address(source, place, CONFIG, scratch=scratch / "b", executor=Here(), resume=True, quiet=True)
    assert hashes_at(place) == whole


def test_a_shard_that_vanished_there_is_made_again(source: Source, whole: dict[str, str], scratch: Path) -> None:
    place = f"memory://vanished{scratch}"

    def sent() -> list[str]:
        figures = scratch.rglob(f"shards/*/{SHARD_FILE}")
        return [path.parent.name for path in figures if not (path.parent / DATA_FILE).exists()]

    def interrupt_once_one_is_sent(done: int) -> None:
        while done == 5 and not sent():
            time.sleep(0.01)
        interrupt_at(5)(done)

    with pytest.raises(KeyboardInterrupt):
        convert_to_address(
            source, place, CONFIG, scratch=scratch, executor=Here(interrupt_once_one_is_sent), quiet=True
        )
    import fsspec

    name = sent()[0]
    filesystem, root = fsspec.core.url_to_fs(place)
    filesystem.rm_file(f"{root}/shards/{name}/{DATA_FILE}")
    again = Here()
    convert_to_address(source, place, CONFIG, scratch=scratch, executor=again, resume=True, quiet=True)
    assert name in again.made and hashes_at(place) == whole


def test_overwrite_takes_what_was_there_away(source: Source, whole: dict[str, str], scratch: Path) -> None:
    place = f"memory://overwritten{scratch}"
    convert_to_address(source, place, ConvertConfig(size=32), scratch=scratch, executor=Here(), quiet=True)
    with pytest.raises(KeyboardInterrupt):
        options: dict[str, Any] = {"scratch": scratch, "executor": Here(interrupt_at(2)), "quiet": True}
        convert_to_address(source, place, ConvertConfig(size=40), overwrite=True, **options)
    assert "manifest.json" not in hashes_at(place)
    convert_to_address(source, place, CONFIG, scratch=scratch, executor=Here(), overwrite=True, quiet=True)
    assert hashes_at(place) == whole


def test_parts_go_to_one_address_and_merge_publishes_them(
    source: Source, whole: dict[str, str], scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"memory://parts{scratch}"
    first = convert_part_to_address(
        source, place, CONFIG, Part(1, 2), scratch=scratch / "one", executor=Here(), quiet=True
    )
    assert (first.num_shards, first.total_shards, first.resumed_shards) == (3, 5, 0)
    assert run("merge", place, "--scratch", scratch) == 3
    assert "2 of 5 shards are missing: 00001, 00003" in capsys.readouterr().err
    again = convert_part_to_address(
        source, place, CONFIG, Part(1, 2), scratch=scratch / "two", executor=Here(), quiet=True
    )
    assert again.resumed_shards == 3 and again.num_stored == first.num_stored
    convert_part_to_address(source, place, CONFIG, Part(2, 2), scratch=scratch / "two", executor=Here(), quiet=True)
    assert "manifest.json" not in hashes_at(place)
    assert run("merge", place, "--scratch", scratch, "--quiet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_records"] == 318
    assert hashes_at(place) == whole
    assert run("merge", place, "--scratch", scratch, "--quiet") == 0
    with pytest.raises(InputError, match="already holds a finished dataset"):
        convert_part_to_address(source, place, CONFIG, Part(2, 2), scratch=scratch, executor=Here(), quiet=True)
    options: dict[str, Any] = {"scratch": scratch, "executor": Here(), "quiet": True, "resume": True}
    assert convert_part_to_address(source, place, CONFIG, Part(2, 2), **options).num_shards == 2


@pytest.mark.parametrize("what", ["cleared", "begun anew"])
def test_a_part_ends_where_another_run_takes_its_address(source: Source, scratch: Path, what: str) -> None:
    import fsspec

    place = f"memory://taken{scratch}"
    filesystem, root = fsspec.core.url_to_fs(place)

    def take(done: int) -> None:
        if done == 1:
            plan = json.dumps(make_plan(source, ConvertConfig(size=40)).to_json())
            if what == "begun anew":
                filesystem.pipe_file(f"{root}/.staging/plan.json", plan.encode())
            else:
                filesystem.rm_file(f"{root}/.staging/plan.json")

    message = "published it, or cleared it away, meanwhile" if what == "cleared" else "was begun with other options"
    with pytest.raises(InputError, match=message):
        convert_part_to_address(source, place, CONFIG, Part(1, 1), scratch=scratch, executor=Here(take), quiet=True)
    assert sum(name.endswith("data.mdb") for name in hashes_at(place)) <= 1, "sent while the other run began"


def test_a_part_asks_for_what_is_at_its_address_as_often_as_a_whole_run(
    photos: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def read(store: WritableStore, name: str, config: RetryConfig) -> bytes | None:
        asked.append(name)
        return read_remote(store, name, config)

    monkeypatch.setattr(shard_publisher, "read_remote", read)
    monkeypatch.setattr("lmdali.tools.convert.make_executor", lambda *_, **options: Here())
    counts = []
    for part in ((), ("--part", "1/1")):
        asked.clear()
        place = f"memory://asked{scratch}{len(part)}"
        assert run("convert", photos, place, *OPTIONS, *part, "--scratch", scratch, "--quiet") == 0
        counts.append(asked.count("manifest.json"))
    assert counts[0] == counts[1] == 3, "before the scan, and by the holder of the lock"


def test_pairs_that_cannot_be_are_refused_before_anything_is_read(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Source
) -> None:
    nowhere = tmp_path / "nowhere"
    for arguments, message in (
        ((nowhere, "https://me:hush@host/set"), "plain HTTP cannot be written to"),
        ((nowhere, place, "--check-duplicates"), f"is for a directory: run `lmdali audit {place}` afterwards"),
        ((nowhere, place, "--part", "1/2", "--overwrite"), "would remove the shards of other parts"),
        ((nowhere, tmp_path / "out", "--scratch", tmp_path), "--scratch is for an OUT that is an address"),
    ):
        assert run("convert", *arguments) == 2
        captured = capsys.readouterr().err
        assert message in captured and "hush" not in captured
    assert run("convert", nowhere, "s3://no-such-bucket/set") == 3, "the source is what is wrong"
    with pytest.raises(ConfigError, match="would remove the shards of other parts"):
        convert_part_to_address(source, place, CONFIG, Part(1, 2), overwrite=True)


def test_a_file_address_is_a_directory(photos: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("convert", photos, f"file://{out}", *OPTIONS, "-j2", "--quiet") == 0
    assert {str(path.relative_to(out)): digest(path.read_bytes()) for path in out.rglob("*") if path.is_file()} == whole


# Kills at any request.


class Killed(BaseException):
    """The process ends here, and with it whatever it would have asked for."""


def test_a_run_killed_while_it_removes_a_shard_that_it_has_sent_goes_on(
    source: Source, whole: dict[str, str], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, unlink, removed = f"memory://removed{scratch}", Path.unlink, list[Path]()

    def only_the_first(path: Path, missing_ok: bool = False) -> None:
        if path.name in (DATA_FILE, OFFSETS_FILE):
            if removed:
                raise Killed
            removed.append(path)
        unlink(path, missing_ok)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "unlink", only_the_first)
        convert_to_address(source, place, CONFIG, scratch=scratch, executor=Here(), quiet=True)
    convert_to_address(source, place, CONFIG, scratch=scratch, executor=Here(), resume=True, quiet=True)
    assert removed and hashes_at(place) == whole


class Requests:
    """Counts what is asked of a store, and lets nothing pass from some request on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.last = 0, sys.maxsize
        ask = FsspecStore._translated

        def asked(store: FsspecStore, name: str, call: Any) -> Any:
            self.count += 1
            if self.count > self.last:
                raise Killed
            return ask(store, name, call)

        monkeypatch.setattr(FsspecStore, "_translated", asked)

    def stop_after(self, count: int = sys.maxsize) -> None:
        """Begin to count anew."""
        self.count, self.last = 0, count


def test_a_run_killed_at_any_request_goes_on_to_the_same_bytes(
    make_photo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(make_photo_folder(tmp_path / "photos", ("a", "b"), 65, broken=2, sides=(30, 40)))
    small, scratch = ConvertConfig(size=24, encoding="raw"), tmp_path / "scratch"
    requests = Requests(monkeypatch)

    def converted(place: str, *, resume: bool = False) -> None:
        convert_to_address(source, place, small, scratch=scratch, executor=Here(), quiet=True, resume=resume)

    whole = f"memory://killed{tmp_path}/whole"
    converted(whole)
    expected, total = hashes_at(whole), requests.count
    step = 1 if os.environ.get("LMDALI_ALL_POINTS") else total // 3
    for at in range(2, total - 2, step):
        place = f"memory://killed{tmp_path}/{at}"
        requests.stop_after(at)
        with pytest.raises(Killed):
            converted(place)
        requests.stop_after()
        there = hashes_at(place)
        assert "manifest.json" not in there or there.items() >= expected.items()
        if at % 2:
            shutil.rmtree(scratch, ignore_errors=True)
        converted(place, resume=True)
        assert hashes_at(place) == expected and (not scratch.exists() or list(scratch.iterdir()) == [])
