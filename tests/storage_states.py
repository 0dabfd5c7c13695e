"""What the tests of storage faults share: a source, and what of an output counts."""

from __future__ import annotations

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
