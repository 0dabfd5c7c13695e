"""Fetching one file from a real server that misbehaves: what arrives is right, or an error says why not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from remote_server import Fault, RemoteServer, serving

from lmdali.pipeline.errors import RemoteError
from lmdali.pipeline.remote_file import FetchStopped, FileFetch, fetch_small
from lmdali.pipeline.remote_retry import Clock, RetryConfig
from lmdali.pipeline.remote_store import WritableStore
from lmdali.pipeline.remote_upload import FileUpload
from lmdali.pipeline.stores import open_store

CONTENT = bytes(n * n % 251 for n in range(200_000))
PATIENCE = RetryConfig(tries=4, first_pause_seconds=1, longest_pause_seconds=8, read_timeout_seconds=5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RemoteServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "file").write_bytes(CONTENT)
    with serving(folder) as running:
        yield running


def short_name(fault: Fault) -> str:
    """Of a fault, for the name of a test."""
    changed = [name for name, value in vars(fault).items() if value != getattr(Fault(), name)]
    return "+".join(changed)


class Fetched:
    """One fetch into `path`; pauses are noted, not slept."""

    def __init__(self, server: RemoteServer, path: Path, config: RetryConfig = PATIENCE, address: str = "") -> None:
        self.pauses: list[float] = []
        self.path, self.server = path, server
        self.fetch = FileFetch(
            open_store(address or server.address, config),
            "file",
            num_bytes=len(CONTENT),
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            config=config,
            clock=Clock(sleep=self.pauses.append, chance=lambda: 0.0),
        )

    def run(self) -> Fetched:
        self.fetch.into(self.path)
        return self


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [Fault(500), Fault(502), Fault(503)],
        [Fault(reset_after=70_000)],
        [Fault(reset_after=0), Fault(reset_after=150_000), Fault(reset_after=10)],
        [Fault(short_by=1)],
        [Fault(short_by=199_999)],
        [Fault(flip=5), Fault(flip=199_999)],
        [Fault(body=b"<html>please log in</html>")],
        [Fault(reset_after=70_000), Fault(ignores_range=True)],
        [Fault(reset_after=70_000), Fault(shifted=3)],
        [Fault(reset_after=70_000), Fault(flip=150_000)],
        [Fault(flip=10, reset_after=70_000)],
        [Fault(200, body=CONTENT + b"more")],
    ],
    ids=lambda faults: "-".join(map(short_name, faults)) or "none",
)
def test_what_may_pass_is_tried_again_and_the_right_bytes_arrive(
    faults: list[Fault], server: RemoteServer, tmp_path: Path
) -> None:
    server.once("file", *faults)
    Fetched(server, tmp_path / "out").run()
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_a_cut_is_resumed_where_it_happened(server: RemoteServer, tmp_path: Path) -> None:
    server.once("file", Fault(reset_after=70_000))
    fetched = Fetched(server, tmp_path / "out").run()
    assert server.requests == [("file", 0), ("file", 70_000)]
    assert fetched.fetch.fetched_bytes == len(CONTENT)


def test_another_process_goes_on_with_what_is_there(server: RemoteServer, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(CONTENT[:123_456])
    Fetched(server, tmp_path / "out").run()
    assert server.requests == [("file", 123_456)]
    assert (tmp_path / "out").read_bytes() == CONTENT


@pytest.mark.parametrize("kept", [b"x" * 1000, CONTENT + b"x", b"x" * len(CONTENT)])
def test_rubbish_that_is_there_is_thrown_away(kept: bytes, server: RemoteServer, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(kept)
    Fetched(server, tmp_path / "out").run()
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_pauses_double_and_retry_after_is_honoured(server: RemoteServer, tmp_path: Path) -> None:
    server.once("file", Fault(500), Fault(429, {"Retry-After": "17"}), Fault(503))
    assert Fetched(server, tmp_path / "out").run().pauses == [1, 17, 4]


def test_a_date_in_retry_after_is_understood(server: RemoteServer, tmp_path: Path) -> None:
    server.once("file", Fault(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), Fault(503, {"Retry-After": "x"}))
    assert Fetched(server, tmp_path / "out").run().pauses == [1, 2]


def test_a_server_that_asks_for_more_time_than_there_is_ends_it(server: RemoteServer, tmp_path: Path) -> None:
    server.once("file", Fault(429, {"Retry-After": "3600"}))
    with pytest.raises(RemoteError, match="HTTP 429 and asks to wait for 3600 s; given up, for there are 300 s"):
        Fetched(server, tmp_path / "out").run()
    assert server.count("file") == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "not found"), (410, "not found"), (403, "access denied"), (401, "denied"), (400, "400")],
)
def test_what_will_not_pass_fails_at_once(status: int, message: str, server: RemoteServer, tmp_path: Path) -> None:
    server.always("file", Fault(status))
    fetched = Fetched(server, tmp_path / "out")
    with pytest.raises(RemoteError, match=rf"{server.address}/file: .*{message}") as caught:
        fetched.run()
    assert caught.value.is_missing == (status in (404, 410))
    assert server.count("file") == 1 and not fetched.pauses


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(500), "HTTP 500; given up after 4 tries"),
        (Fault(reset_after=0), "given up after 4 tries"),
        (Fault(flip=7), "sha256 is [0-9a-f]{64}, manifest.json says [0-9a-f]{64}, 3 times"),
        (Fault(body=b"<html>"), "6 bytes, manifest.json says 200000, 3 times"),
        (Fault(302, {"Location": "/file"}), "redirected more than 5 times"),
    ],
    ids=lambda value: short_name(value) if isinstance(value, Fault) else "",
)
def test_what_never_passes_is_given_up_and_nothing_wrong_is_kept(
    fault: Fault, message: str, server: RemoteServer, tmp_path: Path
) -> None:
    server.always("file", fault)
    fetched = Fetched(server, tmp_path / "out")
    with pytest.raises(RemoteError, match=message):
        fetched.run()
    assert not (tmp_path / "out").exists() or CONTENT.startswith((tmp_path / "out").read_bytes())


def test_a_server_that_begins_anew_and_never_ends_is_given_up(server: RemoteServer, tmp_path: Path) -> None:
    """It knows no ranges, or a small file is asked for: bytes that came before are no reason for patience."""
    server.once("file", *[Fault(reset_after=70_000, ignores_range=True)] * 12)
    with pytest.raises(RemoteError, match="given up after 4 tries"):
        Fetched(server, tmp_path / "out").run()
    assert server.count("file") == 4
    (tmp_path / "out").unlink()
    clock = Clock(sleep=lambda _: None)
    with pytest.raises(RemoteError, match="given up after 4 tries"):
        fetch_small(open_store(server.address), "file", max_bytes=10**6, config=PATIENCE, clock=clock)
    with pytest.raises(RemoteError, match="given up after 4 tries"):
        FileUpload(cast(WritableStore, open_store(server.address)), PATIENCE, clock=clock)._sha256_there("file")
    assert server.count("file") == 12


def test_a_server_that_is_not_there_is_given_up(server: RemoteServer, tmp_path: Path) -> None:
    server.close()
    fetched = Fetched(server, tmp_path / "out")
    with pytest.raises(RemoteError, match=r"refused.*given up after 4 tries"):
        fetched.run()
    assert fetched.pauses == [1, 2, 4]


def test_who_waits_for_a_server_is_told_once_for_what_and_for_how_long(
    server: RemoteServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.close()
    for name in ("out", "other"):
        with pytest.raises(RemoteError):
            Fetched(server, tmp_path / name).run()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{server.address}/file: [Errno" in record.getMessage()
    assert "Connection refused; trying again, up to 3 times, with pauses of at most 7 s in all" in record.getMessage()


def test_a_redirect_is_followed_and_a_password_does_not_go_along(server: RemoteServer, tmp_path: Path) -> None:
    with serving(server.folder) as other:
        server.once("file", Fault(307, {"Location": f"{other.address}/file"}))
        address = server.address.replace("//", "//ann:secret@")
        Fetched(server, tmp_path / "out", address=address).run()
        assert other.requests == [("file", 0)]
        assert server.authorizations == ["Basic YW5uOnNlY3JldA=="] and other.authorizations == [None]


def test_a_redirect_to_another_kind_of_address_is_refused(server: RemoteServer, tmp_path: Path) -> None:
    server.once("file", Fault(302, {"Location": "file:///etc/passwd"}))
    with pytest.raises(RemoteError, match="redirected to file:///etc/passwd: refused"):
        Fetched(server, tmp_path / "out").run()


def test_a_server_that_is_too_slow_is_left_for_another_try(server: RemoteServer, tmp_path: Path) -> None:
    """The clock runs a second whenever it is asked, so a megabyte in small pieces takes for ever."""
    seconds = iter(range(10_000_000))
    config = RetryConfig(tries=4, read_timeout_seconds=3, budget_seconds=100, min_bytes_per_second=1e9)
    server.always("file", Fault(drip_seconds=0.001))
    fetch = FileFetch(
        open_store(server.address, config),
        "file",
        num_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        config=config,
        clock=Clock(now=lambda: float(next(seconds)), sleep=lambda _: None, chance=lambda: 0.0),
    )
    with pytest.raises(RemoteError, match=r"too slow|given up"):
        fetch.into(tmp_path / "out")
    starts = [start for _, start in server.requests]
    assert len(starts) > 10 and starts == sorted(starts), "each try goes on where the last one was left"
    assert CONTENT.startswith((tmp_path / "out").read_bytes())


def test_a_stalled_read_ends(server: RemoteServer, tmp_path: Path) -> None:
    server.once("file", Fault(drip_seconds=30))
    # So long that no sound answer is taken for a stalled one, unless the machine stands still; then it is asked again.
    config = RetryConfig(read_timeout_seconds=0.5)
    Fetched(server, tmp_path / "out", config).run()
    assert (tmp_path / "out").read_bytes() == CONTENT
    starts = [start for _, start in server.requests]
    assert starts[0] == 0 and starts[1:] == sorted(starts[1:]) and len(starts) > 1 and set(starts[1:]) <= {0, 1}


def test_whoever_wants_no_more_gets_no_more(server: RemoteServer, tmp_path: Path) -> None:
    config = RetryConfig()
    fetch = FileFetch(
        open_store(server.address, config), "file", num_bytes=9, sha256="", config=config, stopped=lambda: True
    )
    with pytest.raises(FetchStopped):
        fetch.into(tmp_path / "out")
    assert not server.requests


def test_a_small_file_is_whole_and_bounded(server: RemoteServer) -> None:
    server.once("file", Fault(short_by=10), Fault(500))
    clock = Clock(sleep=lambda _: None)
    store = open_store(server.address)
    assert fetch_small(store, "file", max_bytes=10**6, config=PATIENCE, clock=clock) == CONTENT
    with pytest.raises(RemoteError, match="larger than 1000 bytes"):
        fetch_small(store, "file", max_bytes=1000, config=PATIENCE, clock=clock)


def test_credentials_are_in_no_message(server: RemoteServer, tmp_path: Path) -> None:
    place = server.address.removeprefix("http://")
    for status in (404, 403, 500, 400):
        server.once("file", *[Fault(status)] * 4)
        fetched = Fetched(server, tmp_path / "out", address=f"http://ann:pass%2Fword@{place}?signature=hush")
        with pytest.raises(RemoteError) as caught:
            fetched.run()
        text = str(caught.value) + repr(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)
        assert place in str(caught.value)
        assert not {word for word in ("ann", "pass", "word", "hush") if word in text}
