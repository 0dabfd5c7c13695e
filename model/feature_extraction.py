"""From a network and a loader to a feature file: every record once, in order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmdali.model.evaluator import network_input
from lmdali.model.features_writer import FeaturesWriter
from lmdali.pipeline.batch import Loader
from lmdali.pipeline.errors import IntegrityError

PIXEL_SIDE = 32
"""Raw pixels as features: the size that Krizhevsky & Hinton's codes (ESANN 2011) were learnt on."""


def pixel_features(images: Tensor) -> Tensor:
    """`(B, 3 * 32 * 32)`: each image averaged down to 32 x 32, channels first."""
    return torch.nn.functional.adaptive_avg_pool2d(images, PIXEL_SIDE).flatten(1)


@torch.no_grad()
def extract_features(
    network: Callable[[Tensor], Tensor],
    loader: Loader,
    writer: FeaturesWriter,
    device: torch.device,
    *,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Feed `writer` with the features of all records that it lacks.

    Args:
        network: `(B, 3, S, S)` images to `(B, dims)`, in evaluation mode.
        loader: in storage order with one view, placed at the first record that is missing.
        writer: held by the caller.
        device: where the network is.
        on_progress: told the number of records done.

    Raises:
        IntegrityError: the loader delivers other records than the next ones.
        InputError: a feature is not finite, or does not fit.
        StorageError: a shard cannot be written.
    """
    done = writer.num_done
    if done == writer.plan.num_records:
        return
    for batch in loader:
        expected = torch.arange(done, done + len(batch.indices))
        if not torch.equal(batch.indices, expected):
            raise IntegrityError(
                f"features need every record in order: record {done} was due, {int(batch.indices[0])} came"
            )
        rows = network(network_input(batch.images, device, channels_last=True))
        writer.add(rows.float().cpu().numpy())
        done += len(expected)
        on_progress(done)
