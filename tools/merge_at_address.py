"""The parts of a conversion whose shards are below one address become one dataset there; no shard is fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from time import perf_counter

from lmdali.pipeline.address_lock import hold_address
from lmdali.pipeline.dataset_plan import DatasetPlan
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import InputError, IntegrityError
from lmdali.pipeline.manifest import MANIFEST_FILE
from lmdali.pipeline.remote_retry import RetryConfig
from lmdali.pipeline.shard_publisher import STAGED_PLAN, read_remote
from lmdali.pipeline.stores import open_writable_store
from lmdali.tools.conversion_upload import Destination, begun_at
from lmdali.tools.part_merge import MergeSummary, named_shards, summarize_merge

_NO_PLAN = DatasetPlan(0, "", (), 0, 1, {}, {})
"""Of an address that is only looked at."""


def merge_at_address(address: str, *, scratch: Path | None = None) -> MergeSummary:
    """Publish a dataset whose parts were converted to an address.

    Args:
        address: of the dataset.
        scratch: directory to work in; None means one in the cache directory.

    Raises:
        InputError: nothing was begun there, or shards are missing.
        LmdaliError: as of `convert_to_address`.
    """
    start, config = perf_counter(), RetryConfig()
    store = open_writable_store(address, config)
    staged = read_remote(store, STAGED_PLAN, config)
    try:
        plan = _NO_PLAN if staged is None else DatasetPlan.from_json(json.loads(staged))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{store.shown}/{STAGED_PLAN}: {error!r}: the file is damaged: convert again with --overwrite"
        ) from error
    there = Destination.of(address, plan, scratch)
    writer = DatasetWriter(there.scratch, plan)
    before = there.publisher(writer).manifest_there()
    if before is not None and (staged is None or before.source.get("plan") == plan.fingerprint):
        if staged is not None:
            there.publisher(writer).tidy()
        return summarize_merge(before, start, was_complete=True)
    if staged is None:
        raise InputError(
            f"{store.shown}: has no {MANIFEST_FILE} and no {STAGED_PLAN}: `lmdali convert` never began: check the "
            "address"
        )
    with hold_address(store, config=config) as still_held:
        with begun_at(there, writer, resume=True, overwrite=False) as publisher:
            missing = [shard.name for shard in writer.unfinished()]
            if missing:
                raise InputError(
                    f"{store.shown}: {len(missing)} of {len(plan.shards())} shards are missing: "
                    f"{named_shards(missing)}: finish those parts with `lmdali convert --part I/N`"
                )
            manifest = writer.publish()
            still_held()
            publisher.finish(manifest)
        shutil.rmtree(there.scratch, ignore_errors=True)
    return summarize_merge(manifest, start, was_complete=False)
