"""The paper's experiments as changes to a recipe: a layer less, no normalisation, one tower; and what it says of them.

The rule by which a layer is left out is `AlexNetConfig.drop`'s: the paper gives none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmdali.model.presets import Preset
from lmdali.pipeline.errors import ConfigError

BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One experiment.

    Attributes:
        name: for the command line and for a folder.
        title: what it is, in a few words.
        model: fields of `AlexNetConfig` that it changes.
        augment: fields of `AugmentConfig` that it changes.
        claim: what the paper says of it; empty where it says nothing.
        top1_claim: by how much the paper's top-1 error is higher so, 0..1; None where it gives no number.
        top5_claim: likewise of top-5.
    """

    name: str
    title: str
    model: Mapping[str, Any] = field(default_factory=dict)
    augment: Mapping[str, Any] = field(default_factory=dict)
    claim: str = ""
    top1_claim: float | None = None
    top5_claim: float | None = None

    def of(self, base: Preset) -> Preset:
        """The recipe with this experiment's changes.

        Raises:
            ConfigError: the changes cannot work with this recipe.
        """
        model = dict(self.model)
        if "drop" in model:
            model["drop"] = (*base.model.drop, *model["drop"])
        if model.get("dropout_rule") == "scale_only" and (
            base.model.dropout_rule == "inverted" or not base.model.dropout
        ):
            model["dropout_rule"], model["dropout"] = base.model.dropout_rule, 0.0  # there is no scale to keep
        return base.changed(model=model, augment=dict(self.augment))


def _without(layer: str) -> Variant:
    return Variant(
        name=f"no-{layer}",
        title=f"without {layer}",
        model={"drop": (layer,)},
        claim="section 7: about 2 % top-1 for any of the middle layers",
        top1_claim=0.02,
    )


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(name=BASELINE, title="the recipe as it is"),
        *(_without(layer) for layer in ("conv2", "conv3", "conv4", "conv5")),
        Variant(
            name="no-lrn",
            title="no response normalisation",
            model={"lrn_place": "none", "map_norm": False},
            claim="section 3.3: it takes 1.4 % and 1.2 % off",
            top1_claim=0.014,
            top5_claim=0.012,
        ),
        Variant(
            name="separate-pooling",
            title="pooling without overlap",
            model={"pooling": "separate"},
            claim="section 3.4: overlap takes 0.4 % and 0.3 % off",
            top1_claim=0.004,
            top5_claim=0.003,
        ),
        Variant(
            name="no-dropout",
            title="no dropout",
            model={"dropout_rule": "scale_only"},
            claim="section 4.2: substantial overfitting",
        ),
        Variant(
            name="no-lighting",
            title="no lighting noise",
            augment={"lighting": "none"},
            claim="section 4.1: it takes over 1 % top-1 off",
            top1_claim=0.01,
        ),
        Variant(
            name="half-net",
            title="one tower, the one-GPU net",
            model={"half_net": True},
            claim="section 3.2: two towers take 1.7 % and 1.2 % off",
            top1_claim=0.017,
            top5_claim=0.012,
        ),
        Variant(
            name="sixth-layer",
            title="a sixth convolution",
            model={"sixth_layer": True},
        ),
    )
}
"""Name -> experiment, the baseline first; the paper's numbers are of ImageNet, errors in percent of images."""


def choose_variants(names: Sequence[str] | None, base: Preset) -> list[tuple[Variant, Preset]]:
    """Experiments and their recipes, the baseline first.

    Args:
        names: of `VARIANTS`; None for all that change anything of `base`.
        base: the recipe that each of them changes.

    Raises:
        ConfigError: an unknown name, one that changes nothing of `base`, or one that cannot work with it.
    """
    unknown = [name for name in names or () if name not in VARIANTS]
    if unknown:
        raise ConfigError(f"no variant {unknown[0]!r}: there are {', '.join(VARIANTS)}")
    chosen = []
    for name, variant in VARIANTS.items():
        recipe = base if name == BASELINE else variant.of(base)
        if name == BASELINE or (names is None and recipe != base) or (names is not None and name in names):
            if name != BASELINE and recipe == base:
                raise ConfigError(f"variant {name} changes nothing of this recipe: leave it out of --variants")
            chosen.append((variant, recipe))
    return chosen
