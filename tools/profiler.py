"""`lmdali profile`: how fast each part is alone, how fast the training step is, and what holds it back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, get_args

import click
import torch
from torch import nn

from lmdali.model.device import pick_devices
from lmdali.model.parallel import Ranks, process_group
from lmdali.model.torchrun import TorchrunPlace, torchrun_place
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.cpu_budget import rank_cpus
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.nvtx_ranges import marked
from lmdali.pipeline.path_kind import exists
from lmdali.pipeline.remote_address import redacted
from lmdali.tools.accelerator_command import au_command
from lmdali.tools.augment_options import WHAT_IS_DONE, augment_options, take_augment
from lmdali.tools.ceiling_probes import ceiling_probes
from lmdali.tools.cold_run import CacheState, measure_cold
from lmdali.tools.dali_operators import measure_operators
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.foreign_loader import load_factory
from lmdali.tools.foreign_profile import profile_iterable
from lmdali.tools.loader_options import epoch_options, form_options, loader_options
from lmdali.tools.lock_wait import idle_lock_wait
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import Rate, WindowPlan
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.page_cache import data_files, resident_share
from lmdali.tools.profile_compare import compare_command
from lmdali.tools.profile_config import ProfileConfig as ProfileConfig
from lmdali.tools.profile_config import ProfileParallel
from lmdali.tools.profile_facts import (
    cautions_on,
    epoch_gap,
    evidence_of,
    judged_cold,
    look_inside,
    setting_of,
    situation_of,
)
from lmdali.tools.profile_page import report_command
from lmdali.tools.profile_sweep import sweep_command
from lmdali.tools.profiled_model import kept_generators, place_model, require_trainable, training_step
from lmdali.tools.rank_profile import measure_job
from lmdali.tools.rank_report import judged_by_ranks
from lmdali.tools.report_table import print_json
from lmdali.tools.step_probes import LoaderProbe, Step, first_batch, measure_on, step_probes
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
    """Measure the parts of a loader, the loader, a model, and the model fed by it; under torchrun, all ranks call this.

    Args:
        dataset: made by `lmdali convert`.
        config: how; None takes the defaults.
        model: trains on the batches: a module, which is moved to the device and whose weights stay nearly what they
            are; "alexnet" of `config.width`; or None to measure the loader only.
        augment: what the loader does to the images, but for mean and lighting of uint8 pixels; None is the paper's way.
        try_suggestion: measure what the report suggests, too.
        trace: file for a trace of the loader alone, in Chrome's format, which Perfetto reads.
        quiet: no progress.

    Raises:
        ConfigError: options that cannot work together.
        InputError: not a finished dataset.
        IntegrityError: the dataset is damaged.
        MachineError: the device or a package is missing, or another rank is gone.
    """
    config = config or ProfileConfig()
    require_trainable(model, augment)
    place = torchrun_place(config.parallel)
    if try_suggestion and place.world_size > 1:
        raise ConfigError("--try measures a loader while all else is quiet: profile one process without torchrun")
    if config.cold and place.world_size > 1:
        raise ConfigError("--cold drops a page cache that all ranks share: profile one process without torchrun")
    device = pick_devices(config.parallel, config.device, "", place)[0]
    with process_group(place, device) as ranks:
        quiet, trace = quiet or not ranks.is_first, trace if ranks.is_first else None
        options: dict[str, Any] = {"model": model, "augment": augment, "try_suggestion": try_suggestion, "trace": trace}
        return _profile(dataset, config, device, ranks, place, **options, quiet=quiet)


def _profile(
    dataset: Path,
    config: ProfileConfig,
    device: torch.device,
    ranks: Ranks,
    place: TorchrunPlace,
    *,
    model: nn.Module | Literal["alexnet"] | None,
    augment: AugmentConfig | None,
    try_suggestion: bool,
    trace: Path | None,
    quiet: bool,
) -> ThroughputReport:
    machine, idle = machine_facts(device), idle_lock_wait()
    manifest = load_manifest(dataset)
    loader_config = config.loader_config(dataset, augment)
    paths = data_files(dataset)
    record_bytes = manifest.mean_record_bytes
    plan, cold = config.window_plan(), None
    if config.cold:  # first: later the dataset is mapped, and mapped pages cannot be dropped
        cold = measure_cold(loader_config, plan, record_bytes=record_bytes, quiet=quiet)
    resident, start = resident_share(paths), perf_counter()
    part = {"rank": ranks.rank, "world_size": ranks.world_size}
    with create_loader(loader_config, device, **part) as loader, kept_generators(device):
        ranges = config.ranges()
        loader.timers.annotate(ranges)
        first = first_batch(loader)
        first_seconds = perf_counter() - start
        trained = place_model(model, num_classes=len(manifest.class_names), width=config.width, device=device)
        step: Step | None = None
        if trained is not None:
            step = marked(ranges, "step", training_step(trained, dtype=config.dtype, device=device))
        probes = ceiling_probes(loader_config, manifest, device)
        probes |= step_probes(partial(LoaderProbe, loader), first, trained, step)
        rates = measure_on(device, probes, plan, quiet=quiet)

        def fed(update: Step) -> LoaderProbe:
            return LoaderProbe(loader, marked(ranges, "step", update))

        own, (rates, job) = rates, measure_job(ranks, rates, fed, trained, config, device, quiet=quiet)
        is_dali = loader.backend_name == "dali"
        operators = measure_operators(loader_config, device, plan, quiet=quiet) if is_dali else None
        inside, lock = look_inside(loader, plan, idle, trace)
        setting = setting_of(dataset, manifest, config, loader, device, trained, loader_config.augment)
        evidence = evidence_of(own, setting, rank_cpus())
        verdict = judged_by_ranks(judged_cold(judge(evidence), cold), job)
        cache = CacheState.seen(rates["loader"], resident, resident_share(paths), record_bytes)
        memory = None if machine["memory_bytes"] is None else machine["memory_bytes"] // place.local_world_size
        situation = situation_of(verdict, own, evidence, config, manifest, memory, cache)
        suggestion = suggest(situation)
        if try_suggestion and suggestion is not None:
            changed = replace(config, **suggestion.changes)
            found = _try(changed.loader_config(dataset, augment), plan, step, device, quiet=quiet)
            suggestion = replace(suggestion, measured_images_per_second=found.images_per_second)
    measured: dict[str, Any] = rates
    return ThroughputReport(
        setting=setting,
        time_to_first_batch_seconds=first_seconds,
        epoch_gap_seconds=epoch_gap(probes),
        verdict=verdict,
        suggestion=suggestion,
        machine=machine,
        cautions=cautions_on(cache, machine, config, lock),
        cache=cache,
        cold=cold,
        what_if=tuple(answer(question, situation, record_bytes) for question in config.what_if),
        inside=inside,
        lock=lock,
        dali_operators=operators,
        ranks=job,
        **measured,
    )


def _try(config: LoaderConfig, plan: WindowPlan, step: Step | None, device: torch.device, *, quiet: bool) -> Rate:
    """The rate of another loader, with the training step where there is one."""
    with create_loader(config, device, rank=0, world_size=1) as loader:
        if config.decoded_cache_bytes:
            for _ in loader:  # the cache is filled in an epoch and pays off in those after it
                pass
        return measure_on(device, {"trial": LoaderProbe(loader, step)}, plan, quiet=quiet)["trial"]


class _Profiles(click.Group):
    """Names `run` to whoever left it out."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and ("://" in args[0] or exists(Path(args[0]))):
            given = redacted(args[0])
            ctx.fail(f"No such command {given!r}. Did you mean `lmdali profile run {given}`?")
        return super().resolve_command(ctx, args)


@click.group("profile", cls=_Profiles)
def command() -> None:
    """Say where a training run's time goes."""


command.add_command(compare_command)
command.add_command(report_command)
command.add_command(au_command)
command.add_command(sweep_command)


@command.command("run")
@click.argument("dataset", type=DATASET, required=False)
@click.option("--loader", "factory", metavar="MODULE:FUNCTION", help="Any loader instead of ours: what this returns.")
@click.option("-b", "--batch-size", default=ProfileConfig.batch_size, show_default=True, help="Samples per step.")
@loader_options
@epoch_options
@form_options
@augment_options(WHAT_IS_DONE)
@click.option("--device", default=ProfileConfig.device, show_default=True, help="auto, cpu or cuda:N.")
@click.option(
    "--parallel",
    type=click.Choice(get_args(ProfileParallel)),
    default=ProfileConfig.parallel,
    show_default=True,
    help="One process, or one per device under torchrun, which are told apart in one report.",
)
@click.option(
    "--width", default=ProfileConfig.width, show_default=True, help="Factor on the AlexNet's widths; 1 is the paper's."
)
@click.option("--seconds", default=ProfileConfig.seconds, show_default=True, help="Seconds for each measurement.")
@click.option("--steps", type=click.IntRange(1), help="Steps for each measurement, instead of --seconds.")
@click.option("--seed", default=ProfileConfig.seed, show_default=True, help="Seed of order and draws.")
@click.option(
    "--what-if",
    multiple=True,
    metavar="CASE",
    help="Predict: cpus=16, gpus=2, disk=500MB/s or raw; with commas all at once, repeated each by itself.",
)
@click.option("--cold", is_flag=True, help="Drop the dataset from the page cache and measure that, too.")
@click.option("--try", "try_it", is_flag=True, help="Measure the setting that the report suggests, too.")
@click.option("--trace", type=OUTPUT_FILE, help="Write a trace of the loader: ui.perfetto.dev reads it.")
@click.option("--nvtx", is_flag=True, help="Mark stages and steps as NVTX ranges, for Nsight Systems.")
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

    Several ranks, each with batches of -b images: torchrun --nproc-per-node 2 -m lmdali.tools profile run DATASET
    --parallel ddp. Where one holds up the others, the verdict is STRAGGLER with its number.

    Stages of the loader: read finds records, verify compares CRCs, decode goes from JPEG bytes to the planes in the
    file (entropy decoding, IDCT), augment from these or from raw pixels to the batch (upsampling, colour, crop, flip,
    normalisation). Pages that are not in memory are paid for by the stage that touches them first.
    """
    augment, config = take_augment(options), ProfileConfig(**options)
    model: Literal["alexnet"] | None = None if no_model else "alexnet"
    if (dataset is None) == (factory is None):
        raise click.UsageError("give either a DATASET or --loader MODULE:FUNCTION")
    if factory is not None and (trace is not None or try_it):
        raise click.UsageError("--trace and --try are for a loader of ours: give a DATASET")
    if factory is not None:
        report = profile_iterable(load_factory(factory), factory, config, model=model, quiet=quiet)
    elif isinstance(dataset, str):
        if try_it:
            raise click.UsageError("--try needs the dataset on this machine: bring it here with `lmdali stage`")
        report = profile_address(dataset, config, model=model, augment=augment, trace=trace, quiet=quiet)
    else:
        assert dataset is not None
        asked: dict[str, Any] = {"augment": augment, "try_suggestion": try_it, "trace": trace}
        report = profile_dataset(dataset, config, model=model, **asked, quiet=quiet)
    if torchrun_place(config.parallel).rank:
        return  # the first one has it all
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
