"""`package_checks`: packages that are missing, too old, broken or there twice are problems; extras are notes."""

from __future__ import annotations

from importlib.metadata import metadata, requires

import pytest

from lmdali.pipeline.release import installed_version
from lmdali.tools import package_checks
from lmdali.tools.finding import Finding
from lmdali.tools.package_checks import EXTRAS, needed_packages, package_findings


def found_of(findings: list[Finding], what: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.what == what]
    return finding


def with_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Packages (with _ for -) that seem to be of another version, or not to be there."""
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(
        package_checks, "installed_version", lambda name: named[name] if name in named else installed_version(name)
    )


def test_here_nothing_is_wrong() -> None:
    findings = list(package_findings())
    assert {finding.verdict for finding in findings} <= {"ok", "note"}
    assert "lmdb " in found_of(findings, "always needed").found
    assert "torch " in found_of(findings, "extra train").found


def test_what_is_declared_is_what_is_looked_at() -> None:
    """Each line of setup.py is understood: a version with another sign than `>=` would not be compared."""
    needs = needed_packages()
    declared = requires("lmdali") or []
    assert sum(map(len, needs.values())) == len(declared)
    extras = set(metadata("lmdali").get_all("Provides-Extra") or [])
    assert extras - {"dev", "dali-cuda12", "dali-cuda13"} == set(EXTRAS)
    assert set(needs) == extras | {""}


def test_a_package_that_is_missing_or_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, lmdb="2.2.9", crc32c=None, numpy="2", rich="13.0.0rc1")
    findings = list(package_findings())
    old, missing = found_of(findings, "lmdb"), found_of(findings, "crc32c")
    assert (old.verdict, old.found) == ("problem", "lmdb 2.2.9 is older than 2.3")
    assert old.advice == "pip install --force-reinstall 'lmdb>=2.3'"
    assert (missing.verdict, missing.found) == ("problem", "crc32c is not installed")
    assert "numpy 2," in found_of(findings, "always needed").found  # just new enough
    assert "lmdb" not in found_of(findings, "always needed").found


def test_a_package_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: str) -> None:
        if module == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file\nmore lines")

    monkeypatch.setattr(package_checks, "import_module", broken)
    finding = found_of(list(package_findings()), "opencv-python-headless")
    assert finding.verdict == "problem"
    assert finding.found == "cannot be imported: ImportError: libGL.so.1: cannot open shared object file"


def test_two_builds_of_opencv_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, opencv_python="5.0.0")
    finding = found_of(list(package_findings()), "OpenCV")
    assert finding.verdict == "problem"
    assert finding.advice.startswith("pip uninstall -y opencv-python opencv-python-headless, then pip install")


def test_extras_that_are_missing_are_notes_with_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, s3fs=None, torch="2.9.1+cu130", numba="1.0")
    findings = list(package_findings())
    remote, train = found_of(findings, "extra remote"), found_of(findings, "extra train")
    assert (remote.verdict, remote.found) == ("note", "no s3fs: for datasets at s3://")
    assert "pip install 'lmdali[remote]'" in remote.advice
    assert (train.verdict, train.found) == ("problem", "torch 2.9.1+cu130 is older than 2.10")
