"""What the tests of storage faults share: a source, and what of an output counts."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

SHARD_FILES = ("data.mdb", "offsets.npy", "shard.json")
STATISTICS = ("statistics.json", "mean.npy")


def odd_source(folder: Path) -> Path:
    """60 sources of about 36 pixels in three classes, one of each class broken."""
    dice = np.random.default_rng(60)
    for name in ("ant", "bee", "cat"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            path = folder / name / f"{number:02d}.jpg"
            if number == 7:
                path.write_bytes(b"\xff\xd8\xff\xe0 not much of a picture")
            else:
                assert cv2.imwrite(str(path), dice.integers(0, 255, (33 + number % 5, 40, 3), dtype=np.uint8))
    return folder


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory: relative path -> bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def tree(directory: Path) -> dict[str, bytes | None]:
    """Every file and folder below a directory: relative path -> bytes, None for a folder."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


def state_key(state: dict[str, bytes | None]) -> frozenset[tuple[str, bytes | None]]:
    """What a later run can learn of a `tree`.

    It does not read what was not yet renamed, nor who held a lock, nor what is staged for a shard until the hashes of
    that are there.
    """
    return frozenset(
        (
            re.sub(r"\.[0-9a-f]{8}\.tmp", ".tmp", name),
            None if ".tmp" in name or name.endswith("lock") or _is_unhashed(name, state) else data,
        )
        for name, data in state.items()
    )


def _is_unhashed(name: str, state: dict[str, bytes | None]) -> bool:
    stem, _, suffix = name.rpartition(".")
    return suffix in ("records", "rejects", "npy") and f"{stem}.hashes" not in state and ".staging/" in name


def finished_shards(names: object) -> set[str]:
    """Numbers of the shards that have their final name, of paths that begin with `shards/`."""
    parts = [str(name).split("/") for name in names]  # type: ignore[attr-defined]
    return {part[1] for part in parts if part[0] == "shards" and len(part) > 1 and not part[1].startswith(".")}


def wrong_shards(found: dict[str, bytes], *datasets: dict[str, bytes]) -> list[str]:
    """Shards with their final name that are not, in all their files, those of one of `datasets`."""
    return [
        shard
        for shard in sorted(finished_shards(found))
        if not any(
            all(found.get(name := f"shards/{shard}/{file}") == files.get(name, "none") for file in SHARD_FILES)
            for files in datasets
        )
    ]
