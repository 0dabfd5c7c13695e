"""Configurations: what they refuse, how they are stored, and those of earlier versions."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.model.alexnet_config import DROPOUT_RULES, DROPPABLE, LRN_PLACES, POOLINGS, AlexNetConfig
from lmdali.model.initialisation import INITIALISATIONS
from lmdali.pipeline.errors import ConfigError

CONFIGS = st.builds(
    AlexNetConfig,
    num_classes=st.sampled_from([2, 1000, 10_184, 21_841]),
    width=st.floats(0.001, 2.0),
    towers=st.integers(1, 3),
    half_net=st.booleans(),
    drop=st.lists(st.sampled_from(DROPPABLE)).map(tuple),
    sixth_layer=st.booleans(),
    pooling=st.sampled_from(POOLINGS),
    lrn_place=st.sampled_from(LRN_PLACES),
    lrn_across_towers=st.booleans(),
    map_norm=st.booleans(),
    dropout_rule=st.sampled_from(DROPOUT_RULES),
    init=st.sampled_from(list(INITIALISATIONS)),
)


@given(CONFIGS)
def test_every_configuration_survives_json(config: AlexNetConfig) -> None:
    stored = config.to_json()
    assert json.loads(json.dumps(stored)) == stored
    assert AlexNetConfig.from_json(json.loads(json.dumps(stored))) == config


@given(CONFIGS)
def test_any_width_gives_equal_towers(config: AlexNetConfig) -> None:
    assert all(outputs > 0 and outputs % config.groups == 0 for outputs in config.widths().values())


def test_files_of_earlier_versions_mean_the_same_network() -> None:
    fields = {
        "num_classes": 10, "width": 0.25, "towers": 2, "init": "lecun", "dropout": 0.4,
        "lrn_size": 5, "lrn_alpha": 5e-4, "lrn_beta": 0.75, "lrn_k": 2.0,
    }  # fmt: skip
    want = AlexNetConfig(num_classes=10, width=0.25, init="lecun", dropout=0.4)
    assert AlexNetConfig.from_json(fields) == want


def test_layers_that_are_left_out_have_one_order() -> None:
    config = AlexNetConfig(drop=("conv4", "conv3", "conv4"))
    assert config.drop == ("conv3", "conv4")
    assert config == AlexNetConfig(drop=("conv3", "conv4"))
    assert list(config.widths()) == ["conv1", "conv2", "conv5", "fc6", "fc7"]


def test_the_half_network_is_one_tower_whatever_towers_says() -> None:
    config = AlexNetConfig(half_net=True)
    assert config.groups == 1
    assert list(config.widths().values()) == [48, 128, 192, 192, 256, 4096, 4096]
    assert dataclasses.replace(config, half_net=False).groups == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"init": ["paper"]}, r"init must be one of paper, original2012, caffe, lecun; found \['paper'\]"),
        ({"init": "zeros"}, "init must be one of paper, original2012, caffe, lecun"),
        ({"width": 0.0}, "width"),
        ({"width": -1.0}, "width"),
        ({"width": math.inf}, "width must be a finite number, found inf"),
        ({"width": math.nan}, "width must be a finite number, found nan"),
        ({"lrn_alpha": math.nan}, "lrn_alpha must be a finite number"),
        ({"lrn_beta": math.inf}, "lrn_beta must be a finite number"),
        ({"towers": 0}, "towers"),
        ({"pooling": "average"}, "pooling must be one of overlapping, separate; found 'average'"),
        ({"lrn_place": "before"}, "lrn_place must be one of after_relu, before_first_relu, none"),
        ({"dropout_rule": "off"}, "dropout_rule must be one of paper, inverted, scale_only"),
        ({"drop": ("conv1",)}, "drop takes layers of conv2, conv3, conv4, conv5"),
        ({"drop": ("conv6",)}, "found .*conv6"),
        ({"drop": "conv3"}, "found 'conv3'"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AlexNetConfig(**fields)  # type: ignore[arg-type]


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ConfigError, match="depth"):
        AlexNetConfig.from_json({"depth": 5})
