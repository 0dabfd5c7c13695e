"""Everything that only a GPU can show, in one run: the gpu tests, the right pixels, the stall, rates beside ceilings.

    python benchmarks/gpu_check.py [DATASET] [--raw RAW_DATASET] [--device cuda:0] [--batch-size 128] [--seconds 2]
                                   [--minutes 9] [--out FILE] [--skip-tests] [--only PART ...]

Without DATASET the pictures of `lmdali demo` are drawn and converted, to JPEG and to raw pixels, which takes half a
minute. Parts come in the order of interest, each with a limit of its own, in a process that may hang or crash: another
one goes on with the next part. A part that fails is a row, too, and makes the exit code 1.

Each row is printed when it is known and written to FILE, one JSON document a line, so that a run that is killed leaves
what it had found. Give the same FILE again, and parts that have ended are not run again, but are in the table: so all
of it fits into pieces, of `--minutes` each. The table comes last, and the last line of the output is JSON.
`--device cpu` runs what a CPU can, to see that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TextIO

import gpu_exactness
import gpu_rates
import gpu_stall
import gpu_training
import torch
from part_runner import Part, PartRunner, Row, claim_stdout, failure, work

from lmdali.pipeline.backend import BackendName
from lmdali.pipeline.release import has_dali
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import WindowPlan
from lmdali.tools.pictures import write_dataset
from lmdali.tools.report_table import print_table
from lmdali.tools.sources import open_source

LIMITS = {
    "tests": 300,
    "parity": 90,
    "stall": 180,
    "raw stall": 180,
    "decode all": 90,
    "loaders": 120,
    "network": 120,
    "kernel tests": 180,
}
"""Seconds that a part may take; any other `_LIMIT`."""

_LIMIT = 60

GPU_TESTS = ("-m", "gpu", "tests/test_gpu.py")
KERNEL_TESTS = tuple(
    f"tests/test_{name}.py"
    for name in ("normaliser", "activation_kernel", "map_norm_kernel", "pool_kernel", "update_kernel", "fused_features")
)
"""Without a GPU they run in Triton's interpreter, with one on it."""

_HUNG_TEST_SECONDS = 60
"""After so long pytest says where a test is."""

_TO_TELL = 10
"""Seconds that are left of a part's limit when its tests are killed."""


def run_tests(which: tuple[str, ...], limit_seconds: float) -> Iterator[Row]:
    """Tests in a process of their own, whose lines are seen at once; what has passed counts, whatever comes then."""
    root = Path(__file__).resolve().parent.parent
    options = ["-v", "-rfEs", "--tb=short", "-W", "default", "-o", f"faulthandler_timeout={_HUNG_TEST_SECONDS}"]
    passed, last, killed = 0, "no output", threading.Event()
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *which],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as tests:
        timer = threading.Timer(limit_seconds, lambda: (killed.set(), tests.kill()))
        timer.start()
        try:
            assert tests.stdout is not None
            for line in tests.stdout:
                print(line, end="", file=sys.stderr, flush=True)
                passed += " PASSED" in line
                last = line.strip() or last
            tests.wait()
        finally:
            timer.cancel()
    if killed.is_set():
        last = f"killed after {limit_seconds:.0f} s with {passed} passed, the last line was: {last}"
    # 5: nothing was collected. Without such tests nothing has been shown, which is not a success.
    yield {"what": f"pytest {' '.join(which[:3])}", "result": last, "passed": tests.returncode == 0}


class Ledger:
    """What is known: each row printed, and written to a file, as it comes.

    Args:
        path: of the file, one JSON document a line, or None. What ended parts have left there counts as found.
    """

    def __init__(self, path: Path | None) -> None:
        self.rows: list[Row] = []
        self.facts: Row = {}
        self.ended: set[str] = set()
        self._file: TextIO | None = None
        self._began = monotonic()
        if path is not None:
            self._file = path.open("a+")
            self._file.seek(0)
            found = [json.loads(line) for line in self._file if line.endswith("\n")]
            self.ended = {document["end"] for document in found if "end" in document}
            self.rows = [row for document in found if (row := document.get("row")) and row["part"] in self.ended]

    def take(self, document: Row) -> None:
        """A document of `part_runner.work`."""
        self.facts = document.get("facts", self.facts)
        self.ended |= {document["end"]} if "end" in document else set()
        if self._file is not None:
            self._file.write(json.dumps(document, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        if (row := document.get("row")) is not None:
            self.rows.append(row)
            print(f"[{monotonic() - self._began:5.0f} s] {row['part']}: {row['what']}: {row['result']} {verdict(row)}")
            sys.stdout.flush()

    def close(self, batch_size: int) -> None:
        """Print the table, and everything as JSON; the file has all of it."""
        if self._file is not None:
            self._file.close()
        print_table(
            f"{self.facts.get('gpu') or 'no GPU'}, {self.facts.get('num_cpus', '?')} CPUs, batches of {batch_size}",
            ("part", "what", "result", ""),
            [(row["part"], row["what"], row["result"], verdict(row)) for row in self.rows],
        )
        print(json.dumps({"machine": self.facts, "rows": self.rows}, allow_nan=False), flush=True)


def verdict(row: Row) -> str:
    """In a word."""
    return "ok" if row["passed"] else "FAILED"


def all_parts(arguments: argparse.Namespace, datasets: list[Path]) -> dict[str, Part]:
    """Name -> rows, in the order they are run."""
    device, batch_size = torch.device(arguments.device), arguments.batch_size
    on_gpu, plan = device.type == "cuda", WindowPlan(seconds=arguments.seconds)
    backends: list[BackendName] = ["cpu", "dali"] if has_dali() else ["cpu"]
    limits: gpu_rates.Ceilings = {}

    def of_each(part: Callable[[Path], Iterator[Row]], which: list[Path] = datasets) -> Part:
        return lambda: (row for dataset in which for row in part(dataset))

    def stalls(which: list[Path]) -> Part:
        return of_each(
            lambda dataset: gpu_stall.stall(dataset, device, plan, 1.0 if on_gpu else 0.125, backends), which
        )

    parts: dict[str, Part] = {
        "tests": lambda: run_tests(GPU_TESTS, LIMITS["tests"] - _TO_TELL),
        "parity": of_each(lambda dataset: gpu_exactness.parity(dataset, arguments.device, batch_size, tuple(backends))),
        "stall": stalls(datasets[:1]),
        "raw stall": stalls(datasets[1:]),
        "normaliser": lambda: gpu_stall.normaliser_rates(datasets[0], device, batch_size, plan),
        "decode all": of_each(
            lambda dataset: gpu_exactness.every_record_decodes(dataset, arguments.device, batch_size)
        ),
        "resume": of_each(lambda dataset: gpu_exactness.resume(dataset, arguments.device, batch_size, tuple(backends))),
        "ceilings": of_each(lambda dataset: gpu_rates.ceilings(dataset, device, batch_size, plan, limits, backends)),
        "loaders": of_each(lambda dataset: gpu_rates.loader_rates(dataset, device, batch_size, plan, limits, backends)),
        "ten views": lambda: gpu_rates.ten_view_rate(datasets[0], device, max(8, batch_size // 4), plan),
        "auto": lambda: gpu_rates.automatic_choice(datasets[0], device, batch_size),
        "network": lambda: gpu_training.step_rates(device, plan),
        "towers": lambda: gpu_training.towers(device, plan),
        "kernel tests": lambda: run_tests(KERNEL_TESTS, LIMITS["kernel tests"] - _TO_TELL),
    }
    if not on_gpu:
        for name in ("tests", "kernel tests", "network", "towers"):
            del parts[name]
    if not has_dali():
        parts["decode all"] = _dali_is_missing
    return parts


def _dali_is_missing() -> Iterator[Row]:
    yield {"what": "DALI", "result": "not installed: pip install '.[dali-cuda13]'", "passed": False}


def _demo_datasets(folder: Path) -> list[Path]:
    write_dataset(folder / "pictures", num_train=2400, num_val=100)
    source = folder / "pictures" / "train"
    convert(open_source(source), folder / "jpeg", ConvertConfig())
    convert(open_source(source), folder / "raw", ConvertConfig(encoding="raw"))
    return [folder / "jpeg", folder / "raw"]


def main() -> None:
    """Parse, check for a GPU, run everything, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--raw", type=Path, help="the same pictures as raw pixels")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything; what is left then is not begun")
    parser.add_argument("--out", type=Path, metavar="FILE", help="rows as they are found; goes on with what it has")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts")
    parser.add_argument("--worker", nargs="+", metavar="PART", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"gpu_check: torch {torch.__version__} finds no CUDA device here, and there is nothing to check; "
            "--device cpu runs what a CPU can"
        )
    if arguments.worker is not None:
        documents = claim_stdout()
        datasets = [path for path in (arguments.dataset, arguments.raw) if path is not None]
        work(all_parts(arguments, datasets), arguments.worker, documents, machine_facts(device))
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # as `timeout` sends it: with a table
    with TemporaryDirectory(prefix="lmdali-gpu-check-") as folder:
        deadline = monotonic() + 60 * arguments.minutes
        given = [path for path in (arguments.dataset, arguments.raw) if path is not None]
        sys.exit(check(arguments, given or _demo_datasets(Path(folder)), deadline))


def check(arguments: argparse.Namespace, datasets: list[Path], deadline: float) -> int:
    """Run the parts in workers and print what they find; the exit code."""
    parts = all_parts(arguments, datasets)
    if unknown := set(arguments.only or ()) - set(parts):
        raise SystemExit(f"gpu_check: no part {', '.join(sorted(unknown))} here, there are {', '.join(parts)}")
    ledger = Ledger(arguments.out)
    wanted = [name for name in arguments.only or parts if not (arguments.skip_tests and "tests" in name)]
    names = [name for name in wanted if name not in ledger.ended]

    def command(left: list[str]) -> list[str]:
        options = {"--device": arguments.device, "--batch-size": arguments.batch_size, "--seconds": arguments.seconds}
        given = [str(word) for option in options.items() for word in option]
        raw = ["--raw", str(datasets[1])] if len(datasets) > 1 else []
        return [sys.executable, __file__, str(datasets[0]), *raw, *given, "--worker", *left]

    runner = PartRunner(command, lambda name: LIMITS.get(name, _LIMIT), ledger.take)
    try:
        for name in runner.run(names, deadline):
            more = "the same command goes on" if arguments.out else f"--only '{name}'"
            ledger.take({"row": failure(name, "not begun", f"{arguments.minutes:g} minutes are over: {more}")})
    finally:
        runner.close()
        ledger.close(arguments.batch_size)
    return 0 if all(row["passed"] for row in ledger.rows) else 1


if __name__ == "__main__":
    main()
