"""Uploads: what arrives equals the dataset, the manifest comes last, nothing is sent twice, others are left alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run
from s3_server import SECRET, S3Server

from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.remote_retry import RetryConfig
from lmdali.pipeline.stores import open_store
from lmdali.tools.dataset_upload import upload_dataset

QUICK = RetryConfig(tries=3, first_pause_seconds=0.01)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    """A prefix of the bucket for one test."""
    return f"s3://bucket/{request.node.originalname}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_at(address: str) -> dict[str, bytes]:
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(address)
    filesystem.invalidate_cache()
    return {name.removeprefix(f"{root}/"): filesystem.cat_file(name) for name in filesystem.find(root)}


def test_everything_arrives_once_and_again_sends_nothing(
    s3: S3Server, place: str, small_jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = files_of(small_jpeg_dataset)
    assert run("upload", small_jpeg_dataset, place, "--json", "--quiet") == 0
    summary = json.loads(capsys.readouterr().out)
    assert files_at(place) == content, "no lock stays"
    sent = {key: count for key, count in s3.written.items() if "/.staging/" not in key}
    assert sent == {f"{place.removeprefix('s3://bucket/')}/{name}": 1 for name in content}
    assert list(sent)[-1].endswith("/manifest.json")
    assert summary["sent_files"] == len(content) and summary["sent_bytes"] == sum(map(len, content.values()))
    assert summary["manifest_digest"] == load_manifest(small_jpeg_dataset).digest
    s3.written.clear()
    for extra in ([], ["--verify"]):
        assert run("upload", small_jpeg_dataset, place, "--json", "--quiet", *extra) == 0
        assert json.loads(capsys.readouterr().out)["sent_files"] == 0
    assert not [key for key in s3.written if "/.staging/" not in key]


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_other_stores_take_it_too_and_compare_what_they_have(
    scheme: str, tmp_path: Path, small_jpeg_dataset: Path
) -> None:
    address = f"{scheme}://{tmp_path}/there"
    first = upload_dataset(small_jpeg_dataset, address, quiet=True)
    assert first.sent_files == len(files_of(small_jpeg_dataset))
    store = open_store(address)
    data = b"".join(store.open("shards/00001/data.mdb", 0).chunks)
    store.put("shards/00001/data.mdb", data[:-1] + b"?")  # type: ignore[attr-defined]  # the size is right
    again = upload_dataset(small_jpeg_dataset, address, quiet=True)
    assert again.sent_files == 1
    assert b"".join(store.open("shards/00001/data.mdb", 0).chunks) == data
    if scheme == "file":
        assert files_of(tmp_path / "there") == files_of(small_jpeg_dataset)


def test_a_killed_upload_goes_on_and_was_no_dataset(
    s3: S3Server, place: str, small_jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = s3.hold("PUT", "/shards/00002/data.mdb")
    command = [sys.executable, "-m", "lmdali.tools", "upload", small_jpeg_dataset, place, "--uploads", "1", "--quiet"]
    process = subprocess.Popen(command, env=os.environ | s3.environment)
    try:
        assert held.reached.wait(100), "it did not come so far"
        assert run("upload", small_jpeg_dataset, place) == 6
        assert f"another run is writing here (pid {process.pid} on " in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()
        held.release.set()
    assert "manifest.json" not in files_at(place)
    assert run("upload", small_jpeg_dataset, place, "--quiet") == 0, "its lock is known to be left"
    assert files_at(place) == files_of(small_jpeg_dataset)
    twice = {key for key, count in s3.written.items() if count > 1 and "/.staging/" not in key}
    # What was on its way when the process died may have arrived after all, while the next one looked.
    assert twice <= {f"{place.removeprefix('s3://bucket/')}/shards/00002/data.mdb"}


def test_another_dataset_is_kept_unless_it_is_to_be_replaced(
    s3: S3Server, place: str, small_jpeg_dataset: Path, small_raw_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload_dataset(small_jpeg_dataset, place, quiet=True)
    extra = f"{place}/shards/00009"
    open_store(extra).put("data.mdb", b"of nobody")  # type: ignore[attr-defined]
    assert run("upload", small_raw_dataset, place) == 3
    assert "holds another dataset" in capsys.readouterr().err
    assert files_at(place)["manifest.json"] == (small_jpeg_dataset / "manifest.json").read_bytes()
    assert run("upload", small_raw_dataset, place, "--replace", "--quiet") == 0
    there = files_at(place)
    assert there.pop("shards/00009/data.mdb") == b"of nobody"
    assert there == files_of(small_raw_dataset)


def test_shards_that_the_replaced_dataset_had_more_are_removed(
    s3: S3Server, place: str, small_jpeg_dataset: Path, jpeg_dataset: Path
) -> None:
    assert len(load_manifest(small_jpeg_dataset).shards) > len(load_manifest(jpeg_dataset).shards)
    upload_dataset(small_jpeg_dataset, place, quiet=True)
    upload_dataset(jpeg_dataset, place, replace=True, quiet=True)
    assert files_at(place) == files_of(jpeg_dataset)


def test_a_damaged_dataset_never_gets_its_manifest_there(
    s3: S3Server, place: str, small_jpeg_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_jpeg_dataset, tmp_path / "set")
    path = tmp_path / "set" / "shards" / "00001" / "data.mdb"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert run("upload", tmp_path / "set", place) == 5
    assert "sha256 differs from the manifest's: run `lmdali verify`" in capsys.readouterr().err
    (tmp_path / "set" / "records.parquet").unlink()
    path.write_bytes((small_jpeg_dataset / "shards" / "00001" / "data.mdb").read_bytes())
    assert run("upload", tmp_path / "set", place) == 4
    assert "records.parquet: missing" in capsys.readouterr().err
    path.write_bytes(data[:-4096])
    assert run("upload", tmp_path / "set", place) == 5
    assert "manifest.json" not in files_at(place)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ("403 AccessDenied", 7, "access denied"),
        ("404 NoSuchBucket", 7, "not found"),
        ("500 InternalError", 7, "given up after 3 tries"),
    ],
)
def test_a_store_that_refuses_ends_the_run_without_secrets(
    status: str,
    code: int,
    message: str,
    s3: S3Server,
    place: str,
    small_jpeg_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lmdali.tools.dataset_upload.RetryConfig", lambda: QUICK)
    s3.fail("PUT", f"{place.removeprefix('s3://bucket')}{'/shards'}", *[status] * 50)
    assert run("upload", small_jpeg_dataset, place) == code
    captured = capsys.readouterr()
    assert message in captured.err and SECRET not in captured.err + captured.out
    assert not {name for name in files_at(place) if name.startswith((".staging", "manifest"))}, "its lock is gone"


def test_what_passes_is_waited_for(s3: S3Server, place: str, small_jpeg_dataset: Path) -> None:
    s3.fail("PUT", "/shards/00000/data.mdb", "503 SlowDown", "500 InternalError")
    s3.fail("HEAD", "/shards/00001", "503 SlowDown")
    upload_dataset(small_jpeg_dataset, place, quiet=True, retry=QUICK)
    assert files_at(place) == files_of(small_jpeg_dataset)


def test_addresses_that_cannot_be_written_to_are_refused(
    small_jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("upload", small_jpeg_dataset, "https://me:hush@host/set") == 2
    captured = capsys.readouterr().err
    assert "plain HTTP cannot be written to" in captured and "hush" not in captured
    assert run("upload", small_jpeg_dataset, "some/folder") == 2
    capsys.readouterr()
    assert run("upload", "s3://me:hush@bucket/set", small_jpeg_dataset) == 2
    captured = capsys.readouterr().err
    assert "s3://bucket/set: upload sends a directory, and the address comes second" in captured
    assert run("upload", small_jpeg_dataset / "nowhere", "s3://bucket/set") == 3
    assert "nowhere: no such directory: expected a dataset" in capsys.readouterr().err
    before = sorted(small_jpeg_dataset.rglob("*"))
    for inside in (small_jpeg_dataset, small_jpeg_dataset / "copy"):
        assert run("upload", small_jpeg_dataset, f"file://{inside}") == 2
        assert run("stage", small_jpeg_dataset, inside) == 2
        assert capsys.readouterr().err.count("its output lie within each other") == 2
    assert sorted(small_jpeg_dataset.rglob("*")) == before


def test_an_unfinished_conversion_is_left_to_itself(tmp_path: Path, small_jpeg_dataset: Path) -> None:
    (tmp_path / ".staging").mkdir()
    (tmp_path / ".staging" / "plan.json").write_text("{}")
    assert run("upload", small_jpeg_dataset, f"file://{tmp_path}") == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".staging", "plan.json"]
