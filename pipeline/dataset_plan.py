"""What a conversion will write, settled before its first shard: the plan, its parts, and how two plans differ."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.files import canonical_digest
from lmdali.pipeline.manifest import Manifest

MAX_SHARDS = 100_000
"""Five digits; a manifest that names more is not read."""


class PlannedShard(NamedTuple):
    """One shard of a plan.

    Attributes:
        name: five digits.
        first_position: plan position of its first source.
        num_sources: sources in it, stored or rejected.
    """

    name: str
    first_position: int
    num_sources: int


@dataclass(frozen=True)
class Part:
    """Every `count`-th shard of a plan: what one of `count` machines does.

    Attributes:
        number: 1 to `count`.
        count: parts in all.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= 99_999:
            raise ConfigError(f"part is {self}: expected I/N with 1 <= I <= N <= 99999")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "I/N".

        Raises:
            ConfigError: it is anything else.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None:
            raise ConfigError(f"part is {text!r}: expected I/N, for example 2/8")
        return cls(int(match[1]), int(match[2]))

    def has(self, name: str) -> bool:
        """Whether a shard belongs to this part."""
        return int(name) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class DatasetPlan:
    """What will be written; equal plans give equal bytes.

    Attributes:
        image_size: side of the stored images, pixels.
        encoding: "jpeg" or "raw".
        class_names: position is label.
        num_sources: sources in all.
        shard_sources: sources per shard; the last one may have fewer.
        recipe: see `Manifest`.
        source: see `Manifest`.
    """

    image_size: int
    encoding: str
    class_names: tuple[str, ...]
    num_sources: int
    shard_sources: int
    recipe: dict[str, Any]
    source: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """sha256 over all fields."""
        return canonical_digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """All fields, as `plan.json` keeps them."""
        return asdict(self) | {"class_names": list(self.class_names)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> DatasetPlan:
        """Inverse of `to_json`.

        Raises:
            KeyError: a field is missing.
        """
        known = {name: fields[name] for name in cls.__dataclass_fields__}
        return cls(**{**known, "class_names": tuple(known["class_names"])})

    def shards(self, part: Part | None = None) -> list[PlannedShard]:
        """Every shard, or those of one part."""
        starts = range(0, self.num_sources, self.shard_sources)
        shards = [
            PlannedShard(f"{n:05d}", at, min(self.shard_sources, self.num_sources - at)) for n, at in enumerate(starts)
        ]
        return [shard for shard in shards if part is None or part.has(shard.name)]


def manifest_as_plan(manifest: Manifest) -> dict[str, Any]:
    """What a finished dataset tells of its plan, in the form of `DatasetPlan.to_json`.

    Where there is only one shard, the size a shard might have had is not known, and left out.
    """
    fields = {
        "image_size": manifest.image_size,
        "encoding": manifest.encoding,
        "class_names": list(manifest.class_names),
        "num_sources": sum(shard.num_sources for shard in manifest.shards),
        "recipe": manifest.recipe,
        "source": {key: value for key, value in manifest.source.items() if key != "plan"},
    }
    if len(manifest.shards) > 1:
        fields["shard_sources"] = manifest.shards[0].num_sources
    return fields


def other_options(shown: object, manifest: Manifest, plan: DatasetPlan) -> InputError:
    """The error for an output that holds a finished dataset of another plan."""
    before, now = manifest_as_plan(manifest), plan.to_json()
    different = differences(before, {key: now[key] for key in before}) or "shard size"
    return InputError(f"{shown}: holds a finished dataset made with other options ({different}): use --overwrite")


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two plans as JSON, for people: `quality: 95 then, 90 now; ...`; empty where nothing does.

    A field that only one of them has counts where its value is not None.
    """
    before, now = (json.loads(json.dumps(document)) for document in (before, now))
    return "; ".join(_differences(before, now))


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    for key in dict.fromkeys([*now, *before]):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            found.append(_list_difference(key, old, new))
        elif key == "fingerprint":
            found.append(f"the source's files or labels: fingerprint {str(old)[:12]}... then, {str(new)[:12]}... now")
        else:
            found.append(f"{key}: {old!r} then, {new!r} now")
    return found


def _list_difference(key: str, old: list[Any], new: list[Any]) -> str:
    if len(old) != len(new):
        return f"{key}: {len(old)} then, {len(new)} now"
    at = next(n for n, (one, other) in enumerate(zip(old, new, strict=True)) if one != other)
    return f"{key}: number {at} was {old[at]!r} then, is {new[at]!r} now"
