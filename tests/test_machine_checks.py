"""`machine_checks`: what is read of processors and memory, and which machines are slower than they could be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lmdali.pipeline import crop_kernel
from lmdali.tools import machine_checks
from lmdali.tools.finding import Finding
from lmdali.tools.machine_checks import available_memory, machine_findings


def found_of(what: str) -> Finding:
    (finding,) = [finding for finding in machine_findings() if finding.what == what]
    return finding


def memory_files(folder: Path, *, available: str, limit: str = "max", used: str = "0") -> dict[str, Path]:
    (folder / "meminfo").write_text(f"MemTotal:  64 kB\nMemAvailable:  {available}\n")
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(used)
    return {"memory": folder / "meminfo", "cgroup": folder}


def test_here_nothing_is_wrong() -> None:
    assert all(finding.verdict in ("ok", "note") for finding in machine_findings())


def test_memory_is_what_the_machine_and_the_container_both_leave(tmp_path: Path) -> None:
    assert available_memory(**memory_files(tmp_path, available="40 kB")) == 40 * 1024
    assert available_memory(**memory_files(tmp_path, available="40 kB", limit="30000", used="10000")) == 20_000
    assert available_memory(**memory_files(tmp_path, available="4 kB", limit="30000", used="10000")) == 4096
    assert available_memory(**memory_files(tmp_path, available="4 kB", limit="30000", used="40000")) == 0
    (tmp_path / "memory.stat").write_text("anon 9000\nfile 8000\nactive_file 5000\ninactive_file 1000\nshmem 2000\n")
    assert available_memory(**memory_files(tmp_path, available="40 kB", limit="30000", used="29000")) == 7000
    assert available_memory(**memory_files(tmp_path, available="40 kB", limit="30000", used="100")) == 30_000
    assert available_memory(**memory_files(tmp_path, available="nonsense", limit="nonsense")) is None


def test_memory_of_a_control_group_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("5000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("2000\n")
    assert available_memory(tmp_path / "none", tmp_path) == 3000
    (tmp_path / "memory" / "memory.stat").write_text("active_file 1\ntotal_active_file 700\ntotal_inactive_file 50\n")
    assert available_memory(tmp_path / "none", tmp_path) == 3750


def test_a_busy_machine_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "usable_cpus", lambda: 3)
    monkeypatch.setattr(machine_checks.os, "getloadavg", lambda: (3.4, 0.0, 0.0))
    assert found_of("processors").verdict == "note"
    monkeypatch.setattr(machine_checks.os, "getloadavg", lambda: (2.9, 9.0, 9.0))
    finding = found_of("processors")
    assert finding.verdict == "ok" and finding.found.startswith("3 of ")


def test_where_nobody_counts_the_load_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> None:
        raise OSError

    monkeypatch.setattr(machine_checks.os, "getloadavg", unknown)
    finding = found_of("processors")
    assert finding.verdict == "ok" and finding.found.endswith(", load unknown")


def test_machine_code_that_is_kept_nowhere_is_a_caution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_kernel, "crop_pixels", SimpleNamespace(stats=SimpleNamespace(cache_path=None)))
    finding = found_of("compiled loops")
    assert finding.verdict == "caution" and "NUMBA_CACHE_DIR" in finding.advice


def test_loops_that_are_not_compiled_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_kernel, "crop_pixels", lambda *arguments: None)  # as numba leaves it
    finding = found_of("compiled loops")
    assert finding.verdict == "problem" and finding.advice == "unset NUMBA_DISABLE_JIT"


def test_without_numba_nothing_is_said_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "installed_version", lambda package: None)
    assert "compiled loops" not in [finding.what for finding in machine_findings()]


def test_variables_of_torchrun_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert "ranks" not in [finding.what for finding in machine_findings()]
    monkeypatch.setenv("WORLD_SIZE", "4")
    finding = found_of("ranks")
    assert finding.verdict == "note" and finding.found.startswith("WORLD_SIZE=4")
