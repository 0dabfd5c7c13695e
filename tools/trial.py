"""The whole road once, on two dozen drawn pictures in a temporary folder: convert, verify, load, train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from lmdali.pipeline.backend import BackendName
from lmdali.pipeline.errors import IntegrityError
from lmdali.pipeline.release import has_dali
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.dataset_check import verify_dataset
from lmdali.tools.finding import Finding, first_line
from lmdali.tools.pictures import write_dataset
from lmdali.tools.sources import open_source

_NUM_PICTURES = 24
_BATCH = 8
_TRAINING_STEPS = 7
"""On a GPU the first few are ordinary steps, and one captures the graph of the others."""


def trial_findings() -> Iterator[Finding]:
    """Each part of the road that the installed packages allow, on each device; what fails ends its own part only."""
    try:
        with TemporaryDirectory(prefix="lmdali-doctor-") as folder:
            dataset = Path(folder) / "dataset"
            converted = _attempt("convert", partial(_convert, Path(folder) / "pictures", dataset))
            yield converted
            if converted.verdict == "ok" and _can_load():
                yield from _with_torch(dataset)
    except OSError as error:  # no temporary folder, or one that cannot be removed
        yield Finding("temporary folder", first_line(error), "problem", "set TMPDIR to a folder that can be written")


def _can_load() -> bool:
    """Whether torch and numba are here; where one is broken, checks before this have said so."""
    try:
        import_module("numba")
        import_module("torch")
    except Exception:
        return False
    return True


def _with_torch(dataset: Path) -> Iterator[Finding]:
    import torch

    yield _attempt("load on cpu", partial(_load, dataset))
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        if device != "cpu":
            yield _attempt(f"load on {device}", partial(_compare, dataset, "cpu", device))
        if has_dali():
            yield _attempt(f"load by DALI on {device}", partial(_compare, dataset, "dali", device))
        yield _attempt(f"train on {device}", partial(_train, dataset, device))


def _attempt(what: str, work: Callable[[], str]) -> Finding:
    began = perf_counter()
    try:
        found = work()
    except Exception as error:  # whatever it is, it is what this program is there to show
        return Finding(
            what, first_line(error), "problem", "the command itself says more; `lmdali demo` does all of them"
        )
    return Finding(what, f"{found}, {perf_counter() - began:.1f} s")


def _convert(pictures: Path, dataset: Path) -> str:
    write_dataset(pictures, num_train=_NUM_PICTURES, num_val=12, workers=1)
    summary = convert(open_source(pictures / "train"), dataset, ConvertConfig(max_bad=1), workers=1, quiet=True)
    report = verify_dataset(dataset, quiet=True)
    if report.problems:
        raise IntegrityError(f"what was written reads back otherwise: {report.problems[0]}")
    stored, broken = summary.num_stored, summary.num_rejected
    return f"{stored} of {_NUM_PICTURES} pictures stored and read back, {broken} broken ones set aside"


def _load(dataset: Path) -> str:
    from lmdali.pipeline.loader import LoaderConfig, create_loader

    config = LoaderConfig(dataset=dataset, batch_size=_BATCH, drop_last=False)
    with create_loader(config, "cpu", rank=0, world_size=1) as loader:
        seen = sorted(number for batch in loader for number in batch.indices.tolist())
        if seen != list(range(loader.num_samples)):
            raise IntegrityError(f"an epoch of {loader.num_samples} samples delivered {seen}")
    return f"an epoch of {len(seen)} samples"


def _compare(dataset: Path, backend: BackendName, device: str) -> str:
    from lmdali.pipeline.parity import compare_backends

    rows = list(compare_backends(dataset, device=device, backends=(backend,), batch_size=_BATCH, num_batches=2))
    for row in rows:
        if not row.passed:
            raise IntegrityError(
                f"{row.form} differ from the CPU's by {row.largest:g} gray levels, {row.mean:g} in mean"
            )
    return f"the CPU's batches, mean difference {max(row.mean for row in rows):.2g} gray levels"


def _train(dataset: Path, device_name: str) -> str:
    import torch

    from lmdali.pipeline.loader import LoaderConfig, create_loader
    from lmdali.tools.profiled_model import place_model, training_step

    device = torch.device(device_name)
    config = LoaderConfig(dataset=dataset, batch_size=_BATCH)
    with create_loader(config, device, rank=0, world_size=1) as loader:
        model = place_model("alexnet", num_classes=10, width=0.125, device=device)
        assert model is not None
        step = training_step(model, dtype="float32", device=device)
        steps = 0
        while steps < _TRAINING_STEPS:
            for batch in loader:
                figures = step(batch).wait()
                steps += 1
    return f"{steps} steps, loss {figures.loss:.2f}"
