"""Training steps of the full network on a GPU: ordinary, fused, and as one graph; beside the arithmetic bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from lmdali.model import fused_features
from lmdali.model.alexnet import AlexNet
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.presets import PRESETS
from lmdali.model.towers import TowerAlexNet
from lmdali.model.train_config import TrainConfig
from lmdali.model.train_step import TrainStep
from lmdali.pipeline.batch import Batch
from lmdali.tools.measurement import Rate, WindowPlan, measure
from lmdali.tools.step_probes import ModelProbe

STEP_GFLOP = 4.1356
"""Of one image in a training step of the paper's network: twice the multiply-adds of conv1 to fc8, three times (the way
there, and back to weights and inputs) but for the gradient of the images, which nobody wants."""

_RATE = 1e-6
_MATRIX_SIDE = 8192
_STEPS, _FUSED, _GRAPH = "layer by layer", "fused", "fused, one graph"
_CASES = [
    ("paper", torch.bfloat16, 128, _STEPS),
    ("paper", torch.bfloat16, 128, _FUSED),
    ("paper", torch.bfloat16, 128, _GRAPH),
    ("paper", torch.bfloat16, 1024, _STEPS),
    ("paper", torch.bfloat16, 1024, _FUSED),
    ("paper", torch.bfloat16, 1024, _GRAPH),
    ("paper", torch.float32, 128, _GRAPH),
    ("original2012", torch.bfloat16, 1024, _GRAPH),
]
"""Recipe, precision, batch and way of each row."""

Row = dict[str, Any]


def matrix_ceiling(device: torch.device, plan: WindowPlan) -> float:
    """Images per second if the step were one large bfloat16 product of random matrices."""
    left, right = (torch.randn(_MATRIX_SIDE, _MATRIX_SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    flop = 2.0 * _MATRIX_SIDE**3

    class Product:
        warmup_steps = 3

        def run(self) -> Iterator[int]:
            while True:
                for _ in range(8):
                    left @ right
                torch.cuda.synchronize(device)
                yield 8

        def stage_seconds(self) -> dict[str, float]:
            return {}

    rate = measure([Product()], plan)[0]
    return rate.images_per_second * flop / (STEP_GFLOP * 1e9)


def step_rates(device: torch.device, plan: WindowPlan) -> Iterator[Row]:
    """One batch again and again: what the network alone can do, and what each measure gains."""
    bound = matrix_ceiling(device, plan)
    yield {
        "what": "arithmetic bound: a bfloat16 matrix product",
        "result": f"{bound:,.0f} images/s ({bound * STEP_GFLOP / 1000:.0f} TFLOP/s)",
        "passed": True,
        "images_per_second": bound,
    }
    for name, precision, batch_size, way in _CASES:
        rate = _rate(name, device, batch_size, precision, way, plan)
        share = rate.images_per_second / bound
        yield {
            "what": f"{name}, {str(precision).removeprefix('torch.')}, batch {batch_size}, {way}",
            "result": f"{rate.images_per_second:,.0f} images/s ± {rate.spread:.0%}, {share:.1%} of the bound",
            "passed": True,
            "images_per_second": rate.images_per_second,
            "share_of_bound": share,
        }


def towers(device: torch.device, plan: WindowPlan) -> Iterator[Row]:
    """Both towers on one GPU: the same losses as the network in one piece, and what the crossings cost."""
    config = PRESETS["paper"].model
    batch = _batch(128, device)
    losses, rates = [], []
    for build in (AlexNet, lambda config: TowerAlexNet(config, (device, device))):
        model = build(config)
        if isinstance(model, AlexNet):
            model = model.to(device)
        model = model.to(memory_format=torch.channels_last).train()
        step = TrainStep(model, PaperSGD(parameter_groups(model, TrainConfig()), 0.001), device=device)
        torch.manual_seed(0)  # the same masks; making layers on a GPU draws from its generator
        losses.append([float(step(batch)[0]) for _ in range(5)])
        rates.append(measure([ModelProbe(step, batch)], plan, synchronize=partial(torch.cuda.synchronize, device))[0])
        del model, step
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    yield {
        "what": f"towers, both on {device}, five losses",
        "result": f"largest difference {difference:.2g} of {losses[0][0]:.3f}; "
        f"{rates[1].images_per_second:,.0f} images/s, in one piece {rates[0].images_per_second:,.0f}",
        "passed": difference < 1e-2,
        "losses": losses,
    }


def _rate(
    preset: str, device: torch.device, batch_size: int, precision: torch.dtype, way: str, plan: WindowPlan
) -> Rate:
    model = AlexNet(PRESETS[preset].model).to(device=device, memory_format=torch.channels_last).train()
    step = TrainStep(
        model,
        PaperSGD(parameter_groups(model, TrainConfig()), _RATE),
        device=device,
        precision=precision,
        cuda_graph=way == _GRAPH,
    )
    batch = _batch(batch_size, device)
    with _without_fusing(way == _STEPS):
        return measure([ModelProbe(step, batch)], plan, synchronize=partial(torch.cuda.synchronize, device))[0]


@contextmanager
def _without_fusing(wanted: bool) -> Iterator[None]:
    suits = fused_features.suits
    if wanted:
        fused_features.suits = lambda model, images: False
    try:
        yield
    finally:
        fused_features.suits = suits


def _batch(batch_size: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, 224, 224, generator=generator).mul_(70).to(device)
    labels = torch.randint(0, 1000, (batch_size,), generator=generator).to(device)
    return Batch(images.contiguous(memory_format=torch.channels_last), labels, torch.arange(batch_size))
