"""`lmdali cache`: what this machine keeps of datasets at an address, shards and small files."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import click

from lmdali.pipeline.cache_entries import dataset_entries, remove_datasets
from lmdali.pipeline.shard_cache import ShardCache, cache_bytes, cache_directory
from lmdali.tools.report_table import megabytes, print_json, print_pairs, print_table


@click.group("cache")
def command() -> None:
    """Look at what was fetched of datasets at an address, or remove it: shards, and their manifests and tables.

    It is in LMDALI_CACHE_DIR, or below the user's cache directory; LMDALI_CACHE_BYTES limits the shards.
    """


_directory = click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="The cache's directory.  [default: LMDALI_CACHE_DIR]"
)
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@command.command("ls")
@_directory
@_as_json
def ls(cache_dir: Path | None, as_json: bool) -> None:
    """List the shards, the one that was not used for the longest time first: it is the next to go. Then the datasets
    whose manifests and tables are here."""
    with closing(ShardCache(cache_directory(cache_dir), cache_bytes())) as cache:
        entries = cache.entries()
    datasets = dataset_entries(cache.directory)
    if as_json:
        shards = [{"sha256": e.sha256, "num_bytes": e.num_bytes, "is_whole": e.is_whole} for e in entries]
        known = [{"digest": d.digest, "address": d.address, "num_bytes": d.num_bytes} for d in datasets]
        print_json({"directory": str(cache.directory), "shards": shards, "datasets": known})
        return
    rows = [(e.sha256[:16], megabytes(e.num_bytes), "" if e.is_whole else "unfinished") for e in entries]
    print_table(str(cache.directory), ("shard", "size", ""), rows)
    lines = [(d.address, d.digest[:16], megabytes(d.num_bytes), _day(d.opened)) for d in datasets]
    print_table("manifests, statistics and tables", ("dataset", "digest", "size", "opened"), lines)


@command.command("du")
@_directory
@_as_json
def du(cache_dir: Path | None, as_json: bool) -> None:
    """Say how much the shards take, and how much they may; and how much the rest takes."""
    with closing(ShardCache(cache_directory(cache_dir), cache_bytes())) as cache:
        found = {"num_shards": len(cache.entries()), "num_bytes": cache.used_bytes(), "limit_bytes": cache.limit_bytes}
    datasets = dataset_entries(cache.directory)
    found |= {"num_datasets": len(datasets), "dataset_bytes": sum(entry.num_bytes for entry in datasets)}
    if as_json:
        print_json({"directory": str(cache.directory), **found})
        return
    print_pairs(
        str(cache.directory),
        [
            ("shards", found["num_shards"]),
            ("size", megabytes(found["num_bytes"])),
            ("limit", megabytes(found["limit_bytes"])),
            ("datasets", f"{found['num_datasets']}, {megabytes(found['dataset_bytes'])} of manifests and tables"),
        ],
    )


@command.command("clear")
@_directory
@_as_json
def clear(cache_dir: Path | None, as_json: bool) -> None:
    """Remove every shard that no reader uses, in this or any other process, and the manifests and tables of datasets
    that were not opened for a day."""
    with closing(ShardCache(cache_directory(cache_dir), cache_bytes())) as cache:
        removed, in_use = cache.clear()
    of_datasets, kept = remove_datasets(cache.directory)
    removed += of_datasets
    if as_json:
        found = {"removed_bytes": removed, "shards_in_use": in_use, "datasets_kept": kept}
        print_json({"directory": str(cache.directory), **found})
        return
    print_pairs(
        str(cache.directory),
        [
            ("removed", megabytes(removed)),
            ("shards in use, kept", in_use),
            ("datasets opened within a day, kept", kept),
        ],
    )


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
