"""Learning rates of single layers: what the text of `TrainConfig.layer_lr` says, read and found by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lmdali.model.weight_transfer import select_layers
from lmdali.pipeline.errors import ConfigError

_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc8")
_FORM = "LAYERS=RATE[@EPOCH] with LAYERS as in conv1..conv5+fc8, conv or fc, and RATE as in 1e-5, x0.1 or frozen"


@dataclass(frozen=True)
class LayerRate:
    """What holds for some layers from some point of the training on.

    Attributes:
        layers: their names, those of the full network with six convolutional layers.
        epoch: from where on, fractional epochs from 0.
        kind: `rate` replaces the rate of the weights, schedule and all; `factor` multiplies what the schedule says, for
            weights and biases; `frozen` means no update at all: weights, biases and velocities stay as they are, as
            where the 2012 code has a rate of 0.
        value: the rate or the factor; 0 if frozen.
    """

    layers: tuple[str, ...]
    epoch: float
    kind: Literal["rate", "factor", "frozen"]
    value: float


def parse_layer_rates(text: str) -> tuple[LayerRate, ...]:
    """The entries of a text such as `conv1=1e-5@67,conv1=frozen@72`, by epoch, and as written where epochs are equal.

    Args:
        text: `LAYERS=RATE[@EPOCH]`, any number of them with commas between; nothing for none. LAYERS are terms of
            `weight_transfer.select_layers` with `+` between. Of the entries that name a layer, the last one whose epoch
            has come holds; `x1` means as the schedule says, again.

    Raises:
        ConfigError: an entry is none, with its text.
    """
    entries = [_parse_entry(entry.strip()) for entry in text.split(",")] if text.strip() else []
    return tuple(sorted(entries, key=lambda entry: entry.epoch))


def rates_of(rates: tuple[LayerRate, ...], layer: str) -> tuple[LayerRate, ...]:
    """Those that name a layer, in the same order."""
    return tuple(rate for rate in rates if layer in rate.layers)


def rate_at(rates: tuple[LayerRate, ...], epoch: float) -> LayerRate | None:
    """The one of a layer's rates that holds at a position in fractional epochs, or None before the first."""
    begun = [rate for rate in rates if rate.epoch <= epoch]
    return begun[-1] if begun else None


def _parse_entry(entry: str) -> LayerRate:
    names, equals, rest = entry.partition("=")
    rate, at, epoch = rest.partition("@")
    if not equals or not rate:
        raise ConfigError(f"layer_lr {entry!r}: expected {_FORM}")
    try:
        layers = select_layers(names.replace("+", ","), _LAYERS)
        start = float(epoch) if at else 0.0
        frozen, factor = rate == "frozen", rate.startswith("x")
        value = 0.0 if frozen else float(rate.removeprefix("x"))
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"layer_lr {entry!r}: {error}; expected {_FORM}") from error
    if not (math.isfinite(start) and start >= 0 and math.isfinite(value)) or (value <= 0 and not frozen):
        raise ConfigError(f"layer_lr {entry!r}: epochs must be at least 0 and rates over 0; say frozen for no update")
    return LayerRate(layers, start, "frozen" if frozen else "factor" if factor else "rate", value)
