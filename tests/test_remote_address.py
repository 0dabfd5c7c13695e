"""Addresses: told from paths, joined, and without what nobody may see."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmdali.pipeline.errors import ConfigError, RemoteError
from lmdali.pipeline.remote_address import as_sent, file_address_path, is_remote, joined, redacted, without_user


def test_addresses_are_told_from_paths() -> None:
    assert is_remote("https://host/a") and is_remote("s3://bucket/a") and is_remote("FILE:///a")
    assert not any(map(is_remote, ["data/train", "/a:/b", "synthetic:10x2", Path("https://host/a"), "://x", ""]))


def test_a_query_stays_behind_the_path() -> None:
    assert joined("https://host/a/?sig=1", "shards/00000/data.mdb") == "https://host/a/shards/00000/data.mdb?sig=1"
    assert joined("https://host", "manifest.json") == "https://host/manifest.json"


def test_user_and_password_are_taken_out() -> None:
    assert without_user("https://ann:p%40ss@host:8080/a") == ("https://host:8080/a", "ann:p@ss")
    assert without_user("https://host/a") == ("https://host/a", None)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:secret@host/a?sig=hush", "https://host/a?***"),
        ("cannot reach 'https://host/a?sig=hush' now", "cannot reach 'https://host/a?***' now"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("https://host/my set?sig=hush", "https://host/my set?***"),
        ("https://ann:my p@ss@host/my set", "https://host/my set"),
        ("https://host/a: moved? to https://host/b?c=d", "https://host/a: moved? to https://host/b?***"),
    ],
)
def test_what_is_shown_has_no_secrets(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_a_file_address_is_a_path() -> None:
    assert file_address_path("file:///a/b%20c") == Path("/a/b c")


@pytest.mark.parametrize("address", ["file://data/train", "file:///data/train?v=2", "file:///data/#train"])
def test_a_file_address_that_would_lose_a_part_of_itself_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="file://"):
        file_address_path(address)
    assert file_address_path("file://localhost/a%3Fb") == Path("/a?b")


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("https://host/a%20b/c?sig=%2B1&d=e+f", "https://host/a%20b/c?sig=%2B1&d=e+f"),
        ("https://host/my set/ä", "https://host/my%20set/%C3%A4"),
        ("http://host:80/100% of it?q=ä 1", "http://host:80/100%25%20of%20it?q=%C3%A4%201"),
        ("https://bücher.example:8080/a", "https://xn--bcher-kva.example:8080/a"),
        ("http://[::1]:8000/a#b", "http://[::1]:8000/a"),
    ],
)
def test_an_address_is_escaped_once(typed: str, sent: str) -> None:
    assert as_sent(typed) == as_sent(as_sent(typed)) == sent


@pytest.mark.parametrize(
    "address", ["http:///a", "http://my host/a", "http://[::1/a", "http://host:port/a", f"http://{'ä' * 70}.example/a"]
)
def test_what_names_no_host_is_refused(address: str) -> None:
    with pytest.raises(RemoteError, match="not an address of a host"):
        as_sent(without_user(address)[0])
