"""Presets, files and options put together: who beats whom, and what a recipe says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmdali.model.presets import PRESETS
from lmdali.pipeline.errors import ConfigError
from lmdali.tools.config_file import GivenSettings, load_settings
from lmdali.tools.recipe import COMMAND_LINE, Recipe, print_recipe, resolve_recipe


def options(preset: str | None = None, **values: dict[str, Any]) -> GivenSettings:
    return GivenSettings(COMMAND_LINE, values, preset)


def file(preset: str | None = None, **values: dict[str, Any]) -> GivenSettings:
    return GivenSettings("config file c.toml", values, preset)


def test_nothing_said_is_the_paper() -> None:
    recipe = resolve_recipe([options()])
    assert recipe.name == "paper"
    assert recipe.preset == PRESETS["paper"]


def test_the_command_line_beats_the_file_and_the_file_the_preset() -> None:
    recipe = resolve_recipe(
        [
            file("small", train={"lr": 0.5, "epochs": 7}, model={"width": 0.5}, loader={"batch_size": 9}),
            options(train={"lr": 0.25}, loader={"prefetch": 5}),
        ]
    )
    assert recipe.preset == PRESETS["small"].changed(
        model={"width": 0.5}, train={"lr": 0.25, "epochs": 7}, batch_size=9
    )
    assert recipe.loader["prefetch"] == 5
    assert recipe.origins["train"]["lr"] == "--lr"
    assert recipe.origins["train"]["epochs"] == recipe.origins["loader"]["batch_size"] == "config file c.toml"
    assert recipe.origins["train"]["schedule"] == recipe.origins["model"]["init"] == "preset small"
    assert recipe.origins["train"]["momentum"] == recipe.origins["loader"]["verify"] == "default"


def test_a_preset_on_the_command_line_beats_the_files() -> None:
    recipe = resolve_recipe([file("small", train={"lr": 0.5}), options("paper")])
    assert recipe.name == "paper"
    assert recipe.preset == PRESETS["paper"].changed(train={"lr": 0.5})


def test_no_value_is_a_value() -> None:
    with_bias = file(train={"bias_lr": 0.02})
    assert resolve_recipe([with_bias, options(train={"bias_lr": None})]).preset.train.bias_lr is None


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_recipe_says_of_itself_makes_it_again(name: str, tmp_path: Path) -> None:
    changes = options(name, train={"lr": 0.003, "epochs": 95}, model={"drop": ("conv3",)}, loader={"num_threads": 2})
    recipe = resolve_recipe([changes])
    path = tmp_path / "c.json"
    path.write_text(json.dumps(recipe.to_json()))
    again = resolve_recipe([load_settings(path)])
    assert (again.name, again.preset, again.loader) == (recipe.name, recipe.preset, recipe.loader)
    assert set(again.origins["train"].values()) == {f"config file {path}"}


def test_classes_are_the_training_sets(jpeg_dataset: Path) -> None:
    recipe = resolve_recipe([options()], train=jpeg_dataset)
    assert recipe.num_classes == recipe.to_json()["model"]["num_classes"] == 4
    assert recipe.origins["model"]["num_classes"] == f"dataset {jpeg_dataset}"
    with pytest.raises(ConfigError, match="it is for 10 classes"):
        resolve_recipe([GivenSettings("config file c.toml", {}, None, 10)], train=jpeg_dataset)
    assert resolve_recipe([GivenSettings("config file c.toml", {}, None, 10)]).num_classes is None


def test_people_see_every_field_with_its_origin(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = resolve_recipe([options("small", model={"drop": ("conv3",)})])
    print_recipe(recipe)
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in shown.splitlines() if line.startswith("│")]
    assert ["drop", "conv3", "--drop"] in rows
    assert ["lr", "0.006", "preset small"] in rows
    assert ["bias_lr", "none", "default"] in rows
    assert ["seed", "0", "follows train.seed"] in rows
    assert {row[0] for row in rows} >= {name for fields in recipe.values().values() for name in fields}


def test_impossible_values_are_refused() -> None:
    for bad in ({"train": {"lr": -1.0}}, {"loader": {"batch_size": 0}}, {"augment": {"crop": "ten"}}):
        with pytest.raises(ConfigError):
            resolve_recipe([options(**bad)])


def test_the_recipe_is_whole() -> None:
    recipe: Recipe = resolve_recipe([options()])
    assert set(recipe.values()) == {"model", "train", "augment", "loader"}
    for section, fields in recipe.values().items():
        assert set(fields) <= set(recipe.origins[section])
