"""`lmdali cache`: the shards of remote datasets that this machine keeps."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from lmdali.pipeline.shard_cache import ShardCache, cache_bytes, cache_directory
from lmdali.tools.report_table import megabytes, print_json, print_pairs, print_table


@click.group("cache")
def command() -> None:
    """Look at the shards that were fetched from remote datasets, or remove them.

    They are in LMDALI_CACHE_DIR, or below the user's cache directory; LMDALI_CACHE_BYTES limits them.
    """


_directory = click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="The cache's directory.  [default: LMDALI_CACHE_DIR]"
)
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@command.command("ls")
@_directory
@_as_json
def ls(cache_dir: Path | None, as_json: bool) -> None:
    """List the shards, the one that was not used for the longest time first: it is the next to go."""
    with closing(ShardCache(cache_directory(cache_dir), cache_bytes())) as cache:
        entries = cache.entries()
    if as_json:
        shards = [{"sha256": e.sha256, "num_bytes": e.num_bytes, "is_whole": e.is_whole} for e in entries]
        print_json({"directory": str(cache.directory), "shards": shards})
        return
    rows = [(e.sha256[:16], megabytes(e.num_bytes), "" if e.is_whole else "unfinished") for e in entries]
    print_table(str(cache.directory), ("shard", "size", ""), rows)


@command.command("du")
@_directory
@_as_json
def du(cache_dir: Path | None, as_json: bool) -> None:
    """Say how much the shards take, and how much they may."""
    with closing(ShardCache(cache_directory(cache_dir), cache_bytes())) as cache:
        found = {"num_shards": len(cache.entries()), "num_bytes": cache.used_bytes(), "limit_bytes": cache.limit_bytes}
    if as_json:
        print_json({"directory": str(cache.directory), **found})
        return
    print_pairs(
        str(cache.directory),
        [
            ("shards", found["num_shards"]),
            ("size", megabytes(found["num_bytes"])),
            ("limit", megabytes(found["limit_bytes"])),
        ],
    )


@command.command("clear")
@_directory
@_as_json
def clear(cache_dir: Path | None, as_json: bool) -> None:
    """Remove every shard that no reader uses, in this or any other process."""
    with closing(ShardCache(cache_directory(cache_dir), cache_bytes())) as cache:
        removed, in_use = cache.clear()
    if as_json:
        print_json({"directory": str(cache.directory), "removed_bytes": removed, "shards_in_use": in_use})
        return
    print_pairs(str(cache.directory), [("removed", megabytes(removed)), ("shards in use, kept", in_use)])
