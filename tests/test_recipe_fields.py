"""The fields of a recipe: all of them are there, and each takes what its kind takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.train_config import TrainConfig
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader_config import LoaderConfig
from lmdali.tools.recipe_fields import DERIVED, FIELDS, PRESET_LOADER_FIELDS
from lmdali.tools.train import command


def names(owner: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(owner)}


def test_every_field_of_network_training_and_augmentation_is_one_of_a_recipe() -> None:
    assert set(FIELDS["model"]) == names(AlexNetConfig) - set(DERIVED)
    assert set(FIELDS["train"]) == names(TrainConfig)
    assert set(FIELDS["augment"]) == names(AugmentConfig)
    assert set(FIELDS["loader"]) < names(LoaderConfig)
    assert set(PRESET_LOADER_FIELDS) <= set(FIELDS["loader"])


def test_names_are_unique_and_each_is_an_option() -> None:
    all_names = [name for fields in FIELDS.values() for name in fields]
    assert len(all_names) == len(set(all_names))
    options = {parameter.name: parameter.opts for parameter in command.params}
    for fields in FIELDS.values():
        for name, field in fields.items():
            assert field.flag in options[name]


def test_defaults_are_the_classes_own_and_are_read_back() -> None:
    for section, owner in (("model", AlexNetConfig()), ("train", TrainConfig()), ("augment", AugmentConfig())):
        for name, field in FIELDS[section].items():
            assert field.default == getattr(owner, name)
            assert field.read(field.default) == field.default


@pytest.mark.parametrize(
    ("section", "name", "raw", "value"),
    [
        ("model", "width", "0.25", 0.25),
        ("model", "width", 1, 1.0),
        ("model", "lrn_size", "7", 7),
        ("model", "drop", "conv3, conv4", ("conv3", "conv4")),
        ("model", "drop", ["conv3"], ("conv3",)),
        ("model", "drop", "none", ()),
        ("model", "drop", "", ()),
        ("model", "map_norm", True, True),
        ("model", "lrn_place", "none", "none"),  # a place of that name, not the lack of one
        ("train", "bias_lr", "none", None),
        ("train", "bias_lr", None, None),
        ("train", "bias_lr", 0.02, 0.02),
        ("train", "bias_schedule", "constant", "constant"),
        ("train", "lr", "1e-3", 0.001),
        ("augment", "lighting", "roots", "roots"),
        ("loader", "num_threads", "none", None),
        ("loader", "drop_last", False, False),
    ],
)
def test_values_are_read(section: str, name: str, raw: object, value: object) -> None:
    got = FIELDS[section][name].read(raw)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("section", "name", "raw"),
    [
        ("model", "width", "wide"),
        ("model", "width", True),
        ("model", "width", None),
        ("model", "lrn_size", 2.5),
        ("model", "lrn_size", "2.5"),
        ("model", "drop", 3),
        ("model", "drop", [3]),
        ("model", "map_norm", "yes"),
        ("model", "map_norm", 1),
        ("model", "pooling", "average"),
        ("train", "schedule", 3),
        ("train", "bias_lr", "fast"),
        ("train", "precision", "float64"),
        ("augment", "lighting", "bright"),
    ],
)
def test_other_values_are_refused_by_name(section: str, name: str, raw: object) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{name}: expected .*, found"):
        FIELDS[section][name].read(raw)
