"""Which lmdali this is, and which versions of other packages are here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def lmdali_version() -> str:
    """The installed version, or `unknown` when run from somewhere else."""
    return installed_version("lmdali") or "unknown"


def installed_version(package: str) -> str | None:
    """Version of an installed package, by the name that pip knows; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
