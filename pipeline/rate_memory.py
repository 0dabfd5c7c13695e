"""Rates that were measured on this machine once, kept in the user's cache directory, so that they need not be again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.files import canonical_digest, read_json, write_json
from lmdali.pipeline.release import DALI_PACKAGES, installed_version
from lmdali.pipeline.shard_cache import user_cache

_MEMORY_VERSION = 1
_PACKAGES = ("lmdali", "torch", *DALI_PACKAGES)


@dataclass(frozen=True, kw_only=True)
class RateKey:
    """Everything that a measured rate depends on; rates are remembered under it.

    Attributes:
        gpu: name of the GPU.
        cpu: name of the CPU.
        num_cpus: CPUs this process may use.
        num_threads: of the loader.
        prefetch: of the loader; with threads and batch size it says how large tasks are.
        batch_size: samples per step.
        dtype: of the images.
        layout: of the images.
        crop_size: side of a view, pixels.
        num_views: views per sample.
        resized: views are windows that are resized, which takes a CPU longer than to cut them.
        image_size: side of the stored images, pixels.
        encoding: of the records.
        mean_record_bytes: stored bytes per record, see `rounded_bytes`.
        versions: from `software_versions`.
    """

    gpu: str
    cpu: str
    num_cpus: int
    num_threads: int
    prefetch: int
    batch_size: int
    dtype: str
    layout: str
    crop_size: int
    num_views: int
    resized: bool
    image_size: int
    encoding: str
    mean_record_bytes: int
    versions: tuple[str, ...]

    def digest(self) -> str:
        """Name of this key in the file."""
        return canonical_digest(asdict(self))


def rounded_bytes(num_bytes: float) -> int:
    """Two significant digits: another dataset of the same kind should find what was measured."""
    return int(float(f"{num_bytes:.1e}"))


class RateMemory:
    """Rates of earlier runs in a small JSON file. A file that cannot be read or written is as good as none.

    Args:
        path: the file; None remembers nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self, key: RateKey) -> dict[str, float]:
        """Images per second under this key, by the name of what was measured."""
        found = self._entries().get(key.digest())
        rates = found.get("images_per_second") if isinstance(found, dict) else None
        if not isinstance(rates, dict):
            return {}
        return {name: rate for name, rate in rates.items() if type(rate) is float and 0 < rate < float("inf")}

    def store(self, key: RateKey, rates: Mapping[str, float]) -> None:
        """Add or replace what is known under this key."""
        if self._path is None:
            return
        entries = self._entries() | {key.digest(): {"key": asdict(key), "images_per_second": dict(rates)}}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"version": _MEMORY_VERSION, "entries": entries})
        except (LmdaliError, OSError):
            pass  # the next run measures again

    def _entries(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            document = read_json(self._path)
        except LmdaliError:
            return {}
        entries = document.get("entries")
        return entries if document.get("version") == _MEMORY_VERSION and isinstance(entries, dict) else {}


def memory_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where rates are remembered: `lmdali/decode.json` in the user's cache directory (XDG); None without a home."""
    directory = user_cache(environment)
    return None if directory is None else directory / "decode.json"


def software_versions() -> tuple[str, ...]:
    """Name and version of the packages that decide how fast a loader is, as far as they are installed."""
    found = {package: installed_version(package) for package in _PACKAGES}
    return tuple(f"{package} {version}" for package, version in found.items() if version is not None)
