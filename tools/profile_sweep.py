"""`lmdali profile sweep`: loaders of several settings in turn, and which of them to train with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from lmdali.model.device import pick_device
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.batch_tasks import default_prefetch
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.decode_choice import Decode
from lmdali.pipeline.errors import ConfigError, ThresholdError
from lmdali.pipeline.loader import LoaderConfig
from lmdali.pipeline.manifest import Manifest, load_manifest
from lmdali.pipeline.output_file import write_output
from lmdali.tools.augment_options import WHAT_IS_DONE, augment_for, augment_options, describe_augment, take_augment
from lmdali.tools.cold_run import CacheState
from lmdali.tools.dataset_argument import DatasetArgument
from lmdali.tools.loader_options import swept_options
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import WindowPlan
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.profile_config import ProfileConfig
from lmdali.tools.profile_facts import busy_caution
from lmdali.tools.report_table import print_json
from lmdali.tools.step_probes import measure_on
from lmdali.tools.sweep_page import print_sweep, sweep_page
from lmdali.tools.sweep_probe import Position, SettingProbe, settled_heap
from lmdali.tools.sweep_report import SweepReport, SweptSetting, write_config

MIN_WINDOWS, MAX_WINDOWS = 5, 9
"""Per setting. Five are the fewest whose order says what is noise (`rate_noise`)."""

MIN_WINDOW_SECONDS, GOOD_WINDOW_SECONDS = 0.2, 1.0
"""A window is never shorter than the first; there are more than five where they can be as long as the second."""

_OF_LOADER = (
    *("backend", "readahead_bytes", "verify", "order", "block_shards", "block_nodes"),
    *("cache_dir", "cache_bytes", "fetches"),
)
_SHARED = (*_OF_LOADER, "device", "dtype", "layout", "seed")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Which loaders to measure, each combination of the first four, and how long.

    Attributes:
        num_threads: of the loader; none means 1, 2, 4, ... and every CPU this process may use.
        prefetch: batches worked on ahead; none means 1, 3, and what a loader of so many threads has by default.
        batch_size: samples per step.
        decode: where JPEG is decoded for a GPU.
        seconds: for everything together, the first start excluded.
        target: images/s that are enough; None wants all that there is.

    The others are those of `ProfileConfig`, the same for all loaders.

    Raises:
        ConfigError: a value that no loader takes, or a single combination.
    """

    num_threads: tuple[int, ...] = ()
    prefetch: tuple[int, ...] = ()
    batch_size: tuple[int, ...] = (LoaderConfig.batch_size,)
    decode: tuple[Decode, ...] = (LoaderConfig.decode,)
    seconds: float = 60.0
    target: float | None = None
    backend: Any = ProfileConfig.backend
    readahead_bytes: int = ProfileConfig.readahead_bytes
    verify: Any = ProfileConfig.verify
    order: Any = LoaderConfig.order
    block_shards: int = ProfileConfig.block_shards
    block_nodes: int = ProfileConfig.block_nodes
    cache_dir: str | Path | None = ProfileConfig.cache_dir
    cache_bytes: int | None = ProfileConfig.cache_bytes
    fetches: int = ProfileConfig.fetches
    device: str = ProfileConfig.device
    dtype: Any = ProfileConfig.dtype
    layout: Any = ProfileConfig.layout
    seed: int = ProfileConfig.seed

    def __post_init__(self) -> None:
        for name in ("seconds", "target"):
            if (value := getattr(self, name)) is not None and not 0 < value < inf:
                raise ConfigError(f"{name} must be more than 0 and finite, found {value}")
        self.loaders()

    def loaders(self) -> list[ProfileConfig]:
        """Every combination, as `lmdali profile run` would be told."""
        shared = {name: getattr(self, name) for name in _SHARED}
        threads = self.num_threads or _thread_counts(usable_cpus())
        return [
            ProfileConfig(num_threads=count, prefetch=prefetch, batch_size=size, decode=decode, **shared)
            for size, decode, count in product(self.batch_size, self.decode, threads)
            for prefetch in self.prefetch or sorted({1, 3, default_prefetch(size, count)})
        ]

    def told(self) -> tuple[str, ...]:
        """Options of the loader that are not what a sweep does by itself: a configuration must repeat them."""
        names = ("num_threads", "prefetch", "batch_size", "decode", *_OF_LOADER)
        return tuple(name for name in names if getattr(self, name) != getattr(SweepConfig, name))


def _thread_counts(num_cpus: int) -> tuple[int, ...]:
    doubled = [1 << power for power in range(num_cpus.bit_length())]
    return tuple(dict.fromkeys([*doubled, num_cpus]))


def sweep_datasets(
    datasets: Sequence[Path],
    config: SweepConfig | None = None,
    *,
    augment: AugmentConfig | None = None,
    quiet: bool = False,
) -> SweepReport:
    """Measure a loader for each dataset and combination of settings, a window of each in turn.

    Args:
        datasets: made by `lmdali convert`: the same pictures in several forms.
        config: which loaders, and how long; None takes the defaults.
        augment: what loaders do to images, but for mean and lighting of uint8 pixels; None is the paper's way.
        quiet: no progress.

    Raises:
        ConfigError: options that cannot work together, one setting only, or too many for the seconds.
        InputError: not a finished dataset.
        IntegrityError: the dataset is damaged.
        MachineError: the device or a package is missing.
    """
    config = config or SweepConfig()
    device, manifests = pick_device(config.device), {dataset: load_manifest(dataset) for dataset in datasets}
    machine = machine_facts(device)
    positions = {dataset: Position() for dataset in manifests}
    probes = {
        (dataset, options): SettingProbe(_settled(options.loader_config(dataset, augment)), device, positions[dataset])
        for dataset in manifests
        for options in config.loaders()
    }
    if len(probes) < 2:
        raise ConfigError("one setting has nothing to be compared with: give several, as in -j 1,2,4 --prefetch 1,3")
    for dataset in manifests:  # kernels are compiled once on a machine: that is no setting's cost
        _first_step(next(probe for (home, _), probe in probes.items() if home == dataset))
    start = perf_counter()
    named = {str(number): probe for number, probe in enumerate(probes.values())}
    with settled_heap():
        measure_on(device, named, WindowPlan(seconds=1e-3, windows=1), quiet=True)
        plan = plan_windows(config.seconds, len(probes), perf_counter() - start)
        for probe in probes.values():
            probe.resident_bytes.clear()  # what a process allocates once was in those
        rates = measure_on(device, named, plan, quiet=quiet)
    elapsed = perf_counter() - start
    shared = {name: getattr(config, name) for name in _SHARED}
    shared["augment"] = describe_augment(augment_for(config.dtype, augment))
    settings = tuple(
        SweptSetting(
            dataset=str(dataset),
            encoding=manifests[dataset].encoding,
            num_threads=options.usable_threads,
            prefetch=probe.prefetch,
            batch_size=options.batch_size,
            decode=options.decode,
            backend=probe.backend_name,
            rate=rate,
            resident_bytes=probe.resident,
        )
        for ((dataset, options), probe), rate in zip(probes.items(), rates.values(), strict=True)
    )
    return SweepReport(
        settings=settings,
        shared=shared,
        told=config.told(),
        target=config.target,
        machine=machine,
        seen=(*busy_caution(machine), *_cautions(settings, manifests, config)),
        elapsed_seconds=elapsed,
    )


def plan_windows(seconds: float, num_settings: int, round_seconds: float) -> WindowPlan:
    """Windows that keep to a budget.

    Args:
        seconds: for everything, the trial round included.
        num_settings: that take turns.
        round_seconds: that a round of the shortest windows took: starts and warm-ups are most of it.

    Raises:
        ConfigError: not enough for the fewest and shortest windows.
    """
    left = seconds - round_seconds
    shortest, good = (round_seconds + num_settings * window for window in (MIN_WINDOW_SECONDS, GOOD_WINDOW_SECONDS))
    if left < MIN_WINDOWS * shortest:
        needed = round_seconds + MIN_WINDOWS * shortest
        raise ConfigError(
            f"{num_settings} settings need about {needed:.0f} s for {MIN_WINDOWS} short windows each, found "
            f"{seconds:g}: give --seconds {1.2 * needed:.0f}, or fewer settings"
        )
    windows = min(max(int(left / good), MIN_WINDOWS), MAX_WINDOWS)
    return WindowPlan(seconds=windows * (left / windows - round_seconds) / num_settings, windows=windows)


def _settled(config: LoaderConfig) -> LoaderConfig:
    """As a loader is after its first epoch: one that was just opened would compare all checksums again."""
    return replace(config, verify="never") if config.verify == "first" else config


def _first_step(probe: SettingProbe) -> None:
    with closing(probe.run()) as steps:  # type: ignore[type-var]  # a generator
        next(steps)


def _cautions(
    settings: Sequence[SweptSetting], manifests: Mapping[Path, Manifest], config: SweepConfig
) -> Iterator[str]:
    sizes = {str(home): found.mean_record_bytes for home, found in manifests.items()}
    states = [CacheState.seen(each.rate, None, None, sizes[each.dataset]).state for each in settings]
    if set(states) == {"warm"}:
        yield "all reads came from the page cache, not from the disk: a dataset larger than memory is slower"
    elif from_device := sum(state in ("cold", "mixed") for state in states):
        yield f"{from_device} of {len(settings)} settings read from a device meanwhile, the others from memory"
    if config.verify == "first":
        yield "checksums are compared in the first epoch only (--verify first), and were not while this was measured"
    if len({(found.num_records, found.class_names) for found in manifests.values()}) > 1:
        yield "these datasets do not hold the same pictures: their rates differ for that, too"


@click.command("sweep")
@click.argument(
    "datasets",
    metavar="DATASET...",
    type=DatasetArgument("profile measures this machine's storage"),
    nargs=-1,
    required=True,
)
@swept_options({name: getattr(SweepConfig, name) for name in ("batch_size", "num_threads", "prefetch", "decode")})
@augment_options(WHAT_IS_DONE)
@click.option("--device", default=SweepConfig.device, show_default=True, help="auto, cpu or cuda:N.")
@click.option("--seconds", default=SweepConfig.seconds, show_default=True, help="Seconds for everything together.")
@click.option("--target", type=float, metavar="IMAGES_PER_SECOND", help="Find the cheapest that reaches this.")
@click.option("--seed", default=SweepConfig.seed, show_default=True, help="Seed of order and draws.")
@click.option("--write", type=OUTPUT_FILE, help="Write the best for lmdali train --config (TOML, .json).")
@click.option("--html", type=OUTPUT_FILE, help="Write a page with plots.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def sweep_command(
    datasets: tuple[Path, ...], write: Path | None, html: Path | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Measure loaders of DATASET in many settings, and say which to train with.

    Options with a list take several values, as in -j 1,2,4, and every combination is measured; several DATASETs are
    the same pictures in other forms, such as JPEG and raw. All take turns, a short window each, so that what slows the
    machine down slows all of them. The best takes the fewest CPU seconds per image of those within noise of the fastest
    (or of those that reach --target; exit code 9 if none does). The Pareto front is of rate, CPU seconds and memory.
    """
    augment = take_augment(options)
    report = sweep_datasets(datasets, SweepConfig(**options), augment=augment, quiet=quiet)
    if as_json:
        print_json(report.to_json())
    else:
        print_sweep(report)
    if html is not None:
        write_output(html, sweep_page(report).encode())
    if write is not None:
        write_config(write, report)
    if report.best is None:
        raise ThresholdError(report.why())
