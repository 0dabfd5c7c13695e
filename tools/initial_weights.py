"""Where a training begins that does not begin from random weights: layers of an earlier network's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.checkpoint import BEST_NAME, load_checkpoint
from lmdali.model.trainer import CHECKPOINT_DIR, Trainer
from lmdali.model.weight_layout import load_layout, weights_of
from lmdali.model.weight_transfer import transfer_layers
from lmdali.pipeline.path_kind import is_dir

ALL_BUT_THE_HEAD = "all-but-fc8"
"""What is copied unless said otherwise: a head of other classes cannot be."""


_SURROUNDINGS = (
    "pooling",
    "lrn_place",
    "lrn_across_towers",
    "map_norm",
    "lrn_size",
    "lrn_alpha",
    "lrn_beta",
    "lrn_k",
    "dropout",
    "dropout_rule",
)
"""Fields of a network that no weight's shape tells. Behind inverted dropout, say, fc7 has half the weights."""


def checkpoint_file(path: Path) -> Path:
    """A checkpoint as it was named: a file, or a run directory, which means its best checkpoint."""
    return path / CHECKPOINT_DIR / BEST_NAME if is_dir(path) else path


def begin_from(trainer: Trainer, path: Path, layers: str) -> str:
    """Copy layers of a checkpoint into a network that has not been trained; its momentum stays zero.

    Args:
        trainer: before `fit`, its network fresh.
        path: see `checkpoint_file`.
        layers: see `weight_transfer.select_layers`.

    Returns:
        A sentence about what was copied from where, what begins at random, and what the networks differ in.

    Raises:
        ConfigError: `layers` names none.
        InputError: no such checkpoint, or a layer is of another shape there.
        IntegrityError: it is damaged.
    """
    stored = load_checkpoint(checkpoint_file(path))
    state, copied = transfer_layers(stored.model, weights_of(trainer.model), layers)
    load_layout(trainer.model, trainer.optimizer, state, {})
    fresh = [layer for layer in dict.fromkeys(name.partition(".")[0] for name in state) if layer not in copied]
    return (
        f"{', '.join(copied)} from {checkpoint_file(path)} (epoch {stored.progress['epoch']}); "
        f"{', '.join(fresh) or 'nothing'} at random{_other_meaning(stored.model_config, trainer.model.config)}"
    )


def _other_meaning(stored: dict[str, Any], ours: AlexNetConfig) -> str:
    """What surrounds the layers otherwise than where they were trained, which changes what their weights do."""
    theirs = AlexNetConfig.from_json(stored)
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in _SURROUNDINGS]
    changed = [f"{name} {there} there and {here} here" for name, there, here in pairs if there != here]
    return f"; the networks differ in {', '.join(changed)}" if changed else ""
