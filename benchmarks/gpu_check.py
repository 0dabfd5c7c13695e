"""Everything that only a GPU can show, in one run: the gpu tests, parity of pixels, loader rates, the training stall.

    python benchmarks/gpu_check.py [DATASET] [--device cuda:0] [--batch-size 128] [--seconds 5] [--skip-tests]

Without DATASET the pictures of `lmdali demo` are drawn and converted. A part that fails is a row of the table and makes
the exit code 1; the others still run. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import DType
from lmdali.pipeline.decode import decode_stored
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.convert import convert
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import WindowPlan, measure
from lmdali.tools.pictures import write_dataset
from lmdali.tools.profiler import ProfileConfig, profile_dataset
from lmdali.tools.report_table import print_table
from lmdali.tools.sources import open_source
from lmdali.tools.step_probes import LoaderProbe

BackendName = Literal["cpu", "dali"]
DTYPES: tuple[DType, ...] = ("uint8", "float32", "float16")
TRAINING_DTYPES: tuple[DType, ...] = ("float32", "bfloat16")
PARITY: tuple[tuple[DType, AugmentConfig], ...] = (
    ("uint8", AugmentConfig.pixels()),
    ("float32", AugmentConfig.paper()),
)
JPEG_MEAN_LIMIT, ARITHMETIC_LIMIT = 1.0, 1e-3
"""Gray levels: nvJPEG upsamples and rounds in its own way; float32 arithmetic may be done in another order."""

PARITY_BATCHES = 4
Row = dict[str, Any]


def backends() -> list[BackendName]:
    """The backends that this machine has."""
    has_dali = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    return ["cpu", "dali"] if has_dali else ["cpu"]


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


def decode_parity(dataset: Path, device: str, batch_size: int) -> Iterator[Row]:
    """Whole records: DALI's decoder on this device against the CPU decoder, uint8."""
    if "dali" not in backends():
        yield {"what": "decode on mixed", "result": "DALI is not installed", "passed": False}
        return
    manifest = load_manifest(dataset)
    reader = ShardReader(dataset, manifest)
    whole = AugmentConfig(crop="center", crop_size=manifest.image_size, flip=False, lighting="none", normalize="none")
    config = LoaderConfig(
        dataset=dataset,
        batch_size=batch_size,
        augment=whole,
        shuffle=False,
        backend="dali",
        dtype="uint8",
        layout="NHWC",
    )
    differences = []
    with create_loader(config, device, rank=0, world_size=1) as loader:
        for batch in islice(loader, PARITY_BATCHES):
            for pixels, index in zip(batch.images.cpu().numpy(), batch.indices.tolist(), strict=True):
                expected = reader.read(index, lambda record: decode_stored(record.data, manifest.image_size).copy())
                differences.append(np.abs(pixels.astype(np.int16) - expected))
    exact = manifest.encoding == "raw"
    yield _parity_row(f"decode on {device}, whole records", np.stack(differences), exact=exact)


def loader_parity(dataset: Path, device: str, batch_size: int) -> Iterator[Row]:
    """The same batches from every backend on this device and from the CPU backend on the CPU: records and pixels."""
    raw = load_manifest(dataset).encoding == "raw"
    for dtype, augment in PARITY:
        expected = _batches(dataset, "cpu", "cpu", dtype, augment, batch_size)
        for backend in backends():
            found = _batches(dataset, device, backend, dtype, augment, batch_size)
            same = all(torch.equal(a[1], b[1]) for a, b in zip(found, expected, strict=True))
            difference = np.stack([np.abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True)])
            exact = raw or backend == "cpu"
            row = _parity_row(f"pixels of {backend} on {device}, {dtype}", difference, exact=exact)
            yield row | {"passed": row["passed"] and same, "same_records": same}


def loader_rates(dataset: Path, device: str, batch_size: int, plan: WindowPlan) -> Iterator[Row]:
    """Images per second to the device, for every backend and dtype."""
    for backend in backends():
        for dtype in DTYPES:
            augment = AugmentConfig.pixels() if dtype == "uint8" else AugmentConfig.paper()
            config = LoaderConfig(
                dataset=dataset,
                batch_size=batch_size,
                augment=augment,
                backend=backend,
                dtype=dtype,
            )
            with create_loader(config, device, rank=0, world_size=1) as loader:
                rate = measure([LoaderProbe(loader, config.prefetch)], plan, synchronize=_waiter(device))[0]
            yield {
                "what": f"loader {backend} {dtype}",
                "result": f"{rate.images_per_second:,.0f} images/s ± {rate.spread:.0%}",
                "passed": True,
                "images_per_second": rate.images_per_second,
                "low": rate.low,
                "high": rate.high,
            }


def training_stall(dataset: Path, device: str, batch_size: int, seconds: float) -> Iterator[Row]:
    """AlexNet of full width on a cached batch and fed by each backend: the share of a step that is input."""
    for backend in backends():
        for dtype in TRAINING_DTYPES:
            config = ProfileConfig(
                batch_size=batch_size,
                backend=backend,
                device=device,
                dtype=dtype,
                seconds=seconds,
            )
            report = profile_dataset(dataset, config, quiet=True)
            assert report.model is not None and report.together is not None
            stall = "-" if report.data_stall is None else f"{report.data_stall:.0%}"
            yield {
                "what": f"AlexNet {dtype}, {backend} loader",
                "result": f"{report.model.images_per_second:,.0f} images/s alone, "
                f"{report.together.images_per_second:,.0f} fed, stall {stall}: {report.verdict.bound}",
                "passed": True,
                "report": report.to_json(),
            }


def collect(parts: dict[str, Callable[[], Iterator[Row]]]) -> list[Row]:
    """The rows of all parts; one that raises becomes a row that failed."""
    rows: list[Row] = []
    for name, part in parts.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += [{"part": name, **row} for row in part()]
        except Exception as error:  # whatever it is, the other parts are still worth running
            first = (str(error).splitlines() or [""])[0]
            rows.append({"part": name, "what": name, "result": f"{type(error).__name__}: {first}", "passed": False})
    return rows


def _parity_row(what: str, difference: Any, *, exact: bool) -> Row:
    largest, mean = float(difference.max()), float(difference.mean())
    limit = f"limit {ARITHMETIC_LIMIT:g} for the largest" if exact else f"limit {JPEG_MEAN_LIMIT:g} for the mean"
    passed = largest <= ARITHMETIC_LIMIT if exact else mean <= JPEG_MEAN_LIMIT
    result = f"largest difference {largest:.4g}, mean {mean:.4f} gray levels ({limit})"
    return {"what": what, "result": result, "passed": passed, "largest": largest, "mean": mean}


def _batches(
    dataset: Path, device: str, backend: BackendName, dtype: DType, augment: AugmentConfig, batch_size: int
) -> list[tuple[Any, torch.Tensor]]:
    """Images as float32 arrays and record numbers of the first batches of epoch 0."""
    config = LoaderConfig(
        dataset=dataset,
        batch_size=batch_size,
        augment=augment,
        backend=backend,
        dtype=dtype,
    )
    with create_loader(config, device, rank=0, world_size=1) as loader:
        return [(b.images.float().cpu().numpy(), b.indices.clone()) for b in islice(loader, PARITY_BATCHES)]


def _waiter(device: str) -> Callable[[], None]:
    return lambda: torch.cuda.synchronize(device) if device.startswith("cuda") else None


def _demo_dataset(folder: Path) -> Path:
    write_dataset(folder / "pictures", num_train=2400, num_val=100)
    convert(open_source(folder / "pictures" / "train"), folder / "train", ConvertConfig())
    return folder / "train"


def main() -> None:
    """Parse, check for a GPU, run everything, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--skip-tests", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            f"gpu_check: torch {torch.__version__} finds no CUDA device here, and there is nothing to check"
        )
    device, batch_size, seconds = arguments.device, arguments.batch_size, arguments.seconds
    with TemporaryDirectory(prefix="lmdali-gpu-check-") as folder:
        dataset = arguments.dataset or _demo_dataset(Path(folder))
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "tests": run_tests,
            "decode parity": lambda: decode_parity(dataset, device, batch_size),
            "loader parity": lambda: loader_parity(dataset, device, batch_size),
            "loader rates": lambda: loader_rates(dataset, device, batch_size, WindowPlan(seconds=seconds)),
            "training": lambda: training_stall(dataset, device, batch_size, seconds),
        }
        if arguments.skip_tests:
            del parts["tests"]
        rows = collect(parts)
    machine = machine_facts(torch.device(device))
    print_table(
        f"{machine['gpu']}, {machine['num_cpus']} CPUs",
        ("part", "what", "result", ""),
        [(row["part"], row["what"], row["result"], "ok" if row["passed"] else "FAILED") for row in rows],
    )
    print(json.dumps({"machine": machine, "rows": rows}, allow_nan=False))
    sys.exit(0 if all(row["passed"] for row in rows) else 1)


if __name__ == "__main__":
    main()
