"""A recipe put together: a preset, what files and the command line change, and where each value came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmdali.model.presets import PRESETS, Preset
from lmdali.pipeline.dataset_place import Place, place_manifest, place_shown
from lmdali.pipeline.errors import ConfigError
from lmdali.tools.config_file import ORIGINS, GivenSettings
from lmdali.tools.recipe_fields import FIELDS, PRESET_LOADER_FIELDS
from lmdali.tools.report_table import print_table

DEFAULT_PRESET = "paper"

PRESET_ORIGIN = "preset "
"""How the origin of a value begins that is the preset's own, and not the default."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training but its datasets and devices.

    Attributes:
        name: of the preset that it began as.
        preset: with all changes.
        loader: fields of `LoaderConfig` that are not the preset's.
        origins: section -> name -> where the value came from: `default`, `preset NAME`, a file, or an option.
        num_classes: of the training set, or None where that is not known.
    """

    name: str
    preset: Preset
    loader: Mapping[str, Any]
    origins: Mapping[str, Mapping[str, str]]
    num_classes: int | None = None

    def values(self) -> dict[str, dict[str, Any]]:
        """Section -> name -> value, of all fields."""
        owners: dict[str, object] = {
            "model": self.preset.model,
            "train": self.preset.train,
            "augment": self.preset.augment,
        }
        found: dict[str, dict[str, Any]] = {
            section: {name: getattr(owner, name) for name in FIELDS[section]} for section, owner in owners.items()
        }
        preset = {name: getattr(self.preset, name) for name in PRESET_LOADER_FIELDS}
        found["loader"] = {name: {**self.loader, **preset}[name] for name in FIELDS["loader"]}
        return found

    def to_json(self) -> dict[str, Any]:
        """What `--config` takes: preset, all sections, and the origins beside them."""
        values = self.values()
        model = {"num_classes": self.num_classes, **values["model"]}
        return {"preset": self.name, **values, "model": model, ORIGINS: self.origins}


def resolve_recipe(sources: Sequence[GivenSettings], *, train: Place | None = None) -> Recipe:
    """Put a recipe together.

    Args:
        sources: each beats those before it.
        train: training set, which has the number of classes; None where it is not known.

    Raises:
        ConfigError: values that cannot work, alone or together, or another number of classes than a source expects.
        InputError: `train` is no dataset.
    """
    named = [source.preset for source in sources if source.preset is not None]
    name = named[-1] if named else DEFAULT_PRESET
    preset = PRESETS[name]
    changes: dict[str, dict[str, Any]] = {section: {} for section in FIELDS}
    origins = _preset_origins(name, preset)
    for source in sources:
        for section, values in source.values.items():
            changes[section].update(values)
            origins[section].update({field: _origin(source, section, field) for field in values})
    loader = changes.pop("loader")
    of_preset = {field: loader.pop(field) for field in PRESET_LOADER_FIELDS if field in loader}
    num_classes = None if train is None else len(place_manifest(train, cache_dir=loader.get("cache_dir")).class_names)
    shown = place_shown(train or "(not given)")
    for source in sources:
        if num_classes is not None and source.num_classes not in (None, num_classes):
            raise ConfigError(
                f"{source.origin}: it is for {source.num_classes} classes, {shown} has {num_classes}: leave "
                "num_classes out, or use the dataset it was made for"
            )
    origins["model"] = {"num_classes": f"dataset {shown}", **origins["model"]}
    return Recipe(
        name=name,
        preset=dataclasses.replace(
            preset.changed(model=changes["model"], train=changes["train"], augment=changes["augment"]), **of_preset
        ),
        loader={
            field: loader.get(field, known.default)
            for field, known in FIELDS["loader"].items()
            if field not in PRESET_LOADER_FIELDS
        },
        origins=origins,
        num_classes=num_classes,
    )


def print_recipe(recipe: Recipe, *, title: str = "") -> None:
    """One table per section: field, value, origin; then what else the loaders are told, and why.

    Args:
        recipe: what to show.
        title: before each section's name.
    """
    train, values = recipe.preset.train, recipe.values()
    values["model"] = {"num_classes": recipe.num_classes or "not known", **values["model"]}
    for section, fields in values.items():
        rows = [(name, _shown(value), recipe.origins[section][name]) for name, value in fields.items()]
        if section == "loader":
            rows.append(("seed", str(train.seed), "follows train.seed"))
            rows.append(("dtype", train.precision, "follows train.precision"))
            rows.append(("layout", "NHWC" if train.channels_last else "NCHW", "follows train.channels_last"))
            rows.append(("basis", "the training set", "always, for validation too"))
        print_table(f"{title} {section} (preset {recipe.name})".strip(), ("field", "value", "from"), rows, align="left")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return "none" if value in (None, "") else str(value)


def _preset_origins(name: str, preset: Preset) -> dict[str, dict[str, str]]:
    sections = {"model": preset.model, "train": preset.train, "augment": preset.augment}
    origins: dict[str, dict[str, str]] = {}
    for section, fields in FIELDS.items():
        owner: object = sections.get(section, preset)
        origins[section] = {
            field: f"{PRESET_ORIGIN}{name}" if getattr(owner, field, known.default) != known.default else "default"
            for field, known in fields.items()
        }
    return origins


def _origin(source: GivenSettings, section: str, name: str) -> str:
    return FIELDS[section][name].flag if source.origin == COMMAND_LINE else source.origin


COMMAND_LINE = "command line"
"""Origin of what options say; each value is shown with its own option."""
