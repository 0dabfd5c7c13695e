"""One part of a conversion that several machines share: its shards, and no dataset yet."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from lmdali.pipeline.dataset_plan import Part
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.manifest import Manifest, load_manifest
from lmdali.pipeline.tables import read_staged
from lmdali.tools.conversion import ConvertConfig, make_plan, shard_jobs
from lmdali.tools.conversion_run import check_room
from lmdali.tools.executors import ShardExecutor, make_executor
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import print_json, print_pairs
from lmdali.tools.sources import Source


@dataclass(frozen=True)
class PartSummary:
    """What one part of a conversion has come to; the dataset itself is published by `lmdali merge`.

    Attributes:
        part: "I/N".
        num_shards: shards of this part, all of them done.
        resumed_shards: those that an earlier run had finished.
        total_shards: shards of the whole dataset.
        num_stored: records in the shards of this part.
        num_rejected: sources of this part that were not stored.
        rejected: how many, by reason.
        seconds: wall time.
    """

    part: str
    num_shards: int
    resumed_shards: int
    total_shards: int
    num_stored: int
    num_rejected: int
    rejected: dict[str, int]
    seconds: float


def convert_part(
    source: Source,
    out: Path,
    config: ConvertConfig,
    part: Part,
    *,
    executor: ShardExecutor | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> PartSummary:
    """Make the shards of one part of a conversion, beside other parts or in a directory of its own.

    Args:
        source, out, config, executor, quiet: as of `convert`; all parts need the same source and options.
        part: which shards.
        resume: finish what an earlier run of this part began.
        overwrite: make all shards of this part again; those of other parts stay.

    Raises:
        LmdaliError: as `convert`.
    """
    start = perf_counter()
    writer = DatasetWriter(out, make_plan(source, config), part)
    shards = writer.shards()
    if resume and writer.is_complete():
        return summarize_part(writer, len(shards), perf_counter() - start, published=load_manifest(out))
    if not overwrite:
        check_room(sum(shard.num_sources for shard in writer.unfinished()), config, out)
    with writer.hold(resume=resume, overwrite=overwrite):
        left = writer.unfinished()
        total = sum(shard.num_sources for shard in shards)
        before = total - sum(shard.num_sources for shard in left)
        with progress_bar(f"convert {part}", total, before=before, quiet=quiet) as progress:
            (executor or make_executor()).run(shard_jobs(source, config, writer), progress)
        return summarize_part(writer, len(shards) - len(left), perf_counter() - start)


def summarize_part(
    writer: DatasetWriter, resumed: int, seconds: float, *, published: Manifest | None = None
) -> PartSummary:
    """What a part has come to, all of whose shards are done.

    Args:
        writer: of the part.
        resumed: shards that an earlier run had finished.
        seconds: wall time.
        published: manifest of the whole dataset, where it was published meanwhile: nothing is staged then.
    """
    assert writer.part is not None
    names = [shard.name for shard in writer.shards()]
    rejected: Counter[str] = Counter()
    if published is not None:
        infos = [info for info in published.shards if writer.part.has(info.name)]
    else:
        infos = [writer.figures(name).info for name in names]
        for name in names:
            rejected.update(read_staged(writer.staged(name, "rejects"))["reason"].to_pylist())
    return PartSummary(
        part=str(writer.part),
        num_shards=len(infos),
        resumed_shards=resumed,
        total_shards=len(writer.plan.shards()),
        num_stored=sum(info.num_records for info in infos),
        num_rejected=sum(len(info.rejected) for info in infos),
        rejected=dict(rejected.most_common()),
        seconds=seconds,
    )


def report_part(summary: PartSummary, source: Source, out: Path | str, *, as_json: bool) -> None:
    """Show what one part has come to, on stdout, and what comes next."""
    others = ", with the directories of other parts after it" if isinstance(out, Path) else ""
    next_step = f"lmdali merge {out}{others}, once all parts are done"
    if as_json:
        print_json({**asdict(summary), "source": source.kind, "out": str(out), "next": next_step})
        return
    reasons = ", ".join(f"{count} {name}" for name, count in summary.rejected.items())
    print_pairs(
        f"{out}: part {summary.part}",
        [
            ("source", source.describe()),
            ("shards", f"{summary.num_shards} of {summary.total_shards} are of this part, and all of them are done"),
            ("resumed", f"{summary.resumed_shards} shards were there already"),
            ("stored", f"{summary.num_stored:,} images"),
            ("rejected", f"{summary.num_rejected:,}{f' ({reasons})' if reasons else ''}"),
            ("next", next_step),
        ],
    )
