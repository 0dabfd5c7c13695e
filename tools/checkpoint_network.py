"""From a checkpoint file to a network that can be asked, with the normalisation that it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.checkpoint import Checkpoint, content_digest, load_checkpoint
from lmdali.model.device import pick_device
from lmdali.model.probabilities_file import require_same_labels
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.dataset_place import Place, parse_place, place_directory, place_shown
from lmdali.pipeline.eigenbasis import STATISTICS_FILE, load_moments
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.path_kind import is_file
from lmdali.tools.initial_weights import checkpoint_file


@dataclass(frozen=True)
class CheckpointNetwork:
    """A trained network.

    Attributes:
        path: the checkpoint file.
        stored: its content.
        model: the network in evaluation mode, on `device`.
        device: where it is.
        basis: directory with the training set's statistics; None where the normalisation needs none.
    """

    path: Path
    stored: Checkpoint
    model: AlexNet
    device: torch.device
    basis: Path | None

    def augment(self, views: int = 1) -> AugmentConfig:
        """Centre or ten crops, normalised as the training images were."""
        return _training_augment(self.stored).evaluation(views)

    @cached_property
    def digest(self) -> str:
        """Identity of everything that an image's activations depend on; progress and optimiser are no part of it."""
        content = {
            "model": self.stored.model,
            "model_config": self.stored.model_config,
            "augment": self.stored.loader_config["augment"],
            "manifest_digest": self.stored.manifest_digest,
        }
        return content_digest(content)

    def require_classes(self, class_names: tuple[str, ...], dataset: Place) -> None:
        """Refuse a dataset of other classes, or of the same ones in another order.

        Raises:
            InputError: naming both.
        """
        require_same_labels(self.stored.class_names, class_names, place_shown(dataset), self.path)


def open_network(
    checkpoint: Path, *, device: str = "auto", basis: Place | None = None, cache_dir: Place | None = None
) -> CheckpointNetwork:
    """Read a checkpoint and build its network.

    Args:
        checkpoint: a checkpoint file, or a run directory, which means its best checkpoint.
        device: auto, cpu or cuda:N.
        basis: directory with the training set's statistics; None means the run's own copy.
        cache_dir: for those of a training set at an address, as of `LoaderConfig`.

    Raises:
        ConfigError: no such device name.
        InputError: no such checkpoint, or the training set's statistics are not at hand.
        IntegrityError: the checkpoint is damaged.
        MachineError: the device is not there.
    """
    path, stored = read_checkpoint(checkpoint)
    target = pick_device(device)
    needs_basis = _training_augment(stored).evaluation().needs_basis
    place = _find_basis(stored, path, basis, cache_dir) if needs_basis else None
    # The fused kernels, which are for GPUs, take weights in this format only.
    layout = torch.channels_last if target.type == "cuda" else torch.preserve_format
    model = AlexNet(AlexNetConfig.from_json(stored.model_config))
    model.to(device=target, memory_format=layout)  # type: ignore[call-overload]
    model.load_state_dict(stored.model)
    return CheckpointNetwork(path, stored, model.eval(), target, place)


def read_checkpoint(checkpoint: Path) -> tuple[Path, Checkpoint]:
    """The file and content of a checkpoint, or of a run directory's best one.

    Raises:
        InputError: no such checkpoint.
        IntegrityError: it is damaged.
    """
    path = checkpoint_file(checkpoint)
    return path, load_checkpoint(path)


def _training_augment(stored: Checkpoint) -> AugmentConfig:
    return AugmentConfig(**stored.loader_config["augment"])


def _find_basis(stored: Checkpoint, path: Path, given: Place | None, cache_dir: Place | None) -> Path:
    """Directory with the statistics that the training images were normalised with."""
    recorded = [path.parent.parent, parse_place(stored.loader_config["dataset"])]
    places = [given] if given is not None else recorded
    for place in (place_directory(each, cache_dir=cache_dir) for each in places):
        if is_file(place / STATISTICS_FILE):
            digest = load_moments(place)[1]
            if digest != stored.manifest_digest:
                raise InputError(
                    f"{place / STATISTICS_FILE}: of dataset {digest[:12]}, the network was trained on "
                    f"{stored.manifest_digest[:12]}: give that training set with --basis"
                )
            return place
    looked = " and ".join(place_shown(place) for place in places)
    raise InputError(f"no {STATISTICS_FILE} of the training set in {looked}: give its directory with --basis")
