"""What `layer_lr` may say, and which of its entries holds for a layer at a point."""

from __future__ import annotations

import pytest

from lmdali.model.layer_rates import LayerRate, parse_layer_rates, rate_at, rates_of
from lmdali.pipeline.errors import ConfigError


def holding(text: str, layer: str, epoch: float) -> tuple[str, float] | None:
    rate = rate_at(rates_of(parse_layer_rates(text), layer), epoch)
    return None if rate is None else (rate.kind, rate.value)


def test_entries_are_read_in_the_order_of_their_epochs() -> None:
    assert parse_layer_rates(" conv1=frozen@72, conv1=1e-5@67.5") == (
        LayerRate(("conv1",), 67.5, "rate", 1e-5),
        LayerRate(("conv1",), 72.0, "frozen", 0.0),
    )
    assert parse_layer_rates("") == parse_layer_rates("  ") == ()


def test_the_last_entry_that_has_begun_holds() -> None:
    text = "conv1=1e-5@67,conv1=frozen@72"
    assert holding(text, "conv1", 66.999) is None
    assert holding(text, "conv1", 67.0) == ("rate", 1e-5)
    assert holding(text, "conv1", 72.0) == holding(text, "conv1", 90.0) == ("frozen", 0.0)
    assert holding(text, "conv2", 90.0) is None


def test_of_entries_that_begin_together_the_later_written_holds() -> None:
    assert holding("conv=1e-3,conv1=1e-4", "conv1", 0.0) == ("rate", 1e-4)
    assert holding("conv=1e-3,conv1=1e-4", "conv5", 0.0) == ("rate", 1e-3)
    assert holding("conv1=1e-4,conv=1e-3", "conv1", 0.0) == ("rate", 1e-3)


def test_kinds_of_layers_and_several_at_once() -> None:
    text = "conv6+fc=0.01,conv6+fc=x1@2.5"
    assert [holding(text, layer, 1.0) for layer in ("conv6", "fc6", "fc8")] == [("rate", 0.01)] * 3
    assert holding(text, "fc7", 2.5) == ("factor", 1.0)
    assert holding(text, "conv1", 1.0) is None
    assert [holding("conv2..conv4=frozen", f"conv{n}", 0.0) for n in (1, 2, 4, 5)] == [
        None,
        ("frozen", 0.0),
        ("frozen", 0.0),
        None,
    ]


@pytest.mark.parametrize(
    "text",
    ["conv1", "conv1=", "=0.1", "conv7=0.1", "pool1=0.1", "conv1=fast", "conv1=0", "conv1=-1", "conv1=x0", "conv1=nan",
     "conv1=0.1@", "conv1=0.1@-1", "conv1=0.1@x", "conv1=0.1,,conv2=0.1", "conv1+=0.1"],
)  # fmt: skip
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="layer_lr"):
        parse_layer_rates(text)
