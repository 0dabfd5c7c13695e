"""Staging: the copy equals the source byte for byte, goes on where it was cut, and is no dataset before it is whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import run
from remote_server import Fault, RemoteServer, serving

from lmdali.pipeline.errors import InputError, LockedError, RemoteError, StorageError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.output_lock import hold_whole
from lmdali.pipeline.remote_retry import RetryConfig
from lmdali.pipeline.shard_cache import ShardCache
from lmdali.tools import dataset_download
from lmdali.tools.dataset_download import stage_dataset
from lmdali.tools.dataset_upload import upload_dataset

QUICK = RetryConfig(tries=3, first_pause_seconds=0.01)
SHARD = "shards/00001/data.mdb"


@pytest.fixture
def server(small_jpeg_dataset: Path) -> Iterator[RemoteServer]:
    with serving(small_jpeg_dataset) as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMDALI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_the_source_and_a_second_run_asks_only_for_the_manifest(
    server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("stage", server.address, out, "--json", "--quiet") == 0
    summary = json.loads(capsys.readouterr().out)
    manifest = load_manifest(small_jpeg_dataset)
    assert files_of(out) == files_of(small_jpeg_dataset)
    assert summary["fetched_shards"] == summary["num_shards"] == len(manifest.shards)
    assert summary["fetched_bytes"] == manifest.file_bytes and summary["manifest_digest"] == manifest.digest
    assert sorted(server.shards_asked()) == [info.name for info in manifest.shards]
    server.requests.clear()
    assert run("stage", server.address, out, "--json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["fetched_shards"] == 0
    assert server.requests == [("manifest.json", 0)]
    assert run("stage", server.address, out, "--verify", "--quiet") == 0
    assert server.shards_asked() == [] and files_of(out) == files_of(small_jpeg_dataset)


def test_a_path_an_address_of_a_folder_and_a_bucket_are_sources_too(
    s3: object, small_jpeg_dataset: Path, tmp_path: Path
) -> None:
    upload_dataset(small_jpeg_dataset, "s3://bucket/to-stage", quiet=True)
    for number, source in enumerate((small_jpeg_dataset, f"file://{small_jpeg_dataset}", "s3://bucket/to-stage")):
        stage_dataset(str(source), tmp_path / str(number), quiet=True)
        assert files_of(tmp_path / str(number)) == files_of(small_jpeg_dataset)


def test_a_killed_run_goes_on_in_the_middle_of_a_shard(
    server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path
) -> None:
    out, size = tmp_path / "out", (small_jpeg_dataset / SHARD).stat().st_size
    server.once(SHARD, Fault(pause_seconds=100))
    command = [sys.executable, "-m", "lmdali.tools", "stage", server.address, out, "--fetches", "1", "--quiet"]
    process = subprocess.Popen(command)
    try:
        part = out / ".staging" / "00001" / "data.mdb"
        while not (part.is_file() and part.stat().st_size >= size // 2):
            assert process.poll() is None
        with pytest.raises(LockedError):
            stage_dataset(server.address, out, quiet=True)
    finally:
        process.kill()
        process.wait()
    assert not (out / "manifest.json").exists() and (out / "shards" / "00000").is_dir()
    kept = part.stat().st_size
    (part.parent / ".offsets.npy.00000000.tmp").write_bytes(b"killed as it wrote")
    server.requests.clear()
    summary = stage_dataset(server.address, out, quiet=True)
    assert files_of(out) == files_of(small_jpeg_dataset)
    assert (SHARD, kept) in server.requests and not server.count("shards/00000/data.mdb")
    expected = sum(info.file_bytes for info in load_manifest(out).shards[1:]) - kept
    assert summary.fetched_bytes == expected


@pytest.mark.parametrize("fault", [Fault(reset_after=10_000), Fault(status=503), Fault(flip=5000)], ids=str)
def test_what_is_cut_or_damaged_on_the_way_is_fetched_again(
    fault: Fault, server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path
) -> None:
    for name in (SHARD, "shards/00002/shard.json", "shards/00003/offsets.npy", "records.parquet"):
        flipped = Fault(flip=200) if fault.flip else fault
        server.once(name, fault if name == SHARD else flipped)
    server.once("statistics.json", Fault(flip=300) if fault.flip else fault)
    stage_dataset(server.address, tmp_path / "out", quiet=True, retry=QUICK)
    assert files_of(tmp_path / "out") == files_of(small_jpeg_dataset)


def test_a_source_that_stays_damaged_is_no_dataset_here(server: RemoteServer, tmp_path: Path) -> None:
    server.always(SHARD, Fault(flip=5000))
    with pytest.raises(RemoteError, match=r"shards/00001/data.mdb: sha256 is .*, 3 times"):
        stage_dataset(server.address, tmp_path / "out", fetches=1, quiet=True, retry=QUICK)
    server.always(SHARD, Fault())
    server.always("shards/00002/shard.json", Fault(flip=30))
    with pytest.raises(RemoteError, match="the source is damaged: run `lmdali verify`"):
        stage_dataset(server.address, tmp_path / "out", quiet=True, retry=QUICK)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_was_damaged_here_is_mended(server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stage_dataset(server.address, out, quiet=True)
    shutil.rmtree(out / "shards" / "00000")
    data = bytearray((out / SHARD).read_bytes())
    data[-100] ^= 1
    (out / SHARD).write_bytes(data)
    (out / "records.parquet").write_bytes(b"?")
    assert stage_dataset(server.address, out, quiet=True).fetched_shards == 1, "sizes alone say nothing of the other"
    assert stage_dataset(server.address, out, verify=True, quiet=True).fetched_shards == 1
    assert files_of(out) == files_of(small_jpeg_dataset)


def test_shards_in_the_cache_are_not_fetched(
    server: RemoteServer, small_jpeg_dataset: Path, cache: Path, tmp_path: Path
) -> None:
    first, second = load_manifest(small_jpeg_dataset).shards[:2]
    for info in (first, second):
        folder = ShardCache(cache).shard_directory(info)
        folder.mkdir(parents=True)
        shutil.copy(small_jpeg_dataset / "shards" / info.name / "data.mdb", folder)
    (ShardCache(cache).shard_directory(second) / "data.mdb").write_bytes(b"damaged")
    stage_dataset(server.address, tmp_path / "out", quiet=True, retry=QUICK)
    assert first.name not in server.shards_asked() and second.name in server.shards_asked()
    assert files_of(tmp_path / "out") == files_of(small_jpeg_dataset)


def test_directories_with_anything_else_are_refused_and_untouched(
    server: RemoteServer, small_jpeg_dataset: Path, small_raw_dataset: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(small_raw_dataset, other)
    half = tmp_path / "half"
    (half / ".staging").mkdir(parents=True)
    shutil.copy(small_raw_dataset / "manifest.json", half / ".staging")
    planned, loose, mine = tmp_path / "planned", tmp_path / "loose", tmp_path / "mine"
    (planned / ".staging").mkdir(parents=True)
    (planned / ".staging" / "plan.json").write_text("{}")
    (loose / "shards").mkdir(parents=True)
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    before = {path: files_of(path) for path in (other, half, planned, loose, mine)}
    for path, message in (
        (other, "holds another dataset"),
        (half, "a part of another dataset"),
        (planned, "unfinished conversion"),
        (loose, "shards of unknown origin"),
        (mine, "files that are not ours"),
    ):
        with pytest.raises(InputError, match=message):
            stage_dataset(server.address, path, quiet=True)
    assert {path: files_of(path) for path in before} == before
    assert run("stage", small_jpeg_dataset, small_jpeg_dataset) == 2


def test_a_missing_dataset_a_small_disk_and_a_busy_directory(
    server: RemoteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("stage", f"{server.address}/nowhere", tmp_path / "out") == 7
    assert run("stage", tmp_path / "nowhere", tmp_path / "out") == 3  # of a path: no server has anything to do with it
    with pytest.raises(InputError, match=r"nowhere: no such directory: expected a dataset"):
        stage_dataset(str(tmp_path / "nowhere"), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    with hold_whole(tmp_path / "out"), pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        stage_dataset(server.address, tmp_path / "out", quiet=True)
    monkeypatch.setattr(dataset_download, "free_bytes", lambda _: 1000)
    with pytest.raises(StorageError, match=r"needs 0\.\d MB more, 0\.0 MB are free"):
        stage_dataset(server.address, tmp_path / "out", quiet=True)
    assert server.shards_asked() == []
