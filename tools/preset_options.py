"""The command-line options that replace one field of a recipe: same name, and the preset's value unless given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lmdali.model.presets import PRESETS
from lmdali.pipeline.errors import ConfigError
from lmdali.tools.config_file import GivenSettings, load_settings
from lmdali.tools.given_option import is_given
from lmdali.tools.param_type import ParamType
from lmdali.tools.recipe import COMMAND_LINE, DEFAULT_PRESET
from lmdali.tools.recipe_fields import FIELDS, NONE, RecipeField

_SHORT = {"batch_size": "-b", "weight_decay": "--wd"}
_TITLES = {
    "model": "Network",
    "train": "Training",
    "augment": "Augmentation",
    "loader": "Loader",
}


class _FieldType(ParamType[Any]):
    """Texts for optional fields and lists, by the field's own rule."""

    def __init__(self, field: RecipeField) -> None:
        self._field = field
        self.name = {int: "integer", float: "number"}.get(field.kind, "text") + (f"|{NONE}" if field.optional else "")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._field.read(value) if isinstance(value, str) else value
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class RecipeCommand(click.Command):
    """A command whose help has one section for each section of a recipe, and the command's own options first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Run", *_TITLES.values())}
        homes = {name: _TITLES[section] for section, fields in FIELDS.items() for name in fields}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections[homes.get(parameter.name or "", "Run")].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def preset_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a click command with `--preset`, `--config`, and the options of a recipe that no loader option is."""
    declared = [field for fields in FIELDS.values() for field in fields.values() if field.section != "loader"]
    declared += [FIELDS["loader"][name] for name in ("batch_size", "drop_last")]
    for field in reversed(declared):
        function = _option(field)(function)
    function = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="TOML or JSON file of settings, in the sections of --print-config, or a run's run.json; options beat it, "
        "it beats the preset.",
    )(function)
    names = click.Choice(list(PRESETS))
    return click.option(
        "--preset",
        type=names,
        help=f"Recipe; shown defaults are those of {DEFAULT_PRESET}, --print-config has another's. "
        f" [default: {DEFAULT_PRESET}]",
    )(function)


def given_settings(context: click.Context, options: dict[str, Any]) -> list[GivenSettings]:
    """What `--config` and the options say, in the order of their weight; takes them out of `options`.

    Raises:
        ConfigError: the file has something that there is not.
        InputError: there is no such file.
    """
    preset, path = options.pop("preset"), options.pop("config")
    values: dict[str, dict[str, Any]] = {}
    for section, fields in FIELDS.items():
        for name in fields:
            value = options.pop(name)
            if is_given(context, name):
                # None may be a value here: whoever follows the weights again says none.
                values.setdefault(section, {})[name] = value
    files = [] if path is None else [load_settings(path)]
    return [*files, GivenSettings(COMMAND_LINE, values, preset)]


def _option(field: RecipeField) -> Callable[[Callable[..., None]], Callable[..., None]]:
    owner = getattr(PRESETS[DEFAULT_PRESET], field.section, PRESETS[DEFAULT_PRESET])
    value = getattr(owner, field.name)
    kind: Any
    if field.kind is bool:
        declared, kind, shown = [f"{field.flag}/--no-{field.flag[2:]}"], None, "yes" if value else "no"
    else:
        declared, shown = [field.flag], ",".join(value) if isinstance(value, tuple) else str(value)
        plain = not field.optional and field.kind is not tuple
        kind = click.Choice(list(field.choices)) if field.choices else field.kind if plain else _FieldType(field)
    shown = NONE if value is None or shown == "" else shown
    short = [_SHORT[field.name]] if field.name in _SHORT else []
    return click.option(*declared, *short, field.name, type=kind, default=None, help=f"{field.help}  [{shown}]")
