"""What the input costs a training step on a GPU: steps on one batch beside steps that the loader feeds, and the passes
that make images of a batch there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.pipeline import normaliser
from lmdali.pipeline.augment import AugmentConfig, draw_params
from lmdali.pipeline.backend import BackendName, BatchPlan, DType, OutputSpec
from lmdali.pipeline.eigenbasis import load_eigenbasis
from lmdali.pipeline.gpu_kernels import has_gpu_kernels
from lmdali.pipeline.host_to_device import upload_together
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.normaliser import DeviceNormalizer
from lmdali.pipeline.pixel_transform import PixelTransform, pixel_transform
from lmdali.tools.measurement import WindowPlan, measure
from lmdali.tools.profiled_model import training_step
from lmdali.tools.step_probes import LoaderProbe, ModelProbe

CASES: tuple[tuple[DType, int], ...] = (("float32", 128), ("bfloat16", 128), ("bfloat16", 512), ("float32", 512))
"""Precision and batch of each training, the most interesting first."""

GOAL = 0.02
"""Of a step's time, at most."""

_PASSES = 16
"""On a GPU between two waits, so that no launch is waited for."""

Row = dict[str, Any]


def stall(
    dataset: Path, device: torch.device, plan: WindowPlan, width: float, backends: list[BackendName]
) -> Iterator[Row]:
    """An AlexNet on one batch again and again, and fed by each backend: the share of a step that is input.

    The two take turns, and shares are of windows of one turn: whatever else the machine does meets both. Records count
    as read before: their CRCs, which are compared once, are not.
    """
    classes = len(load_manifest(dataset).class_names)
    for backend in backends:
        for dtype, batch_size in CASES if device.type == "cuda" else [("float32", 8)]:
            config = LoaderConfig(
                dataset=dataset, batch_size=batch_size, backend=backend, dtype=dtype, layout="NHWC", verify="never"
            )
            model = AlexNet(AlexNetConfig(num_classes=classes, width=width))
            model = model.to(device=device, memory_format=torch.channels_last).train()
            step = training_step(model, dtype=dtype, device=device)
            with create_loader(config, device, rank=0, world_size=1) as loader:
                first = next(iter(loader))
                probes = [ModelProbe(step, first), LoaderProbe(loader, step)]
                alone, fed = measure(probes, plan, synchronize=lambda: wait_for(device))
            shares = [1 - f / a for a, f in zip(alone.per_window, fed.per_window, strict=True)]
            share = median(shares)
            own = {stage: 1e3 * batch_size * (s or 0.0) for stage, s in fed.stage_seconds_per_image.items()}
            yield {
                "what": f"{load_manifest(dataset).encoding}, AlexNet {dtype}, batch {batch_size}, {backend} loader",
                "result": f"{alone.images_per_second:,.0f} images/s on one batch, {fed.images_per_second:,.0f} fed, "
                f"stall {share:.1%} ({min(shares):.1%} to {max(shares):.1%}; wanted: under {GOAL:.0%}); the consumer "
                f"spent {own['plan'] + own['wait']:.2f} ms of a batch in next(), {own['copy']:.2f} of it sending",
                "passed": True,
                "reached": share < GOAL,
                "plan_ms": own["plan"],
                "wait_ms": own["wait"],
                "copy_ms": own["copy"],
                "alone": alone.per_window,
                "fed": fed.per_window,
                "stall": share,
                "fed_cpu_seconds_per_image": fed.cpu_seconds_per_image,
            }


class NormaliserProbe:
    """Batches of the paper's augmentation made from patches that are on the device.

    Args:
        transform: the arithmetic of a dataset.
        image_size: side of its images, pixels.
        dtype: of the images.
        batch_size: images per pass.
        device: where they are.
        kernels: take the Triton kernel where there is one; else torch's operations in turn.
    """

    warmup_steps = 2

    def __init__(
        self,
        transform: PixelTransform,
        image_size: int,
        dtype: DType,
        batch_size: int,
        device: torch.device,
        *,
        kernels: bool,
    ) -> None:
        augment, indices = AugmentConfig.paper(), np.arange(batch_size)
        size, self._kernels, self._device = augment.crop_size, kernels, device
        self._normalize = DeviceNormalizer(transform, OutputSpec(batch_size, 1, size, dtype, "NHWC", device))
        params = draw_params(augment, seed=0, epoch=0, indices=indices, positions=indices, image_size=image_size)
        self._plan = BatchPlan(indices, params, transform.shifts(params), transform.scale)
        self._patches = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8, device=device)
        self._operands = upload_together(self._normalize.operands(self._plan), device)

    def images(self) -> torch.Tensor:
        """One batch."""
        before = normaliser.has_gpu_kernels
        normaliser.has_gpu_kernels = has_gpu_kernels if self._kernels else lambda device: False
        try:
            return self._normalize(self._patches, self._plan, self._operands)
        finally:
            normaliser.has_gpu_kernels = before

    def run(self) -> Iterator[int]:
        """Each step is some batches."""
        passes = _PASSES if self._device.type == "cuda" else 1
        while True:
            for _ in range(passes):
                self.images()
            wait_for(self._device)
            yield passes * len(self._patches)

    def stage_seconds(self) -> dict[str, float]:
        """One kind of work."""
        return {}


def normaliser_rates(dataset: Path, device: torch.device, batch_size: int, plan: WindowPlan) -> Iterator[Row]:
    """Mean image, lighting, dtype and layout of a batch: in one pass and step by step, and that both are the same."""
    size = load_manifest(dataset).image_size
    transform = pixel_transform(AugmentConfig.paper(), load_eigenbasis(dataset), size)
    dtypes: tuple[DType, ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        fused, steps = (
            NormaliserProbe(transform, size, dtype, batch_size, device, kernels=kernels) for kernels in (True, False)
        )
        fused._patches = steps._patches
        same = torch.equal(fused.images(), steps.images())
        one, several = measure([fused, steps], plan, synchronize=lambda: wait_for(device))
        times = [batch_size / rate.images_per_second * 1e6 for rate in (one, several)]
        way = "one kernel" if has_gpu_kernels(device) else "no kernel here"
        yield {
            "what": f"normalising {batch_size} patches to {dtype}, {way} beside torch's operations",
            "result": f"{times[0]:,.0f} beside {times[1]:,.0f} microseconds, equal: {same}",
            "passed": same,
            "microseconds": times,
        }


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
