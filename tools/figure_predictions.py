"""`lmdali figure predictions`: figure 4, left, of the paper for any dataset and checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from lmdali.model.evaluator import network_input
from lmdali.model.metrics import average_log_probabilities
from lmdali.model.picture_file import check_suffix, save_picture
from lmdali.model.prediction_figure import Prediction, draw_predictions, rank_classes
from lmdali.pipeline.dataset_place import Place, place_manifest, place_shown
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.files import write_json
from lmdali.tools.checkpoint_network import CheckpointNetwork, open_network
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.loader_options import cache_options
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.readable_names import readable_classes
from lmdali.tools.record_pictures import RecordPictures, central_crop, central_views, read_records, spread_indices
from lmdali.tools.report_table import print_json

_BATCH = 64


def figure_predictions(
    val: Place,
    checkpoint: Path,
    out: Path,
    *,
    count: int = 8,
    indices: Sequence[int] | None = None,
    names: Path | None = None,
    device: str = "auto",
    basis: Place | None = None,
    cache_dir: Place | None = None,
    cache_bytes: int | None = None,
) -> dict[str, Any]:
    """Draw some records with the five labels that a network finds most probable, from the central crop.

    Args:
        val: a dataset of the classes that the network was trained on.
        checkpoint: a checkpoint file, or a run directory.
        out: picture to write; the same as JSON goes beside it.
        count: records at even distances, where `indices` are not given.
        indices: record numbers.
        names: synset file, see `readable_classes`.
        device: auto, cpu or cuda:N.
        basis: directory with the training set's statistics; None means the run's own copy.
        cache_dir, cache_bytes: for datasets at an address, as of `LoaderConfig`.

    Returns:
        The JSON document.

    Raises:
        ConfigError: no such record, none at all, or no format for `out`.
        InputError: no such dataset or checkpoint, other classes, or a wrong synset file.
        IntegrityError: the checkpoint or the dataset is damaged.
    """
    check_suffix(out)
    manifest = place_manifest(val, cache_dir=cache_dir)
    network = open_network(checkpoint, device=device, basis=basis, cache_dir=cache_dir)
    network.require_classes(manifest.class_names, val)
    readable = readable_classes(manifest.class_names, names)
    indices = spread_indices(count, manifest.num_records) if indices is None else indices
    records = read_records(val, indices, cache_dir=cache_dir, cache_bytes=cache_bytes)
    if not records.indices:
        raise ConfigError(f"{place_shown(val)}: no record to draw: give --count or --indices")
    crops = central_crop(records.pixels, network.augment().crop_size)
    rows = zip(crops, records.labels, central_probabilities(network, records), strict=True)
    predictions = [rank_classes(pixels, label, values, readable) for pixels, label, values in rows]
    save_picture(draw_predictions(predictions), out)
    document = _document(val, network, records, predictions)
    write_json(out.with_suffix(".json"), document)
    return document


@torch.no_grad()
def central_probabilities(network: CheckpointNetwork, records: RecordPictures) -> Tensor:
    """`(n, C)` float32 on the CPU: the softmax of each record's central crop."""
    found = []
    for start in range(0, len(records.pixels), _BATCH):
        views = central_views(records.pixels[start : start + _BATCH], network.augment(), network.basis)
        images = network_input(torch.from_numpy(views), network.device, channels_last=True)
        found.append(average_log_probabilities(network.model(images), 1).exp().cpu())
    return torch.cat(found)


def _document(
    val: Place, network: CheckpointNetwork, records: RecordPictures, predictions: Sequence[Prediction]
) -> dict[str, Any]:
    classes = records.manifest.class_names

    def named(label: int, readable: Sequence[str]) -> dict[str, Any]:
        return {"label": label, "class": classes[label], "name": readable[label]}

    return {
        "figure": "predictions",
        "dataset": place_shown(val),
        "dataset_digest": records.manifest.digest,
        "checkpoint": str(network.path),
        "checkpoint_digest": network.digest,
        "images": [
            {
                "record": index,
                "key": key,
                **named(prediction.label, prediction.class_names),
                "correct_place": prediction.correct_place,
                "top": [
                    named(label, prediction.class_names) | {"probability": probability}
                    for label, probability in zip(prediction.top, prediction.probabilities, strict=True)
                ],
            }
            for index, key, prediction in zip(records.indices, records.keys, predictions, strict=True)
        ],
    }


def parse_indices(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Record numbers from `3,17,256`; for click."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} are no record numbers such as 3,17,256", context, parameter)
    return tuple(map(int, parts))


@click.command("predictions")
@click.argument("val", type=DATASET)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=OUTPUT_FILE, required=True, help="Picture to write: .png, .jpg or .webp; and .json.")
@click.option("--count", type=click.IntRange(1, 200), default=8, show_default=True, help="Records at even distances.")
@click.option("--indices", callback=parse_indices, help="Record numbers instead, such as 3,17,256.")
@click.option("--names", type=click.Path(path_type=Path), help="Synset file: lines of CLASS NAME, SYNONYM, ...")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda:N.")
@click.option(
    "--basis",
    type=DATASET,
    help="Directory with the training set's statistics.json.  [default: the run's copy]",
)
@cache_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def predictions_command(val: Place, checkpoint: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Draw records of VAL with the five labels that CHECKPOINT finds most probable (figure 4, left).

    The true label stands below each picture; its bar is red. Probabilities are those of the central crop. Exact labels
    and probabilities go into a JSON file beside the picture.
    """
    document = figure_predictions(val, checkpoint, out, **options)
    if as_json:
        print_json(document)
        return
    places = [image["correct_place"] for image in document["images"]]
    inside = sum(place is not None for place in places)
    print(f"{out}: {len(places)} records, {places.count(1)} right, {inside} with the right label among the five")
