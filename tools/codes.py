"""`lmdali codes`: binary codes of features: trained, written, searched, and compared with the exact search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from lmdali.model.code_network import CodeConfig, encode_features, train_code_network
from lmdali.model.codes_file import (
    CODES_FILE,
    ENCODER_FILE,
    WEIGHTS_FILE,
    WORDS_FILE,
    Codes,
    CodesInfo,
    EncoderInfo,
    load_encoder,
    require_room,
    save_codes,
    save_encoder,
)
from lmdali.model.device import pick_device
from lmdali.model.features_file import load_features
from lmdali.pipeline.errors import InputError
from lmdali.tools.codes_compare import compare_command
from lmdali.tools.codes_search import search_command
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import megabytes, print_json, print_pairs


@dataclass(frozen=True, kw_only=True)
class CodesRun:
    """How `train` and `encode` run.

    Attributes:
        device: auto, cpu or cuda:N.
        overwrite: replace what is there.
        quiet: no progress.
    """

    device: str = "auto"
    overwrite: bool = False
    quiet: bool = False


def train_codes(
    features: Path, out: Path, config: CodeConfig | None = None, how: CodesRun | None = None
) -> tuple[EncoderInfo, np.ndarray[Any, Any]]:
    """Train an encoder on a feature file.

    Returns:
        What it is, and the mean of each bit over the features, `(bits,)` float64.

    Raises:
        InputError: no such features, too few of them, or `out` has content.
        IntegrityError: the features are damaged.
        LmdaliError: the loss is not finite.
        MachineError: the device is not there.
    """
    config, how = config or CodeConfig(), how or CodesRun()
    opened, device = load_features(features), pick_device(how.device)
    require_room(out, (ENCODER_FILE, WEIGHTS_FILE), overwrite=how.overwrite)
    with progress_bar("train", config.epochs, unit="epochs", quiet=how.quiet) as progress:
        network, loss = train_code_network(opened, config, device, on_progress=progress)
    means = encode_features(network, opened).mean(axis=0)
    info = EncoderInfo(
        bits=config.bits,
        dims=opened.plan.dims,
        source=opened.plan.source,
        source_digest=opened.plan.source_digest,
        features_digest=opened.digest,
        loss=loss,
        config=config.to_json(),
    )
    return save_encoder(out, network, info, overwrite=how.overwrite), means


def encode_dataset(features: Path, encoder: Path, out: Path, how: CodesRun | None = None) -> Codes:
    """Write the codes of every record of a feature file.

    Raises:
        InputError: no such features or encoder, features of another model, or `out` has content.
        IntegrityError: a file is damaged.
        MachineError: the device is not there.
    """
    how = how or CodesRun()
    opened = load_features(features)
    network, trained = load_encoder(encoder, pick_device(how.device))
    plan = opened.plan
    if (trained.source_digest, trained.dims) != (plan.source_digest, plan.dims):
        raise InputError(
            f"{encoder}: trained on features by {trained.source} ({trained.source_digest[:12]}), and {features} are "
            f"by {plan.source} ({plan.source_digest[:12]}): use an encoder of the same model"
        )
    require_room(out, (CODES_FILE, WORDS_FILE), overwrite=how.overwrite)
    with progress_bar("encode", len(opened), unit="records", quiet=how.quiet) as progress:
        bits = encode_features(network, opened, on_progress=progress)
    info = CodesInfo(
        bits=trained.bits,
        num_records=plan.num_records,
        dataset=plan.dataset,
        dataset_digest=plan.dataset_digest,
        image_size=plan.image_size,
        source=plan.source,
        source_digest=plan.source_digest,
        encoder=str(encoder.resolve()),
        encoder_digest=trained.weights_sha256,
    )
    return save_codes(out, bits, info, overwrite=how.overwrite)


_CONFIG = CodeConfig()
_PATH = click.Path(path_type=Path)


@click.group("codes")
def command() -> None:
    """Compress features to binary codes, and search these."""


command.add_command(search_command)
command.add_command(compare_command)


@command.command("train")
@click.argument("features", type=_PATH)
@click.argument("encoder", type=_PATH)
@click.option("--bits", type=click.IntRange(1), default=_CONFIG.bits, show_default=True, help="Length of a code.")
@click.option(
    "--epochs", type=click.IntRange(1), default=_CONFIG.epochs, show_default=True, help="Passes over FEATURES."
)
@click.option(
    "-b",
    "--batch-size",
    type=click.IntRange(2),
    default=_CONFIG.batch_size,
    show_default=True,
    help="Records per step.",
)
@click.option("--lr", type=float, default=_CONFIG.lr, show_default=True, help="Learning rate of Adam.")
@click.option("--seed", type=click.IntRange(0), default=_CONFIG.seed, show_default=True, help="Of weights and order.")
@click.option("--device", default=CodesRun.device, show_default=True, help="auto, cpu or cuda:N.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def train(
    features: Path, encoder: Path, device: str, overwrite: bool, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Train an auto-encoder on FEATURES and write its encoder to the directory ENCODER.

    For codes of raw pixels, make features of them: `lmdali features DATASET pixels OUT`.
    """
    how = CodesRun(device=device, overwrite=overwrite, quiet=quiet)
    info, means = train_codes(features, encoder, CodeConfig(**options), how)
    constant = int(((means == 0) | (means == 1)).sum())
    if as_json:
        facts = {"bit_mean_min": float(means.min()), "bit_mean_max": float(means.max()), "constant_bits": constant}
        print_json({"encoder": str(encoder), "bits": info.bits, "loss": info.loss, **facts})
        return
    print_pairs(
        str(encoder),
        [
            ("code", f"{info.bits} bits of {info.dims:,} numbers, by {info.source}"),
            ("mean squared error", f"{info.loss:.4f} of what no code leaves"),
            ("means of the bits", f"{means.min():.2f} to {means.max():.2f}, constant ones: {constant}"),
        ],
    )


@command.command("encode")
@click.argument("features", type=_PATH)
@click.argument("encoder", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--device", default=CodesRun.device, show_default=True, help="auto, cpu or cuda:N.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def encode(features: Path, encoder: Path, out: Path, device: str, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Write the codes that ENCODER gives FEATURES to the directory OUT."""
    codes = encode_dataset(features, encoder, out, CodesRun(device=device, overwrite=overwrite, quiet=quiet))
    info = codes.info
    if as_json:
        print_json({"out": str(out), "bits": info.bits, "num_records": info.num_records, "bytes": codes.words.nbytes})
        return
    print_pairs(
        str(out),
        [
            ("codes", f"{info.num_records:,} of {info.bits} bits, {megabytes(codes.words.nbytes)}"),
            ("of", f"{info.dataset}, by {info.source}"),
        ],
    )
