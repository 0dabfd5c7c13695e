"""lmdali, the ceilings of this machine, and other people's loaders: the same bytes, the same work, one table.

    python benchmarks/loaders.py DATASET [--peers all|none|NAME,...] [--forms uint8,float32] [--rounds 3] [--seconds 4]
                                 [--threads N] [--batch-size 128] [--scratch DIR] [--json FILE] [--plot FILE.png]

Peers are optional (benchmarks/peers/requirements.txt); one that is missing or fails is a row that says why. Each first
makes its own copy of the records, in a scratch folder and outside all timing. Then every round starts each contestant
in a process of its own, alone on the machine, lets it warm up, and measures one window. Just before and after it, one
second of the reference ceiling is measured, and the ratio is to these two, so that a machine that changes its pace
changes both. Printed are medians over the rounds, and from the lowest to the highest. CPU time includes worker
processes; memory is that of all processes at the end of a window, without page cache. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import contestant_process
import torch
from peers import CONTESTANTS, PEER_NAMES, Contestant, find
from peers.task import FORMS, Task, make_task
from ratios import Row, results
from results_table import print_results

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.machine import machine_facts

REFERENCE = {"jpeg": "ceiling:decode", "raw": "ceiling:compiled"}
REFERENCE_SECONDS = 1.0
CONVERT_TIMEOUT_SECONDS, START_TIMEOUT_SECONDS = 600.0, 180.0


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def choose(encoding: str, peers: Sequence[str]) -> list[Contestant]:
    """Who takes part with records of this encoding; the reference is measured beside them and not here."""
    return [
        contestant
        for contestant in CONTESTANTS
        if encoding in contestant.encodings
        and contestant.key != REFERENCE[encoding]
        and (contestant.kind != "peer" or contestant.name in peers)
    ]


def prepare(rows: Sequence[Row], task: Task) -> None:
    """Let every contestant import what it needs and make its copy; whoever cannot, gets a row with the reason."""
    answers: dict[str, dict[str, Any]] = {}
    for row in rows:
        contestant = row.contestant
        if contestant.key not in answers:
            say(f"prepare {contestant.key}")
            answers[contestant.key] = contestant_process.ask(
                "convert", contestant, in_copy(task, contestant), timeout_seconds=CONVERT_TIMEOUT_SECONDS
            )
        row.version, row.error = answers[contestant.key].get("version", ""), answers[contestant.key].get("error", "")
        if row.error:
            say(f"  left out: {row.error}")


def in_copy(task: Task, contestant: Contestant, form: str = "") -> Task:
    """The task of one contestant: with the folder of its copy."""
    return replace(task, folder=str(Path(task.folder) / (contestant.copy or "none")), form=form or task.form)


def run_rounds(rows: Sequence[Row], task: Task, *, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Measure all rows of one form, each between two windows of the reference.

    Returns:
        The reference's windows.
    """
    reference, form = find(REFERENCE[task.encoding]), rows[0].form
    windows = []
    with contestant_process.Reference(reference, in_copy(task, reference, form)) as ceiling:
        windows.append(ceiling.measure(REFERENCE_SECONDS))
        for number in range(rounds):
            # There and back: nobody is always measured right after the same neighbour.
            for row in rows if number % 2 == 0 else reversed(rows):
                if row.error:
                    continue
                answer = contestant_process.ask(
                    "measure",
                    row.contestant,
                    in_copy(task, row.contestant, form),
                    str(seconds),
                    timeout_seconds=START_TIMEOUT_SECONDS + seconds,
                )
                windows.append(ceiling.measure(REFERENCE_SECONDS))
                row.error = answer.get("error", "")
                if not row.error:
                    limit = (windows[-2]["images_per_second"] + windows[-1]["images_per_second"]) / 2
                    row.windows.append(answer | {"round": number, "reference_images_per_second": limit})
                rate = row.error or f"{answer['images_per_second']:,.0f} images/s"
                say(f"round {number + 1} {form} {row.contestant.key}: {rate}")
    return windows


def run_benchmark(
    task: Task, peers: Sequence[str], forms: Sequence[str], *, rounds: int, seconds: float
) -> dict[str, Any]:
    """Everything; the JSON document."""
    chosen = choose(task.encoding, peers)
    rows = [Row(contestant, form) for form in forms for contestant in chosen if form in contestant.forms]
    prepare(rows, task)
    reference, measured = find(REFERENCE[task.encoding]), []
    for form in forms:
        of_form = [row for row in rows if row.form == form]
        windows = run_rounds(of_form, task, rounds=rounds, seconds=seconds)
        measured.append(results(reference, windows, of_form, form))
    manifest = load_manifest(Path(task.dataset))
    return {
        "dataset": Path(task.dataset).name,
        "encoding": task.encoding,
        "quality": manifest.recipe.get("quality"),
        "image_size": task.image_size,
        "crop_size": task.crop_size,
        "num_records": task.num_records,
        "bytes_per_image": round(manifest.payload_bytes / task.num_records),
        "num_threads": task.num_threads,
        "batch_size": task.batch_size,
        "rounds": rounds,
        "seconds": seconds,
        "machine": machine_facts(torch.device("cpu")),
        "forms": measured,
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--peers", default="all", help=f"all, none, or of: {','.join(PEER_NAMES)}")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one window; there is one in each round")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="and CPUs that a contestant may use")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--crop-size", type=int, default=224, help="pixels")
    parser.add_argument("--scratch", type=Path, help="where the folder of copies is made and removed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all windows and the machine's facts")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    found = parser.parse_args(arguments)
    found.peers = {"all": list(PEER_NAMES), "none": []}.get(found.peers, found.peers.split(","))
    found.forms = found.forms.split(",")
    for name, allowed in (("peers", PEER_NAMES), ("forms", FORMS)):
        unknown = sorted(set(getattr(found, name)) - set(allowed))
        if unknown:
            parser.error(f"--{name}: no {', '.join(unknown)} here: choose from {', '.join(allowed)}")
    if min(found.rounds, found.threads, found.batch_size, found.crop_size) < 1 or found.seconds <= 0:
        parser.error("--rounds, --threads, --batch-size, --crop-size and --seconds must be positive")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    options = parse(arguments)
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("loaders.py reads CPU time and memory of worker processes from Linux's /proc: none here")
    with TemporaryDirectory(prefix="lmdali-loaders-", dir=options.scratch) as folder:
        try:
            task = make_task(
                options.dataset,
                Path(folder),
                options.forms[0],
                num_threads=options.threads,
                batch_size=options.batch_size,
                crop_size=options.crop_size,
            )
            if task.num_records < 8 * task.batch_size:
                raise SystemExit(
                    f"{options.dataset}: {task.num_records} records are fewer than 8 batches: lower --batch-size"
                )
            document = run_benchmark(task, options.peers, options.forms, rounds=options.rounds, seconds=options.seconds)
        except LmdaliError as error:
            raise SystemExit(str(error)) from None
    print_results(document)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if options.plot is not None:
        from rates_plot import plot  # matplotlib is the `report` extra's

        plot([document], options.plot)


if __name__ == "__main__":
    main()
