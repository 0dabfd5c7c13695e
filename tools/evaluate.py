"""`lmdali eval`: errors of a network, or of the average of several, on one view per picture or ten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click

from lmdali.model.device import pick_devices
from lmdali.model.ensemble import average_probabilities, ensemble_weights
from lmdali.model.error_analysis import analyse
from lmdali.model.parallel import process_group
from lmdali.model.probabilities_file import Probabilities, check_probabilities_name, save_probabilities
from lmdali.model.torchrun import torchrun_place
from lmdali.pipeline.dataset_place import Place, place_manifest
from lmdali.pipeline.errors import ConfigError
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.evaluation_page import save_evaluation_page
from lmdali.tools.evaluation_report import EvalReport, MemberFigures, print_evaluation
from lmdali.tools.loader_options import LoaderOptions, loader_options
from lmdali.tools.member_probabilities import EvaluationSet, agreed_views, member_probabilities
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.readable_names import readable_classes
from lmdali.tools.report_table import print_json

EvalParallel = Literal["none", "ddp"]
"""One process, or those that torchrun started, which share the images."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(LoaderOptions):
    """How to evaluate, and what `LoaderOptions` says of the loader.

    Attributes:
        views: 1 central crop, or 10: four corners, centre, and their mirror images. None: 1, or as many as the files of
            probabilities have.
        weights: of the networks in their average; None for equal ones.
        batch_size: samples per step of each process; None means as many as make 128 views.
        device: auto, cpu or cuda:N.
        parallel: one process, or one per device under torchrun.
        basis: directory with the training set's statistics; None means each run's own copy.
        names: synset file, see `readable_classes`.
        save_probabilities: file for the averaged probabilities of each image; None for none.
        quiet: no progress.
    """

    views: int | None = None
    weights: tuple[float, ...] | None = None
    batch_size: int | None = None
    device: str = "auto"
    parallel: EvalParallel = "none"
    basis: Place | None = None
    names: Path | None = None
    save_probabilities: Path | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views not in (None, 1, 10):
            raise ConfigError(f"views must be 1 or 10, found {self.views}")
        if self.save_probabilities is not None:
            check_probabilities_name(self.save_probabilities)


def evaluate_networks(dataset: Place, sources: Sequence[Path], config: EvalConfig | None = None) -> EvalReport:
    """Evaluate networks, and the average of their probabilities, on a dataset; under torchrun, all ranks call this.

    Every figure is computed from float32 probabilities of all images, which ranks put together before: however many
    there are, the sums are the same.

    Args:
        dataset: made by `lmdali convert`, of the classes that the networks were trained on.
        sources: of each network its checkpoint file, its run directory, which means its best checkpoint, or a file of
            probabilities that was saved earlier.
        config: see `EvalConfig`.

    Raises:
        ConfigError: no source, weights that do not fit, or ranks without torchrun.
        InputError: no such checkpoint or file, other classes or another order of them, another dataset, other views, or
            the training set's statistics are not at hand.
        IntegrityError: a checkpoint, a file or the dataset is damaged.
        MachineError: the device is not there, or another rank is gone.
        StorageError: the probabilities cannot be written.
    """
    config = config or EvalConfig()
    if not sources:
        raise ConfigError("no network to evaluate: give a checkpoint, a run directory or a file of probabilities")
    weights = ensemble_weights(config.weights, len(sources))
    manifest = place_manifest(dataset, cache_dir=config.cache_dir)
    readable = readable_classes(manifest.class_names, config.names)
    place = torchrun_place(config.parallel)
    device = pick_devices(config.parallel, config.device, "", place)[0]
    with process_group(place, device) as ranks:
        asked = EvaluationSet(
            dataset=dataset,
            manifest=manifest,
            num_views=agreed_views(sources, config.views),
            batch_size=config.batch_size,
            device=str(device),
            basis=config.basis,
            loader_arguments=config.loader_arguments(),
            quiet=config.quiet or not ranks.is_first,
        )
        members = [member_probabilities(asked, source, ranks) for source in sources]
        averaged = members[0] if len(members) == 1 else _average(members, weights)
        if config.save_probabilities is not None:
            path = config.save_probabilities
            ranks.on_first(lambda: save_probabilities(path, averaged))
        return EvalReport(
            dataset=dataset,
            members=tuple(map(_figures, sources, members, weights)),
            analysis=analyse(averaged.values, averaged.labels),
            probabilities=averaged,
            class_names=readable,
            world_size=ranks.world_size,
            cache_dir=config.cache_dir,
            cache_bytes=config.cache_bytes,
        )


def _average(members: Sequence[Probabilities], weights: Sequence[float]) -> Probabilities:
    first = members[0]
    sources = [{**member.source, "weight": weight} for member, weight in zip(members, weights, strict=True)]
    return Probabilities(
        values=average_probabilities([member.values for member in members], weights),
        labels=first.labels,
        class_names=first.class_names,
        dataset_digest=first.dataset_digest,
        num_views=first.num_views,
        source={"networks": sources},
    )


def _figures(path: Path, member: Probabilities, weight: float) -> MemberFigures:
    alone = analyse(member.values, member.labels)
    return MemberFigures(
        path=path,
        source=member.source,
        weight=weight,
        top1_error=alone.top1_error,
        top5_error=alone.top5_error,
        loss=alone.loss,
    )


_DEFAULTS = EvalConfig()


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Weights from `2,1,1`."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} are no numbers such as 2,1,1", context, parameter) from None


@click.command("eval")
@click.argument("val", type=DATASET)
@click.argument("checkpoint", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--views",
    type=click.Choice(["1", "10"]),
    help="Central crop, or ten crops with averaged probabilities.  [default: 1, or what files have]",
)
@click.option("--weights", callback=_numbers, help="Of each network in the average, such as 2,1,1.  [default: equal]")
@click.option(
    "-b",
    "--batch-size",
    type=click.IntRange(min=1),
    default=_DEFAULTS.batch_size,
    help="Samples per step.  [default: 128 divided by the views]",
)
@click.option("--device", default=_DEFAULTS.device, show_default=True, help="auto, cpu or cuda:N.")
@click.option(
    "--parallel",
    type=click.Choice(get_args(EvalParallel)),
    default=_DEFAULTS.parallel,
    show_default=True,
    help="One process, or one per device under torchrun, which share the images.",
)
@loader_options
@click.option(
    "--basis",
    type=DATASET,
    default=_DEFAULTS.basis,
    help="Directory with the training set's statistics.json.  [default: each run's copy]",
)
@click.option("--names", type=click.Path(path_type=Path), help="Synset file: lines of CLASS NAME, SYNONYM, ...")
@click.option(
    "--save-probabilities",
    type=OUTPUT_FILE,
    default=_DEFAULTS.save_probabilities,
    help="Write each image's averaged probabilities to this .npz file, which eval takes in place of a checkpoint.",
)
@click.option(
    "--html",
    "page",
    type=OUTPUT_FILE,
    help="Write a page with plots and the worst mistakes to this file.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, default=_DEFAULTS.quiet, help="No progress.")
def command(
    val: Place, checkpoint: tuple[Path, ...], views: str | None, page: Path | None, as_json: bool, **options: Any
) -> None:
    """Evaluate CHECKPOINT on the dataset VAL, or several of them and the average of their probabilities.

    CHECKPOINT is a checkpoint file, a run directory, which means its best checkpoint, or an .npz file of probabilities
    that --save-probabilities wrote.
    """
    config = EvalConfig(views=None if views is None else int(views), **options)
    report = evaluate_networks(val, checkpoint, config)
    if torchrun_place(config.parallel).rank:
        return
    if page is not None:
        save_evaluation_page(report, page)
    if as_json:
        print_json(report.to_json())
        return
    print_evaluation(report)
    for name, written in (("page", page), ("probabilities", config.save_probabilities)):
        if written is not None:
            print(f"{name}: {written}")
