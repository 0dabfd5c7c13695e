"""`lmdali profile`: how fast each part is alone, how fast the training step is, and what holds it back."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import click
import torch
from torch import nn

from lmdali.model.device import pick_device
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import Manifest, load_manifest
from lmdali.tools.accelerator_command import au_command
from lmdali.tools.ceilings import copy_probe, decode_probe, read_probe, sample_records
from lmdali.tools.cold_run import CacheState, measure_cold
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.foreign_loader import load_factory
from lmdali.tools.foreign_profile import profile_iterable
from lmdali.tools.loader_options import epoch_options, form_options, loader_options
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import Probe, Rate, WindowPlan
from lmdali.tools.page_cache import data_files, resident_share
from lmdali.tools.profile_compare import compare_command
from lmdali.tools.profile_config import ProfileConfig as ProfileConfig
from lmdali.tools.profile_facts import cautions_on, epoch_gap, evidence_of, judged_cold, setting_of, situation_of
from lmdali.tools.profile_page import report_command
from lmdali.tools.profiled_model import place_model, resting_optimizer, training_step
from lmdali.tools.report_table import print_json
from lmdali.tools.stage_detail import StageDetail, record_stages, write_trace
from lmdali.tools.step_probes import LoaderProbe, ModelProbe, OptimizerProbe, Step, measure_on
from lmdali.tools.streamed_profile import profile_address
from lmdali.tools.suggestion import suggest
from lmdali.tools.throughput import ThroughputReport
from lmdali.tools.throughput_tables import print_report
from lmdali.tools.verdict import judge
from lmdali.tools.what_if import answer


def profile_dataset(
    dataset: Path,
    config: ProfileConfig | None = None,
    *,
    model: nn.Module | Literal["alexnet"] | None = "alexnet",
    augment: AugmentConfig | None = None,
    try_suggestion: bool = False,
    trace: Path | None = None,
    quiet: bool = False,
) -> ThroughputReport:
    """Measure the parts of a loader, the loader, a model, and the model fed by the loader.

    Args:
        dataset: made by `lmdali convert`.
        config: how; None takes the defaults.
        model: trains on the batches: a module, which is moved to the device and whose weights stay nearly what they
            are; "alexnet" of `config.width`; or None to measure the loader only.
        augment: what the loader does to the images; None is the paper's way, or plain pixels where the dtype is uint8.
        try_suggestion: measure what the report suggests, too.
        trace: file for a trace of the loader alone, in Chrome's format, which Perfetto reads.
        quiet: no progress.

    Raises:
        ConfigError: options that cannot work together.
        InputError: not a finished dataset.
        IntegrityError: the dataset is damaged.
        MachineError: the device or a package is missing.
    """
    config = config or ProfileConfig()
    device = pick_device(config.device)
    machine = machine_facts(device)
    manifest = load_manifest(dataset)
    loader_config = config.loader_config(dataset, augment)
    paths = data_files(dataset)
    record_bytes = manifest.payload_bytes / manifest.num_records
    cold = None
    if config.cold:  # first: later the dataset is mapped, and mapped pages cannot be dropped
        plan, threads = config.window_plan(), config.usable_threads
        cold = measure_cold(loader_config, plan, num_threads=threads, record_bytes=record_bytes, quiet=quiet)
    resident, start = resident_share(paths), perf_counter()
    # Rank and world size are given: under torchrun, too, this measures one process on its own.
    with create_loader(loader_config, device, rank=0, world_size=1) as loader, torch.random.fork_rng():
        first = _first_batch(loader)
        first_seconds = perf_counter() - start
        trained = place_model(model, num_classes=len(manifest.class_names), width=config.width, device=device)
        step = None
        if trained is not None:
            step = training_step(trained, resting_optimizer(trained), dtype=config.dtype, device=device)
        probes = _ceiling_probes(dataset, manifest, config)
        if trained is not None:
            probes["optimizer"] = OptimizerProbe(trained, config.batch_size)
        probes |= _step_probes(loader, loader_config.prefetch, first, step)
        rates = measure_on(device, probes, config.window_plan(), quiet=quiet)
        recording = record_stages(loader, loader_config.prefetch, config.window_plan())
        if trace is not None:
            write_trace(trace, recording)
        setting = setting_of(dataset, manifest, config, loader, device, trained)
        verdict = judged_cold(judge(evidence_of(rates, setting)), cold)
        situation = situation_of(verdict, rates, setting, config, manifest, machine["memory_bytes"])
        suggestion = suggest(situation)
        if try_suggestion and suggestion is not None:
            changed = replace(config, **suggestion.changes)
            found = _try(changed.loader_config(dataset, augment), changed.window_plan(), step, device, quiet=quiet)
            suggestion = replace(suggestion, measured_images_per_second=found.images_per_second)
    cache = CacheState.seen(rates["loader"], resident, resident_share(paths), record_bytes)
    return ThroughputReport(
        setting=setting,
        read=rates["read"],
        decode=rates.get("decode"),
        decode_one_thread=rates.get("decode_one_thread"),
        memory_copy=rates.get("memory_copy"),
        loader=rates["loader"],
        model=rates.get("model"),
        together=rates.get("together"),
        time_to_first_batch_seconds=first_seconds,
        epoch_gap_seconds=epoch_gap(probes),
        verdict=verdict,
        suggestion=suggestion,
        machine=machine,
        cautions=cautions_on(cache, machine, config),
        cache=cache,
        cold=cold,
        what_if=tuple(answer(question, situation, record_bytes) for question in config.what_if),
        optimizer=rates.get("optimizer"),
        inside=StageDetail.of(recording),
    )


def _first_batch(loader: DatasetLoader) -> Batch:
    with closing(iter(loader)) as batches:  # type: ignore[type-var]  # a generator
        return next(batches)


def _ceiling_probes(dataset: Path, manifest: Manifest, config: ProfileConfig) -> dict[str, Probe]:
    threads, size = config.usable_threads, manifest.image_size
    sample = sample_records(dataset, seed=config.seed)
    probes: dict[str, Probe] = {"read": read_probe(dataset, num_threads=threads, seed=config.seed)}
    if manifest.encoding == "raw":
        probes["memory_copy"] = copy_probe(sample, size, num_threads=threads)
    else:
        probes["decode"] = decode_probe(sample, size, num_threads=threads)
        probes["decode_one_thread"] = decode_probe(sample, size, num_threads=1)
    return probes


def _step_probes(loader: DatasetLoader, prefetch: int, first: Batch, step: Step | None) -> dict[str, Probe]:
    alone: dict[str, Probe] = {"loader": LoaderProbe(loader, prefetch)}
    if step is None:
        return alone
    return alone | {"model": ModelProbe(step, first), "together": LoaderProbe(loader, prefetch, step)}


def _try(config: LoaderConfig, plan: WindowPlan, step: Step | None, device: torch.device, *, quiet: bool) -> Rate:
    """The rate of another loader, with the training step where there is one."""
    with create_loader(config, device, rank=0, world_size=1) as loader:
        if config.decoded_cache_bytes:
            for _ in loader:  # the cache is filled in an epoch and pays off in those after it
                pass
        return measure_on(device, {"trial": LoaderProbe(loader, config.prefetch, step)}, plan, quiet=quiet)["trial"]


@click.group("profile")
def command() -> None:
    """Say where a training run's time goes."""


command.add_command(compare_command)
command.add_command(report_command)
command.add_command(au_command)


@command.command("run")
@click.argument("dataset", type=DATASET, required=False)
@click.option("--loader", "factory", metavar="MODULE:FUNCTION", help="Any loader instead of ours: what this returns.")
@click.option("-b", "--batch-size", default=ProfileConfig.batch_size, show_default=True, help="Samples per step.")
@loader_options
@epoch_options
@form_options
@click.option("--device", default=ProfileConfig.device, show_default=True, help="auto, cpu or cuda:N.")
@click.option("--width", default=ProfileConfig.width, show_default=True, help="Of the AlexNet; 1 is the paper's.")
@click.option("--seconds", default=ProfileConfig.seconds, show_default=True, help="For each measurement.")
@click.option("--steps", type=click.IntRange(1), help="For each measurement, instead of seconds.")
@click.option("--seed", default=ProfileConfig.seed, show_default=True, help="Of order and draws.")
@click.option("--what-if", multiple=True, metavar="CASE", help="Predict: cpus=16, disk=500MB/s or raw; repeatable.")
@click.option("--cold", is_flag=True, help="Drop the dataset from the page cache and measure that, too.")
@click.option("--try", "try_it", is_flag=True, help="Measure the setting that the report suggests, too.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write a trace of the loader: ui.perfetto.dev reads it.")
@click.option("--no-model", is_flag=True, help="Measure the loader only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def run(
    dataset: Path | str | None,
    factory: str | None,
    try_it: bool,
    trace: Path | None,
    no_model: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure DATASET: ceilings first, then the loader, an AlexNet, and the AlexNet fed by the loader.

    With --loader the batches are somebody else's: MODULE:FUNCTION (MODULE is looked for here, too) is called and
    returns any iterable of (images, labels): a torch DataLoader, a DALI iterator, a generator. Its parts cannot be
    measured from outside; of our options -b, -j and the like do nothing then.

    DATASET may be an address: shards are fetched into the cache, and instead of this machine's storage the report has
    what fetching costs, whether somebody waits for it, and the bandwidth that the run needs.

    Stages of the loader: read finds records, verify compares CRCs, decode goes from JPEG bytes to the planes in the
    file (entropy decoding, IDCT), augment from these or from raw pixels to the batch (upsampling, colour, crop, flip,
    normalisation). Pages that are not in memory are paid for by the stage that touches them first.
    """
    config = ProfileConfig(**options)
    model: Literal["alexnet"] | None = None if no_model else "alexnet"
    if (dataset is None) == (factory is None):
        raise click.UsageError("give either a DATASET or --loader MODULE:FUNCTION")
    if factory is not None and trace is not None:
        raise click.UsageError("--trace looks inside a loader of ours: give a DATASET")
    if factory is not None:
        report = profile_iterable(load_factory(factory), factory, config, model=model, quiet=quiet)
    elif isinstance(dataset, str):
        if try_it:
            raise click.UsageError("--try needs the dataset on this machine: bring it here with `lmdali stage`")
        report = profile_address(dataset, config, model=model, trace=trace, quiet=quiet)
    else:
        assert dataset is not None
        report = profile_dataset(dataset, config, model=model, try_suggestion=try_it, trace=trace, quiet=quiet)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
