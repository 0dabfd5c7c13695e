"""A conversion to an address: shards made in a scratch directory, sent as they are finished, and removed there."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from lmdali.pipeline.address_lock import StillHeld, hold_address
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_plan import DatasetPlan, Part, PlannedShard
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.files import write_atomic
from lmdali.pipeline.manifest import MANIFEST_FILE, RECORDS_FILE, REJECTS_FILE
from lmdali.pipeline.output_lock import STAGING_DIRECTORY, part_lock_name
from lmdali.pipeline.remote_retry import RetryConfig
from lmdali.pipeline.remote_store import WritableStore
from lmdali.pipeline.remote_upload import FileUpload
from lmdali.pipeline.shard_cache import cache_directory
from lmdali.pipeline.shard_publisher import ShardPublisher, read_remote, refuse_content_at
from lmdali.pipeline.stores import open_writable_store
from lmdali.tools.conversion import ConvertConfig, make_plan, shard_jobs
from lmdali.tools.conversion_part import PartSummary, summarize_part
from lmdali.tools.conversion_report import ConvertSummary, summarize
from lmdali.tools.conversion_run import check_room
from lmdali.tools.executors import ShardExecutor, make_executor
from lmdali.tools.parallel_files import stoppable_clock
from lmdali.tools.progress import progress_bar
from lmdali.tools.shard_sender import SENDERS, ShardSender
from lmdali.tools.sources import Source


@dataclass(frozen=True)
class Destination:
    """Where a conversion goes, and where it works meanwhile.

    Attributes:
        store: the address.
        scratch: directory of this conversion alone, removed when it is complete.
        config: patience.
    """

    store: WritableStore
    scratch: Path
    config: RetryConfig

    @classmethod
    def of(cls, address: str, plan: DatasetPlan, scratch: Path | None, part: Part | None = None) -> Destination:
        """The destination of a plan: every address and plan has a scratch directory of its own.

        Args:
            address: as given.
            plan: what will be there.
            scratch: directory for all of them; None means one in the cache directory.
            part: which shards are made here.
        """
        config = RetryConfig()
        store = open_writable_store(address, config)
        name = f"{hashlib.sha256(store.shown.encode()).hexdigest()[:12]}-{plan.fingerprint[:12]}"
        if part is not None:
            name += f"-part-{part.number}-of-{part.count}"
        return cls(store, (scratch or cache_directory() / "scratch") / name, config)

    def publisher(self, writer: DatasetWriter, stop: threading.Event | None = None) -> ShardPublisher:
        """What brings a conversion's shards there, until `stop` is set."""
        clock = None if stop is None else stoppable_clock(stop)
        return ShardPublisher(writer, self.store, FileUpload(self.store, self.config, clock=clock), self.config)


def check_destination(address: str, *, is_part: bool, resume: bool, overwrite: bool) -> None:
    """Refuse an address that no run could use, before a source is scanned, which takes minutes.

    Raises:
        ConfigError: it cannot be written to.
        InputError: something is there, and neither flag is given.
        RemoteError: it cannot be reached.
    """
    if is_part:
        _refuse_overwriting_parts(overwrite)
    config = RetryConfig()
    refuse_content_at(open_writable_store(address, config), config, is_part=is_part, resume=resume, overwrite=overwrite)


def _refuse_overwriting_parts(overwrite: bool) -> None:
    if overwrite:
        raise ConfigError("--overwrite would remove the shards of other parts, too: leave it out with --part")


def convert_to_address(
    source: Source,
    address: str,
    config: ConvertConfig,
    *,
    scratch: Path | None = None,
    executor: ShardExecutor | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> ConvertSummary:
    """Convert a source into a dataset at an address; the bytes are those of a conversion into a directory.

    Args:
        source, config, executor, quiet: as of `convert`.
        address: where to.
        scratch: directory with room for the shards in progress and some more; None means one in the cache directory.
        resume: finish what an earlier run began, on whatever machine.
        overwrite: remove a dataset of ours that is there, and start again.

    Raises:
        LmdaliError: as `convert`; also where another run writes there, as far as the store can tell.
    """
    start, plan = perf_counter(), make_plan(source, config)
    there = Destination.of(address, plan, scratch)
    writer = DatasetWriter(there.scratch, plan)
    with hold_address(there.store, config=there.config) as still_held:
        if resume and not overwrite and there.publisher(writer).published() is not None:
            there.publisher(writer).tidy()
            shutil.rmtree(there.scratch, ignore_errors=True)
            return _summary_from(there, plan.shards())
        with begun_at(there, writer, resume=resume, overwrite=overwrite) as publisher:
            resumed = writer.finished()
            _make(source, config, writer, there, still_held, executor or make_executor(), quiet=quiet)
            manifest = writer.publish()
            still_held()
            publisher.finish(manifest)
        summary = summarize(there.scratch, perf_counter() - start, resumed)
        shutil.rmtree(there.scratch, ignore_errors=True)
    return summary


def convert_part_to_address(
    source: Source,
    address: str,
    config: ConvertConfig,
    part: Part,
    *,
    scratch: Path | None = None,
    executor: ShardExecutor | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> PartSummary:
    """Make the shards of one part and bring them to an address, beside other parts; `lmdali merge` publishes them.

    Args:
        source, address, config, scratch, executor, quiet: as of `convert_to_address`.
        part: which shards.
        resume: nothing is left to do where the dataset was published meanwhile; a part goes on in any case.
        overwrite: refused: the other parts' shards are there, too.

    Raises:
        LmdaliError: as `convert_to_address`.
    """
    _refuse_overwriting_parts(overwrite)
    start, plan = perf_counter(), make_plan(source, config)
    there = Destination.of(address, plan, scratch, part)
    writer = DatasetWriter(there.scratch, plan, part)
    lock = f"{STAGING_DIRECTORY}/{part_lock_name(part)}"
    with hold_address(there.store, lock, config=there.config) as still_held:
        manifest = there.publisher(writer).published() if resume else None
        if manifest is not None:
            return summarize_part(writer, len(writer.shards()), perf_counter() - start, published=manifest)
        with begun_at(there, writer, resume=resume, overwrite=False) as publisher:

            def still_ours() -> None:
                still_held()
                publisher.refuse_other_plan()

            left = len(writer.unfinished())
            _make(source, config, writer, there, still_ours, executor or make_executor(), quiet=quiet)
            summary = summarize_part(writer, len(writer.shards()) - left, perf_counter() - start)
        shutil.rmtree(there.scratch, ignore_errors=True)
    return summary


@contextmanager
def begun_at(there: Destination, writer: DatasetWriter, *, resume: bool, overwrite: bool) -> Iterator[ShardPublisher]:
    """The address and the scratch directory taken for this conversion, and each told what the other has.

    Args:
        there: both.
        writer: of the scratch directory.
        resume, overwrite: as of `ShardPublisher.begin`.
    """
    publisher = there.publisher(writer)
    goes_on = publisher.begin(resume=resume, overwrite=overwrite)
    is_known = goes_on and writer.is_begun()
    with writer.hold(resume=is_known, overwrite=not is_known):
        if goes_on:
            publisher.restore()
        yield publisher


def _make(
    source: Source,
    config: ConvertConfig,
    writer: DatasetWriter,
    there: Destination,
    still_held: StillHeld,
    executor: ShardExecutor,
    *,
    quiet: bool,
) -> None:
    """Make the shards that are left, and send these and all that wait for it."""
    total, to_do = (sum(shard.num_sources for shard in shards) for shards in (writer.shards(), writer.unfinished()))
    at_once = (usable_cpus() + 2 * SENDERS) * writer.plan.shard_sources
    check_room(min(at_once, to_do), config, there.scratch)
    stop = threading.Event()
    with ExitStack() as stack:
        progress = stack.enter_context(progress_bar("convert", total, before=total - to_do, quiet=quiet))
        sender = stack.enter_context(ShardSender(there.publisher(writer, stop), still_held, stop))
        sender.watch([shard.name for shard in writer.finished()])
        executor.run(sender.paced(shard_jobs(source, config, writer)), progress)
        sender.finish()


def _summary_from(there: Destination, shards: list[PlannedShard]) -> ConvertSummary:
    """What a dataset at an address holds."""
    with tempfile.TemporaryDirectory() as aside:
        for name in (MANIFEST_FILE, RECORDS_FILE, REJECTS_FILE):
            write_atomic(Path(aside) / name, read_remote(there.store, name, there.config) or b"")
        return summarize(Path(aside), 0.0, shards)
