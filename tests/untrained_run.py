"""A run directory with the checkpoint of a network that was never trained: made in a moment, as good as any to ask."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.checkpoint import BEST_NAME, Checkpoint, save_checkpoint
from lmdali.model.trainer import CHECKPOINT_DIR
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.eigenbasis import load_moments, save_statistics
from lmdali.pipeline.manifest import load_manifest


def make_run(run_dir: Path, train: Path, *, seed: int = 0, width: float = 1 / 32, **model: Any) -> Path:
    """`run_dir` with `checkpoints/best.pt` and the statistics of `train`; `model` are fields of `AlexNetConfig`."""
    manifest = load_manifest(train)
    config = AlexNetConfig(num_classes=len(manifest.class_names), width=width, init="lecun", **model)
    checkpoint = Checkpoint(
        model=AlexNet(config, seed=seed).state_dict(),
        velocities={},
        schedule={},
        progress={"epoch": 0, "step": 0},
        train_loader={},
        rng=(),
        model_config=config.to_json(),
        train_config={},
        loader_config={"dataset": str(train), "augment": asdict(AugmentConfig())},
        class_names=manifest.class_names,
        manifest_digest=manifest.digest,
        lmdali_version="0",
    )
    (run_dir / CHECKPOINT_DIR).mkdir(parents=True)
    save_checkpoint(run_dir / CHECKPOINT_DIR / BEST_NAME, checkpoint)
    save_statistics(run_dir, *load_moments(train))
    return run_dir
