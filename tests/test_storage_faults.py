"""A conversion that is killed, or refused by its disk, at any call that changes a file; see fault_shim.c.

What must hold: nothing that looks finished is not whole, the error names a path, and `--resume` ends with the bytes of
an uninterrupted run. Of each series of writes to one file one is tried, and every call of any other kind; what the
others leave differs in unfinished files only, which nobody reads. `LMDALI_ALL_POINTS=1` tries them all.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_shim import FAIL, FAIL_ON, HALF_FAIL, HALF_KILL, KILL, ForkServer, Outcome, fork_server
from power_cut import Disk, below, read_log
from storage_states import content, state_key, tree, wrong_shards

from lmdali.pipeline.eigenbasis import load_eigenbasis
from lmdali.pipeline.errors import IntegrityError
from lmdali.tools.verify import verify_dataset

EVERY_POINT = os.environ.get("LMDALI_ALL_POINTS") == "1"


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with fork_server() as server:
        yield server


@pytest.fixture
def out(server: ForkServer) -> Iterator[Path]:
    yield server.root / "out"
    shutil.rmtree(server.root / "out", ignore_errors=True)


@pytest.fixture(scope="module")
def whole(server: ForkServer) -> dict[str, bytes]:
    """Every file that an uninterrupted run makes."""
    assert server.run("convert", out=str(server.root / "whole")).code == 0
    return content(server.root / "whole")


@pytest.fixture(scope="module")
def older(server: ForkServer) -> dict[str, bytes]:
    """The same at another quality."""
    assert server.run("convert", out=str(server.root / "older"), quality=80).code == 0
    return content(server.root / "older")


def points(kinds: str) -> list[int]:
    """Numbers of the calls to fail at, from 1."""
    assert len(kinds) > 8, "the shim saw too little to mean anything"
    if EVERY_POINT:
        return list(range(1, len(kinds) + 1))
    first_writes = (at for at in range(1, len(kinds) + 1) if kinds[at - 1] == "w" and kinds[at - 2] != "w")
    # The first, the last, the first ... of a run: what follows a kill is the same for all of one run.
    chosen = {at if n % 2 else at + len(kinds[at:]) - len(kinds[at:].lstrip("w")) for n, at in enumerate(first_writes)}
    return [at for at in range(1, len(kinds) + 1) if kinds[at - 1] != "w" or at in chosen]


def is_whole(found: dict[str, bytes], files: dict[str, bytes]) -> bool:
    return all(found.get(name) == data for name, data in files.items())


def safe(found: dict[str, bytes], whole: dict[str, bytes], at: int) -> None:
    """Whatever looks finished in a killed run's files is whole."""
    assert not wrong_shards(found, whole), (at, "a shard with its final name is not whole")
    assert "manifest.json" not in found or is_whole(found, whole), at


def finished(server: ForkServer, out: Path, whole: dict[str, bytes], **options: bool) -> None:
    done = server.run("convert", out=str(out), **(options or {"resume": True}))
    assert (done.code, done.error, done.message) == (0, "", "")
    found = content(out)
    assert found == whole, sorted(name for name in found | whole if found.get(name) != whole.get(name))


def test_the_shim_sees_the_calls_of_python_of_lmdb_and_of_arrow(server: ForkServer, out: Path, tmp_path: Path) -> None:
    kinds = server.run("convert", out=str(out), log=tmp_path / "log").kinds
    assert set(kinds) == set("mctwsrud")
    log = (tmp_path / "log").read_bytes()
    for name in (b"data.mdb", b"shard.json", b".records.parquet.tmp", b"00001.rejects", b"manifest.json"):
        assert any(line.startswith((b"w ", b"\nw ")) and name in line for line in log.split(b"\n")) or name in log
    # One meta page and three fsyncs for each LMDB file, whose writes come from C.
    assert kinds.count("s") > 30 and kinds.count("w") > 200


# Kills.


def test_a_kill_at_any_call_loses_nothing_that_was_finished(
    server: ForkServer, out: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    disk = Disk(server.root)
    kinds = server.run("convert", out=str(out), log=tmp_path / "log").kinds
    shutil.rmtree(out)
    # What the run leaves that dies before its next call, for every call, worked out from the log of one run.
    states = set()
    for at, operation in enumerate(read_log(tmp_path / "log"), 1):
        disk.apply(operation)
        state = below(disk.now(), "out/")
        safe({name: data for name, data in state.items() if data is not None}, whole, at)
        states.add(state_key(state))
    # Then killed for good, and resumed from all of these states.
    dice, again = random.Random(2), 0
    seen, tried = set(), points(kinds)
    for number, at in enumerate(tried):
        how = HALF_KILL if kinds[at - 2 : at] == "ww" else KILL
        assert server.run("convert", out=str(out), action=how, at=at).code == -9
        safe(content(out), whole, at)
        if (key := state_key(tree(out))) not in seen or EVERY_POINT:
            seen.add(key)
            if number % 4 == 0:  # and the run that resumes is killed as well
                killed = server.run("convert", out=str(out), resume=True, action=KILL, at=dice.randint(1, 400))
                again += killed.code == -9
            finished(server, out, whole)
        shutil.rmtree(out, ignore_errors=True)
    assert len(kinds) > 400 and len(seen) > 50 and again > 5
    assert len(states - seen) <= 1, "only the finished dataset is no state that a kill leaves"
    print(f"{len(kinds)} calls, {len(tried)} kills, {len(seen)} states resumed, {again} killed twice; lost 0, wrong 0")


@pytest.mark.parametrize("apart", [False, True])
def test_parts_and_their_merge_killed_at_any_call_end_with_the_bytes_of_one_conversion(
    server: ForkServer, out: Path, whole: dict[str, bytes], apart: bool
) -> None:
    kinds = server.run("parts", out=str(out), apart=apart).kinds
    assert content(out / "all") == whole and ("l" in kinds) == apart
    shutil.rmtree(out)
    seen, chosen = set(), points(kinds)[:: 1 if EVERY_POINT else 4]
    for tried in chosen:
        assert server.run("parts", out=str(out), apart=apart, action=KILL, at=tried).code == -9
        if (state := state_key(tree(out))) not in seen:
            seen.add(state)
            for place in out.glob("*"):
                safe(content(place), whole, tried)
            done = server.run("parts", out=str(out), apart=apart)
            assert (done.code, done.error, done.message) == (0, "", ""), tried
            assert content(out / "all") == whole, tried
        shutil.rmtree(out, ignore_errors=True)
    assert len(seen) > 25
    print(f"killed at {len(chosen)} of {len(kinds)} calls, {len(seen)} states; lost 0, wrong 0")


def test_a_kill_while_overwriting_leaves_the_old_dataset_or_none(
    server: ForkServer, out: Path, whole: dict[str, bytes], older: dict[str, bytes]
) -> None:
    def begun() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(server.root / "older", out)

    begun()
    kinds = server.run("convert", out=str(out), overwrite=True).kinds
    # Until the shards are there again it is another story than a first conversion; from then on it is the same.
    last = len(kinds) if EVERY_POINT else kinds.rindex("d", 0, kinds.index("wsrsmc")) + 12
    assert last > 20
    refused = 0
    for at in range(1, last):
        for options in ({"resume": True}, {"overwrite": True})[: 2 if EVERY_POINT or at % 3 == 0 else 1]:
            begun()
            assert server.run("convert", out=str(out), overwrite=True, action=KILL, at=at).code == -9
            found = content(out)
            assert "manifest.json" not in found or is_whole(found, older) or is_whole(found, whole)
            before = server.run("convert", out=str(out), **options) if "resume" in options else Outcome(0)
            if before.error == "InputError":  # the old dataset is still there, and of other options
                refused += 1
                assert "other options" in before.message and is_whole(content(out), older)
                continue
            assert before.error == "", before.message
            finished(server, out, whole, **options)
    assert 0 < refused < last
    print(f"killed at {last - 1} calls of an overwriting run, resumed and overwritten; wrong 0")


def test_a_kill_while_statistics_are_written_again_leaves_right_ones_or_an_error(
    server: ForkServer, out: Path, whole: dict[str, bytes]
) -> None:
    shutil.copytree(server.root / "whole", out)
    kinds = server.run("pca", out=str(out)).kinds
    expected = load_eigenbasis(out)
    for at in points(kinds):
        for missing in (False, True):
            shutil.rmtree(out)
            shutil.copytree(server.root / "whole", out)
            if missing:
                (out / "statistics.json").unlink()
                (out / "mean.npy").unlink()
            assert server.run("pca", out=str(out), action=KILL, at=at).code == -9
            try:
                assert (load_eigenbasis(out).eigenvectors == expected.eigenvectors).all()
            except IntegrityError as error:
                assert missing and "lmdali pca" in str(error)
            assert server.run("pca", out=str(out)).error == ""
            found = content(out)
            leftovers = {name for name in found if name.endswith(".tmp")}
            assert {name: data for name, data in found.items() if name not in leftovers} == whole
            assert not verify_dataset(out, quiet=True).problems


# A disk that refuses.


def refused_cleanly(failed: Outcome, out: Path, whole: dict[str, bytes], number: int) -> None:
    assert failed.code == 0 and failed.error == "StorageError", failed
    assert str(out) in failed.message and "\n" not in failed.message
    # LMDB calls a short write an I/O error; that the disk is full shows in what is free, which is not simulated here.
    if number == errno.ENOSPC and "LMDB: mdb_txn_commit: Input/output error" not in failed.message:
        assert "the disk is full" in failed.message and "bytes free" in failed.message, failed.message
    found = content(out) if out.exists() else {}
    assert not wrong_shards(found, whole), "a shard with its final name is not whole"
    assert "manifest.json" not in found or is_whole(found, whole)


@pytest.mark.parametrize(("number", "only"), [(errno.ENOSPC, "wcmr"), (errno.EIO, "wcmrt")])
def test_an_error_of_the_disk_is_a_storage_error_and_publishes_nothing(
    server: ForkServer, out: Path, whole: dict[str, bytes], number: int, only: str
) -> None:
    kinds = server.run("convert", out=str(out)).kinds
    shutil.rmtree(out)
    tried = [at for at in points(kinds) if kinds[at - 1] in only]
    # In one of the two runs the disk stays full, in the other the error comes once: nothing may try again and go on.
    once = FAIL if number == errno.EIO else FAIL_ON
    for count, at in enumerate(tried):
        how = HALF_FAIL if number == errno.ENOSPC and kinds[at - 2 : at] == "ww" else once
        at_only = kinds[:at].translate({ord(kind): None for kind in "sudt" if kind not in only})
        failed = server.run("convert", out=str(out), action=how, at=len(at_only), error=number, only=only)
        refused_cleanly(failed, out, whole, number)
        if EVERY_POINT or count % 6 == 0:
            finished(server, out, whole)
        shutil.rmtree(out, ignore_errors=True)
    assert len(tried) > 30
    print(f"{errno.errorcode[number]} at {len(tried)} calls; wrong 0")


def test_a_failed_sync_is_never_tried_again(server: ForkServer, out: Path, whole: dict[str, bytes]) -> None:
    """The kernel reports lost data once; a second fsync would succeed and mean nothing."""
    kinds = server.run("convert", out=str(out)).kinds
    shutil.rmtree(out)
    syncs = [at for at in points(kinds) if kinds[at - 1] == "s"]
    for count, at in enumerate(syncs):
        failed = server.run("convert", out=str(out), action=FAIL, at=at, error=errno.EIO)
        refused_cleanly(failed, out, whole, errno.EIO)
        rest = failed.kinds[at:]
        assert not set(rest) & set("wsr"), (at, rest, "it went on after a failed fsync")
        if EVERY_POINT or count % 5 == 0:
            finished(server, out, whole)
        shutil.rmtree(out)
    assert len(syncs) > 30
    print(f"EIO at {len(syncs)} calls of fsync; wrong 0")


def test_an_error_while_clearing_away_is_a_storage_error(
    server: ForkServer, out: Path, whole: dict[str, bytes], older: dict[str, bytes]
) -> None:
    shutil.copytree(server.root / "older", out)
    kinds = server.run("convert", out=str(out), overwrite=True).kinds
    shutil.rmtree(out)
    count = kinds[: kinds.index("wsrsmc")].count("u") + kinds[: kinds.index("wsrsmc")].count("d")
    assert count > 10
    for at in range(1, count + 1, 1 if EVERY_POINT else 2):
        shutil.copytree(server.root / "older", out)
        failed = server.run("convert", out=str(out), overwrite=True, action=FAIL, at=at, error=errno.EIO, only="ud")
        assert failed.error == "StorageError" and str(out) in failed.message, (at, failed)
        found = content(out)
        assert "manifest.json" not in found or is_whole(found, older)
        finished(server, out, whole, overwrite=True)
        shutil.rmtree(out)
