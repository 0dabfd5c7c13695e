from __future__ import annotations

import numpy as np
import torch

from lmdali.pipeline.half_kernel import to_bfloat16, to_float16


def values() -> np.ndarray:
    random = np.random.default_rng(4)
    halves = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    between = (halves[:-1] + halves[1:]) / 2  # ties
    near = [np.nextafter(between, np.float32(np.inf)), np.nextafter(between, np.float32(0))]
    anything = random.normal(0, 100, 100_000), random.normal(0, 1e-6, 100_000), random.uniform(-7e4, 7e4, 100_000)
    out = np.concatenate([halves, between, *near, *anything, [0.0, 65519.9, 65520.0, 1e30]]).astype(np.float32)
    return np.concatenate([out, -out])


def test_float16_is_rounded_as_torch_rounds() -> None:
    floats = values()
    out = np.empty(len(floats), np.uint16)
    to_float16(floats, floats.view(np.uint32), out)
    expected = torch.from_numpy(floats).to(torch.float16).numpy().view(np.uint16)
    assert np.array_equal(out, expected)


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    floats = values()
    out = np.empty(len(floats), np.uint16)
    to_bfloat16(floats.view(np.uint32), out)
    expected = torch.from_numpy(floats).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(out, expected)
