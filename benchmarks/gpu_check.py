"""Everything that only a GPU can show, in one run: the gpu tests, the right pixels, the stall, rates beside ceilings.

    python benchmarks/gpu_check.py [DATASET] [--raw RAW_DATASET] [--device cuda:0] [--batch-size 128] [--seconds 2]
                                   [--minutes 14] [--skip-tests] [--only PART ...]

Without DATASET the pictures of `lmdali demo` are drawn and converted, to JPEG and to raw pixels, which takes half a
minute. Parts come in the order of interest. Each row is printed when it is known, and a part that takes longer than its
limit is given up: whoever ends this early has what was found so far. A part that fails is a row, too, and makes the
exit code 1; the others still run. `--device cpu` runs what a CPU can, to see that the script works. At the end there is
a table, and the last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import gpu_exactness
import gpu_rates
import gpu_stall
import gpu_training
import torch

from lmdali.pipeline.backend import BackendName
from lmdali.pipeline.release import has_dali
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import WindowPlan
from lmdali.tools.pictures import write_dataset
from lmdali.tools.report_table import print_table
from lmdali.tools.sources import open_source

Row = dict[str, Any]
Part = Callable[[], Iterator[Row]]


LIMITS = {"tests": 240, "kernel tests": 120, "decode all": 90, "stall": 180, "network": 120}
"""Seconds that a part may take; any other `_LIMIT`."""

_LIMIT = 60


class PartTimeout(BaseException):
    """A part took longer than it may. Not an `Exception`: a loader would keep it for the batch that is due then."""


GPU_TESTS = ("-m", "gpu", "tests/test_gpu.py")
KERNEL_TESTS = tuple(
    f"tests/test_{name}.py"
    for name in ("normaliser", "activation_kernel", "map_norm_kernel", "pool_kernel", "update_kernel", "fused_features")
)
"""Without a GPU they run in Triton's interpreter, with one on it."""


def run_tests(which: tuple[str, ...]) -> Iterator[Row]:
    """Tests in a process of their own, whose lines are seen at once."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=short", "-W", "default", *which]
    lines = ["no output"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tests:
        try:
            assert tests.stdout is not None
            for line in tests.stdout:
                print(line, end="", file=sys.stderr, flush=True)
                lines += [line.strip()] * bool(line.strip())
            tests.wait()
        except BaseException:
            tests.kill()
            raise
    # 5: nothing was collected. Without such tests nothing has been shown, which is not a success.
    yield {"what": f"pytest {' '.join(which[:3])}", "result": lines[-1], "passed": tests.returncode == 0}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `PartTimeout` in what takes longer; a wait inside a library is ended when it comes back."""

    def give_up(number: int, frame: object) -> None:
        raise PartTimeout(f"given up after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def collect(parts: dict[str, Part], minutes: float) -> list[Row]:
    """Rows of all parts, each printed when it is known; an exception is a row, and so is a part without time left."""
    rows: list[Row] = []
    began = monotonic()

    def add(name: str, row: Row) -> None:
        rows.append({"part": name} | row)
        verdict = "ok" if row["passed"] else "FAILED"
        print(f"[{monotonic() - began:5.0f} s] {name}: {row['what']}: {row['result']} {verdict}", flush=True)

    for name, part in parts.items():
        left = 60 * minutes - (monotonic() - began)
        if left < 1:
            add(
                name, {"what": "not begun", "result": f"{minutes:g} minutes are over: --only '{name}'", "passed": False}
            )
            continue
        try:
            with time_limit(min(left, LIMITS.get(name, _LIMIT))):
                for row in part():
                    add(name, row)
        except (Exception, PartTimeout) as error:
            # Whatever it is: the other parts are worth having, and this one is in the table and the exit code.
            add(name, {"what": type(error).__name__, "result": str(error), "passed": False})
    return rows


def all_parts(arguments: argparse.Namespace, datasets: list[Path]) -> dict[str, Part]:
    """Name -> rows, in the order they are run."""
    device, batch_size = torch.device(arguments.device), arguments.batch_size
    on_gpu, plan = device.type == "cuda", WindowPlan(seconds=arguments.seconds)
    backends: list[BackendName] = ["cpu", "dali"] if has_dali() else ["cpu"]
    limits: gpu_rates.Ceilings = {}

    def of_each(part: Callable[[Path], Iterator[Row]], which: list[Path] = datasets) -> Part:
        return lambda: (row for dataset in which for row in part(dataset))

    parts: dict[str, Part] = {
        "tests": lambda: run_tests(GPU_TESTS),
        "kernel tests": lambda: run_tests(KERNEL_TESTS),
        "parity": of_each(lambda dataset: gpu_exactness.parity(dataset, arguments.device, batch_size, tuple(backends))),
        "decode all": of_each(
            lambda dataset: gpu_exactness.every_record_decodes(dataset, arguments.device, batch_size)
        ),
        "resume": of_each(lambda dataset: gpu_exactness.resume(dataset, arguments.device, batch_size, tuple(backends))),
        "normaliser": lambda: gpu_stall.normaliser_rates(datasets[0], device, batch_size, plan),
        "stall": lambda: gpu_stall.stall(datasets[0], device, plan, 1.0 if on_gpu else 0.125, backends),
        "ceilings": of_each(lambda dataset: gpu_rates.ceilings(dataset, device, batch_size, plan, limits, backends)),
        "loaders": of_each(lambda dataset: gpu_rates.loader_rates(dataset, device, batch_size, plan, limits, backends)),
        "towers": lambda: gpu_training.towers(device, plan),
        "ten views": lambda: gpu_rates.ten_view_rate(datasets[0], device, max(8, batch_size // 4), plan),
        "network": lambda: gpu_training.step_rates(device, plan),
        "auto": lambda: gpu_rates.automatic_choice(datasets[0], device, batch_size),
        "raw stall": of_each(
            lambda dataset: gpu_stall.stall(dataset, device, plan, 1.0 if on_gpu else 0.125, backends), datasets[1:]
        ),
    }
    if arguments.skip_tests or not on_gpu:
        del parts["tests"], parts["kernel tests"]
    if not on_gpu:
        del parts["network"], parts["towers"]
    if not has_dali():
        parts["decode all"] = _dali_is_missing
    return {name: part for name, part in parts.items() if not arguments.only or name in arguments.only}


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
    parser.add_argument("--minutes", type=float, default=14.0, help="for everything; what is left then is not begun")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"gpu_check: torch {torch.__version__} finds no CUDA device here, and there is nothing to check; "
            "--device cpu runs what a CPU can"
        )
    with TemporaryDirectory(prefix="lmdali-gpu-check-") as folder:
        given = [path for path in (arguments.dataset, arguments.raw) if path is not None]
        rows = collect(all_parts(arguments, given or _demo_datasets(Path(folder))), arguments.minutes)
    machine = machine_facts(device)
    print_table(
        f"{machine['gpu'] or 'no GPU'}, {machine['num_cpus']} CPUs, batches of {arguments.batch_size}",
        ("part", "what", "result", ""),
        [(row["part"], row["what"], row["result"], "ok" if row["passed"] else "FAILED") for row in rows],
    )
    print(json.dumps({"machine": machine, "rows": rows}, allow_nan=False))
    sys.exit(0 if all(row["passed"] for row in rows) else 1)


if __name__ == "__main__":
    main()
