"""`gpu_checks`: why a machine's GPU cannot be used, played with torch's own answers replaced."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmdali.pipeline.release import installed_version
from lmdali.tools import gpu_checks
from lmdali.tools.finding import Finding
from lmdali.tools.gpu_checks import driver_version, gpu_findings

DRIVER = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)
GCC version:  gcc version 12.2.0
"""


def found_of(what: str) -> Finding:
    (finding,) = [finding for finding in gpu_findings() if finding.what == what]
    return finding


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine whose torch answers as it is told: a driver, a build for CUDA 13.0, one GPU that computes."""
    (tmp_path / "version").write_text(DRIVER)
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=141_000_000_000, major=9, minor=0)
    monkeypatch.setattr(gpu_checks, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, answer in {"is_available": True, "device_count": 1, "get_device_properties": properties}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, answer=answer: answer)
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *arguments, device: arange(*arguments))
    monkeypatch.setattr("lmdali.pipeline.gpu_kernels.has_gpu_kernels", lambda device: True)
    return monkeypatch


def test_here_nothing_is_wrong() -> None:
    assert all(finding.verdict in ("ok", "note") for finding in gpu_findings())


def test_without_torch_only_the_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "installed_version", lambda package: None)
    assert [finding.what for finding in gpu_findings()] == ["NVIDIA driver"]


def test_a_gpu_that_computes_something_else_is_a_problem(machine: pytest.MonkeyPatch) -> None:
    assert found_of("cuda:0").verdict == "ok"
    machine.setattr(torch, "arange", lambda *arguments, device: torch.zeros(4))
    finding = found_of("cuda:0")
    assert (finding.verdict, finding.found) == ("problem", "does not compute: AssertionError: 0.0")


def test_the_version_of_the_driver(tmp_path: Path) -> None:
    (tmp_path / "open").write_text(DRIVER)
    (tmp_path / "closed").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 2023\n")
    (tmp_path / "odd").write_text("something else\n")
    assert driver_version(tmp_path / "open") == "580.95.05"
    assert driver_version(tmp_path / "closed") == "535.129.03"
    assert driver_version(tmp_path / "odd") == "of unknown version"
    assert driver_version(tmp_path / "none") is None


def test_a_gpu_that_computes(machine: pytest.MonkeyPatch) -> None:
    finding = found_of("cuda:0")
    assert finding.verdict == "ok"
    assert finding.found == "NVIDIA H200, 141,000.0 MB, compute capability 9.0"
    assert "built for CUDA 13.0; NVIDIA driver 580.95.05" in found_of("torch").found


def test_a_gpu_whose_driver_is_not_in_proc_has_one_all_the_same(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(gpu_checks, "DRIVER", tmp_path / "none")
    assert found_of("torch").found.endswith("built for CUDA 13.0; NVIDIA driver of unknown version")
    machine.setattr(torch.cuda, "is_available", lambda: False)
    assert found_of("torch").found.endswith("no NVIDIA driver here")


def test_a_torch_for_cpus_beside_a_driver_is_a_problem(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: False)
    machine.setattr(torch.version, "cuda", None)
    finding = found_of("torch")
    assert finding.verdict == "problem" and "CPU only" in finding.found and "install torch for CUDA" in finding.advice


def test_a_driver_that_torch_cannot_use_is_a_problem_with_its_reason(machine: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    machine.setattr(torch.cuda, "is_available", lambda: False)
    machine.setattr(torch.cuda, "init", refuse)
    finding = found_of("torch")
    assert finding.verdict == "problem" and finding.found.endswith("is too old (found version 11040).")


def test_a_gpu_that_does_not_compute_is_a_problem(machine: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, device: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    machine.setattr(torch, "arange", refuse)
    finding = found_of("cuda:0")
    assert finding.verdict == "problem" and "no kernel image" in finding.found


def test_kernels_that_cannot_be_built_are_a_caution(machine: pytest.MonkeyPatch) -> None:
    def without(device: torch.device) -> bool:
        warnings.warn("Triton cannot build here: no gcc", RuntimeWarning, stacklevel=2)
        return False

    machine.setattr("lmdali.pipeline.gpu_kernels.has_gpu_kernels", without)
    finding = found_of("cuda:0")
    assert finding.verdict == "caution" and "no gcc" in finding.found
    machine.setattr("lmdali.pipeline.gpu_kernels.has_gpu_kernels", lambda device: False)
    assert "Triton is not installed" in found_of("cuda:0").found


def test_a_container_with_little_shared_memory_for_several_gpus_is_a_caution(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(gpu_checks.shutil, "disk_usage", lambda path: SimpleNamespace(total=64_000_000))
    assert "shared memory" not in [finding.what for finding in gpu_findings()]  # one GPU has nobody to share it with
    machine.setattr(torch.cuda, "device_count", lambda: 2)
    finding = found_of("shared memory")
    assert finding.verdict == "caution" and "--shm-size" in finding.advice


def without_dali(monkeypatch: pytest.MonkeyPatch, placeholder: str | None = None) -> None:
    def version(package: str) -> str | None:
        if package.startswith("nvidia-dali"):
            return placeholder if package == "nvidia-dali" else None
        return installed_version(package)

    monkeypatch.setattr(gpu_checks, "installed_version", version)


def test_missing_dali_is_a_note_where_there_is_a_gpu(machine: pytest.MonkeyPatch) -> None:
    without_dali(machine)
    assert found_of("DALI").verdict == "note" and "dali-cuda13" in found_of("DALI").advice
    machine.setattr(torch.version, "cuda", "12.6")
    assert "dali-cuda12" in found_of("DALI").advice
    machine.setattr(gpu_checks, "DRIVER", Path("/nonexistent"))
    machine.setattr(torch.cuda, "is_available", lambda: False)
    assert found_of("DALI").verdict == "ok"


def test_the_placeholder_of_dali_is_a_problem(machine: pytest.MonkeyPatch) -> None:
    without_dali(machine, placeholder="0.0.1.dev5")
    finding = found_of("DALI")
    assert finding.verdict == "problem" and "placeholder" in finding.found
    assert finding.advice.startswith("pip uninstall -y nvidia-dali, then pip install 'lmdali[dali-cuda13]'")


def test_a_dali_that_cannot_be_imported_is_a_problem(machine: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str | None:
        return "2.4.0" if package == "nvidia-dali-cuda130" else installed_version(package)

    def broken(module: str) -> Any:
        if module.endswith("dali_graph"):
            raise RuntimeError("libnvimgcodec.so.0: cannot open shared object file")
        return import_module(module)

    machine.setattr(gpu_checks, "installed_version", version)
    import_module = importlib.import_module
    machine.setattr(importlib, "import_module", broken)
    finding = found_of("DALI")
    assert finding.verdict == "problem" and "libnvimgcodec" in finding.found
    assert finding.advice == "pip install --force-reinstall nvidia-dali-cuda130"
