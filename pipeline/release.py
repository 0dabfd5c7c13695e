"""Which lmdali this is, and which versions of other packages are here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

DALI_PACKAGES = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
"""What pip knows DALI as, by the major version of CUDA; `nvidia-dali` is a placeholder."""


def lmdali_version() -> str:
    """The installed version, or `unknown` when run from somewhere else."""
    return installed_version("lmdali") or "unknown"


def installed_version(package: str) -> str | None:
    """Version of an installed package, by the name that pip knows; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def has_dali() -> bool:
    """Whether DALI is here; it is not imported for that, which takes a second."""
    return all(find_spec(name) for name in ("nvidia", "nvidia.dali"))
