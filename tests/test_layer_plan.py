"""The plan of every network of the paper and its runs: order, shapes, numbers of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from test_alexnet_config import CONFIGS

from lmdali.model.alexnet import AlexNet
from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.layer_plan import feature_steps, layer_plans, parameter_shapes


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({}, 60_965_224),
        ({"pooling": "separate"}, 60_965_224),
        ({"lrn_place": "none"}, 60_965_224),
        ({"lrn_place": "before_first_relu", "map_norm": True}, 60_965_224),
        ({"towers": 1}, 62_378_344),
        ({"half_net": True}, 59_798_312),
        ({"drop": ("conv2",)}, 60_104_808),
        ({"drop": ("conv3",)}, 59_858_920),
        ({"drop": ("conv3",), "towers": 1}, 61_050_856),
        ({"drop": ("conv4",)}, 60_301_288),
        ({"drop": ("conv5",)}, 79_396_968),
        ({"sixth_layer": True}, 61_555_304),
        ({"sixth_layer": True, "num_classes": 10_184}, 99_182_152),
        ({"sixth_layer": True, "num_classes": 21_841}, 146_940_881),
    ],
)
def test_each_network_has_its_number_of_parameters(fields: dict[str, Any], parameters: int) -> None:
    config = AlexNetConfig(**fields)
    with torch.device("meta"):
        net = AlexNet(config)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert sum(plan.num_parameters for plan in layer_plans(config).values()) == parameters


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        (
            {},
            "edge conv1 relu norm pool conv2 relu norm pool conv3 relu conv4 relu conv5 relu pool",
        ),
        (
            {"lrn_place": "before_first_relu", "map_norm": True},
            "edge conv1 norm pool relu conv2 relu norm map_norm pool conv3 relu conv4 relu conv5 relu pool",
        ),
        (
            {"lrn_place": "none", "map_norm": True},
            "edge conv1 relu pool conv2 relu pool conv3 relu conv4 relu conv5 relu pool",
        ),
        (
            {"sixth_layer": True, "drop": ("conv3", "conv4")},
            "edge conv1 relu norm pool conv2 relu norm pool conv5 relu pool conv6 relu",
        ),
        (
            {"drop": ("conv2", "conv5"), "map_norm": True},
            "edge conv1 relu norm pool pool conv3 relu conv4 relu pool",
        ),
    ],
)
def test_steps_are_in_the_order_of_the_run(fields: dict[str, Any], steps: str) -> None:
    assert " ".join(feature_steps(AlexNetConfig(**fields))) == steps


@pytest.mark.parametrize(
    ("fields", "layer", "shape", "side"),
    [
        ({}, "conv1", (96, 3, 11, 11), 55),
        ({}, "conv5", (256, 192, 3, 3), 13),
        ({"pooling": "separate"}, "conv2", (256, 48, 5, 5), 26),
        ({"pooling": "separate"}, "conv5", (256, 192, 3, 3), 11),
        ({"half_net": True}, "conv5", (256, 192, 3, 3), 13),
        ({"half_net": True}, "fc6", (4096, 9216), 1),
        ({"drop": ("conv2",)}, "conv3", (384, 96, 3, 3), 13),
        ({"drop": ("conv3",)}, "conv4", (384, 128, 3, 3), 13),
        ({"drop": ("conv3",), "towers": 1}, "conv4", (384, 256, 3, 3), 13),
        ({"drop": ("conv4",)}, "conv5", (256, 192, 3, 3), 13),
        ({"drop": ("conv5",)}, "fc6", (4096, 384 * 36), 1),
        ({"drop": ("conv2", "conv3", "conv4", "conv5")}, "fc6", (4096, 96 * 36), 1),
        ({"sixth_layer": True}, "conv6", (256, 256, 3, 3), 6),
        ({"sixth_layer": True, "drop": ("conv5",)}, "conv6", (256, 384, 3, 3), 6),
        ({"num_classes": 21_841}, "fc8", (21_841, 4096), 1),
    ],
)
def test_shapes_follow_what_comes_before(fields: dict[str, Any], layer: str, shape: tuple[int, ...], side: int) -> None:
    plan = layer_plans(AlexNetConfig(**fields))[layer]
    assert (plan.weight_shape, plan.side) == (shape, side)


@given(CONFIGS)
@settings(deadline=None, max_examples=60)
def test_any_configuration_is_a_network_that_runs(config: AlexNetConfig) -> None:
    with torch.device("meta"):
        net = AlexNet(config)
        assert net(torch.empty(1, 3, 224, 224)).shape == (1, config.num_classes)
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == parameter_shapes(config)
    assert list(parameter_shapes(config)) == [name for name, _ in net.named_parameters()]


def test_a_towers_half_sees_what_its_outputs_saw() -> None:
    plans = layer_plans(AlexNetConfig())
    assert plans["conv1"].tower().weight_shape == (48, 3, 11, 11)
    assert plans["conv2"].tower().weight_shape == (128, 48, 5, 5)
    assert plans["conv3"].tower().weight_shape == (192, 256, 3, 3)
    assert plans["fc6"].tower().weight_shape == (2048, 9216)
