"""What `make oldest` installs is what setup.py takes at least."""

from __future__ import annotations

from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

OLDEST = Path(__file__).parents[1] / "oldest.txt"
DEVELOPERS = {"extra": "dev"}
AS_ANOTHER = {"nvidia-dali-cuda120": "nvidia-dali-cuda130", "gcsfs": "s3fs"}
"""Packages that are not tested, and those whose versions theirs follow."""


def test_the_oldest_versions_are_the_lower_bounds_of_every_package_that_users_install() -> None:
    needed = [Requirement(line) for line in requires("lmdali") or []]
    bounds = {
        need.name: next(Version(part.version) for part in need.specifier if part.operator == ">=")
        for need in needed
        if need.marker is None or not need.marker.evaluate(DEVELOPERS)
    }
    lines = OLDEST.read_text().partition("# ----")[0].splitlines()
    pins = {name: Version(version) for line in lines if "==" in line for name, version in [line.split("==")]}
    expected = {AS_ANOTHER.get(name, name): bound for name, bound in bounds.items()}
    assert len(expected) == len(bounds) - len(AS_ANOTHER)
    for name, bound in expected.items():
        assert str(pins[name]).startswith(str(bound)), f"{name}: setup.py takes {bound}, oldest.txt has {pins[name]}"
    assert set(pins) == set(expected)
