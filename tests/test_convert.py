"""`lmdali convert` as a person meets it: a process with arguments, an exit code, and files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lmdali.pipeline.errors import StorageError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.table_reader import read_rows
from lmdali.tools.cli import cli
from lmdali.tools.conversion import ConvertConfig, ShardJob
from lmdali.tools.conversion_run import convert
from lmdali.tools.exit_codes import run_command
from lmdali.tools.shard_making import make_shard
from lmdali.tools.sources import open_source

COMMAND = [sys.executable, "-m", "lmdali.tools", "convert"]
RAW = ["--size", "64", "--encoding", "raw", "--shard-bytes", "1000000"]  # shards of 64 sources


def lmdali(*arguments: object, prefix: tuple[str, ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*prefix, *COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, **options)


@pytest.fixture
def called(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`lmdali` without a process, which takes half a second to start: what it prints and its exit code are the same."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = ["convert", *map(str, arguments)]
        code = run_command(lambda: cli(words, standalone_mode=False))
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return call


def hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, make_photo_folder: Callable[..., Path]) -> Path:
    """200 pictures: four shards of raw pixels; two of them are broken."""
    folder: Path = tmp_path_factory.mktemp("convert") / "source"
    return make_photo_folder(folder, ("a", "b"), 99, broken=2, sides=(150, 300))


@pytest.fixture(scope="module")
def whole(photos: Path) -> Path:
    """What an uninterrupted run with one worker makes of them."""
    done = lmdali(photos, photos.parent / "whole", *RAW, "-j1", "--quiet", "--json")
    assert done.returncode == 0, done.stderr
    return photos.parent / "whole"


def test_a_conversion_reports_what_it_did_and_leaves_its_source_alone(tmp_path: Path, photos: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in photos.rglob("*")}
    content = hashes(photos)
    began = time.monotonic()
    done = lmdali(photos, tmp_path / "out", *RAW, "-j3", "--json")
    was_quick = time.monotonic() - began < 10
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    manifest = load_manifest(tmp_path / "out")
    assert summary["num_stored"] == manifest.num_records == 198
    assert summary["num_rejected"] == 2
    assert summary["rejected"] == {"truncated": 2}
    bad = {row["source"] for row in read_rows(tmp_path / "out" / "rejects.parquet")}
    assert set(summary["rejected_sources"]) == bad and len(bad) == 2
    assert summary["oddities"] == {"gray": 2, "not_jpeg": 2}
    assert summary["num_shards"] == 4
    assert summary["manifest_digest"] == manifest.digest
    assert summary["payload_bytes"] == 198 * (64 * 64 * 3 + 13)
    assert summary["images_per_second"] > 0
    assert (summary["num_classes"], summary["ignored"]) == (2, {})
    told = [line for line in done.stderr.splitlines() if was_quick or not line.startswith("convert: ")]
    assert not told, "no progress where it is done in less than ten seconds, and nothing else"
    assert summary["source"] == "folder"
    assert {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in photos.rglob("*")} == before
    assert hashes(photos) == content


def test_one_worker_and_three_and_another_run_give_the_same_bytes(tmp_path: Path, photos: Path, whole: Path) -> None:
    done = lmdali(photos, tmp_path / "out", *RAW, "-j", "3", "--quiet")
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "out") == hashes(whole)
    assert "198 images in 4 shards" in done.stdout and "2 truncated" in done.stdout


def test_a_list_file_of_the_same_pictures_gives_the_same_records(tmp_path: Path, photos: Path, whole: Path) -> None:
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.*"))
    lines = "".join(f"{name} {0 if name.startswith('a') else 1}\n" for name in names)
    (tmp_path / "list.txt").write_text(lines)
    source = open_source(tmp_path / "list.txt", root=photos, classes=("a", "b"))
    config = ConvertConfig(size=64, encoding="raw", shard_bytes=1_000_000)
    convert(source, tmp_path / "out", config, workers=1, quiet=True)
    assert load_manifest(tmp_path / "out").tables == load_manifest(whole).tables


# Refusals.


def refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("lmdali: ")
    for part in parts:
        assert part in line


def test_sources_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path, photos: Path, called: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    refused(lmdali(tmp_path / "empty", out), 3, "InputError", "the folder is empty")
    (tmp_path / "flat").mkdir()
    shutil.copy(photos / "a/000.jpg", tmp_path / "flat/x.jpg")
    refused(called(tmp_path / "flat", out), 3, "there are no class folders")
    (tmp_path / "list.txt").write_text("a.jpg zero\n")
    refused(called(tmp_path / "list.txt", out), 3, "line 1", "not `path label`")
    refused(called(tmp_path / "nowhere", out), 3, "no such file or folder")
    assert not out.exists()


def test_options_that_would_do_nothing_are_refused_in_one_line(
    tmp_path: Path, photos: Path, called: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = tmp_path / "out"
    refused(called(photos, out, *RAW, "--allow-missing-classes"), 2, "ConfigError", "give that (--classes)")
    for limit in (["--time-limit", "60"], ["--memory-limit", "500"]):  # 60 is the default: what was typed is a wish
        refused(called(photos, out, *RAW, "--executor", "dask", *limit), 2, "ConfigError", "leave them out")
    assert not out.exists()


def test_an_existing_output_is_refused_and_untouched(
    tmp_path: Path, photos: Path, whole: Path, called: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    before = hashes(whole)
    refused(called(photos, whole, *RAW), 3, str(whole), "already holds a finished dataset", "--resume or --overwrite")
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused(called(photos, tmp_path / "out", *RAW, "--overwrite"), 3, "not ours ('notes.txt')")
    assert hashes(whole) == before
    assert hashes(tmp_path / "out") == before | {"notes.txt": hashlib.sha256(b"mine").hexdigest()}


def test_a_finished_conversion_resumed_is_finished_and_other_options_are_refused(
    photos: Path, whole: Path, called: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    before = hashes(whole)
    done = called(photos, whole, *RAW, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["resumed_shards"], summary["resumed_images"], summary["images_per_second"]) == (4, 200, 0)
    assert "nothing was left to do" in called(photos, whole, *RAW, "--resume").stdout
    refused(called(photos, whole, "--size", "32", "--resume"), 3, "made with other options")
    assert hashes(whole) == before


def test_more_rejects_than_allowed_are_exit_code_9_and_a_whole_dataset(tmp_path: Path, photos: Path) -> None:
    done = lmdali(photos, tmp_path / "out", "--size", "32", "--max-bad", "0.005", "--json", "--quiet")
    assert done.returncode == 9
    assert json.loads(done.stdout)["num_rejected"] == 2
    assert "2 sources (1.0%) were rejected, --max-bad allows 0.5%" in done.stderr
    assert load_manifest(tmp_path / "out").num_records == 198
    names = {row["source"] for row in read_rows(tmp_path / "out" / "rejects.parquet")}
    assert names == {"a/broken0.jpg", "b/broken1.jpg"}


def test_sources_of_which_none_can_be_stored_are_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "source" / "a").mkdir(parents=True)
    (tmp_path / "source" / "a" / "x.jpg").write_text("hello")
    reasons = "none of 1 sources could be stored: 1 not_an_image; the first is 'a/x.jpg': "
    refused(lmdali(tmp_path / "source", tmp_path / "out", "-j1"), 3, reasons)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_dry_run_estimates_and_writes_nothing(tmp_path: Path, photos: Path, whole: Path) -> None:
    done = lmdali(photos, tmp_path / "out", *RAW, "--dry-run", "--json", "-j2")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert not (tmp_path / "out").exists()
    assert (plan["num_sources"], plan["num_classes"], plan["num_shards"], plan["workers"]) == (200, 2, 4, 2)
    assert plan["sampled"] == 200 and plan["sampled_rejects"] == {"truncated": 2}
    actual = load_manifest(whole).file_bytes
    assert 0.8 < plan["expected_bytes"] / actual < 1.25
    assert plan["expected_seconds"] > 0 and plan["fits"]


def test_a_dry_run_keeps_what_decoders_print_to_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = bytearray(cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes())
    picture[29] ^= 1  # in the checksum of its header
    (tmp_path / "source/a").mkdir(parents=True)
    (tmp_path / "source/a/x.png").write_bytes(picture)
    assert (
        run_command(lambda: cli(["convert", str(tmp_path / "source"), "out", "--dry-run"], standalone_mode=False)) == 0
    )
    told = capfd.readouterr()
    assert "rejected: 1 corrupt" in told.out and told.err == ""


def test_usage_errors_are_exit_code_2(
    tmp_path: Path, photos: Path, called: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for arguments in (
        ["--size", "0"],
        ["--quality", "101"],
        ["--encoding", "webp"],
        ["--seed", "-1"],
        ["--max-bad", "2"],
        ["--time-limit", "0"],
        ["--memory-limit", "0"],
        ["--scheduler", "tcp://127.0.0.1:1"],
    ):
        done = called(photos, tmp_path / "out", *arguments)
        assert done.returncode == 2, (arguments, done.stderr)
    assert lmdali(photos, tmp_path / "out", "--size", "0").returncode == 2
    for out in ("s3:/bucket/out", "https:/host/out", "file:out"):
        done = called(photos, out)
        assert done.returncode == 2 and "an address has two slashes" in done.stderr, (out, done.stderr)
    assert not (tmp_path / "out").exists()


# Signals and kills.


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until(condition: Callable[[], bool], seconds: float = 100.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextmanager
def halted(process: subprocess.Popen[str]) -> Iterator[None]:
    """All of a command stands still meanwhile: a slow machine may not let it end before something is done to it."""
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


def session_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes that still run in the session of a command that may be gone itself."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = status.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == process.pid and state != "Z":
            found.append(int(status.parent.name))
    return found


@pytest.fixture
def many(photos: Path, tmp_path: Path) -> Iterator[Path]:
    """The same pictures ten times, by links: a conversion long enough to be met in the middle."""
    source = tmp_path / "many"
    for copy in range(10):
        for path in photos.rglob("*.*"):
            target = source / path.parent.name / f"{copy}_{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    yield source


MANY = ["--size", "96", "--quality", "90", "--shard-bytes", "1000000", "--max-bad", "1", "-j2"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_cleanly_and_it_can_be_resumed(
    tmp_path: Path, many: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    process = started(many, out, *MANY)
    wait_until(lambda: (out / "shards").exists() and any(out.glob("shards/[0-9]*")))
    # As a terminal does it: to the whole group.
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == code, errors
    # Progress comes first where the machine is slow; click puts an empty line after a terminal's ^C.
    *_, hint, word = [line for line in errors.splitlines() if line]
    assert "--resume" in hint
    assert word == {130: "interrupted", 143: "terminated"}[code]
    wait_until(lambda: not session_of(process))
    assert not list((out / "shards").glob(".*")), "a half-written shard stayed"
    assert not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shards/*/data.mdb")}
    done = lmdali(many, out, *MANY, "--resume", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed_shards"] == len(kept) >= 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not (out / ".staging").exists()
    if number == signal.SIGTERM:  # once is enough
        assert lmdali(many, tmp_path / "fresh", *MANY, "--quiet").returncode == 0
        assert hashes(out) == hashes(tmp_path / "fresh")


def test_signals_at_any_time_leave_no_process_and_nothing_that_cannot_be_resumed(tmp_path: Path, many: Path) -> None:
    dice, out = random.Random(11), tmp_path / "out"
    for _ in range(int(os.environ.get("LMDALI_SIGNALS", "2"))):
        process = started(many, out, *MANY, *(["--resume"] if out.exists() else []))
        time.sleep(dice.uniform(0.2, 2.5))
        number = dice.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL))
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=100)
        # Ctrl-C before Python had read its own modules is 1, whatever program it was to be.
        assert process.returncode in (0, 130, 143, -number) or "init_import_site" in errors, errors
        wait_until(lambda: not session_of(process))  # noqa: B023
        if (out / "manifest.json").exists():
            shutil.rmtree(out)
    assert lmdali(many, out, *MANY, "--resume", "--quiet").returncode == 0
    manifest = load_manifest(out)
    assert manifest.num_records + manifest.num_rejected == len([path for path in many.rglob("*") if path.is_file()])


def test_a_run_killed_outright_at_any_time_is_resumed_to_the_same_bytes(
    tmp_path: Path, photos: Path, whole: Path
) -> None:
    out, dice = tmp_path / "out", random.Random(2)
    kills, workers = int(os.environ.get("LMDALI_KILLS", "3")), os.environ.get("LMDALI_KILL_WORKERS", "1")
    for round_number in range(kills):
        if round_number > 2 and (out / "manifest.json").exists():
            assert lmdali(photos, out, *RAW, "--resume", "--quiet").returncode == 0
            assert hashes(out) == hashes(whole)
            shutil.rmtree(out)
        process = started(photos, out, *RAW, f"-j{workers}", "--resume")
        wait_until(lambda: (out / ".staging" / "plan.json").exists() or (out / "manifest.json").exists())
        time.sleep(dice.uniform(0, 0.6) if round_number else 0.0)
        process.kill()
        process.communicate(timeout=100)
        wait_until(lambda p=process: not session_of(p))  # type: ignore[misc]
    done = lmdali(photos, out, *RAW, "-j2", "--resume", "--quiet")
    assert done.returncode == 0, done.stderr
    assert hashes(out) == hashes(whole)
    assert not list(out.rglob("*.tmp"))


def test_a_second_converter_is_told_who_holds_the_output(tmp_path: Path, many: Path) -> None:
    out = tmp_path / "out"
    first = started(many, out, *MANY)
    try:
        wait_until(lambda: (out / ".staging" / "plan.json").exists())
        with halted(first):
            second = lmdali(many, out, *MANY, "--resume")
        refused(second, 6, "LockedError", f"pid {first.pid} on ", "wait for it or stop it")
    finally:
        first.terminate()
        first.communicate(timeout=100)


def test_a_worker_that_is_killed_is_replaced_and_nothing_shows(tmp_path: Path, many: Path) -> None:
    out = tmp_path / "out"
    process = started(many, out, *MANY, "--json", "--quiet")
    wait_until(lambda: (out / "shards").exists() and any(out.glob("shards/.*")))
    with halted(process):
        command_lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in session_of(process)}
        os.kill(min(pid for pid, line in command_lines.items() if b"spawn_main" in line), signal.SIGKILL)
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert json.loads(output)["rejected"] == {"truncated": 20}, "what is killed from outside is no bad image"
    assert not list(out.rglob(".*")), "nothing is left of the killed worker's shard"
    wait_until(lambda: not session_of(process))


# Disks.


def test_a_full_disk_is_exit_code_4_and_publishes_nothing(tmp_path: Path, photos: Path, whole: Path) -> None:
    disk, probe = tmp_path / "disk", ["unshare", "-Urm", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        assert os.environ.get("CI") != "true", "unshare must work where CI=true: the full disk has to be tested there"
        pytest.skip("LOUD: no user namespaces here, so the full disk was NOT tested")
    disk.mkdir()
    # As much as the pixels alone need, so the run is let begin; LMDB's pages do not fit.
    room = 200 * (64 * 64 * 3 + 64) + 300_000
    script = f"""
mount -t tmpfs -o size={room} none {disk} || exit 98
"$@"
code=$?
find {disk} -name manifest.json
mount -o remount,size=1g {disk} || exit 97
"$@" --resume || exit 96
mkdir {tmp_path}/saved && cp -r {disk}/out {tmp_path}/saved/
exit $code
"""
    command = [*COMMAND, str(photos), str(disk / "out"), *RAW, "-j1", "--quiet", "--json"]
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", *command], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 4, (done.returncode, done.stdout, done.stderr)
    assert "manifest.json" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"lmdali: StorageError: {disk}") and "the disk is full" in line and "--resume" in line
    assert hashes(tmp_path / "saved" / "out") == hashes(whole), "with room again, --resume finishes the work"


def test_a_disk_with_too_little_room_is_refused_at_the_start(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmdali.tools.conversion_run.free_bytes", lambda path: 1_000_000)
    source, config = open_source(photos), ConvertConfig(size=64, encoding="raw")
    with pytest.raises(StorageError, match=r"needs at least 2\.5 MB, 1\.0 MB are free"):
        convert(source, tmp_path / "out", config, workers=1, quiet=True)


class Interrupted:
    """Makes shards in this process, and is interrupted when so many are done."""

    def __init__(self, shards: int) -> None:
        self.shards = shards

    def run(self, jobs: Iterator[ShardJob], progress: Callable[[int], None]) -> None:
        for job in islice(jobs, self.shards):
            make_shard(job)
        raise KeyboardInterrupt


@pytest.mark.parametrize("finished", [1, 3])
def test_resuming_needs_room_for_the_rest_only(
    tmp_path: Path, photos: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    out, source = tmp_path / "out", open_source(photos)
    config = ConvertConfig(size=64, encoding="raw", shard_bytes=1_000_000)
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, config, executor=Interrupted(finished), quiet=True)
    rest = (200 - 64 * finished) * (64 * 64 * 3 + 64)
    monkeypatch.setattr("lmdali.tools.conversion_run.free_bytes", lambda path: rest - 1)
    with pytest.raises(StorageError, match="choose another disk"):
        convert(source, out, config, workers=1, resume=True, quiet=True)
    monkeypatch.setattr("lmdali.tools.conversion_run.free_bytes", lambda path: rest)
    made = convert(source, out, config, workers=1, resume=True, quiet=True)
    assert (made.resumed_shards, made.resumed_images) == (finished, 64 * finished)
    assert made.images_per_second == pytest.approx((200 - 64 * finished) / made.seconds), "not those of the first run"
    assert hashes(out) == hashes(whole)


def test_a_reader_of_our_output_that_has_left_loses_no_work(tmp_path: Path, photos: Path) -> None:
    command = [*COMMAND, str(photos), str(tmp_path / "out"), "--size", "16", "-j1", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")
    assert load_manifest(tmp_path / "out").num_records == 198
