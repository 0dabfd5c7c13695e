"""A loader's state as it is stored: where the consumer is, of which run, and the digest of what it was given."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.order_digest import combine, digest_text
from lmdali.pipeline.sampler import MAX_EPOCH

STATE_VERSION = 2
_RUN_FIELDS = ("seed", "num_samples", "manifest_digest", "order")
_INTEGERS = ("epoch", "sample_in_epoch", "rank", "world_size")
_ADDED_IN_2 = {"order": None, "rank": 0, "world_size": 1, "epoch_digest": None}
"""What a state of version 1 is taken to say: any order, and no digest for the part of the epoch behind it."""

_DIGEST = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class LoaderState:
    """One rank's state, or that of all ranks put together.

    Attributes:
        epoch: of the next batch.
        sample_in_epoch: samples of that epoch that all ranks together have behind them.
        seed: decides order and draws.
        num_samples: records that an epoch delivers.
        manifest_digest: identity of the dataset.
        order: "shuffled", "shuffled_once", "sequential" or "block:SHARDS[:NODES]", with ":records:DIGEST"
            behind it for a list of records; None in a state of version 1.
        rank: whose digest this is; with world size 1 it is that of all samples before this place.
        world_size: see `rank`; neither keeps a state from being loaded with other ranks.
        epoch_digest: of what the rank was given in this epoch, 0 to 2**64 - 1, or None where nobody knows.
    """

    epoch: int
    sample_in_epoch: int
    seed: int
    num_samples: int
    manifest_digest: str
    order: str | None
    rank: int
    world_size: int
    epoch_digest: int | None

    @classmethod
    def parse(cls, stored: dict[str, Any]) -> LoaderState:
        """Check what somebody wants to load.

        Raises:
            InputError: not a state of a loader, or a newer one than this version knows.
        """
        if not isinstance(stored, Mapping):
            raise InputError(f"the loader state is a {type(stored).__name__}, expected the dictionary of state_dict()")
        names = [field.name for field in dataclasses.fields(cls)]
        version = stored.get("state_version")
        if type(version) is not int:
            raise InputError(f"the loader state has state_version {version!r}, expected an integer")
        if version > STATE_VERSION:
            raise InputError(f"the loader state has version {version}, this reads {STATE_VERSION}: upgrade")
        fields = {**_ADDED_IN_2, **stored} if version < 2 else stored
        missing = [name for name in names if name not in fields]
        if missing:
            raise InputError(f"the loader state lacks {', '.join(missing)}: it was not made by state_dict()")
        wrong = [name for name in _INTEGERS if type(fields[name]) is not int]
        if wrong:
            raise InputError(f"the loader state has {wrong[0]} {fields[wrong[0]]!r}, expected an integer")
        epoch_ok = 0 <= fields["epoch"] <= MAX_EPOCH
        if not epoch_ok or fields["sample_in_epoch"] < 0 or not 0 <= fields["rank"] < fields["world_size"]:
            raise InputError(
                f"the loader state says epoch {fields['epoch']}, sample {fields['sample_in_epoch']}, "
                f"rank {fields['rank']} of {fields['world_size']}: it is damaged"
            )
        digest = _parse_digest(fields["epoch_digest"])
        return cls(**{name: fields[name] for name in names} | {"epoch_digest": digest})

    def to_json(self) -> dict[str, Any]:
        """Plain values; the digest as text, because not every JSON reader keeps 64 bits."""
        fields = dataclasses.asdict(self)
        digest = None if self.epoch_digest is None else digest_text(self.epoch_digest)
        return {"state_version": STATE_VERSION, **fields, "epoch_digest": digest}

    def differences(self, mine: LoaderState) -> list[str]:
        """What makes this the state of another run than `mine`, in words."""
        pairs = [(name, getattr(self, name), getattr(mine, name)) for name in _RUN_FIELDS]
        return [f"{name} {there!r} there, {here!r} here" for name, there, here in pairs if there not in (here, None)]

    def digest_for(self, rank: int, world_size: int) -> int | None:
        """The part of the digest that a rank which goes on from here begins with, so that all ranks' add up to it."""
        if self.sample_in_epoch == 0:
            return 0
        if (self.rank, self.world_size) == (rank, world_size):
            return self.epoch_digest
        if self.world_size == 1:
            return self.epoch_digest if rank == 0 else 0
        return None


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state for a checkpoint from those of all ranks, taken after the same step.

    A single rank's state has the right place too, but its digest is of that rank's samples only: loaded into another
    number of ranks it leaves the epoch's digest unknown.

    Args:
        states: of every rank, in any order.

    Raises:
        InputError: a rank is missing or there twice, or the ranks are not at one place of one run.
    """
    parsed = sorted((LoaderState.parse(state) for state in states), key=lambda state: state.rank)
    ranks = [state.rank for state in parsed]
    if not parsed or ranks != list(range(parsed[0].world_size)):
        expected = f"one of each rank below {parsed[0].world_size}" if parsed else "at least one state"
        raise InputError(f"found states of ranks {ranks}, expected {expected}: gather the state of every rank once")
    first = parsed[0]
    same = dataclasses.fields(LoaderState)
    for other in parsed[1:]:
        for name in (field.name for field in same if field.name not in ("rank", "epoch_digest")):
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours != theirs:
                raise InputError(
                    f"{name} is {ours!r} on rank 0 and {theirs!r} on rank {other.rank}: take all states after one step"
                )
    known = [state.epoch_digest for state in parsed if state.epoch_digest is not None]
    digest = combine(known) if len(known) == len(parsed) else None
    return dataclasses.replace(first, rank=0, world_size=1, epoch_digest=digest).to_json()


def _parse_digest(stored: object) -> int | None:
    if stored is None:
        return None
    if not isinstance(stored, str) or not _DIGEST.fullmatch(stored):
        raise InputError(f"the loader state has epoch_digest {stored!r}, expected 16 hexadecimal digits")
    return int(stored, 16)
