"""The inside of a contestant's own process: make its copy of the records, or measure windows of it.

    python contestant_run.py convert|measure|stream|serve KEY TASK [SECONDS]   (started by loaders.py, streamed.py)

`convert`, `measure` and `stream` answer with one JSON line in the file named by RESULT_FILE; `serve` answers each line
of standard input, a number of seconds, with one JSON line on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

from peers import Contestant, find
from peers.task import Task, check_batch
from process_tree import cpu_seconds, memory_bytes

RESULT_FILE = "LMDALI_BENCHMARK_RESULT"
"""Environment variable: where the answer goes, since peers print what they like on standard output."""

WARM_UP_SECONDS, WARM_UP_BATCHES, LONGEST_WARM_UP_SECONDS = 1.0, 8, 3.0
MIN_STEPS = 4

_COUNTED_SHARE = 0.95
"""Of a first epoch."""


def convert(contestant: Contestant, task: Task) -> dict[str, Any]:
    """Import the contestant and have it make its copy; tells its version."""
    module = import_module(f"peers.{contestant.module}")
    if contestant.copy and not Path(task.folder).exists():
        # Under another name until it is whole: a copy that failed must not be taken for one.
        partial = replace(task, folder=f"{task.folder}.partial")
        module.convert(partial)
        Path(partial.folder).rename(task.folder)
    try:
        found = version(contestant.package) if contestant.package else ""
    except PackageNotFoundError:
        found = "unknown version"
    return {"version": found}


def start(contestant: Contestant, task: Task) -> Iterator[Any]:
    """Its batches, warmed up: an epoch has passed, or a few seconds, and at least as many batches as queues hold."""
    batches: Iterator[Any] = iter(import_module(f"peers.{contestant.module}").batches(task, contestant.variant))
    first = next(batches)
    if contestant.name != "ceiling":
        check_batch(task, first, values=contestant.key != "lmdali:paper")
    begin, images, steps = perf_counter(), len(first), 1
    while steps < WARM_UP_BATCHES or not _is_warm(perf_counter() - begin, images / task.num_records):
        images += len(next(batches))
        steps += 1
    return batches


def _is_warm(seconds: float, epochs: float) -> bool:
    return seconds >= LONGEST_WARM_UP_SECONDS or (seconds >= WARM_UP_SECONDS and epochs >= 1)


def window(batches: Iterator[Any], seconds: float) -> dict[str, Any]:
    """One measurement: whole batches until `seconds` have passed."""
    session = os.getsid(0)
    images = steps = 0
    cpu, begin = cpu_seconds(session), perf_counter()
    while steps < MIN_STEPS or perf_counter() - begin < seconds:
        images += len(next(batches))
        steps += 1
    elapsed, cpu = perf_counter() - begin, cpu_seconds(session) - cpu
    return {
        "images_per_second": images / elapsed,
        "cpu_seconds_per_image": cpu / images,
        "memory_bytes": memory_bytes(session),
    }


def stream(contestant: Contestant, task: Task, seconds: float) -> dict[str, Any]:
    """A first epoch from its very beginning, and a window of the second one.

    What is imported and compiled is there before the clock starts. Of the first epoch only whole batches of its first
    95 % count: at its end, peers whose workers divide it wait for the last of them.
    """
    module = import_module(f"peers.{contestant.module}")
    if contestant.kind == "lmdali":  # its kernels are loaded by a first batch
        next(module.batches(replace(task, address="", cache=""), contestant.variant))
    session, epoch = os.getsid(0), task.num_records // task.batch_size
    cpu, begin = cpu_seconds(session), perf_counter()
    batches: Iterator[Any] = iter(module.batches(task, contestant.variant))
    first = next(batches)
    arrived = perf_counter()
    steps = 1
    while steps < _COUNTED_SHARE * epoch:
        next(batches)
        steps += 1
    end, cpu = perf_counter(), cpu_seconds(session) - cpu
    check_batch(task, first)
    answer = {
        "first_batch_seconds": arrived - begin,
        "images_per_second": steps * task.batch_size / (end - begin),
        "steady_images_per_second": (steps - 1) * task.batch_size / (end - arrived),
        "cpu_seconds_per_image": cpu / (steps * task.batch_size),
    }
    if hasattr(module, "waiting_share"):
        answer["waiting_share"] = module.waiting_share(end - begin)
    while steps < (2 - _COUNTED_SHARE) * epoch:
        next(batches)
        steps += 1
    return answer | {"second": window(batches, seconds)}


def confine(num_cpus: int) -> None:
    """Leave this process and all it starts only so many CPUs: threads, workers and consumer share one budget."""
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, usable[:num_cpus])


def main() -> None:
    """Do as the command line says; any failure is an answer, too."""
    mode, key, task = sys.argv[1], find(sys.argv[2]), Task.from_json(sys.argv[3])
    confine(task.num_threads)
    if mode == "serve":
        batches = start(key, task)
        for line in sys.stdin:
            print(json.dumps(window(batches, float(line))), flush=True)
        return
    try:
        if mode == "convert":
            answer = convert(key, task)
        elif mode == "stream":
            answer = stream(key, task, float(sys.argv[4]))
        else:
            answer = window(start(key, task), float(sys.argv[4]))
    except Exception as error:  # a peer may fail in any way: the row says how
        traceback.print_exc()  # into the log
        first_line = (str(error).strip().splitlines() or [""])[0]
        answer = {"error": f"{type(error).__name__}: {first_line}"[:200]}
    Path(os.environ[RESULT_FILE]).write_text(json.dumps(answer))
    sys.stdout.flush()
    # Peers leave threads and worker processes behind that may take long to end; the parent ends the whole session.
    os._exit(0)


if __name__ == "__main__":
    main()
