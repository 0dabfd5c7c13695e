"""`shard.json`: what is known of one finished shard, kept beside it until and after its dataset is published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdali.pipeline.errors import InputError, IntegrityError
from lmdali.pipeline.files import read_sealed, seal, write_json
from lmdali.pipeline.manifest import ShardInfo
from lmdali.pipeline.moments import Moments

SHARD_FILE = "shard.json"
_FIELDS = {"shard", "plan", "moments"}


@dataclass(frozen=True, eq=False)
class ShardFigures:
    """The content of a `shard.json`.

    Attributes:
        info: the shard's line in the manifest.
        plan: fingerprint of the plan that it was made for.
        moments: of its images, without the sums at each position.
    """

    info: ShardInfo
    plan: str
    moments: Moments

    @classmethod
    def load(cls, directory: Path) -> ShardFigures:
        """The figures of the shard in `directory`.

        Raises:
            IntegrityError: they are missing or damaged.
        """
        path = directory / SHARD_FILE
        try:
            document = read_sealed(path)
            if document.keys() - {"digest"} != _FIELDS:
                raise IntegrityError(f"{path}: has the fields {sorted(document)}: the file is damaged")
            moments = Moments.from_json(document["moments"], None)
            return cls(shard_from_json(document["shard"]), document["plan"], moments)
        except InputError as error:
            raise IntegrityError(f"{path}: missing") from error
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise IntegrityError(f"{path}: {error!r}: the file is damaged") from error

    def save(self, directory: Path) -> None:
        """Write them into a shard's directory."""
        save_figures(directory, self.info, {"plan": self.plan, "moments": self.moments.to_json()})


def save_figures(directory: Path, info: ShardInfo, document: dict[str, Any]) -> None:
    """Write `shard.json`: the shard's line of the manifest, and whatever else is to be kept beside it."""
    write_json(directory / SHARD_FILE, seal({"shard": shard_to_json(info), **document}))


def shard_to_json(info: ShardInfo) -> dict[str, Any]:
    """A `ShardInfo` as `shard.json` keeps it."""
    return {**info.__dict__, "rejected": list(info.rejected)}


def shard_from_json(fields: dict[str, Any]) -> ShardInfo:
    """Inverse of `shard_to_json`."""
    return ShardInfo(**{**fields, "rejected": tuple(fields["rejected"])})
