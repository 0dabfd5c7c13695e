"""The GPU's way through the convolutional layers is the same function, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[dev]'")

from lmdali.model import fused_features
from lmdali.model.alexnet import AlexNet, AlexNetConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "original2012": {"lrn_place": "before_first_relu", "map_norm": True, "lrn_alpha": 1e-4, "init": "original2012"},
    "caffe": {"lrn_across_towers": True, "lrn_k": 1.0, "lrn_alpha": 1e-4},
    "no normalisation": {"lrn_place": "none"},
    "separate pooling": {"pooling": "separate"},
    "sixth layer": {"sixth_layer": True},
    "half net": {"half_net": True},
    "three towers": {"towers": 3},
    "without conv2": {"drop": ("conv2",)},
    "without conv3": {"drop": ("conv3",)},
    "without conv5": {"drop": ("conv5",)},
}


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_features_and_gradients_are_those_of_the_steps(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = AlexNetConfig(**{"width": 0.06, "init": "lecun", **fields})
    plain, model = AlexNet(config, seed=1).double(), AlexNet(config, seed=1)
    model.to(device=DEVICE, memory_format=torch.channels_last)
    names = [name for name, _ in model.named_parameters() if name.startswith("conv")]
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 60
    want = plain.features(images.double())
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    want_slopes = torch.autograd.grad((want * weights).sum(), [plain.get_parameter(name) for name in names])
    got = fused_features.features(model, config, images.to(DEVICE))
    difference = float((got.detach().cpu() - want.detach()).abs().max())
    assert difference <= 1e-5 * float(want.detach().abs().max())
    got_slopes = torch.autograd.grad((got * weights.to(DEVICE)).sum(), [model.get_parameter(name) for name in names])
    for name, got_slope, want_slope in zip(names, got_slopes, want_slopes, strict=True):
        difference = float((got_slope.cpu() - want_slope).abs().max())
        assert difference <= 1e-4 * float(want_slope.abs().max()) + 1e-6, name


def test_a_cpu_takes_the_steps() -> None:
    model = AlexNet(AlexNetConfig(width=0.06)).to(memory_format=torch.channels_last)
    assert not fused_features.suits(model, torch.zeros(1, 3, 64, 64))
