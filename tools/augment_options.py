"""What a command is told about augmentation where there is no recipe: a named one, and what a run had otherwise.

One option is one field of `AugmentConfig`, spelled and explained once for every command, as a recipe's options are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import click

from lmdali.pipeline.augment import WINDOW_DEFAULTS, AugmentConfig, Lighting
from lmdali.pipeline.backend import DType
from lmdali.pipeline.sampler import MAX_EPOCH

AUGMENT_HELP = {
    "crop_size": "Side of the patch, pixels; 224, or Caffe's 227.",
    "crop": "Where patches lie; resized: a window of random area and aspect becomes the patch.",
    "min_area": "Of a resized window, share of the image's.",
    "max_aspect": "Of a resized window, width to height or height to width.",
    "flip": "Mirror half of the patches.",
    "crop_chunk": "Consecutive samples that share a crop and a flip; 32 in the 2012 code.",
    "normalize": "What is subtracted from pixels, and divided by.",
    "mean_window": "Part of the mean image that a patch loses: its own, or always the central one.",
    "lighting": "PCA noise: the paper's eigenvalues, or the 2012 code's roots.",
    "lighting_std": "Standard deviation of the lighting's coefficients; 0 for none.",
    "lighting_rescale": "Divide by 1 + --lighting-std, as the 2012 code does.",
    "lighting_epochs": "Epochs with lighting; none for all.",
}
"""One line for each field of `AugmentConfig`."""

AUGMENTS: dict[str, Callable[[], AugmentConfig]] = {
    "paper": AugmentConfig.paper,
    "original2012": AugmentConfig.original2012,
    "resized": AugmentConfig.resized,
    "center": AugmentConfig.center,
    "ten": AugmentConfig.ten_crop,
    "pixels": AugmentConfig.pixels,
}
"""Named configurations, as the command line spells them."""

WHAT_IS_DONE = "What loaders do to images; uint8 leaves out mean and lighting."
"""Help of `--augment` where loaders are measured."""


class _Epochs(click.IntRange):
    """A number of epochs, or none for all that there can be."""

    name = "integer|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return MAX_EPOCH + 1 if value == "none" else super().convert(value, param, ctx)


_WINDOW: dict[str, click.ParamType[Any]] = {
    "crop_size": click.IntRange(1),
    "min_area": click.FLOAT,
    "max_aspect": click.FLOAT,
}
"""What decides how much work a patch is."""

_DRAWN: dict[str, click.ParamType[Any]] = {
    "flip": click.BOOL,
    "crop_chunk": click.IntRange(1),
    "lighting": click.Choice(get_args(Lighting)),
    "lighting_std": click.FloatRange(0),
    "lighting_epochs": _Epochs(0),
}
"""What else decides which numbers are drawn, and so an epoch's digest."""


def augment_options(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a click command with `--augment`, whose help is `text`, and what its patches are."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        names = click.Choice(list(AUGMENTS))
        named = click.option("--augment", type=names, default="paper", show_default=True, help=text)
        return named(_decorate(function, _WINDOW))

    return decorate


def draw_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a click command that has `augment_options` with the rest of what decides the draws."""
    return _decorate(function, _DRAWN)


def take_augment(options: dict[str, Any]) -> AugmentConfig:
    """Take what these options say out of `options`.

    Raises:
        UsageError: a size of windows, and patches that are none.
        ConfigError: values that do not go together.
    """
    augment = AUGMENTS[options.pop("augment")]()
    given = {field: options.pop(field) for field in (*_WINDOW, *_DRAWN) if field in options}
    changes = {field: value for field, value in given.items() if value is not None}
    if augment.crop != "resized" and set(WINDOW_DEFAULTS) & set(changes):
        raise click.UsageError("--min-area and --max-aspect are of windows that are resized: take --augment resized")
    if changes.get("lighting_std") and augment.lighting == "none":
        changes = {"lighting": "roots", **changes}  # its kind says what alphas do to pixels, not which are drawn
    if changes.get("lighting") == "none":  # as --lighting-std 0, whatever a named one has
        changes = {"lighting_rescale": False, "lighting_epochs": None, **changes}
    return replace(augment, **changes)


def augment_for(dtype: DType, augment: AugmentConfig | None = None) -> AugmentConfig:
    """What a measurement does to images: the paper's way unless somebody says, and to uint8 pixels what they allow.

    Args:
        dtype: of the batches.
        augment: what was asked for; None is the paper's.
    """
    augment = augment or AugmentConfig.paper()
    if dtype != "uint8":
        return augment
    return replace(augment, normalize="none", lighting="none", lighting_rescale=False, lighting_epochs=None)


def describe_augment(augment: AugmentConfig) -> str:
    """What patches are and lose, in a few words."""
    size = augment.crop_size
    if augment.crop == "resized":
        words = f"windows of {augment.min_area:.3g} to 1 of the area, aspect to {augment.max_aspect:.3g}, made {size}"
    else:
        words = f"{'ten crops' if augment.crop == 'ten' else f'{augment.crop} crops'} of {size}"
    return f"{words}, normalize {augment.normalize}, lighting {augment.lighting}"


def _decorate(function: Callable[..., None], options: dict[str, click.ParamType[Any]]) -> Callable[..., None]:
    for name, kind in reversed(options.items()):
        flag = f"--{name.replace('_', '-')}"
        declared = f"{flag}/--no-{flag[2:]}" if kind is click.BOOL else flag
        said = f"{_UNSAID[name]:.3g}" if name in _UNSAID else "as --augment"
        text = f"{AUGMENT_HELP[name]}  [default: {said}]"
        function = click.option(declared, name, type=kind, default=None, help=text)(function)
    return function


_UNSAID = {"crop_size": AugmentConfig.crop_size} | WINDOW_DEFAULTS
