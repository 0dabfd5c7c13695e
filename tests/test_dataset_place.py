"""A dataset as a directory and at an address: the same manifest, tables and records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from remote_server import Fault, serving

from lmdali.pipeline.dataset_place import (
    open_reader,
    parse_place,
    place_directory,
    place_manifest,
    place_name,
    place_shown,
    place_text,
)
from lmdali.pipeline.errors import InputError, ManifestError, RemoteError
from lmdali.pipeline.manifest import RECORDS_FILE


def test_addresses_stay_texts_and_anything_else_is_a_path() -> None:
    assert parse_place("s3://bucket/train") == "s3://bucket/train"
    assert parse_place("data/train") == Path("data/train")
    assert parse_place(Path("s3://bucket/train")) == Path("s3:/bucket/train")


def test_what_is_kept_and_shown_has_no_secrets(tmp_path: Path) -> None:
    secret = "https://me:word@host/sets/train?signature=abc"
    assert place_text(secret) == place_shown(secret) == "https://host/sets/train?***"
    assert place_name(secret) == "train"
    assert place_text(tmp_path / "x" / "..") == str(tmp_path.resolve())
    assert place_shown(Path("some/set")) == "some/set"
    assert place_name(Path("some/set")) == "set"


def test_an_address_may_have_spaces_and_any_letters(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "my sets, 100%").mkdir()
    (tmp_path / "my sets, 100%" / "été").symlink_to(small_jpeg_dataset)
    wanted = place_manifest(small_jpeg_dataset)
    with serving(tmp_path) as server:
        for number, path in enumerate(("my sets, 100%/été", "my%20sets,%20100%25/%C3%A9t%C3%A9")):
            assert place_manifest(f"{server.address}/{path}", cache_dir=tmp_path / f"cache{number}") == wanted
        # Servers send a new place in either form.
        for location in ("/my%20sets,%20100%25/%C3%A9t%C3%A9/manifest.json", "/my sets, 100%/été/manifest.json"):
            header = location.encode().decode("latin-1")
            server.once("moved/manifest.json", Fault(status=302, headers={"Location": header}))
            assert place_manifest(f"{server.address}/moved", cache_dir=tmp_path / "cache") == wanted
        server.once("moved/manifest.json", Fault(status=302, headers={"Location": "http://[/set"}))
        with pytest.raises(RemoteError, match="not an address of a host"):
            place_manifest(f"{server.address}/moved", cache_dir=tmp_path / "cache")
        with pytest.raises(RemoteError, match="not an address of a host"):
            place_manifest("http://my host/set", cache_dir=tmp_path / "cache")


def test_opening_again_writes_nothing_that_is_there_already(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    """Other processes read these files, and each of them would sync the disk several times."""
    with serving(small_jpeg_dataset) as server:
        directory = place_directory(server.address, cache_dir=tmp_path)
        names = ("manifest.json", "statistics.json", "mean.npy", "address.txt")
        first = [(directory / name).stat() for name in names]
        (directory / "mean.npy").write_bytes(b"damaged")
        place_directory(server.address, cache_dir=tmp_path)
        again = [(directory / name).stat() for name in names]
        same = [(a.st_ino, a.st_mtime_ns) == (b.st_ino, b.st_mtime_ns) for a, b in zip(first, again, strict=True)]
        assert same == [True, True, False, True]
        assert (directory / "mean.npy").read_bytes() == (small_jpeg_dataset / "mean.npy").read_bytes()


def test_both_have_the_same_manifest_tables_and_records(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with serving(small_jpeg_dataset) as server:
        manifest = place_manifest(server.address, cache_dir=cache)
        assert manifest == place_manifest(small_jpeg_dataset)
        assert not server.count(RECORDS_FILE), "nobody asked for tables"
        found = place_directory(server.address, tables=True, cache_dir=cache)
        for name in manifest.tables:
            assert (found / name).read_bytes() == (small_jpeg_dataset / name).read_bytes()
        place_directory(server.address, tables=True, cache_dir=cache)
        assert server.count(RECORDS_FILE) == 1, "it was there"
        reader, local = open_reader(server.address, cache_dir=cache), open_reader(small_jpeg_dataset)
        values = [
            one.read(manifest.num_records - 1, lambda record: (record.label, bytes(record.data)))
            for one in (reader, local)
        ]
        assert values[0] == values[1]
        reader.close()
    assert place_directory(small_jpeg_dataset, tables=True) == small_jpeg_dataset


@pytest.mark.parametrize("body", [b"half of", b"[]", b'{"format": "another"}'])
def test_a_damaged_manifest_is_named_by_its_address(body: bytes, small_jpeg_dataset: Path, tmp_path: Path) -> None:
    with serving(small_jpeg_dataset) as server:
        server.always("manifest.json", Fault(body=body))
        with pytest.raises(ManifestError, match=rf"^{re.escape(server.address)}/manifest\.json: "):
            place_directory(server.address, cache_dir=tmp_path)
    assert not (tmp_path / "sets").exists()


def test_a_table_of_another_dataset_is_refused(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    with serving(small_jpeg_dataset) as server:
        server.always(RECORDS_FILE, Fault(body=b"other rows"))
        with pytest.raises(RemoteError, match=rf"{RECORDS_FILE}: another file than manifest.json says"):
            place_directory(server.address, tables=True, cache_dir=tmp_path / "cache")


def test_a_directory_that_is_no_dataset_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json here"):
        open_reader(tmp_path)
