"""What is said of augmentation on a command line without a recipe: one set of options for all commands that take it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError
from lmdali.tools.augment_options import (
    AUGMENT_HELP,
    AUGMENTS,
    augment_for,
    augment_options,
    describe_augment,
    draw_options,
    take_augment,
)
from lmdali.tools.cli import cli

PATCHES = {"augment", "crop_size", "min_area", "max_aspect"}
DRAWS = {"flip", "crop_chunk", "lighting", "lighting_std", "lighting_epochs"}


def taken(*arguments: str) -> AugmentConfig:
    found: list[AugmentConfig] = []

    @click.command()
    @augment_options("What is drawn.")
    @draw_options
    def command(**options: Any) -> None:
        found.append(take_augment(options))
        assert options == {}

    outcome = CliRunner().invoke(command, arguments, standalone_mode=False)
    if outcome.exception is not None:
        raise outcome.exception
    return found[0]


@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("order", PATCHES | DRAWS),
        ("preview", PATCHES | DRAWS),
        ("profile run", PATCHES),
        ("profile sweep", PATCHES),
        ("profile au", PATCHES),
    ],
)
def test_commands_without_a_recipe_have_the_same_options(command: str, own: set[str]) -> None:
    found: Any = cli
    for word in command.split():
        found = found.get_command(click.Context(found), word)
    options = {parameter.name: parameter for parameter in found.params}
    assert options.keys() & {"augment", *AUGMENT_HELP} == own
    for name in own - {"augment"}:
        assert options[name].help.startswith(AUGMENT_HELP[name])


def test_each_field_has_a_line_of_help() -> None:
    assert AUGMENT_HELP.keys() == {field.name for field in fields(AugmentConfig)}


@pytest.mark.parametrize("name", AUGMENTS)
def test_a_name_alone_is_what_it_names(name: str) -> None:
    assert taken("--augment", name) == AUGMENTS[name]()


def test_what_a_run_had_otherwise_is_said_field_by_field() -> None:
    assert taken() == AugmentConfig.paper()
    windows = taken("--augment", "resized", "--min-area", "0.25", "--max-aspect", "2", "--crop-size", "160")
    assert windows == replace(AugmentConfig.resized(), min_area=0.25, max_aspect=2.0, crop_size=160)
    drawn = taken("--no-flip", "--crop-chunk", "4", "--lighting", "roots", "--lighting-std", "0.2")
    assert drawn == AugmentConfig(flip=False, crop_chunk=4, lighting="roots", lighting_std=0.2)
    assert taken("--lighting-epochs", "3") == AugmentConfig(lighting_epochs=3)


def test_lighting_can_be_without_an_end_and_without_any() -> None:
    endless = taken("--augment", "original2012", "--lighting-epochs", "none")
    assert AUGMENTS["original2012"]().is_lit(2**32 - 1) is False
    assert endless.is_lit(2**32 - 1) and replace(endless, lighting_epochs=67) == AugmentConfig.original2012()
    dark = taken("--augment", "original2012", "--lighting", "none")
    assert not dark.is_lit(0) and dark.crop_chunk == 32
    assert taken("--augment", "resized", "--lighting-std", "0.1").is_lit(0)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(click.UsageError, match="take --augment resized"):
        taken("--min-area", "0.2")
    with pytest.raises(ConfigError, match=r"max_aspect must be in 1\.\.100, found 0\.5"):
        taken("--augment", "resized", "--max-aspect", "0.5")
    with pytest.raises(ConfigError, match="lighting_epochs must be at least 0 and needs a lighting"):
        taken("--augment", "resized", "--lighting-epochs", "3")


@pytest.mark.parametrize("name", AUGMENTS)
def test_of_uint8_pixels_mean_and_lighting_are_left_out_and_nothing_else(name: str) -> None:
    augment = AUGMENTS[name]()
    pixels = augment_for("uint8", augment)
    assert (pixels.normalize, pixels.lighting) == ("none", "none") and augment_for("float32", augment) is augment
    kept = ("crop", "crop_size", "min_area", "max_aspect", "flip", "crop_chunk")
    assert [getattr(pixels, field) for field in kept] == [getattr(augment, field) for field in kept]
    assert augment_for("uint8") == AugmentConfig.pixels()


def test_words_tell_named_augmentations_apart() -> None:
    said = {name: describe_augment(make()) for name, make in AUGMENTS.items()}
    assert len(set(said.values())) == len(said)
    assert said["resized"].startswith("windows of 0.08 to 1 of the area, aspect to 1.33, made 224, normalize channel")
