"""What one network says of a dataset: from its checkpoint, or from a file of probabilities made earlier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmdali.model.evaluator import evaluate
from lmdali.model.parallel import Ranks
from lmdali.model.probabilities_file import (
    PROBABILITIES_SUFFIX,
    Probabilities,
    load_probabilities,
    require_same_labels,
)
from lmdali.pipeline.dataset_place import Place, place_directory, place_shown
from lmdali.pipeline.errors import InputError, IntegrityError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import RECORDS_FILE, Manifest
from lmdali.pipeline.path_kind import is_dir
from lmdali.pipeline.table_reader import read_integers
from lmdali.tools.checkpoint_network import CheckpointNetwork, open_network
from lmdali.tools.progress import progress_bar

_VIEWS_PER_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The dataset that networks are asked about, and how.

    Attributes:
        dataset: where it is.
        manifest: of the dataset.
        num_views: 1 or 10.
        batch_size: samples per step of each process; None means as many as make 128 views.
        device: a name that `pick_device` knows.
        basis: directory with the training set's statistics; None means each run's own copy.
        loader_arguments: what else `LoaderConfig` is told.
        quiet: no progress.
    """

    dataset: Place
    manifest: Manifest
    num_views: int
    batch_size: int | None
    device: str
    basis: Place | None
    loader_arguments: dict[str, Any]
    quiet: bool


def is_probabilities_file(path: Path) -> bool:
    """Whether a path names a file of probabilities, not a checkpoint or run directory."""
    return path.suffix == PROBABILITIES_SUFFIX and not is_dir(path)


def agreed_views(sources: Sequence[Path], views: int | None) -> int:
    """Views per image for all sources: those asked for, or what the files of probabilities among them have, or 1.

    Raises:
        InputError: there is no such file, or it is another kind of file.
        IntegrityError: it is damaged.
    """
    files = [source for source in sources if is_probabilities_file(source)]
    return views or (load_probabilities(files[0]).num_views if files else 1)


def member_probabilities(asked: EvaluationSet, source: Path, ranks: Ranks) -> Probabilities:
    """What a network says of each record; with several ranks, all of them call this and get the same.

    Args:
        asked: dataset and views.
        source: checkpoint file, run directory and its best checkpoint, or a file of probabilities.
        ranks: that share the work.

    Raises:
        InputError: other classes, another dataset, other views, or no such source.
        IntegrityError: the source or the dataset is damaged.
        MachineError: the device is not there.
    """
    if is_probabilities_file(source):
        return _stored(asked, source)
    cache_dir = asked.loader_arguments.get("cache_dir")
    network = open_network(source, device=asked.device, basis=asked.basis, cache_dir=cache_dir)
    network.require_classes(asked.manifest.class_names, asked.dataset)
    return _computed(asked, network, ranks)


def _computed(asked: EvaluationSet, network: CheckpointNetwork, ranks: Ranks) -> Probabilities:
    config = LoaderConfig(
        dataset=asked.dataset,
        batch_size=asked.batch_size or max(1, _VIEWS_PER_BATCH // asked.num_views),
        augment=network.augment(asked.num_views),
        order="sequential",
        layout="NHWC",
        basis=network.basis,
        **asked.loader_arguments,
    )
    with (
        create_loader(config, device=network.device, rank=ranks.rank, world_size=ranks.world_size) as loader,
        progress_bar("eval", -(-loader.num_samples // ranks.world_size), quiet=asked.quiet) as progress,
    ):
        result = evaluate(
            network.model, loader, network.device, keep_probabilities=True, on_progress=progress, ranks=ranks
        )
        backend = loader.backend_name
    assert result.probabilities is not None and result.labels is not None
    if not torch.isfinite(result.probabilities).all():
        raise InputError(
            f"{network.path}: its probabilities are not finite: its training diverged: give an earlier one"
        )
    return Probabilities(
        values=result.probabilities.numpy(),
        labels=result.labels.numpy(),
        class_names=asked.manifest.class_names,
        dataset_digest=asked.manifest.digest,
        num_views=asked.num_views,
        source={
            "checkpoint": str(network.path),
            "checkpoint_digest": network.digest,
            "epoch": network.stored.progress["epoch"],
            "step": network.stored.progress["step"],
            "device": str(network.device),
            "backend": backend,
        },
    )


def _stored(asked: EvaluationSet, source: Path) -> Probabilities:
    found = load_probabilities(source)
    require_same_labels(asked.manifest.class_names, found.class_names, source, place_shown(asked.dataset))
    if found.dataset_digest != asked.manifest.digest:
        raise InputError(
            f"{source}: of dataset {found.dataset_digest[:12]}, {place_shown(asked.dataset)} is "
            f"{asked.manifest.digest[:12]}: give the dataset that it was made of"
        )
    if found.num_views != asked.num_views:
        raise InputError(
            f"{source}: made with --views {found.num_views}, the others with {asked.num_views}: give --views "
            f"{found.num_views}, or make the file again"
        )
    directory = place_directory(asked.dataset, tables=True, cache_dir=asked.loader_arguments.get("cache_dir"))
    if not np.array_equal(found.labels, read_integers(directory / RECORDS_FILE, "label")):
        raise IntegrityError(f"{source}: its labels are not those of {place_shown(asked.dataset)}: make it again")
    return found
