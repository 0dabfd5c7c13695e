"""Whether kernels are taken, with a Triton that says what it is told to; a GPU is not asked."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lmdali.pipeline import gpu_kernels
from lmdali.pipeline.gpu_kernels import has_gpu_kernels

GPU = torch.device("cuda", 0)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The driver of a Triton that is there."""
    active = SimpleNamespace(get_current_target=lambda: "cuda:90")
    runtime = ModuleType("triton.runtime")
    runtime.driver = SimpleNamespace(active=active)  # type: ignore[attr-defined]
    package = ModuleType("triton")
    package.runtime = runtime  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton", package)
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu_kernels, "_triton_works", gpu_kernels._triton_works.__wrapped__)
    return active


def test_a_gpu_takes_kernels_and_a_cpu_does_not(triton: SimpleNamespace) -> None:
    assert has_gpu_kernels(GPU) and not has_gpu_kernels(torch.device("cpu"))


def test_without_triton_there_are_none(triton: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda name: None)
    assert not has_gpu_kernels(GPU)


def test_a_triton_that_cannot_build_is_left_alone_and_named(triton: SimpleNamespace) -> None:
    def no_compiler() -> None:
        raise RuntimeError("Failed to find C compiler")

    triton.get_current_target = no_compiler
    with pytest.warns(RuntimeWarning, match=r"Failed to find C compiler.*gcc"):
        assert not has_gpu_kernels(GPU)
