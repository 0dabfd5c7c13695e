"""What the network is: `AlexNetConfig`, the paper's by default; its experiments and its relatives by field."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lmdali.model.initialisation import INITIALISATIONS
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.whole_number import check_choices, require_finite_fields

LRN_PLACES = ("after_relu", "before_first_relu", "none")
POOLINGS = ("overlapping", "separate")
DROPOUT_RULES = ("paper", "inverted", "scale_only")
DROPPABLE = ("conv2", "conv3", "conv4", "conv5")

_WIDTHS = {
    "conv1": 96,
    "conv2": 256,
    "conv3": 384,
    "conv4": 384,
    "conv5": 256,
    "conv6": 256,
    "fc6": 4096,
    "fc7": 4096,
}
_HALF_WIDTHS = {**_WIDTHS, "conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192}


@dataclass(frozen=True, kw_only=True)
class AlexNetConfig:
    """What the network is, independent of how it is trained. Numbers with # are the authors' runs of 2012.

    Attributes:
        num_classes: outputs of fc8.
        width: factor on the widths of conv1 to fc7, rounded so that the towers are equal; 1 is the paper's, 0.25 suits
            a CPU.
        towers: groups in conv2, conv4, conv5 and in the response normalisation; 2 as in the paper.
        half_net: the one-GPU network of section 3.2 (#145-half): one tower of 48, 128, 192, 192 and 256 maps, and full
            layers of 4096; `towers` is not looked at.
        drop: layers left out, of conv2 to conv5 (section 7). A layer that is left out takes its ReLU and its
            normalisations along and leaves its pooling. The next layer keeps its outputs and its grouping; its inputs
            are those of the layer that is gone. Without conv3 conv4 stays grouped, so that the towers meet in the full
            layers only; without conv5 there are 18 million parameters more, because fc6 sees 384 maps.
        sixth_layer: conv6 behind the last pooling, 3x3 and 256 maps, across both towers (section 6.1, #146).
        pooling: `overlapping` is 3x3 with stride 2; `separate` is 2x2 with stride 2, the last window cut off where it
            must be, conv2 padded by 1 and conv5 by 0 to keep the map sizes (section 3.4, #147).
        lrn_place: `after_relu` as in section 3.3; `before_first_relu` has layer 1 as convolution, normalisation,
            pooling, ReLU, and layer 2 as in the paper (#145); `none` leaves all normalisation out, `map_norm` too
            (section 3.3, #148).
        lrn_across_towers: sums that do not stop at the seam between the towers, as in Caffe.
        map_norm: normalisation within each map behind the second response normalisation (#145, not in the paper).
        lrn_size: channels in a response normalisation sum.
        lrn_alpha: 5e-4 is the printed formula, 1e-4 the original code (see `ResponseNorm`).
        lrn_beta: its exponent.
        lrn_k: its constant; 1 in Caffe.
        dropout: probability that a unit of fc6 or fc7 is dropped.
        dropout_rule: see `dropout.Dropout`.
        init: name of an entry of `INITIALISATIONS`.
    """

    num_classes: int = 1000
    width: float = 1.0
    towers: int = 2
    half_net: bool = False
    drop: tuple[str, ...] = ()
    sixth_layer: bool = False
    pooling: str = "overlapping"
    lrn_place: str = "after_relu"
    lrn_across_towers: bool = False
    map_norm: bool = False
    lrn_size: int = 5
    lrn_alpha: float = 5e-4
    lrn_beta: float = 0.75
    lrn_k: float = 2.0
    dropout: float = 0.5
    dropout_rule: str = "paper"
    init: str = "paper"

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if self.num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, found {self.num_classes}")
        if not self.width > 0 or self.towers < 1:
            raise ConfigError(f"width and towers must be positive, found {self.width} and {self.towers}")
        check_choices(
            self,
            {"init": INITIALISATIONS, "lrn_place": LRN_PLACES, "pooling": POOLINGS, "dropout_rule": DROPOUT_RULES},
        )
        if not set(self.drop) <= set(DROPPABLE):
            raise ConfigError(f"drop takes layers of {', '.join(DROPPABLE)}, found {self.drop!r}")
        # One order, so that equal networks have equal configurations.
        object.__setattr__(self, "drop", tuple(layer for layer in DROPPABLE if layer in self.drop))

    @property
    def groups(self) -> int:
        """Towers that the network really has: 1 for the half network."""
        return 1 if self.half_net else self.towers

    def widths(self) -> dict[str, int]:
        """Outputs of each hidden layer that there is, by name: the nearest multiples of `groups`."""
        left_out = self.drop if self.sixth_layer else (*self.drop, "conv6")
        full = _HALF_WIDTHS if self.half_net else _WIDTHS
        return {
            layer: self.groups * max(1, round(width * self.width / self.groups))
            for layer, width in full.items()
            if layer not in left_out
        }

    def to_json(self) -> dict[str, Any]:
        """All fields, for checkpoints and reports; tuples as lists."""
        return {**dataclasses.asdict(self), "drop": list(self.drop)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> AlexNetConfig:
        """Inverse of `to_json`; fields that are missing, as in files of earlier versions, have their defaults.

        Raises:
            ConfigError: a field is unknown or has an impossible value.
        """
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ConfigError(f"network settings unknown to this lmdali: {', '.join(unknown)}: upgrade it")
        return cls(**fields)
