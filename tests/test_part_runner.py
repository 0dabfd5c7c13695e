"""Checks whose parts raise, hang, crash or are killed come to their end with all that was found."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu_check  # benchmarks are scripts, not a package
from part_runner import PartRunner, Row

BENCHMARKS = Path(gpu_check.__file__).parent

WORKER = f"""
import ctypes, os, signal, subprocess, sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
from part_runner import claim_stdout, work

def row(what):
    return {{"what": what, "result": str(os.getpid()), "passed": True}}

def good():
    print("a library greets")
    os.system("echo so does a program")
    yield row("good")

def raises():
    yield row("before")
    raise ValueError("no such kernel")

def hangs():
    yield row("before")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield row("child") | {{"child": child.pid}}
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGALRM])  # as in a library that does not return
    time.sleep(600)

def crashes():
    yield row("before")
    os.kill(os.getpid(), signal.SIGSEGV)

def leaves():
    os._exit(7)
    yield

parts = {{"good": good, "again": good, "raises": raises, "hangs": hangs, "crashes": crashes, "leaves": leaves}}
work(parts, sys.argv[1:], claim_stdout(), {{"gpu": None}})
"""


@pytest.fixture
def runner(tmp_path: Path) -> Callable[..., tuple[list[Row], list[str]]]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def run(*names: str, seconds: float = 600.0) -> tuple[list[Row], list[str]]:
        taken: list[Row] = []
        limits = {"hangs": 3.0}
        parts = PartRunner(
            lambda left: [sys.executable, str(script), *left], lambda name: limits.get(name, 600.0), taken.append
        )
        left = parts.run(names, time.monotonic() + seconds)
        return [document["row"] for document in taken if "row" in document], left

    return run


def told(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row["part"], row["what"], row["passed"]) for row in rows]


def test_parts_that_end_share_a_process_and_nothing_else_is_taken_for_theirs(runner: Any) -> None:
    rows, left = runner("good", "again")
    assert told(rows) == [("good", "good", True), ("again", "good", True)] and left == []
    assert rows[0]["result"] == rows[1]["result"], "one process"


@pytest.mark.parametrize(
    ("bad", "what", "result"),
    [
        ("raises", "ValueError", "no such kernel"),
        ("crashes", "the process", f"ended with signal {signal.SIGSEGV.value}"),
        ("hangs", "TimeoutError", "given up after 3 s"),
    ],
)
def test_a_part_that_goes_wrong_keeps_its_rows_and_the_next_one_begins_afresh(
    runner: Any, bad: str, what: str, result: str
) -> None:
    rows, left = runner("good", bad, "again")
    last = [row for row in rows if row["part"] == bad][-1]
    assert (last["what"], last["result"], last["passed"]) == (what, result, False)
    assert (bad, "before", True) in told(rows) and told(rows)[-1] == ("again", "good", True) and left == []
    assert rows[0]["result"] != rows[-1]["result"], "another process"
    for row in rows:
        if "child" in row:  # killed with the worker; somebody else collects it
            stat = Path(f"/proc/{row['child']}/stat")
            assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_worker_that_leaves_without_a_word_is_told_once(runner: Any) -> None:
    rows, _ = runner("leaves", "good")
    assert told(rows) == [("leaves", "the process", False), ("good", "good", True)]
    assert rows[0]["result"] == "ended with exit code 7"


def test_what_time_is_not_left_for_is_not_begun(runner: Any) -> None:
    rows, left = runner("good", seconds=0.0)
    assert (rows, left) == ([], ["good"])
    rows, left = runner("hangs", "good", seconds=1.0)
    assert rows[-1]["what"] == "TimeoutError" and left == ["good"]


def given(*only: str, out: Path | None = None) -> argparse.Namespace:
    """What the command line says."""
    return argparse.Namespace(
        device="cpu", batch_size=8, seconds=2.0, minutes=9.0, out=out, skip_tests=False, only=list(only)
    )


def test_the_check_goes_on_with_what_a_file_has(
    small_raw_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, deadline = tmp_path / "rows.jsonl", time.monotonic() + 540
    datasets = [tmp_path / "gone", small_raw_dataset]
    assert gpu_check.check(given("decode all", "auto", out=file), datasets, deadline) == 1
    out = capfd.readouterr().out
    assert "auto: InputError" in out and "gone: no such directory" in out
    document = {"row": {"part": "auto", "what": "kept", "result": "of before", "passed": True}}
    file.write_text(f'{json.dumps(document)}\n{{"end": "auto"}}\n{{"row": {{"part": "torn')
    assert gpu_check.check(given("auto", out=file), [small_raw_dataset], deadline) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["rows"] == [document["row"]]


def test_a_check_that_is_ended_from_outside_prints_what_it_has(raw_dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), str(raw_dataset), "--device", "cpu"]
    command += ["--batch-size", "8", "--seconds", "600", "--out", str(file), "--only", "auto", "loaders"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert running.stdout is not None
    seen = []
    while len(seen) < 2:  # `auto` has two rows; `loaders` would measure for an hour
        seen.append(running.stdout.readline())
    os.kill(running.pid, signal.SIGTERM)
    out, _ = running.communicate()
    assert running.returncode == 128 + signal.SIGTERM
    assert [row["part"] for row in json.loads(out.splitlines()[-1])["rows"]] == ["auto", "auto"]
    assert [json.loads(line)["row"] for line in file.read_text().splitlines() if '"row"' in line]


def test_parts_that_are_not_there_are_named(small_raw_dataset: Path) -> None:
    with pytest.raises(SystemExit, match=r"no part tests here, there are parity, .*auto"):
        gpu_check.check(given("auto", "tests"), [small_raw_dataset], time.monotonic() + 60)


def test_tests_that_hang_are_killed_and_those_that_passed_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "test_slow.py"
    file.write_text("import time\ndef test_fast(): pass\ndef test_slow(): time.sleep(600)\n")
    (row,) = gpu_check.run_tests((str(file), "-p", "no:cacheprovider"), 5.0)
    assert not row["passed"] and row["result"].startswith("killed after 5 s with ")
    (row,) = gpu_check.run_tests((str(file), "-k", "fast"), 600.0)
    assert row["passed"] and "1 passed" in row["result"]
