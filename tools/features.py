"""`lmdali features`: the last hidden layer of a checkpoint for every record of a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click

from lmdali.model.feature_extraction import extract_features
from lmdali.model.features_file import Features, FeaturesPlan, Precision
from lmdali.model.features_writer import FeaturesWriter
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.dataset_place import Place, place_manifest, place_text
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.path_kind import exists
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.exit_codes import Terminated, termination_as_exception
from lmdali.tools.feature_encoder import FeatureEncoder, open_encoder
from lmdali.tools.loader_options import LoaderOptions, loader_options
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import megabytes, print_json, print_pairs


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(LoaderOptions):
    """How to compute features, and what `LoaderOptions` says of the loader.

    Attributes:
        precision: type of the stored numbers; float16 is half the size.
        batch_size: records per step.
        device: auto, cpu or cuda:N.
        basis: directory with the training set's statistics; None means the run's own copy.
        resume: go on with a run that was stopped.
        overwrite: replace what is there.
        quiet: no progress.
    """

    precision: Precision = "float16"
    batch_size: int = 128
    device: str = "auto"
    basis: Place | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False


def compute_features(dataset: Place, source: str, out: Path, config: FeaturesConfig | None = None) -> Features:
    """Compute the features of every record, in record order.

    Args:
        dataset: made by `lmdali convert`; its classes may be others than those of the network.
        source: a checkpoint file, a run directory (its best checkpoint), or "pixels".
        out: directory of the feature file.
        config: see `FeaturesConfig`.

    Raises:
        InputError: no such dataset or checkpoint, `out` has content, or features are not finite.
        IntegrityError: the checkpoint or the dataset is damaged.
        LockedError: another run writes to `out`.
        StorageError: `out` cannot be written.
        MachineError: the device is not there.
    """
    config = config or FeaturesConfig()
    manifest = place_manifest(dataset, cache_dir=config.cache_dir)
    own = {"basis": config.basis, "cache_dir": config.cache_dir}
    encoder = open_encoder(source, manifest.image_size, device=config.device, **own)
    plan = FeaturesPlan(
        dataset=place_text(dataset),
        dataset_digest=manifest.digest,
        source=encoder.source if encoder.class_names is None else str(Path(encoder.source).resolve()),
        source_digest=encoder.digest,
        num_records=manifest.num_records,
        dims=encoder.dims,
        precision=config.precision,
        image_size=manifest.image_size,
        batch_size=config.batch_size,
        device=encoder.device.type,
    )
    writer = FeaturesWriter(out, plan)
    with (
        writer.hold(resume=config.resume, overwrite=config.overwrite),
        create_loader(_loader_config(dataset, encoder, config), device=encoder.device, rank=0, world_size=1) as loader,
        progress_bar("features", manifest.num_records, quiet=config.quiet) as progress,
    ):
        if loader.manifest_digest != plan.dataset_digest:
            raise InputError(f"{place_text(dataset)}: was replaced while features were begun: run again")
        _go_to(loader, writer.num_done)
        extract_features(encoder.network, loader, writer, encoder.device, on_progress=progress)
        return writer.publish()


def _loader_config(dataset: Place, encoder: FeatureEncoder, config: FeaturesConfig) -> LoaderConfig:
    return LoaderConfig(
        dataset=dataset,
        batch_size=config.batch_size,
        augment=encoder.augment,
        order="sequential",
        layout="NHWC",
        basis=encoder.basis,
        **config.loader_arguments(),
    )


def _go_to(loader: DatasetLoader, record: int) -> None:
    """Place the loader at a record; the digest of those before it is nobody's business here."""
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "sample_in_epoch": record, "epoch_digest": None})


_DEFAULTS = FeaturesConfig()


@click.command("features")
@click.argument("dataset", type=DATASET)
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default=_DEFAULTS.precision,
    show_default=True,
    help="Of the stored numbers.",
)
@click.option(
    "-b",
    "--batch-size",
    type=click.IntRange(1),
    default=_DEFAULTS.batch_size,
    show_default=True,
    help="Records per step.",
)
@click.option("--device", default=_DEFAULTS.device, show_default=True, help="auto, cpu or cuda:N.")
@loader_options
@click.option(
    "--basis",
    type=DATASET,
    help="Directory with the training set's statistics.json.  [default: the run's copy]",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(dataset: Place, checkpoint: str, out: Path, as_json: bool, **options: Any) -> None:
    """Write the activations of fc7 of CHECKPOINT for every record of DATASET to OUT.

    After ReLU, with dropout in test mode, of the central crop: 4096 numbers per record for the paper's network. The
    word `pixels` in place of CHECKPOINT takes the pictures themselves, averaged down to 32 x 32. A run that was stopped
    goes on with --resume, to the same bytes.
    """
    try:
        with termination_as_exception():
            features = compute_features(dataset, checkpoint, out, FeaturesConfig(**options))
    except (KeyboardInterrupt, Terminated):
        if exists(out):
            click.echo(f"finished shards are kept in {out}: the same command with --resume goes on from them", err=True)
        raise
    plan = features.plan
    if as_json:
        print_json({"out": str(out), "digest": features.digest, **plan.to_json()})
        return
    size = plan.num_records * plan.dims * (2 if plan.precision == "float16" else 4)
    print_pairs(
        str(out),
        [
            ("records, dimensions", f"{plan.num_records:,}, {plan.dims:,}"),
            ("size", f"{megabytes(size)} of {plan.precision}, shards: {len(plan.shards())}"),
            ("of", f"{plan.dataset}, by {plan.source}"),
            ("digest", features.digest),
        ],
    )
