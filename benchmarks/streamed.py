"""First epochs over HTTP beside local shards: lmdali with and without prefetch, and other people's loaders.

    python benchmarks/streamed.py DATASET [--contestants all|NAME,...] [--latencies-ms 0,50] [--rounds 3] [--seconds 2]
                                   [--threads N] [--batch-size 128] [--scratch DIR] [--json FILE]

Peers are those of benchmarks/peers/requirements.txt that can stream. Each makes its own copy of the records first, and
reads it from disk, then from a server (file_server.py, a process of its own on this machine, whose CPU time counts for
nobody), then from the same one with latency added to each connection and each answer. Every measurement has a process
of its own and an empty cache: what was imported and compiled is there, then the clock starts, a loader is made, and
goes through an epoch; in the second one a window is taken. Records are random crops of the stored JPEGs, mirrored, in
uint8. Ratios are to the same contestant on local files in the same round. Medians of the rounds. Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import contestant_process
import torch
from peers import STREAMING, Contestant
from peers.task import Task, make_task

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import LmdaliError
from lmdali.tools.machine import machine_facts
from lmdali.tools.report_table import print_table

COPIES, DATASET = "copies", "dataset"
LOCAL = "local"
CONVERT_TIMEOUT_SECONDS, RUN_TIMEOUT_SECONDS = 600.0, 300.0
_SERVER = Path(__file__).with_name("file_server.py")


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


class Served:
    """A running server of the copies.

    Args:
        port: that it listens on.
    """

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/{COPIES}"
        self._counts = f"http://127.0.0.1:{port}/.counts"

    def counts(self) -> dict[str, int]:
        """What it sent so far."""
        with urllib.request.urlopen(self._counts) as answer:
            found: dict[str, int] = json.load(answer)
        return found


@contextmanager
def serving(folder: Path, latency_ms: float) -> Iterator[Served]:
    """A server of a folder in a process and session of its own."""
    command = [sys.executable, str(_SERVER), str(folder), "--latency-ms", str(latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            yield Served(int(process.stdout.readline()))
        finally:
            process.kill()


def in_copy(task: Task, contestant: Contestant) -> Task:
    """The task of one contestant: with the folder of its copy."""
    return replace(task, folder=str(Path(task.folder) / COPIES / (contestant.copy or DATASET)))


def measure(contestant: Contestant, task: Task, seconds: float, server: Served | None) -> dict[str, Any]:
    """One run with an empty cache; {"error": reason} where it fails."""
    own = in_copy(task, contestant)
    before: dict[str, int] = {}
    if server is not None:
        own = replace(own, address=server.address, cache=str(Path(task.folder) / "cache"))
        before = server.counts()
    answer = contestant_process.ask("stream", contestant, own, str(seconds), timeout_seconds=RUN_TIMEOUT_SECONDS)
    if server is not None:
        shutil.rmtree(own.cache, ignore_errors=True)
        answer |= {name: value - before[name] for name, value in server.counts().items()}
    return answer


def run_rounds(
    contestants: Sequence[Contestant], task: Task, *, latencies_ms: Sequence[float], rounds: int, seconds: float
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """All runs: contestant's key to place ("local", "0 ms", ...) to one answer per round."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {contestant.key: {} for contestant in contestants}
    for number in range(rounds):
        # There and back: nobody is always measured right after the same neighbour.
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            for latency_ms in (None, *latencies_ms):
                place = LOCAL if latency_ms is None else f"{latency_ms:g} ms"
                if latency_ms is None:
                    answer = measure(contestant, task, seconds, None)
                else:
                    with serving(Path(task.folder), latency_ms) as server:
                        answer = measure(contestant, task, seconds, server)
                runs[contestant.key].setdefault(place, []).append(answer)
                rate = answer.get("error") or f"{answer['images_per_second']:,.0f} images/s in the first epoch"
                say(f"round {number + 1} {contestant.key}, {place}: {rate}")
    return runs


def summarize(places: dict[str, list[dict[str, Any]]], num_records: int) -> dict[str, dict[str, Any]]:
    """Medians of each place over the rounds that succeeded; "failures" counts the others, "error" is a reason."""
    rows: dict[str, dict[str, Any]] = {}
    for place, answers in places.items():
        good = [(answer, local) for answer, local in zip(answers, places[LOCAL], strict=True) if "error" not in answer]
        errors = [answer["error"] for answer in answers if "error" in answer]
        row: dict[str, Any] = {"failures": len(errors), "error": errors[-1] if errors else ""}
        if good:
            names = [name for name, value in good[0][0].items() if name != "second" and value is not None]
            row |= {name: median(answer[name] for answer, _ in good) for name in names}
            row["second_images_per_second"] = median(answer["second"]["images_per_second"] for answer, _ in good)
        beside = [(answer, local) for answer, local in good if "error" not in local]
        if beside:
            for name in ("", "steady_"):
                rate = f"{name}images_per_second"
                row[f"{name}ratio"] = median(answer[rate] / local[rate] for answer, local in beside)
        if "sent_bytes" in row:
            row["sent_bytes_per_record"] = row["sent_bytes"] / num_records
        rows[place] = row
    return rows


def run_benchmark(task: Task, contestants: Sequence[Contestant], options: argparse.Namespace) -> dict[str, Any]:
    """Everything; the JSON document."""
    copies = Path(task.folder) / COPIES
    copies.mkdir(parents=True, exist_ok=True)
    (copies / DATASET).unlink(missing_ok=True)
    (copies / DATASET).symlink_to(Path(task.dataset).resolve())
    versions, errors = {}, {}
    for contestant in contestants:
        say(f"prepare {contestant.key}")
        own = in_copy(task, contestant)
        answer = contestant_process.ask("convert", contestant, own, timeout_seconds=CONVERT_TIMEOUT_SECONDS)
        versions[contestant.key], errors[contestant.key] = answer.get("version", ""), answer.get("error", "")
    able = [contestant for contestant in contestants if not errors[contestant.key]]
    runs = run_rounds(able, task, latencies_ms=options.latencies_ms, rounds=options.rounds, seconds=options.seconds)
    return {
        "dataset": Path(task.dataset).name,
        "num_records": task.num_records,
        "num_threads": task.num_threads,
        "batch_size": task.batch_size,
        "rounds": options.rounds,
        "machine": machine_facts(torch.device("cpu")),
        "contestants": [
            {
                "key": contestant.key,
                "label": contestant.label,
                "setting": contestant.setting,
                "version": versions[contestant.key],
                "error": errors[contestant.key],
                "runs": runs.get(contestant.key, {}),
                "rows": summarize(runs.get(contestant.key, {}), task.num_records),
            }
            for contestant in contestants
        ],
    }


def print_rates(document: dict[str, Any]) -> None:
    """The table, and who is not in it."""
    failed = [(found["label"], found["error"]) for found in document["contestants"] if found["error"]]
    rows = []
    for found in document["contestants"]:
        for place, row in found["rows"].items():
            if row["failures"]:
                failed.append((f"{found['label']}, {place}, {row['failures']} times", row["error"]))
            if "images_per_second" in row:
                rows.append((found["label"], place, *_cells(row)))
    print_table(
        f"first epoch of {document['num_records']:,} records, batches of {document['batch_size']}, "
        f"{document['num_threads']} CPUs, {document['machine']['cpu']}; medians of {document['rounds']} rounds\n"
        "first: batch; later: without the wait for it; 2nd: epoch; ratio: to the same loader on local files\n"
        "CPU: of the loader, ms/image; MB and requests of the whole run; waits: of threads for shards, where they tell",
        ("", "files", "first s", "img/s", "ratio", "later", "ratio", "2nd", "CPU ms", "MB", "asked", "waits"),
        rows,
    )
    if failed:
        print_table("not measured", ("", "why"), failed)


def _cells(row: dict[str, Any]) -> list[str]:
    def shown(name: str, form: str, factor: float = 1.0) -> str:
        return "" if row.get(name) is None else format(factor * row[name], form)

    return [
        shown("first_batch_seconds", ".2f"),
        shown("images_per_second", ",.0f"),
        shown("ratio", ".2f"),
        shown("steady_images_per_second", ",.0f"),
        shown("steady_ratio", ".2f"),
        shown("second_images_per_second", ",.0f"),
        shown("cpu_seconds_per_image", ".3f", 1e3),
        shown("sent_bytes", ",.0f", 1e-6),
        shown("requests", ",.0f"),
        shown("waiting_share", ".0%"),
    ]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    names = [contestant.key for contestant in STREAMING]
    parser.add_argument("--contestants", default="all", help=f"all, or of: {','.join(names)}")
    parser.add_argument("--latencies-ms", default="0,50", help="of the servers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of the window in the second epoch")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="and CPUs that a contestant may use")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--scratch", type=Path, help="where copies are made, and stay for the next run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs and the machine's facts")
    found = parser.parse_args(arguments)
    found.contestants = names if found.contestants == "all" else found.contestants.split(",")
    found.latencies_ms = [float(latency) for latency in found.latencies_ms.split(",")]
    if unknown := sorted(set(found.contestants) - set(names)):
        parser.error(f"--contestants: no {', '.join(unknown)} here: choose from {', '.join(names)}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    options = parse(arguments)
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("streamed.py reads CPU time of worker processes from Linux's /proc: none here")
    with TemporaryDirectory(prefix="lmdali-streaming-") as temporary:
        folder = options.scratch or temporary
        try:
            task = make_task(
                options.dataset, Path(folder), "uint8", num_threads=options.threads, batch_size=options.batch_size
            )
            chosen = [contestant for contestant in STREAMING if contestant.key in options.contestants]
            document = run_benchmark(task, chosen, options)
        except LmdaliError as error:
            raise SystemExit(str(error)) from None
    print_rates(document)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
