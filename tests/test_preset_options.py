"""Options of a recipe as click has them: what was typed, what was not, and help that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from lmdali.model.presets import PRESETS
from lmdali.tools.config_file import GivenSettings
from lmdali.tools.loader_options import epoch_options, loader_options
from lmdali.tools.preset_options import RecipeCommand, given_settings, preset_options
from lmdali.tools.recipe import COMMAND_LINE
from lmdali.tools.recipe_fields import FIELDS


def settings(*arguments: str) -> list[GivenSettings]:
    found: list[GivenSettings] = []

    @click.command(cls=RecipeCommand)
    @loader_options
    @epoch_options
    @preset_options
    def command(**options: Any) -> None:
        found.extend(given_settings(click.get_current_context(), options))
        assert options == {}

    outcome = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return found


def test_only_what_was_typed_is_given() -> None:
    assert settings() == [GivenSettings(COMMAND_LINE, {}, None)]
    typed = ["--preset", "small", "--drop", "conv3,conv4", "--sixth-layer", "--lrn-place", "none", "--pooling"]
    typed += ["separate", "--half-net", "--dropout", "0", "--lighting", "none", "--bias-lr", "none", "-b", "7"]
    typed += ["--order", "block", "--no-drop-last", "--wd", "0", "-j", "3"]
    assert settings(*typed) == [
        GivenSettings(
            COMMAND_LINE,
            {
                "model": {
                    "half_net": True,
                    "drop": ("conv3", "conv4"),
                    "sixth_layer": True,
                    "pooling": "separate",
                    "lrn_place": "none",
                    "dropout": 0.0,
                },
                "train": {"bias_lr": None, "weight_decay": 0.0},
                "augment": {"lighting": "none"},
                "loader": {"batch_size": 7, "drop_last": False, "num_threads": 3, "order": "block"},
            },
            "small",
        )
    ]


def test_a_default_that_is_typed_is_given_too() -> None:
    assert settings("--lr", "0.01", "--prefetch", "3")[0].values == {"train": {"lr": 0.01}, "loader": {"prefetch": 3}}


def test_the_file_comes_before_the_options(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[train]\nlr = 0.5\n")
    first, second = settings("--config", str(path), "--lr", "0.25")
    assert (first.values, second.values) == ({"train": {"lr": 0.5}}, {"train": {"lr": 0.25}})


@pytest.mark.parametrize("flags", [("--bias-lr", "fast"), ("--lrn-place", "above"), ("--preset", "best")])
def test_a_bad_value_is_a_usage_error(flags: tuple[str, str]) -> None:
    @click.command()
    @loader_options
    @epoch_options
    @preset_options
    def command(**options: Any) -> None:
        raise AssertionError

    outcome = CliRunner().invoke(command, flags)
    assert outcome.exit_code == 2
    assert flags[0] in outcome.output


def test_help_is_in_sections_with_the_papers_values() -> None:
    @click.command(cls=RecipeCommand)
    @click.option("--mine", help="Of the command.")
    @preset_options
    @loader_options
    @epoch_options
    def command(**options: Any) -> None:
        raise AssertionError

    text = CliRunner().invoke(command, ["--help"]).output
    places = [text.index(f"\n{title}:\n") for title in ("Run", "Network", "Training", "Augmentation", "Loader")]
    assert places == sorted(places)
    assert places[0] < text.index("--mine") < places[1] < text.index("--lrn-place") < places[2] < text.index("--lr ")
    assert places[3] < text.index("--lighting ") < places[4] < text.index("--batch-size")
    assert all(field.flag in text for fields in FIELDS.values() for field in fields.values())
    assert f"[{PRESETS['paper'].train.lr}]" in text
