"""`lmdali order`: what an epoch delivers, as a list, a digest or a measure of its order."""

from __future__ import annotations

from typing import Any

import click

from lmdali.pipeline.block_order import DEFAULT_BLOCK_SHARDS, ORDERS
from lmdali.pipeline.dataset_place import Place, place_shown
from lmdali.pipeline.sampler import MAX_EPOCH
from lmdali.pipeline.shuffle_quality import MEASURES
from lmdali.pipeline.tables import printable
from lmdali.tools.augment_options import augment_options, draw_options, take_augment
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.loader_options import cache_dir_option
from lmdali.tools.order_ledger import MAX_SEED, OrderConfig, OrderLedger
from lmdali.tools.report_table import print_json, print_pairs, print_table

_SHOWN_ROWS = 20


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    columns = ("position", "step", "rank", "sample", "shard:row", "label", "crop y, x", "flip", "alphas", "source")
    lines = [
        (
            *(str(row[name]) for name in ("position", "step", "rank", "sample")),
            f"{row['shard']}:{row['row']}",
            str(row["label"]),
            _crop(view),
            "yes" if view["flip"] else "no",
            " ".join(f"{alpha:+.4f}" for alpha in view["alphas"]),
            printable(row["source"]),
        )
        for row in rows
        for view in row["views"]
    ]
    print_table(title, columns, lines)


def _crop(view: dict[str, Any]) -> str:
    window = f", {view['height']} x {view['width']}" if "width" in view else ""
    return f"{view['crop_y']}, {view['crop_x']}{window}"


def _print(dataset: Place, document: dict[str, Any]) -> None:
    kind, world_size = document["order"], document["world_size"]
    name = f"blocks of {document['block_shards']} shards" if kind == "block" else kind
    name += f" for each of {document['block_nodes']} nodes" if kind == "block" and document["block_nodes"] > 1 else ""
    title = f"{place_shown(dataset)}: epoch {document['epoch']}, seed {document['seed']}, {name}"
    title += f", batch {document['batch_size']}"
    title += f", {world_size} ranks" if world_size > 1 else ""
    title += f", {document['num_samples']:,} records of {document['records']}" if document["records"] else ""
    if "digest" in document:
        whose = "all ranks" if document["rank"] is None else f"rank {document['rank']} of {world_size}"
        counted = document["digest"]
        print_pairs(title, [("samples", f"{counted['num_samples']:,} of {whose}"), ("digest", counted["digest"])])
    if "quality" in document:
        quality = document["quality"]
        kinds = ("order", "ideal", "sequential")
        lines = [
            (_MEASURED[name].format(**quality), *(f"{quality[kind][name]:.4f}" for kind in kinds)) for name in MEASURES
        ]
        print_table(title, ("measure", "this order", "full permutation", "sequential"), lines)
    if "rows" in document:
        _print_rows(title, document["rows"])


_MEASURED = {
    "displacement": "mean distance from the place in storage, of N",
    "rank_correlation": "rank correlation with storage",
    "same_shard_pairs": "neighbours from one shard, share",
    "shards_per_window": "shards in {window} samples, mean",
}


@click.command("order", context_settings={"show_default": True})
@click.argument("dataset", type=DATASET)
@click.option("--epoch", type=click.IntRange(0, MAX_EPOCH), help="Epoch to look into, from 0.  [default: 0]")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Seed of the run.")
@click.option("--order", type=click.Choice(ORDERS), default="shuffled", help="Order of the run's loader.")
@click.option("--block-shards", type=click.IntRange(1), default=DEFAULT_BLOCK_SHARDS, help="Shards in a block.")
@click.option("--block-nodes", type=click.IntRange(1), default=1, help="Machines with shards of their own.")
@click.option("-b", "--batch-size", type=click.IntRange(1), default=128, help="Samples per rank and step.")
@click.option("--world-size", type=click.IntRange(1), default=1, help="Ranks that share each global batch.")
@click.option("--rank", type=click.IntRange(0), help="Only what this rank gets.  [default: all ranks]")
@click.option("--start", type=click.IntRange(0), default=0, help="Position that a resumed run went on from.")
@click.option("--drop-last/--keep-last", default=None, help="Its last, smaller batch.  [default: keep if sequential]")
@augment_options("What is drawn.")
@draw_options
@click.option(
    "--records", type=click.Path(exists=True, dir_okay=False), help="File of the run's records, one number a line."
)
@click.option("--step", type=click.IntRange(1), help="Exactly this step, from 1, as said above.")
@click.option("--limit", type=click.IntRange(1), help=f"Samples to list.  [default: {_SHOWN_ROWS}, or the step's]")
@click.option("--digest", is_flag=True, help="Print the digest of the epoch.")
@click.option("--quality", is_flag=True, help="Print how well the epoch is mixed, beside a full permutation.")
@cache_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    dataset: Place, step: int | None, limit: int | None, digest: bool, quality: bool, as_json: bool, **options: Any
) -> None:
    """List what an epoch of DATASET delivers: when, to which rank, from which file, with which crop.

    No shard is read. The first samples are listed, or exactly those of --step: a step of the whole run, as
    metrics.jsonl counts them, or, with --epoch or --start, a step of that epoch, counted from the start. --digest gives
    the number that metrics and checkpoints of a run have for the epoch; --quality measures its order.
    """
    if (digest or quality) and (step or limit):
        raise click.UsageError("--digest and --quality are about a whole epoch: leave out --step and --limit")
    augment, epoch, cache_dir = take_augment(options), options.pop("epoch"), options.pop("cache_dir")
    ledger = OrderLedger(dataset, OrderConfig(augment=augment, epoch=epoch or 0, **options), cache_dir=cache_dir)
    if step is not None and epoch is None and not options["start"]:
        epoch, step = ledger.in_run(step)
        ledger = OrderLedger(dataset, OrderConfig(augment=augment, epoch=epoch, **options), cache_dir=cache_dir)
    document = ledger.describe()
    if digest:
        document["digest"] = ledger.digest()
    if quality:
        document["quality"] = ledger.quality()
    if not (digest or quality):
        document["rows"] = ledger.rows(step=step, limit=_SHOWN_ROWS if limit is None and step is None else limit)
    if as_json:
        print_json(document)
    else:
        _print(dataset, document)
