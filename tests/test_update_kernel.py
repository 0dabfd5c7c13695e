"""The update rule in one GPU pass against the rule, by Triton's interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[dev]'")

from lmdali.model.update_kernel import update

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_three_steps_of_the_scalar_reference() -> None:
    """The worked example: weight 1, gradients 1, -2 and 0.5, the rate cut to a tenth before the last step."""
    weight, velocity = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    for gradient, rate in ((1.0, 0.01), (-2.0, 0.01), (0.5, 0.001)):
        update(
            weight,
            velocity,
            torch.full((1,), gradient, device=DEVICE),
            torch.tensor(rate, device=DEVICE),
            momentum=0.9,
            decay=5e-4,
        )
    assert weight.item() == pytest.approx(1.010376544554725, abs=3e-7)
    assert velocity.item() == pytest.approx(0.009390994529725, abs=3e-9)


def test_every_element_is_updated_once() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, velocity, gradient = (torch.randn(7, 300, generator=generator).to(DEVICE) for _ in range(3))
    want_velocity = 0.5 * velocity - 0.25 * gradient - 0.25 * 0.125 * weight
    want_weight = weight + want_velocity
    update(weight, velocity, gradient, torch.tensor(0.25, device=DEVICE), momentum=0.5, decay=0.125)
    torch.testing.assert_close(velocity, want_velocity)
    torch.testing.assert_close(weight, want_weight)
