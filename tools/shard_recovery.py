"""Finding the images of a shard that kill workers, so that each of them is one reject and nothing else is lost.

A worker's death has a suspect: the image it was at. A suspect is tried in a process where it is alone. If that dies,
too, the image is rejected; else somebody else killed the worker (a system short of memory takes the largest process),
and the image is stored as usual. Then the shard is begun anew: its bytes must not show where it was interrupted. A
second death in a shard means that there may be many such images, so the rest is tried first, in one pass, rather than
beginning anew after each of them.
"""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace

from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.rejection import SourceRejected
from lmdali.pipeline.tables import RejectRow
from lmdali.tools.conversion import ShardJob
from lmdali.tools.shard_making import reject_row
from lmdali.tools.shard_worker import Step
from lmdali.tools.worker_limits import WorkerLimits, describe_end

_MAX_UNEXPLAINED = 3
_MAX_KILLS_ALONE = 3
"""SIGKILL comes from outside: even a process with one image may be hit by chance, but hardly this often."""


class ShardRecovery:
    """What is left to do for one shard, whatever happens to its workers.

    Args:
        job: the shard.
        limits: what the workers are held to.
    """

    def __init__(self, job: ShardJob, limits: WorkerLimits) -> None:
        self.job = job
        self._limits = limits
        self._trials: list[range] = []
        """Positions to try before the shard is begun, the next at the end; a range of one is a suspect alone."""
        self._set_aside: dict[int, RejectRow] = dict(job.set_aside)
        self._sound: set[int] = set()
        self._kills_alone: Counter[int] = Counter()
        self._unexplained = 0
        self._had_suspect = self._is_surveyed = False

    @property
    def is_trying(self) -> bool:
        """Whether the step is a trial."""
        return bool(self._trials)

    @property
    def step(self) -> Step:
        """What to give a worker now; after a death, to a new one."""
        job = replace(self.job, set_aside=self._set_aside)
        if not self._trials:
            return Step(job)
        span, first = self._trials[-1], job.first_position
        entries = job.entries[span.start - first : span.stop - first]
        return Step(replace(job, entries=entries, first_position=span.start), is_trial=True)

    def tried(self) -> None:
        """The step, a trial, was survived."""
        span = self._trials.pop()
        if len(span) == 1:
            self._sound.add(span.start)

    def died(self, exit_code: int, suspect: int | None, read: tuple[int, str] | None) -> None:
        """The worker died during the step.

        Args:
            exit_code: as `Process` gives it: minus the signal's number.
            suspect: the position it was at, if at any.
            read: size and sha256 of the suspect's bytes, if they are known.

        Raises:
            LmdaliError: it cannot be blamed on an image.
        """
        if suspect is None:
            self._unexplained += 1
            if self._unexplained >= _MAX_UNEXPLAINED:
                raise LmdaliError(
                    f"shard {self.job.name}: {self._unexplained} worker processes died between two images "
                    f"({describe_end(exit_code)}): {_hint(exit_code)}, and run again with --resume"
                )
        elif self._trials and len(self._trials[-1]) == 1:
            self._judge(exit_code, suspect, read)
        elif self._trials:
            survey = self._trials.pop()
            self._push(range(suspect + 1, survey.stop), range(suspect, suspect + 1))
        else:
            self._suspect(exit_code, suspect)

    def _suspect(self, exit_code: int, position: int) -> None:
        if position in self._sound:
            entry = self.job.entries[position - self.job.first_position]
            raise LmdaliError(
                f"a worker process died twice ({describe_end(exit_code)}) at {entry.path!r}, which converts when it is "
                f"alone: {_hint(exit_code)}, and run again with --resume"
            )
        if self._had_suspect and not self._is_surveyed:
            self._is_surveyed = True
            self._push(range(position + 1, self.job.first_position + len(self.job.entries)))
        self._had_suspect = True
        self._push(range(position, position + 1))

    def _judge(self, exit_code: int, position: int, read: tuple[int, str] | None) -> None:
        if exit_code == -signal.SIGKILL:
            self._kills_alone[position] += 1
            if self._kills_alone[position] < _MAX_KILLS_ALONE:
                return
        self._trials.pop()
        entry = self.job.entries[position - self.job.first_position]
        rejected = SourceRejected(*self._limits.verdict(exit_code))
        self._set_aside[position] = reject_row(position, entry, rejected, *(read or ()))

    def _push(self, *spans: range) -> None:
        self._trials += [span for span in spans if span]


def _hint(exit_code: int) -> str:
    if exit_code == -signal.SIGALRM:
        return "raise --time-limit"
    if exit_code == -signal.SIGKILL:
        return "the system may be short of memory: take fewer --workers"
    return "take fewer --workers or raise --memory-limit"
