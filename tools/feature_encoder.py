"""What turns pictures into features: a checkpoint's last hidden layer, or the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmdali.model.device import pick_device
from lmdali.model.evaluator import network_input
from lmdali.model.feature_extraction import PIXEL_SIDE, pixel_features
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.dataset_place import Place
from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import InputError
from lmdali.tools.checkpoint_network import open_network
from lmdali.tools.record_pictures import central_views

PIXELS = "pixels"
"""Stands where a checkpoint would: features are the pixels, averaged down to 32 x 32."""


@dataclass(frozen=True, eq=False)
class FeatureEncoder:
    """Pictures to vectors.

    Attributes:
        source: the checkpoint's path, or "pixels".
        digest: identity of what it computes.
        dims: length of a vector.
        network: `(B, 3, S, S)` to `(B, dims)`.
        augment: how pictures are cropped and normalised.
        basis: directory with the training set's statistics, where they are needed.
        device: where the network is.
        class_names: that the network was trained on, or None.
    """

    source: str
    digest: str
    dims: int
    network: Callable[[Tensor], Tensor]
    augment: AugmentConfig
    basis: Path | None
    device: torch.device
    class_names: tuple[str, ...] | None

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> NDArray[np.float64]:
        """`(n, dims)` float64 of `(n, H, H, 3)` uint8 RGB pictures."""
        images = torch.from_numpy(central_views(pixels, self.augment, self.basis))
        vectors = self.network(network_input(images, self.device, channels_last=True))
        return vectors.double().cpu().numpy()


def open_encoder(
    source: str,
    image_size: int,
    *,
    device: str = "auto",
    basis: Place | None = None,
    cache_dir: Place | None = None,
) -> FeatureEncoder:
    """The encoder of a checkpoint: its fc7 after ReLU, dropout in test mode, of the central crop; or of the pixels.

    Args:
        source: a checkpoint file, a run directory, or "pixels".
        image_size: side of the pictures, pixels.
        device: auto, cpu or cuda:N.
        basis, cache_dir: as of `open_network`.

    Raises:
        ConfigError: no such device name.
        InputError: no such checkpoint, or the training set's statistics are not at hand.
        IntegrityError: the checkpoint is damaged.
        MachineError: the device is not there.
    """
    if source == PIXELS:
        whole = AugmentConfig(crop="center", crop_size=image_size, flip=False, lighting="none", normalize="none")
        digest = f"{PIXELS}-{PIXEL_SIDE}"
        dims = 3 * PIXEL_SIDE * PIXEL_SIDE
        return FeatureEncoder(PIXELS, digest, dims, pixel_features, whole, None, pick_device(device), None)
    network = open_network(Path(source), device=device, basis=basis, cache_dir=cache_dir)
    return FeatureEncoder(
        source=str(network.path),
        digest=network.digest,
        dims=network.model.fc8.in_features,
        network=network.model.hidden,
        augment=network.augment(),
        basis=network.basis,
        device=network.device,
        class_names=network.stored.class_names,
    )


def require_encoder(encoder: FeatureEncoder, digest: str, where: Path) -> None:
    """Refuse to encode queries by another network than the one that encoded what is searched.

    Raises:
        InputError: naming both.
    """
    if encoder.digest != digest:
        raise InputError(
            f"{encoder.source}: a checkpoint of another model ({encoder.digest[:12]}) than {where} was made with "
            f"({digest[:12]}): give that one with --checkpoint"
        )
