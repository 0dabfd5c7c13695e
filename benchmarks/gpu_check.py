"""Everything that only a GPU can show, in one run: the gpu tests, the right pixels, rates beside ceilings, the stall.

    python benchmarks/gpu_check.py [DATASET] [--raw RAW_DATASET] [--device cuda:0] [--batch-size 128] [--seconds 5]
                                   [--skip-tests] [--only PART ...]

Without DATASET the pictures of `lmdali demo` are drawn and converted, to JPEG and to raw pixels. A part that fails is a
row of the table and makes the exit code 1; the others still run. `--device cpu` runs what a CPU can, to see that the
script works. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gpu_exactness
import gpu_rates
import gpu_training
import torch

from lmdali.pipeline.backend import BackendName
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import WindowPlan
from lmdali.tools.pictures import write_dataset
from lmdali.tools.report_table import print_table
from lmdali.tools.sources import open_source

Row = dict[str, Any]
Part = Callable[[], Iterator[Row]]


def run_tests() -> Iterator[Row]:
    """All tests marked gpu, in a process of their own."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q"], cwd=root, capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    # 5: nothing was collected. Without such tests nothing has been shown, which is not a success.
    yield {"what": "pytest -m gpu", "result": lines[-1], "passed": done.returncode == 0}
    if done.returncode not in (0, 5):
        print(done.stdout[-8000:], done.stderr[-2000:], sep="\n", file=sys.stderr)


def collect(parts: dict[str, Part]) -> list[Row]:
    """Rows of all parts; an exception is a row."""
    rows: list[Row] = []
    for name, part in parts.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += [{"part": name} | row for row in part()]
        except Exception as error:
            # Whatever it is: the other parts are worth having, and this one is in the table and the exit code.
            rows.append({"part": name, "what": type(error).__name__, "result": str(error), "passed": False})
    return rows


def all_parts(arguments: argparse.Namespace, datasets: list[Path]) -> dict[str, Part]:
    """Name -> rows, in the order they are run."""
    device, batch_size = torch.device(arguments.device), arguments.batch_size
    on_gpu, plan = device.type == "cuda", WindowPlan(seconds=arguments.seconds)
    has_dali = all(importlib.util.find_spec(name) for name in ("nvidia", "nvidia.dali"))
    backends: list[BackendName] = ["cpu", "dali"] if has_dali else ["cpu"]
    limits: gpu_rates.Ceilings = {}

    def of_each(part: Callable[[Path], Iterator[Row]]) -> Part:
        return lambda: (row for dataset in datasets for row in part(dataset))

    parts: dict[str, Part] = {
        "tests": run_tests,
        "parity": of_each(lambda dataset: gpu_exactness.parity(dataset, arguments.device, batch_size)),
        "decode all": of_each(
            lambda dataset: gpu_exactness.every_record_decodes(dataset, arguments.device, batch_size)
        ),
        "resume": of_each(lambda dataset: gpu_exactness.resume(dataset, arguments.device, batch_size, tuple(backends))),
        "ceilings": of_each(lambda dataset: gpu_rates.ceilings(dataset, device, batch_size, plan, limits)),
        "loaders": of_each(lambda dataset: gpu_rates.loader_rates(dataset, device, batch_size, plan, limits, backends)),
        "auto": lambda: gpu_rates.automatic_choice(datasets[0], device, batch_size),
        "network": lambda: gpu_training.step_rates(device, plan),
        "towers": lambda: gpu_training.towers(device, plan),
        "training": of_each(
            lambda dataset: gpu_rates.training_stall(
                dataset, arguments.device, batch_size, plan, 1.0 if on_gpu else 0.125, backends
            )
        ),
    }
    if arguments.skip_tests or not on_gpu:
        del parts["tests"]
    if not on_gpu:
        del parts["network"], parts["towers"]
    if not has_dali:
        parts |= dict.fromkeys(("parity", "decode all"), _dali_is_missing)
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
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
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
        rows = collect(all_parts(arguments, given or _demo_datasets(Path(folder))))
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
