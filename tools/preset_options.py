"""The command-line options that replace one field of a preset: same name, and the preset's value unless given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from lmdali.model.alexnet import INITIALISATIONS
from lmdali.model.presets import PRESETS, Preset
from lmdali.model.train_config import PRECISIONS

_CHOICES = {
    "init": list(INITIALISATIONS),
    "precision": list(PRECISIONS),
    "lighting": ["none", "eigenvalues", "roots"],
    "normalize": ["mean_image", "channel_mean", "channel_mean_std", "none"],
}
PRESET_OPTIONS = {
    "model": {
        "width": "Factor on all hidden widths; 0.25 suits a CPU.",
        "init": "How weights and biases begin.",
        "dropout": "Probability that a unit of fc6 or fc7 is dropped.",
    },
    "train": {
        "epochs": "Passes over the training set.",
        "lr": "Base learning rate.",
        "momentum": "Of the update rule.",
        "weight_decay": "Of weights.",
        "bias_decay": "Decay biases too.",
        "schedule": "plateau[:PATIENCE[,THRESHOLD]], fixed:EPOCH,...[:STOP], cosine[:WARMUP] or constant.",
        "label_smoothing": "Share of the target spread over all classes.",
        "seed": "Of weights, dropout, order and augmentation.",
        "precision": "Of forward and backward.",
        "channels_last": "Memory format.",
        "cuda_graph": "Replay the step as one CUDA graph.",
        "log_steps": "Steps between two lines in metrics.jsonl.",
        "checkpoint_seconds": "Time between checkpoints inside an epoch; 0 for none.",
        "checkpoint_steps": "Steps between checkpoints inside an epoch; 0 for none.",
        "keep_checkpoints": "Newest checkpoints kept, besides the best.",
        "tensorboard": "Write TensorBoard events too.",
    },
    "augment": {
        "normalize": "What is subtracted from pixels, and divided by.",
        "lighting": "PCA noise: the paper's eigenvalues, or the 2012 code's roots.",
        "lighting_std": "Standard deviation of its coefficients.",
    },
}
"""Options that replace one field of the preset: section, field, help."""


def preset_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a click command with `--preset`, `--batch-size` and one option per field of `PRESET_OPTIONS`."""
    for section, fields in reversed(PRESET_OPTIONS.items()):
        for name, text in reversed(fields.items()):
            values = {key: getattr(getattr(preset, section), name) for key, preset in PRESETS.items()}
            first = next(iter(values.values()))
            shown = ", ".join(f"{key} {value}" for key, value in values.items())
            if len(set(values.values())) == 1:
                shown = str(first)
            flag = f"--{name.replace('_', '-')}"
            declared = [f"{flag}/--no-{flag[2:]}"] if isinstance(first, bool) else [flag]
            declared += ["--wd"] if name == "weight_decay" else []
            kind = (
                bool if isinstance(first, bool) else click.Choice(_CHOICES[name]) if name in _CHOICES else type(first)
            )
            option = click.option(*declared, name, type=kind, default=None, help=f"{text}  [default: {shown}]")
            function = option(function)
    batch_sizes = ", ".join(f"{key} {preset.batch_size}" for key, preset in PRESETS.items())
    function = click.option(
        "-b", "--batch-size", type=click.IntRange(min=1), help=f"Samples per step.  [default: {batch_sizes}]"
    )(function)
    names = click.Choice(list(PRESETS))
    return click.option("--preset", type=names, default="paper", show_default=True, help="Recipe.")(function)


def chosen_preset(options: dict[str, Any]) -> Preset:
    """The preset with the given options in place; takes them out of `options`.

    Raises:
        ConfigError: a value that cannot work.
    """
    preset, batch_size = PRESETS[options.pop("preset")], options.pop("batch_size")
    changes = {
        section: {name: value for name in fields if (value := options.pop(name)) is not None}
        for section, fields in PRESET_OPTIONS.items()
    }
    return preset.changed(**changes, batch_size=batch_size)
