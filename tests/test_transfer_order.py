"""Batches arrive whole whatever order a GPU does things in, with its streams and memory played by `simulated_cuda`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from simulated_cuda import SimulatedCuda

from lmdali.pipeline import transfer
from lmdali.pipeline.augment import AugmentParams
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.buffers import BufferRing
from lmdali.pipeline.normaliser import DeviceNormalizer
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.transfer import DeviceTransfer, HeldMemory

CPU = torch.device("cpu")
SIZE, CROP, LARGEST = 6, 4, 3
MEAN = np.random.default_rng(1).uniform(90, 160, (SIZE, SIZE, 3)).astype(np.float32)
TRANSFORM = PixelTransform(MEAN, np.ones(3, np.float32), np.eye(3, dtype=np.float32))


def simulate(seed: int, monkeypatch: pytest.MonkeyPatch, *, num_batches: int = 12) -> list[bool]:
    """Whether each batch that a consumer looked at was right, in one of the orders that CUDA allows."""
    cuda, dice = SimulatedCuda(seed), random.Random(seed)
    cuda.install(monkeypatch)

    class LaterNormalizer(DeviceNormalizer):
        """Works when its stream comes to it."""

        def __call__(
            self, patches: torch.Tensor, plan: BatchPlan, uploaded: Sequence[torch.Tensor] | None = None
        ) -> torch.Tensor:
            assert uploaded is not None
            images = cuda.empty((len(patches), CROP, CROP, 3), torch.float32)
            out, pixels = cuda.look_at(images), cuda.look_at(patches)
            operands = [cuda.look_at(operand) for operand in uploaded]

            def work() -> None:
                try:
                    out.copy_(DeviceNormalizer.__call__(self, pixels, plan, operands))
                except IndexError:  # places in the mean image that were overwritten
                    out.fill_(torch.nan)

            cuda.launch(work)
            return images

    class KeptRing(BufferRing):
        def _allocate(self) -> NDArray[np.generic]:
            whole = super()._allocate()
            cuda.keep(whole)
            return whole

    monkeypatch.setattr(transfer, "DeviceNormalizer", LaterNormalizer)
    monkeypatch.setattr("lmdali.pipeline.host_to_device.BufferRing", KeptRing)
    numbers = np.random.default_rng(seed)
    sender = DeviceTransfer(TRANSFORM, OutputSpec(LARGEST, 1, CROP, "float32", "NHWC", CPU))
    ring, right = KeptRing((LARGEST, CROP, CROP, 3), np.uint8), list[bool]()
    held: list[Any] = []
    for _ in range(num_batches):
        plan, pixels = _plan(numbers, int(numbers.integers(1, LARGEST + 1)))
        rows, patches = ring.take(len(pixels))
        for row, image, (y, x) in zip(rows, pixels, plan.params.crop_yx, strict=True):
            row[...] = image[y : y + CROP, x : x + CROP]
        images, labels = sender.send(patches, plan.indices, plan)
        del rows, patches
        cuda.run_some()
        seen_images, seen_labels = cuda.look_at(images), cuda.look_at(labels)
        expected = torch.from_numpy(apply_params(pixels, plan.params, TRANSFORM, CROP))

        cuda.launch(partial(_look, right, (seen_images, expected), (seen_labels, torch.from_numpy(plan.indices))))
        held.append((images, labels))
        del images, labels
        while held and dice.random() < 0.6:  # most are gone before they are looked at
            held.pop(0)
        cuda.run_some()
    del held
    sender.close()
    cuda.run_all()
    monkeypatch.undo()
    return right


def _look(right: list[bool], *pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    right.append(all(torch.equal(found, expected) for found, expected in pairs))


def _plan(numbers: np.random.Generator, count: int) -> tuple[BatchPlan, NDArray[np.uint8]]:
    """A plan without mirror images, and whole images for it; indices are its labels, too."""
    params = AugmentParams(
        numbers.integers(0, SIZE - CROP + 1, (count, 2)),
        np.zeros(count, np.bool_),
        numbers.normal(size=(count, 3)).astype(np.float32),
    )
    indices = numbers.integers(0, 10**6, count)
    plan = BatchPlan(indices, params, TRANSFORM.shifts(params), TRANSFORM.scale)
    return plan, numbers.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def test_every_batch_is_right_in_any_order_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(200):
        assert simulate(seed, monkeypatch) == [True] * 12, f"seed {seed}"


def without_holding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeldMemory, "hold", lambda held, memory, event=None: None)


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulated_cuda.Stream.wait_event", lambda stream, event: None)


def without_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedCuda, "_record_stream", lambda cuda, tensor, stream: None)


@pytest.mark.parametrize("fault", [without_holding, without_waiting, without_recording])
def test_whatever_is_left_out_is_seen(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would show nothing."""
    wrong = 0
    for seed in range(40):
        fault(monkeypatch)  # `simulate` takes it back
        wrong += simulate(seed, monkeypatch) != [True] * 12
    assert wrong > 0
