"""Layers copied from one network into another: which, bit for bit, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.towers import TowerAlexNet, merge_state, split_state
from lmdali.model.weight_transfer import select_layers, transfer_layers
from lmdali.pipeline.errors import ConfigError, InputError

FIVE = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
SIX = (*FIVE[:5], "conv6", *FIVE[5:])


def network(seed: int, **fields: Any) -> dict[str, Tensor]:
    config = AlexNetConfig(**{"width": 1 / 48, "num_classes": 3, "init": "lecun", **fields})
    return AlexNet(config, seed=seed).state_dict()


@pytest.mark.parametrize(
    ("text", "known", "want"),
    [
        ("conv", FIVE, "conv1 conv2 conv3 conv4 conv5"),
        ("conv", SIX, "conv1 conv2 conv3 conv4 conv5 conv6"),
        ("conv1..conv5", SIX, "conv1 conv2 conv3 conv4 conv5"),
        ("conv4..fc6", SIX, "conv4 conv5 conv6 fc6"),
        ("all-but-fc8", FIVE, "conv1 conv2 conv3 conv4 conv5 fc6 fc7"),
        ("all", FIVE, " ".join(FIVE)),
        ("fc", SIX, "fc6 fc7 fc8"),
        ("fc7, conv2", FIVE, "conv2 fc7"),
        ("conv3..conv3,conv", FIVE, "conv1 conv2 conv3 conv4 conv5"),
    ],
)
def test_layers_are_selected_in_the_networks_order(text: str, known: tuple[str, ...], want: str) -> None:
    assert " ".join(select_layers(text, known)) == want


@pytest.mark.parametrize(
    "text", ["", "conv9", "conv1..", "conv5..conv1", "all-but-", "all-but-conv", "conv1;conv2", "conv,"]
)
def test_a_term_that_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="names no layers: there are conv1, conv2"):
        select_layers(text, FIVE)


# The chain of section 7 of the paper, as its runs had it: #145 -> #146-2009 -> #146-2011 -> #146-2012-2011.
@pytest.mark.parametrize(
    ("source", "target", "layers", "fresh"),
    [
        ({}, {"sixth_layer": True, "num_classes": 7}, "conv1..conv5", {"conv6", "fc6", "fc7", "fc8"}),
        ({"sixth_layer": True}, {"sixth_layer": True, "num_classes": 7}, "conv", {"fc6", "fc7", "fc8"}),
        ({"sixth_layer": True}, {"sixth_layer": True, "num_classes": 7}, "all-but-fc8", {"fc8"}),
        ({}, {"dropout": 0.0, "lrn_place": "none"}, "all", set()),
    ],
)
def test_named_layers_are_copied_bit_for_bit_and_the_others_stay(
    source: dict[str, Any], target: dict[str, Any], layers: str, fresh: set[str]
) -> None:
    learnt, begun = network(1, **source), network(2, **target)
    untouched = {name: tensor.clone() for name, tensor in begun.items()}
    state, copied = transfer_layers(learnt, begun, layers)
    assert list(state) == list(begun)
    assert set(copied) == {name.partition(".")[0] for name in begun} - fresh
    for name, tensor in state.items():
        assert torch.equal(tensor, (begun if name.partition(".")[0] in fresh else learnt)[name]), name
        tensor.add_(1.0)  # everything is a copy
    assert all(torch.equal(begun[name], tensor) for name, tensor in untouched.items())
    assert all(torch.equal(learnt[name], tensor) for name, tensor in network(1, **source).items())


def test_two_towers_receive_what_one_device_learnt() -> None:
    config = AlexNetConfig(width=1 / 48, num_classes=5)
    towers = TowerAlexNet(config, (torch.device("cpu"), torch.device("cpu")), seed=2)
    learnt = network(1)
    state, _ = transfer_layers(learnt, merge_state(towers.state_dict(), config), "all-but-fc8")
    towers.load_state_dict(split_state(state, config))
    got = merge_state(towers.state_dict(), config)
    assert all(torch.equal(got[name], learnt[name]) for name in learnt if not name.startswith("fc8"))
    assert got["fc8.weight"].shape[0] == 5


@pytest.mark.parametrize(
    ("source", "target", "layers", "message"),
    [
        (
            {},
            {"num_classes": 7},
            "all",
            r"layer fc8 cannot be copied: fc8.weight is \(3, 86\) float32 in the source and "
            r"\(7, 86\) float32 in this network; leave fc8 out of 'all'",
        ),
        ({}, {"towers": 1}, "conv", r"layer conv2 cannot be copied: conv2.weight is .* in the source and .* in this"),
        ({}, {"sixth_layer": True}, "conv", "layer conv6 was to be copied, but the source has no conv6.weight"),
        (
            {"sixth_layer": True},
            {},
            "all-but-fc8",
            "layer conv6 was to be copied, but this network has no conv6.weight",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_layer_and_both_shapes(
    source: dict[str, Any], target: dict[str, Any], layers: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        transfer_layers(network(1, **source), network(2, **target), layers)


def test_another_dtype_is_refused_and_not_converted() -> None:
    doubles = {name: tensor.double() for name, tensor in network(1).items()}
    with pytest.raises(InputError, match=r"conv1.weight is .* float64 in the source and .* float32"):
        transfer_layers(doubles, network(2), "conv1")
