"""Which lmdali this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def lmdali_version() -> str:
    """The installed version, or `unknown` when run from somewhere else."""
    try:
        return version("lmdali")
    except PackageNotFoundError:
        return "unknown"
