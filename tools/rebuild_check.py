"""Whether a dataset can be made again from what is at hand, and why what was made again differs."""

from __future__ import annotations

from collections.abc import Container
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from lmdali.pipeline.dataset_plan import differences
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.manifest import RECORDS_FILE, REJECTS_FILE, Manifest, RecordIndex, ShardInfo
from lmdali.pipeline.shard_output import ShardOutput
from lmdali.pipeline.table_reader import ColumnReader, read_rows
from lmdali.pipeline.tables import read_staged
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.sources import Source

_NAMED = 5
_VERSIONS = ("decoder", "resizer")
"""Parts of a recipe that say which libraries made the pixels, which cannot be chosen."""

_TABLES_ONLY = ("perceptual_hash",)
"""Parts that decide nothing about a shard: those of a dataset made before hashes were kept are made again all the same,
and only its `records.parquet`, which lacks the column, is not."""


def config_of(directory: Path, manifest: Manifest) -> ConvertConfig:
    """The options that a dataset was converted with, from its manifest.

    Raises:
        InputError: this version cannot convert that way.
    """
    recipe = manifest.recipe
    nested = recipe.get("resize")
    known = {**(nested if isinstance(nested, dict) else {}), **recipe}
    known |= {"size": manifest.image_size, "encoding": manifest.encoding, "filter": known.get("down")}
    options = {
        option.name: known[option.name] for option in fields(ConvertConfig) if known.get(option.name) is not None
    }
    config = ConvertConfig(**options)
    different = differences(_chosen(recipe), _chosen(config.recipe()))
    if different:
        raise InputError(f"{directory}: was converted in a way this version cannot repeat ({different}): convert again")
    return config


def refuse_other_source(directory: Path, manifest: Manifest, source: Source) -> None:
    """Only the very source that was converted gives the same bytes.

    Raises:
        InputError: naming what differs.
    """
    before = {key: value for key, value in manifest.source.items() if key != "plan"}
    before["num_sources"] = sum(shard.num_sources for shard in manifest.shards)
    now = {"kind": source.kind, "fingerprint": source.fingerprint, "num_sources": len(source.entries)}
    different = differences(before, {key: now.get(key, before[key]) for key in before})
    if different:
        raise InputError(
            f"{directory}: was converted from another source ({different}): give the one it was made of, with the same "
            "options of what it is (--format, --root, --follow-links, ...)"
        )


def why_different(
    directory: Path, manifest: Manifest, info: ShardInfo, made: ShardOutput, damaged_tables: Container[str]
) -> str:
    """Why a shard that was made again is not the one in the manifest, as far as can be told.

    Args:
        directory: the dataset.
        manifest: its manifest.
        info: the shard.
        made: where it was made again.
        damaged_tables: names of tables that cannot be asked.
    """
    reasons = []
    unknown = [name for name in (RECORDS_FILE, REJECTS_FILE) if name in damaged_tables]
    if not unknown:
        before = _hashes_before(directory, manifest, info)
        rows = [row for kind in ("records", "rejects") for row in read_staged(made.staged(info.name, kind)).to_pylist()]
        now = {row["position"]: (row["source"], row["source_sha256"]) for row in rows}
        changed = [now[position][0] for position in sorted(now) if now[position] != before.get(position)]
        if changed:
            listed = ", ".join(changed[:_NAMED]) + (", ..." if len(changed) > _NAMED else "")
            reasons.append(f"{len(changed)} source files changed since ({listed})")
    decoders = differences(_decoders(manifest.recipe), _decoders(config_of(directory, manifest).recipe()))
    if decoders:
        reasons.append(f"other decoders ({decoders})")
    if not reasons and unknown:
        reasons.append(
            f"its sources changed since, or a decoder or encoder is another build than it was: {unknown[0]}, which "
            "would tell, is damaged, too"
        )
    elif not reasons:
        reasons.append("its sources are the same, so a decoder or encoder is another build than it was")
    return " and ".join(reasons) + "; copy the shard from another copy of the dataset, or convert again"


def _hashes_before(directory: Path, manifest: Manifest, info: ShardInfo) -> dict[int, tuple[str, str]]:
    """Name and sha256 of every source of a shard, by plan position, as they were converted."""
    columns = ["position", "source", "source_sha256"]
    number = manifest.shards.index(info)
    first, last = RecordIndex(manifest).first_records[number : number + 2].tolist()
    with closing(ColumnReader(directory / RECORDS_FILE)) as table:
        stored = table.read(columns, first, last)
    found = {
        position: (source, sha256) for position, source, sha256 in zip(*(stored[name] for name in columns), strict=True)
    }
    rejected = set(info.rejected)
    for row in read_rows(directory / REJECTS_FILE, columns):
        if row["position"] in rejected:
            found[row["position"]] = (row["source"], row["source_sha256"])
    return found


def _decoders(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key in _VERSIONS}


def _chosen(recipe: dict[str, Any]) -> dict[str, Any]:
    """What somebody chose that decides the bytes of shards."""
    return {key: value for key, value in recipe.items() if key not in _VERSIONS + _TABLES_ONLY}
