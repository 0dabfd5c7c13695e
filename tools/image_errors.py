"""Which validation images a trained network gets wrong, kept beside its run: two networks are compared image by image.

Two error rates of the same images say less than the images themselves: most are easy, or hard, for both networks, and
only those on which they differ can have come out otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.model.checkpoint import CheckpointDirectory
from lmdali.model.metrics import top_k_error
from lmdali.model.parallel import Ranks
from lmdali.model.trainer import CHECKPOINT_DIR
from lmdali.pipeline.dataset_place import Place, place_manifest
from lmdali.pipeline.errors import IntegrityError
from lmdali.pipeline.files import npy_bytes, write_atomic
from lmdali.pipeline.path_kind import is_file
from lmdali.tools.member_probabilities import EvaluationSet, member_probabilities

IMAGE_ERRORS_FILE = "image_errors.npy"

ImageErrors = NDArray[np.float32]
"""`(2, N)`, top-1 and top-5 error of each validation image, 0..1: fractions where scores tie."""


def image_errors(run_dir: Path, val: Place, *, device: str, loader_arguments: Mapping[str, Any]) -> ImageErrors | None:
    """Errors of a run's last network, from its file, or measured now and kept.

    Args:
        run_dir: of a training that has ended.
        val: its validation set.
        device: auto, cpu or cuda:N.
        loader_arguments: what else `LoaderConfig` is told.

    Returns:
        None where the run has no checkpoint any more.

    Raises:
        InputError: the validation set has other classes, or the run's statistics are gone.
        IntegrityError: the file, the checkpoint or the dataset is damaged.
        StorageError: the file cannot be written.
    """
    manifest = place_manifest(val, cache_dir=loader_arguments.get("cache_dir"))
    path = run_dir / IMAGE_ERRORS_FILE
    if is_file(path):
        return _load(path, manifest.num_records)
    checkpoints = CheckpointDirectory(run_dir / CHECKPOINT_DIR).paths()
    if not checkpoints:
        return None
    asked = EvaluationSet(
        dataset=val,
        manifest=manifest,
        num_views=1,
        batch_size=None,
        device=device,
        basis=None,
        loader_arguments=dict(loader_arguments),
        quiet=True,
    )
    found = member_probabilities(asked, checkpoints[-1], Ranks())
    values, labels = torch.from_numpy(found.values), torch.from_numpy(found.labels)
    errors: ImageErrors = torch.stack([top_k_error(values, labels, k) for k in (1, 5)]).numpy()
    write_atomic(path, npy_bytes(errors))
    return errors


def _load(path: Path, num_images: int) -> ImageErrors:
    try:
        errors: ImageErrors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IntegrityError(f"{path}: {error}: remove it, and it is measured again") from error
    if errors.dtype != np.float32 or errors.shape != (2, num_images):
        raise IntegrityError(
            f"{path}: {errors.shape} {errors.dtype}, expected (2, {num_images}) float32: remove it, and it is measured "
            "again"
        )
    return errors
