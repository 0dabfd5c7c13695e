"""Initial weights: the named spreads and biases, and what a seed means."""

from __future__ import annotations

import pytest
import torch

from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.initialisation import INITIALISATIONS, initial_parameters
from lmdali.model.layer_plan import layer_plans

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc8")


@pytest.mark.parametrize(
    ("init", "std", "bias"),
    [
        ("paper", [0.01] * 9, [0, 1, 0, 1, 1, 1, 1, 1, 0]),
        ("original2012", [0.01, 0.01, 0.03, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01], [0, 1, 0, 1, 1, 1, 1, 1, 0]),
        ("caffe", [0.01] * 6 + [0.005, 0.005, 0.01], [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 0]),
        (
            "lecun",
            [0.01, *((1 / fan_in) ** 0.5 for fan_in in (300, 576, 432, 432, 576, 2304, 1024)), 0.01],
            [0] * 9,
        ),
    ],
)
def test_initial_weights_have_the_named_spread(init: str, std: list[float], bias: list[float]) -> None:
    config = AlexNetConfig(width=0.25, num_classes=1000, init=init, sixth_layer=True)
    shapes = {name: plan.weight_shape for name, plan in layer_plans(config).items()}
    drawn = dict(initial_parameters(init, shapes, seed=3))
    assert list(drawn) == [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]
    for layer, want_std, want_bias in zip(LAYERS, std, bias, strict=True):
        weight = drawn[f"{layer}.weight"]
        assert tuple(weight.shape) == shapes[layer]
        tolerance = 5 * want_std / (2 * weight.numel()) ** 0.5
        assert weight.std().item() == pytest.approx(want_std, abs=tolerance), layer
        assert abs(weight.mean().item()) < 5 * want_std / weight.numel() ** 0.5
        assert drawn[f"{layer}.bias"].shape == shapes[layer][:1]
        assert (drawn[f"{layer}.bias"] == want_bias).all(), layer
    assert set(INITIALISATIONS) == {"paper", "original2012", "caffe", "lecun"}


def test_draws_depend_on_the_arguments_alone() -> None:
    shapes: dict[str, tuple[int, ...]] = {"conv1": (4, 3, 2, 2), "fc8": (2, 4)}
    first = dict(initial_parameters("paper", shapes, 1))
    torch.randn(100)
    with torch.device("meta"):
        again = dict(initial_parameters("paper", shapes, 1))
    other = dict(initial_parameters("paper", shapes, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    # Layers that both networks begin with get the same draws.
    assert torch.equal(
        dict(initial_parameters("caffe", {"conv1": (4, 3, 2, 2)}, 1))["conv1.weight"], first["conv1.weight"]
    )
