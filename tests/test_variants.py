"""The paper's experiments: each changes what it says, and has the number of parameters that it must have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmdali.model.alexnet import AlexNet
from lmdali.model.presets import PRESETS
from lmdali.model.variants import BASELINE, VARIANTS, choose_variants
from lmdali.pipeline.errors import ConfigError

PARAMETERS = {  # of 1,000 classes
    BASELINE: 60_965_224,
    "no-conv2": 60_104_808,
    "no-conv3": 59_858_920,
    "no-conv4": 60_301_288,
    "no-conv5": 79_396_968,
    "no-lrn": 60_965_224,
    "separate-pooling": 60_965_224,
    "no-dropout": 60_965_224,
    "no-lighting": 60_965_224,
    "half-net": 59_798_312,
    "sixth-layer": 61_555_304,
}


def test_there_is_a_number_for_each_variant() -> None:
    assert list(VARIANTS) == list(PARAMETERS)
    assert all(name == variant.name for name, variant in VARIANTS.items())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("preset", ["paper", "original2012"])
def test_parameters_are_the_known_ones(name: str, preset: str) -> None:
    with torch.device("meta"):
        count = sum(weight.numel() for weight in AlexNet(VARIANTS[name].of(PRESETS[preset]).model).parameters())
    assert count == PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "baseline"])
def test_one_thing_changes_and_the_network_still_learns(name: str) -> None:
    base = PRESETS["original2012"]
    changed = VARIANTS[name].of(base)
    assert (changed.train, changed.batch_size, changed.order) == (base.train, base.batch_size, base.order)
    assert (changed.model == base.model) == (name == "no-lighting")
    assert (changed.augment == base.augment) == (name != "no-lighting")
    model = AlexNet(replace(changed.model, width=1 / 32, num_classes=3, init="lecun"), seed=0)
    torch.manual_seed(0)
    model(torch.randn(2, 3, 224, 224)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_choosing() -> None:
    base = PRESETS["paper"]
    assert [variant.name for variant, _ in choose_variants(None, base)] == list(VARIANTS)
    found = choose_variants(["no-lrn", "no-conv3"], base)
    assert [variant.name for variant, _ in found] == ["baseline", "no-conv3", "no-lrn"]
    assert found[0][1] == base
    unlit = base.changed(augment={"lighting": "none"})
    assert "no-lighting" not in [variant.name for variant, _ in choose_variants(None, unlit)]
    with pytest.raises(ConfigError, match="changes nothing of this recipe"):
        choose_variants(["no-lighting"], unlit)
    with pytest.raises(ConfigError, match="no variant 'no-conv1': there are baseline, no-conv2"):
        choose_variants(["no-conv1"], base)


def test_without_dropout_its_scale_stays_only_where_there_is_one() -> None:
    """By the paper's rule outputs are halved at test time, by the inverted one never."""
    variant = VARIANTS["no-dropout"]
    halved = variant.of(PRESETS["paper"]).model
    assert (halved.dropout_rule, halved.dropout) == ("scale_only", 0.5)
    whole = variant.of(PRESETS["caffe"]).model
    assert (whole.dropout_rule, whole.dropout) == ("inverted", 0.0)
    without = PRESETS["paper"].changed(model={"dropout": 0.0})
    assert variant.of(without) == without


def test_a_layer_less_is_one_less_than_the_recipe_has() -> None:
    base = PRESETS["paper"].changed(model={"drop": ("conv3",)})
    assert VARIANTS["no-conv2"].of(base).model.drop == ("conv2", "conv3")
    assert VARIANTS["no-conv3"].of(base) == base
