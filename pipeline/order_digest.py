"""The digest of an order: one number that two runs share if they saw the same samples with the same draws.

Each view that was delivered is hashed with its sample's position in the epoch, and the hashes are added up modulo
2**64. A sum knows no order of its terms: the parts of an epoch, before and after a resume or on different ranks, are
added in any way, and the position inside each hash makes the order of samples count all the same. It finds mistakes;
it is no defence against somebody who looks for two orders with one digest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentConfig, AugmentParams, draw_params
from lmdali.pipeline.counter_random import GOLDEN_GAMMA, mix64
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.sampler import RankSlice, SampleOrder

_ALPHA_STEPS = np.float32(2.0**16)
"""Logarithm and cosine may differ in their last bit between machines. 16 fractional bits hide that but for draws on the
very edge of a step, of which an epoch of ImageNet is expected to hold fewer than one in 100,000 epochs. Sides of
windows are whole pixels, and one lies that near to an edge in fewer than one of a million."""

_MASK_64 = (1 << 64) - 1
_CHUNK = 8192
"""Samples hashed together: their intermediate results fit a core's cache."""

_16, _32 = np.uint64(16), np.uint64(32)
_LOW_31, _LOW_32 = np.uint64(0x7FFFFFFF), np.uint64(0xFFFFFFFF)


def batch_digest(positions: NDArray[np.int64], indices: NDArray[np.int64], params: AugmentParams) -> int:
    """Digest of some samples of an epoch: 0 to 2**64 - 1, and 0 for none; arguments and errors as `view_hashes`."""
    return int(view_hashes(positions, indices, params).sum())


def view_hashes(positions: NDArray[np.int64], indices: NDArray[np.int64], params: AugmentParams) -> NDArray[np.uint64]:
    """The terms of a digest: (B * V,) uint64, one for each view.

    Args:
        positions: (B,) int64 positions in the epoch's global order, not in this rank's share of it.
        indices: (B,) int64 sample numbers.
        params: draws for the B * V views.

    Raises:
        ConfigError: the lengths do not fit.
    """
    count = len(indices)
    if len(positions) != count or (len(params) % count if count else len(params)):
        raise ConfigError(
            f"a digest needs one position and equally many views for each sample: found {len(positions)} positions, "
            f"{count} samples, {len(params)} views"
        )
    if not count:
        return np.zeros(0, np.uint64)
    views = len(params) // count
    # Without the constant, sample 0 at position 0 with no draws would add nothing, and nobody would miss it.
    samples = mix64(mix64(positions.astype(np.uint64) + GOLDEN_GAMMA) + indices.astype(np.uint64))
    if params.sides is not None:
        sides = params.sides.astype(np.uint64)
        samples = mix64(samples + (sides[:, 0] << _16 | sides[:, 1]))
    first, second = _view_words(params)
    if views > 1:
        samples = np.repeat(samples, views)
        first += np.tile(np.arange(views, dtype=np.uint64) * GOLDEN_GAMMA, count)
    return mix64(mix64(samples + first) + second)


def _view_words(params: AugmentParams) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Each view's draws in two words: crop y, crop x and alpha 0; alphas 1 and 2 and the flip."""
    corner = params.crop_yx.astype(np.uint64)  # below 2**16, the largest side of an image
    steps = np.rint(params.alphas * _ALPHA_STEPS).astype(np.int64).view(np.uint64)
    first = (corner[:, 0] << _16 | corner[:, 1]) << _32 | (steps[:, 0] & _LOW_32)
    second = ((steps[:, 1] & _LOW_31) << np.uint64(1) | params.flip) << _32 | (steps[:, 2] & _LOW_32)
    return first, second


def combine(digests: Iterable[int]) -> int:
    """Digest of several disjoint parts of an epoch together, in any order."""
    return sum(digests) & _MASK_64


def digest_text(digest: int) -> str:
    """A digest as it is printed and stored: 16 hexadecimal digits."""
    return f"{digest & _MASK_64:016x}"


class EpochDigest(NamedTuple):
    """What a run that delivers (the rest of) an epoch will have counted at its end.

    Attributes:
        num_samples: delivered.
        digest: of these.
    """

    num_samples: int
    digest: int


def epoch_digest(
    order: SampleOrder,
    rank_slice: RankSlice,
    augment: AugmentConfig,
    *,
    seed: int,
    image_size: int,
    start: int = 0,
    all_ranks: bool = True,
) -> EpochDigest:
    """The digest that loaders end an epoch with, worked out without reading a record.

    Args:
        order: of the epoch.
        rank_slice: batch size, ranks, and whether a last, smaller batch is left out.
        augment: what is drawn.
        seed: of the draws.
        image_size: side of the stored images, pixels.
        start: first position that counts; steps begin there.
        all_ranks: all ranks' digests combined, else that of `rank_slice.rank`.

    Raises:
        ConfigError: `start` is not in the epoch, or the crop is larger than the images.
    """
    stop = start + rank_slice.num_steps(start) * rank_slice.global_batch_size
    stop = min(stop, order.num_samples)
    count, digests = 0, []
    for first in range(start, stop, _CHUNK):
        last = min(first + _CHUNK, stop)
        positions, indices = np.arange(first, last, dtype=np.int64), order.indices(first, last)
        if not all_ranks:
            mine = rank_slice.owners(first, last, start)[1] == rank_slice.rank
            positions, indices = positions[mine], indices[mine]
        params = draw_params(
            augment, seed=seed, epoch=order.epoch, indices=indices, positions=positions, image_size=image_size
        )
        digests.append(batch_digest(positions, indices, params))
        count += len(indices)
    return EpochDigest(count, combine(digests))
