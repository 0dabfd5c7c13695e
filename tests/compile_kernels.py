"""Compiles each Triton kernel for an H100, on a machine without any GPU: `python compile_kernels.py`.

A driver that loads and launches nothing stands in for CUDA's, so that the project's own launches decide what is
compiled, down to machine code. The last line of the output is a JSON list of the kernels' names.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from lmdali.model import fused_features, layers, map_norm, optim
from lmdali.model.alexnet import AlexNet
from lmdali.model.presets import PRESETS
from lmdali.model.train_step import TrainStep
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.normalise_kernel import MeanTable, normalise

CPU = torch.device("cpu")


class NoGpu:
    """What Triton asks of a driver."""

    def __init__(self) -> None:
        self.launched: set[str] = set()
        self.utils = self

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spilled bytes, most threads."""
        assert binary, f"{name} has no machine code"
        return 1, 1, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448, "multiprocessor_count": 132, "warpSize": 32}

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments, **options: self.launched.add(source.fn.fn.__module__ + "." + source.fn.fn.__name__)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return CPU


def train() -> None:
    """A step of the network that has every kind of layer."""
    for module in (fused_features, layers, map_norm):
        module.takes_kernels = lambda tensor: True
    optim.has_gpu_kernels = lambda device: True
    recipe = PRESETS["original2012"].changed(model={"width": 1 / 8, "num_classes": 10})
    model = AlexNet(recipe.model).to(memory_format=torch.channels_last).train()
    optimizer = optim.PaperSGD(optim.parameter_groups(model, recipe.train), 0.001)
    step = TrainStep(model, optimizer, device=CPU, precision=torch.bfloat16)
    step(Batch(torch.zeros(2, 3, 224, 224), torch.zeros(2, dtype=torch.int64), torch.arange(2)))


def normalise_batches() -> None:
    """The paper's arithmetic in both layouts."""
    patches, size = torch.zeros(2, 224, 224, 3, dtype=torch.uint8), 256
    mean, first = MeanTable(torch.zeros(2 * 3 * size * size), size, size), torch.zeros(2, dtype=torch.int64)
    for planar in (True, False):
        shape = (2, 3, 224, 224) if planar else (2, 224, 224, 3)
        out = torch.empty(shape, dtype=torch.bfloat16)
        normalise(patches, out, mean, first, torch.zeros(2, 3), torch.ones(3), planar=planar)


if __name__ == "__main__":
    stand_in = NoGpu()
    driver.set_active(stand_in)  # type: ignore[arg-type]
    normalise_batches()
    train()
    print(json.dumps(sorted(stand_in.launched)))
