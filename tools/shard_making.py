"""The work on one shard: sources in, records, table rows and moments out, in the order of the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

from lmdali.pipeline.decode import DecodedSource
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.perceptual_hash import BLANK_SPREAD
from lmdali.pipeline.records import record_key
from lmdali.pipeline.rejection import SourceRejected
from lmdali.pipeline.shard_output import ShardContent
from lmdali.pipeline.shard_writer import ShardWriter
from lmdali.pipeline.tables import RecordRow, RejectRow, printable
from lmdali.tools.conversion import PictureMemory, ShardJob, convert_image, prepare_pictures
from lmdali.tools.picture_survey import PictureSurvey, make_survey
from lmdali.tools.resize import geometry_oddities
from lmdali.tools.source_entries import SourceEntry, own_name

Guard = Callable[[int], AbstractContextManager[object]]
"""Called with a plan position; what it returns is entered while that source is read and converted."""


def make_shard(job: ShardJob, guard: Guard = nullcontext) -> None:
    """Write one shard. `guard` may raise to stop the work.

    Raises:
        StorageError: the disk refused; nothing of the shard is left.
    """
    fill_shard(job, guard).finish()


@dataclass(frozen=True, eq=False)
class FilledShard:
    """A shard whose records are all written, but not durable; `finish` is the rest, most of it waiting for the disk."""

    job: ShardJob
    shard: ShardWriter
    content: ShardContent

    def finish(self) -> None:
        """Give the shard its final name, or leave nothing of it; once, by any thread.

        Raises:
            StorageError: the disk refused.
        """
        with self.shard:
            self.job.writer.finish_shard(self.job.name, self.shard, self.content)


def fill_shard(job: ShardJob, guard: Guard = nullcontext) -> FilledShard:
    """Convert the sources of one shard. `guard` may raise to stop the work.

    Raises:
        StorageError: the disk refused; nothing of the shard is left.
    """
    content = ShardContent([], [], Moments.zero(job.config.size, job.config.size))
    memory = prepare_pictures(job.config, compiled=job.pays_compiling)
    survey = make_survey(content.moments, job.config.size, compiled=job.pays_compiling)
    with ExitStack() as unless_filled:
        shard = unless_filled.enter_context(job.writer.open_shard(job.name, job.first_position, len(job.entries)))
        for offset, entry in enumerate(job.entries):
            position = job.first_position + offset
            if position in job.set_aside:
                content.rejects.append(job.set_aside[position])
            else:
                _store(job, position, entry, guard, shard, content, memory, survey)
        survey.finish()
        shard.commit()
        unless_filled.pop_all()
    return FilledShard(job, shard, content)


def reject_row(
    position: int, entry: SourceEntry, rejected: SourceRejected, num_bytes: int = -1, sha256: str = ""
) -> RejectRow:
    """The row of a source that is not stored; size and hash are known where it could be read."""
    return RejectRow(
        position=position,
        label=entry.label,
        source=printable(entry.path),
        reason=str(rejected.reason),
        detail=rejected.detail,
        source_bytes=num_bytes,
        source_sha256=sha256,
    )


def _store(
    job: ShardJob,
    position: int,
    entry: SourceEntry,
    guard: Guard,
    shard: ShardWriter,
    content: ShardContent,
    memory: PictureMemory,
    survey: PictureSurvey,
) -> None:
    known: tuple[int, str] | tuple[()] = ()
    try:
        with guard(position):
            data = job.reader.read(entry)
            # Each thing is done while its bytes are still in the core's cache: the source, then the stored pixels.
            known = len(data), hashlib.sha256(data).hexdigest()
            stored, pixels, source = convert_image(data, own_name(entry), job.config, memory)
    except SourceRejected as rejected:
        content.rejects.append(reject_row(position, entry, rejected, *known))
        return
    phash, spread = survey.add(pixels)
    side = job.config.size
    crc = shard.put(position, entry.path, stored, label=entry.label, height=side, width=side)
    content.records.append(
        RecordRow(
            position=position,
            shard=job.name,
            row=len(content.records),
            key=printable(record_key(position, entry.path).decode("utf-8", "surrogateescape")),
            label=entry.label,
            source=printable(entry.path),
            source_bytes=known[0],
            source_sha256=known[1],
            source_width=source.width,
            source_height=source.height,
            oddities=",".join(_oddities(source, side, spread)),
            stored_bytes=len(stored),
            crc32c=crc,
            phash=phash,
        )
    )


def _oddities(source: DecodedSource, size: int, spread: float) -> tuple[str, ...]:
    """What is unusual about the file, its sides, and the stored pixels."""
    blank = ("blank",) if spread < BLANK_SPREAD else ()
    return source.oddities + geometry_oddities(source.height, source.width, size) + blank
