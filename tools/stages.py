"""A chain of trainings in one file: what each stage is trained on, how, and which layers it begins with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmdali.model.alexnet import AlexNet
from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.checkpoint import load_checkpoint
from lmdali.model.layer_plan import layer_plans, parameter_shapes
from lmdali.model.optim import parameter_groups
from lmdali.model.saved_run import require_same_names
from lmdali.model.weight_transfer import transfer_layers
from lmdali.pipeline.dataset_place import Place, parse_place, place_manifest, place_shown
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.path_kind import is_file
from lmdali.tools.config_file import GivenSettings, load_document, load_settings, read_settings, unknown
from lmdali.tools.initial_weights import ALL_BUT_THE_HEAD, checkpoint_file
from lmdali.tools.recipe import Recipe, resolve_recipe
from lmdali.tools.recipe_fields import FIELDS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OWN = ("name", "train_set", "val_set", "init_from", "init_checkpoint", "init_layers")
_SHARED = ("preset", "config", *FIELDS)
CHECKPOINT_KINDS = ("best", "last")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a chain.

    Attributes:
        name: also its run directory's, below the chain's.
        train_set: what is trained on.
        val_set: what is validated on, of the same classes.
        recipe: network, training, augmentation, loader.
        init_from: name of an earlier stage, a checkpoint, a run directory; or None for random weights.
        init_checkpoint: which checkpoint of an earlier stage: its `best`, or its `last`, the network as it was left.
        init_layers: layers that are copied; the others begin at random. The momentum of all begins at zero.
        copied: their names.
        fresh: those of the others.
        num_classes: of the training set.
        num_train: its samples.
        num_val: those of the validation set.
        digests: identities of the two sets.
    """

    name: str
    train_set: Place
    val_set: Place
    recipe: Recipe
    init_from: str | None
    init_checkpoint: str
    init_layers: str
    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    num_classes: int
    num_train: int
    num_val: int
    digests: tuple[str, str]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values; the recipe without its origins."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values = {**self.recipe.to_json(), "origins": None}
        return {
            **fields,
            "train_set": place_shown(self.train_set),
            "val_set": place_shown(self.val_set),
            "recipe": values,
        }


def load_stages(path: Path, overrides: Sequence[GivenSettings] = ()) -> tuple[Stage, ...]:
    """Read and check a whole chain, before any of it is trained.

    The file is TOML. Each `[[stage]]` has `name`, `train_set` and `val_set`, and may have `init_from` (an earlier stage
    or a path), `init_checkpoint`, `init_layers`, `preset`, `config` (a file of settings), and the sections of such a
    file: `[stage.train]` and so on. What stands above the first stage is for all. Paths are as on a command line.

    Args:
        path: the file.
        overrides: settings that beat those of every stage: the command line's.

    Raises:
        ConfigError: a key, section or value that there is not; a name twice; a stage that begins with a later one.
        InputError: no such file, dataset or checkpoint, or layers that cannot be copied.
    """
    document = dict(load_document(path))
    given = document.pop("stage", None)
    if not isinstance(given, list) or not given or not all(isinstance(entry, Mapping) for entry in given):
        raise ConfigError(f"{path}: no [[stage]] in it: each has name, train_set and val_set")
    shared = _settings(document, f"stages file {path}", _SHARED)
    names = [str(entry.get("name")) for entry in given]
    stages: list[Stage] = []
    for number, entry in enumerate(given, start=1):
        where = f"{path}, stage {entry.get('name', number)}"
        own = _settings({key: entry[key] for key in entry if key not in _OWN}, where, _SHARED)
        try:
            stages.append(_stage(entry, [*shared, *own, *overrides], stages, names))
        except (ConfigError, InputError) as error:
            if str(error).startswith(where):
                raise
            raise type(error)(f"{where}: {error}") from error
    return tuple(stages)


def _settings(document: Mapping[str, Any], where: str, known: tuple[str, ...]) -> list[GivenSettings]:
    for key in document:
        if key in _OWN:
            raise ConfigError(f"{where}: {key} is of one stage: put it below [[stage]]")
        if key not in known:
            raise ConfigError(f"{where}: {unknown('key', key, sorted({*known, *_OWN}))}")
    given = dict(document)
    config = given.pop("config", None)
    files = [] if config is None else [load_settings(Path(_text(config, f"{where}: config")))]
    return [*files, read_settings(given, origin=where)]


def _stage(
    entry: Mapping[str, Any], settings: Sequence[GivenSettings], earlier: list[Stage], names: list[str]
) -> Stage:
    for needed in ("name", "train_set", "val_set"):
        if needed not in entry:
            raise ConfigError(f"{needed} is missing")
    name = _text(entry["name"], "name")
    if not _NAME.fullmatch(name) or names.count(name) > 1:
        raise ConfigError("a name is letters, digits, dots and dashes, and is there once")
    train, val = (parse_place(_text(entry[key], key)) for key in ("train_set", "val_set"))
    recipe = resolve_recipe(settings, train=train)
    cache_dir = recipe.loader["cache_dir"]
    manifests = place_manifest(train, cache_dir=cache_dir), place_manifest(val, cache_dir=cache_dir)
    require_same_names(*(manifest.class_names for manifest in manifests))
    network = dataclasses.replace(recipe.preset.model, num_classes=len(manifests[0].class_names))
    with torch.device("meta"):
        parameter_groups(AlexNet(network), recipe.preset.train)  # refuses rates of layers that there are not
    init_from = _text(entry["init_from"], "init_from") if "init_from" in entry else None
    kind = _text(entry.get("init_checkpoint", "best"), "init_checkpoint")
    if kind not in CHECKPOINT_KINDS:
        raise ConfigError(f"init_checkpoint is best or last, found {kind!r}")
    layers = _text(entry.get("init_layers", ALL_BUT_THE_HEAD), "init_layers")
    source = None if init_from is None else _source(init_from, earlier, names)
    copied, fresh = _copied(network, source, layers)
    return Stage(
        name=name,
        train_set=train,
        val_set=val,
        recipe=recipe,
        init_from=init_from,
        init_checkpoint=kind,
        init_layers=layers,
        copied=copied,
        fresh=fresh,
        num_classes=network.num_classes,
        num_train=manifests[0].num_records,
        num_val=manifests[1].num_records,
        digests=(manifests[0].digest, manifests[1].digest),
    )


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} is {value!r}, expected a text")
    return value


def _source(init_from: str, earlier: list[Stage], names: list[str]) -> AlexNetConfig:
    """The network that a stage's layers come from."""
    for stage in earlier:
        if stage.name == init_from:
            return dataclasses.replace(stage.recipe.preset.model, num_classes=stage.num_classes)
    if init_from in names:
        raise ConfigError(f"init_from {init_from} is not an earlier stage")
    path = checkpoint_file(Path(init_from))
    if not is_file(path):
        raise InputError(f"init_from {init_from} is neither an earlier stage nor a checkpoint: no {path}")
    return AlexNetConfig.from_json(load_checkpoint(path).model_config)


def _copied(
    network: AlexNetConfig, source: AlexNetConfig | None, layers: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the layers that are copied, and of the others."""
    ours = _shapes(network)
    copied: tuple[str, ...] = ()
    if source is not None:
        copied = transfer_layers(_shapes(source), ours, layers)[1]
    return copied, tuple(layer for layer in layer_plans(network) if layer not in copied)


def _shapes(network: AlexNetConfig) -> dict[str, Tensor]:
    """A network's parameters by name, without storage."""
    return {name: torch.empty(shape, device="meta") for name, shape in parameter_shapes(network).items()}
