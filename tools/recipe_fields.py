"""The fields of a recipe: which there are in each section, what they take, and what they are for."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lmdali.model.alexnet_config import DROPOUT_RULES, LRN_PLACES, POOLINGS, AlexNetConfig
from lmdali.model.initialisation import INITIALISATIONS
from lmdali.model.train_config import PRECISIONS, TrainConfig
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader_config import LoaderConfig
from lmdali.tools.augment_options import AUGMENT_HELP
from lmdali.tools.loader_options import OPTION_HELP

NONE = "none"
"""How a text says that an optional field has no value; TOML and command lines have no other way."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "init": tuple(INITIALISATIONS),
    "lrn_place": LRN_PLACES,
    "pooling": POOLINGS,
    "dropout_rule": DROPOUT_RULES,
    "precision": tuple(PRECISIONS),
}
_HELP: dict[str, dict[str, str]] = {
    "model": {
        "width": "Factor on all hidden widths; 0.25 suits a CPU.",
        "towers": "Groups of conv2, conv4 and conv5.",
        "half_net": "One tower of half as many maps, the paper's one-GPU network.",
        "drop": "Layers left out, of conv2 to conv5: conv3 or conv3,conv4.",
        "sixth_layer": "Conv6 behind the last pooling.",
        "pooling": "3x3 windows with stride 2, or 2x2 windows that do not overlap.",
        "lrn_place": "Where response normalisation is in layer 1; none leaves all of it out.",
        "lrn_across_towers": "Sums of response normalisation cross from one tower to the other.",
        "map_norm": "Also normalise within each map of layer 2.",
        "lrn_size": "Channels in a sum of response normalisation.",
        "lrn_alpha": "Weight of that sum: 5e-4 is the printed formula, 1e-4 the 2012 code.",
        "lrn_beta": "Exponent of response normalisation.",
        "lrn_k": "Constant of response normalisation.",
        "dropout": "Probability that a unit of fc6 or fc7 is dropped.",
        "dropout_rule": "Scale at test time, scale while training, or scale and drop nothing.",
        "init": "How weights and biases begin.",
    },
    "train": {
        "epochs": "Passes over the training set, at most.",
        "lr": "Base learning rate.",
        "bias_lr": "Learning rate of biases; none follows the weights.",
        "momentum": "Share of the last step that is kept in the next.",
        "weight_decay": "Decay of weights, as in the paper's update rule.",
        "bias_decay": "Decay biases too.",
        "schedule": "plateau[:PATIENCE[,THRESHOLD]], fixed:EPOCH,...[:STOP], cosine[:WARMUP] or constant.",
        "bias_schedule": "Of the biases' rate; none follows the weights.",
        "layer_lr": "Rates of layers: conv1=1e-5@67,conv1=frozen@72 or conv=x0.1, from epochs on.",
        "label_smoothing": "Share of the target spread over all classes.",
        "seed": "Of weights, dropout, order and augmentation.",
        "precision": "Number format of forward and backward passes.",
        "channels_last": "Keep images and maps as NHWC in memory.",
        "cuda_graph": "Replay the step as one CUDA graph.",
        "log_steps": "Steps between two lines in metrics.jsonl.",
        "checkpoint_seconds": "Seconds between checkpoints inside an epoch; 0 for none.",
        "checkpoint_steps": "Steps between checkpoints inside an epoch; 0 for none.",
        "keep_checkpoints": "Newest checkpoints kept, besides the best.",
        "tensorboard": "Write TensorBoard events too.",
    },
    "augment": AUGMENT_HELP,
    "loader": {
        "batch_size": "Samples per step.",
        "drop_last": "Leave out an epoch's last, smaller batch; none: unless the order is sequential.",
        **OPTION_HELP,
    },
}
_CLASSES: dict[str, type[Any]] = {
    "model": AlexNetConfig,
    "train": TrainConfig,
    "augment": AugmentConfig,
    "loader": LoaderConfig,
}
DERIVED = {"num_classes": "the training set's"}
"""Fields of the network that no recipe decides."""


@dataclass(frozen=True, kw_only=True)
class RecipeField:
    """One field of one section.

    Attributes:
        section: model, train, augment or loader.
        name: as in the section's configuration class.
        kind: what a value is: bool, int, float, str or tuple (of texts).
        optional: it may have no value.
        choices: the only texts it takes; none for any.
        default: the configuration class's own.
        help: one line.
    """

    section: str
    name: str
    kind: type[Any]
    optional: bool
    choices: tuple[str, ...]
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """Its option on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def read(self, raw: object) -> Any:
        """The value that a text, a TOML or a JSON value means.

        Raises:
            ConfigError: none of this kind.
        """
        if self.optional and (raw is None or raw == NONE):
            return None
        value = self._converted(raw)
        if value is None or (self.choices and value not in self.choices):
            expected = f"one of {', '.join(self.choices)}" if self.choices else _EXPECTED[self.kind]
            raise ConfigError(
                f"{self.section}.{self.name}: expected {expected}{' or none' if self.optional else ''}, found {raw!r}"
            )
        return value

    def _converted(self, raw: object) -> Any:
        if self.kind is tuple:
            items = [item.strip() for item in raw.split(",")] if isinstance(raw, str) else raw
            if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
                return None
            return tuple(item for item in items if item not in ("", NONE))
        if self.kind in (bool, str):
            return raw if isinstance(raw, self.kind) else None
        if isinstance(raw, str):
            try:
                return self.kind(raw)
            except ValueError:
                return None
        if isinstance(raw, bool) or not isinstance(raw, int | (float if self.kind is float else int)):
            return None
        return self.kind(raw)


_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of texts, or one with commas",
}


def _made(section: str, name: str, text: str) -> RecipeField:
    owner = _CLASSES[section]
    hint = get_type_hints(owner)[name]
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    given = next(part for part in parts if part is not type(None))
    literal, origin = get_origin(given) is Literal, get_origin(given)
    return RecipeField(
        section=section,
        name=name,
        kind=str if literal else origin or given,
        optional=len(parts) > 1,
        choices=tuple(get_args(given)) if literal else _CHOICES.get(name, ()),
        default=next(item.default for item in dataclasses.fields(owner) if item.name == name),
        help=text,
    )


FIELDS: Mapping[str, Mapping[str, RecipeField]] = {
    section: {name: _made(section, name, text) for name, text in texts.items()} for section, texts in _HELP.items()
}
"""Section -> name -> field, in the order in which they are shown."""

PRESET_LOADER_FIELDS = ("batch_size", "order", "drop_last")
"""Fields of the loader that belong to a preset."""
