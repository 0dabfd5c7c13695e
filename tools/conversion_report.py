"""What a conversion did, counted from its own tables, or would do; and how it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmdali.pipeline.dataset_plan import PlannedShard
from lmdali.pipeline.manifest import RECORDS_FILE, REJECTS_FILE, load_manifest
from lmdali.pipeline.table_reader import count_values, take_rows
from lmdali.tools.report_table import megabytes, print_json, print_pairs
from lmdali.tools.sources import Source

_SHOWN_REJECTS = 3


@dataclass(frozen=True)
class ConvertSummary:
    """What a conversion did.

    Attributes:
        num_stored: records in the dataset.
        num_rejected: sources that were not stored.
        rejected: how many, by reason.
        rejected_sources: the first few of them.
        orientation: what was done about orientation tags, "ignore" or "apply".
        oddities: stored sources that were unusual, by name; one source may count for several.
        num_shards: shards written.
        payload_bytes: stored image bytes.
        file_bytes: size of all shards.
        seconds: wall time.
        resumed_shards: shards that an earlier run had finished.
        resumed_images: sources of those shards, stored or rejected.
        manifest_digest: identity of the dataset.
    """

    num_stored: int
    num_rejected: int
    rejected: dict[str, int]
    rejected_sources: tuple[str, ...]
    orientation: str
    oddities: dict[str, int]
    num_shards: int
    payload_bytes: int
    file_bytes: int
    seconds: float
    resumed_shards: int
    resumed_images: int
    manifest_digest: str

    @property
    def images_per_second(self) -> float:
        """Sources that this run handled per second of its wall time; 0 where none was left to do."""
        return (self.num_stored + self.num_rejected - self.resumed_images) / max(self.seconds, 1e-9)


def summarize(directory: Path, seconds: float, resumed: Sequence[PlannedShard]) -> ConvertSummary:
    """Count what a finished dataset holds, from its own tables; `resumed` are the shards of earlier runs."""
    manifest = load_manifest(directory)
    oddities = count_oddities(directory)
    rejected = count_values(directory / REJECTS_FILE, "reason")
    few = list(range(min(manifest.num_rejected, _SHOWN_REJECTS)))
    first = take_rows(directory / REJECTS_FILE, ["source"], few) if few else []
    return ConvertSummary(
        num_stored=manifest.num_records,
        num_rejected=manifest.num_rejected,
        rejected=dict(rejected.most_common()),
        rejected_sources=tuple(str(row["source"]) for row in first),
        orientation=str(manifest.recipe.get("orientation")),
        oddities=dict(oddities.most_common()),
        num_shards=len(manifest.shards),
        payload_bytes=manifest.payload_bytes,
        file_bytes=manifest.file_bytes,
        seconds=seconds,
        resumed_shards=len(resumed),
        resumed_images=sum(shard.num_sources for shard in resumed),
        manifest_digest=manifest.digest,
    )


def count_oddities(directory: Path) -> Counter[str]:
    """How many records of a dataset came from sources that were unusual, by name; one may count for several."""
    oddities: Counter[str] = Counter()
    for names, count in count_values(directory / RECORDS_FILE, "oddities").items():
        for name in filter(None, names.split(",")):
            oddities[name] += count
    return oddities


def report_summary(
    summary: ConvertSummary, source: Source, out: Path | str, *, duplicates: dict[str, Any] | None = None, as_json: bool
) -> None:
    """Show what a conversion did, on stdout.

    Args:
        summary: of the conversion.
        source: what was converted.
        out: the dataset, its directory or its address without credentials.
        duplicates: from `duplicate_facts`, where they were looked for.
        as_json: one document instead of a table.
    """
    if as_json:
        rate = summary.images_per_second
        counts = {"num_classes": len(source.class_names), "ignored": dict(source.ignored.counts)}
        document = {**asdict(summary), **counts, "images_per_second": rate, "source": source.kind, "out": str(out)}
        print_json(document if duplicates is None else document | {"duplicates": duplicates})
        return
    num_classes, speed = len(source.class_names), f"{summary.images_per_second:,.0f} images/s, {summary.seconds:.1f} s"
    pairs: list[tuple[str, object]] = [
        ("source", source.describe()),
        ("stored", f"{summary.num_stored:,} images in {summary.num_shards} shards, {num_classes:,} classes"),
        ("rejected", _rejected(summary)),
        ("unusual", _counts(summary.oddities) or "none"),
        ("ignored", source.ignored.summary()),
        ("size", f"{megabytes(summary.file_bytes)} on disk, {megabytes(summary.payload_bytes)} of images"),
        ("speed", speed if summary.seconds else "nothing was left to do"),
        ("digest", summary.manifest_digest),
    ]
    if summary.orientation == "ignore" and (tags := summary.oddities.get("orientation_tag")):
        pairs.insert(4, ("not turned", f"{tags:,} with an orientation tag; --orientation apply turns them"))
    if summary.resumed_shards:
        pairs.insert(2, ("resumed", f"{summary.resumed_shards} shards were there already"))
    if duplicates is not None:
        kinds = _counts({kind: count for kind, count in duplicates["pairs"].items() if count})
        found = f"{duplicates['groups']} groups of {duplicates['records']} records ({kinds}): see `lmdali audit {out}`"
        pairs.insert(-1, ("duplicates", found if kinds else "none"))
    print_pairs(str(out), pairs)


def report_estimate(plan: dict[str, Any], *, as_json: bool) -> None:
    """Show what a conversion would take, on stdout."""
    if as_json:
        print_json(plan)
        return
    print_pairs(
        "dry run: nothing was written",
        [
            ("sources", f"{plan['source']}: {plan['num_sources']:,} images in {plan['num_classes']:,} classes"),
            ("shards", plan["num_shards"]),
            ("size", f"about {megabytes(plan['expected_bytes'])}, {megabytes(plan['free_bytes'])} are free"),
            ("time", f"about {plan['expected_seconds']:,.1f} s with {plan['workers']} workers"),
            ("sample", f"{plan['sampled']} sources, rejected: {_counts(plan['sampled_rejects']) or 'none'}"),
            ("fits", "yes" if plan["fits"] else "NO: choose another disk"),
        ],
    )


def _rejected(summary: ConvertSummary) -> str:
    names = ", ".join(summary.rejected_sources) + (", ..." if summary.num_rejected > _SHOWN_REJECTS else "")
    return f"{_counts(summary.rejected)}: {names}" if summary.rejected else "none"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
