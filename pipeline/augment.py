"""Augmentation: what may be drawn, and the draws themselves; `pixel_transform` has the arithmetic.

Draws are made on the host, once, as a function of (seed, epoch, sample number), or of the place in the epoch's global
order where neighbours share a crop; every backend only applies them. The paper (section 4.1) takes 224x224 patches of
the 256x256 image, mirrors them, subtracts the mean image of the training set, and adds to every pixel of an image the
same multiple of each principal component of RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.counter_random import sample_normals, sample_words
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.resized_crop import draw_windows
from lmdali.pipeline.whole_number import check_choices, check_fields

Crop = Literal["random", "resized", "center", "ten"]
Normalize = Literal["mean_image", "channel_mean", "channel_mean_std", "imagenet", "none"]
MeanWindow = Literal["aligned", "center"]
Lighting = Literal["none", "eigenvalues", "roots"]
_CHOICES = {
    "crop": get_args(Crop),
    "normalize": get_args(Normalize),
    "mean_window": get_args(MeanWindow),
    "lighting": get_args(Lighting),
}

_CROP_STREAM, _LIGHTING_STREAMS, _CHUNK_STREAM = 0, (1, 2), 3


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to a decoded image on its way into a batch.

    Attributes:
        crop_size: side of the patch, pixels.
        crop: "random" draws uniformly over all offsets (33 x 33 for 224 of 256); "resized" a window of random area and
            aspect, which becomes the patch (`resized_crop`: not the paper's); "center"; "ten" gives the four corners
            and the centre, then the mirror images of these five, as ten adjacent views (section 4.1, test time).
        min_area, max_aspect: of a "resized" window, 0..1 of the image's, and width to height or height to width.
        flip: mirror with probability 1/2; only with crop "random" or "resized".
        crop_chunk: so many consecutive samples of the epoch's global order share one crop offset and flip (32 in the
            2012 code: 4 draws per minibatch of 128); 1 draws for each, as "resized" must. Lighting is always per image.
        normalize: "mean_image" subtracts the mean at each pixel (the paper); "channel_mean" one number per channel;
            "channel_mean_std" also divides by the channel's standard deviation; "imagenet" does so with the constants
            that pretrained networks expect, whatever the dataset; "none". "resized" has no mean image.
        mean_window: which part of the mean image a patch loses: "aligned" that under the patch, mirrored with it (the
            paper's text: subtract, then crop); "center" always the central one, never mirrored (the 2012 code).
        lighting: "eigenvalues" adds sum_i p_i a_i lambda_i with pixels on the scale 0..1 (the paper's text);
            "roots" uses the roots of lambda_i (the 2012 code); a_i ~ N(0, lighting_std) per image.
        lighting_std: standard deviation of a_i.
        lighting_rescale: divide the image by 1 + lighting_std after adding (the 2012 code).
        lighting_epochs: epochs with lighting; from that one on, counted from 0, images are neither lit nor divided.
            The 2012 runs went on so, with the coefficient set to 0, from epoch 67 (ILSVRC-2012) or 68 (2010).
    """

    crop_size: int = 224
    crop: Crop = "random"
    min_area: float = 0.08
    max_aspect: float = 4 / 3
    flip: bool = True
    crop_chunk: int = 1
    normalize: Normalize = "mean_image"
    mean_window: MeanWindow = "aligned"
    lighting: Lighting = "eigenvalues"
    lighting_std: float = 0.1
    lighting_rescale: bool = False
    lighting_epochs: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self, numbers=("crop_size", "crop_chunk", "lighting_epochs"), switches=("flip", "lighting_rescale")
        )
        check_choices(self, _CHOICES)
        if self.crop_size < 1:
            raise ConfigError(f"crop_size must be at least 1 pixel, found {self.crop_size}")
        if self.crop_chunk < 1:
            raise ConfigError(f"crop_chunk must be at least 1 sample, found {self.crop_chunk}")
        if not 0 <= self.lighting_std < 10:
            raise ConfigError(f"lighting_std must be in 0..10, found {self.lighting_std}")
        if self.lighting_rescale and self.lighting == "none":
            raise ConfigError("lighting_rescale undoes what lighting adds: it needs a lighting")
        if self.lighting_epochs is not None and (self.lighting_epochs < 0 or self.lighting == "none"):
            found = f'{self.lighting_epochs} and lighting "{self.lighting}"'
            raise ConfigError(f"lighting_epochs must be at least 0 and needs a lighting, found {found}")
        if not 0 < self.min_area <= 1:
            raise ConfigError(f"min_area must be over 0 and at most 1, found {self.min_area}")
        if not 1 <= self.max_aspect < 100:
            raise ConfigError(f"max_aspect must be in 1..100, found {self.max_aspect}")
        if self.crop == "resized" and (self.normalize == "mean_image" or self.crop_chunk != 1):
            raise ConfigError(
                'crop "resized" takes windows of any size, each for itself: set normalize to channel_mean_std, '
                "channel_mean, imagenet or none, and crop_chunk to 1"
            )
        if self.crop in ("center", "ten") and (self.flip or self.lighting != "none" or self.crop_chunk != 1):
            raise ConfigError(f'crop "{self.crop}" is for evaluation: set flip=False, lighting="none" and crop_chunk=1')

    @classmethod
    def paper(cls) -> AugmentConfig:
        """The text of the paper, section 4.1."""
        return cls()

    @classmethod
    def original2012(cls) -> AugmentConfig:
        """The released code: 32 images share a crop, the mean's central window, roots and 1 / 1.1 for 67 epochs."""
        return cls(crop_chunk=32, mean_window="center", lighting="roots", lighting_rescale=True, lighting_epochs=67)

    @classmethod
    def center(cls) -> AugmentConfig:
        """One central view, for validation."""
        return cls(crop="center", flip=False, lighting="none")

    @classmethod
    def ten_crop(cls) -> AugmentConfig:
        """Ten views per sample, for the paper's test-time average."""
        return cls(crop="ten", flip=False, lighting="none")

    @classmethod
    def pixels(cls) -> AugmentConfig:
        """Random crops and flips of the stored pixels, nothing subtracted: what a uint8 batch holds."""
        return cls(normalize="none", lighting="none")

    @classmethod
    def resized(cls) -> AugmentConfig:
        """Windows of random area and aspect: what most trainings since then take."""
        return cls(crop="resized", normalize="channel_mean_std", lighting="none")

    def evaluation(self, views: int = 1) -> AugmentConfig:
        """For the validation set of such a training: its normalisation and crop size, 1 view or 10, nothing drawn.

        Raises:
            ConfigError: another number of views.
        """
        if views not in (1, 10):
            raise ConfigError(f"views must be 1 or 10, found {views!r}")
        chosen = AugmentConfig.center() if views == 1 else AugmentConfig.ten_crop()
        return replace(chosen, crop_size=self.crop_size, normalize=self.normalize, mean_window=self.mean_window)

    @property
    def num_views(self) -> int:
        """Views per sample."""
        return 10 if self.crop == "ten" else 1

    def is_lit(self, epoch: int) -> bool:
        """Whether lighting is added in an epoch, counted from 0."""
        return self.lighting != "none" and (self.lighting_epochs is None or epoch < self.lighting_epochs)

    @property
    def needs_basis(self) -> bool:
        """Whether the statistics of a dataset are needed."""
        return self.normalize not in ("none", "imagenet") or self.lighting != "none"


WINDOW_DEFAULTS = {"min_area": AugmentConfig.min_area, "max_aspect": AugmentConfig.max_aspect}  # of "resized" alone


@dataclass(frozen=True, eq=False)
class AugmentParams:
    """The draws for the V views of B samples, views of one sample adjacent.

    Attributes:
        crop_yx: (B * V, 2) int64, top-left corner of each patch, pixels.
        flip: (B * V,) bool.
        alphas: (B * V, 3) float32, a_i of each sample; zeros without lighting.
        sides: (B * V, 2) int64, height and width of windows to be resized; None where patches are cut as they are.
    """

    crop_yx: NDArray[np.int64]
    flip: NDArray[np.bool_]
    alphas: NDArray[np.float32]
    sides: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.flip)

    def part(self, start: int, stop: int) -> AugmentParams:
        """Views start..stop-1."""
        sides = None if self.sides is None else self.sides[start:stop]
        return AugmentParams(self.crop_yx[start:stop], self.flip[start:stop], self.alphas[start:stop], sides)


def draw_params(
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
    positions: NDArray[np.int64],
    image_size: int,
) -> AugmentParams:
    """All random numbers for some samples of one epoch.

    Args:
        config: what may be drawn.
        seed: the run's seed.
        epoch: the epoch; a sample is drawn anew each time it is used.
        indices: (B,) int64 sample numbers, in any order.
        positions: (B,) int64 their positions in the epoch's global order, which say who shares a crop.
        image_size: side of the stored images, pixels.

    Raises:
        ConfigError: the crop is larger than the images.
    """
    room = image_size - config.crop_size
    if room < 0:
        raise ConfigError(
            f"crop_size {config.crop_size} is larger than the stored images ({image_size} pixels): lower it"
        )
    count = len(indices)
    if config.crop == "ten":
        return _ten_views(room, count)
    alphas = np.zeros((count, 3), np.float32)
    if config.crop == "center":
        return AugmentParams(np.full((count, 2), room // 2, np.int64), np.zeros(count, np.bool_), alphas)
    if config.crop_chunk == 1:
        w0, w1, w2, _ = sample_words(seed, epoch, indices, _CROP_STREAM)
    else:
        w0, w1, w2, _ = sample_words(seed, epoch, positions // config.crop_chunk, _CHUNK_STREAM)
    if config.crop == "resized":
        crop_yx, sides = draw_windows(seed, epoch, indices, image_size, config.min_area, config.max_aspect)
    else:  # multiply and shift: uniform over the offsets to one part in 2**32 / 33
        crop_yx = (np.stack([w0, w1], axis=1) * np.uint64(room + 1) >> np.uint64(32)).astype(np.int64)
        sides = None
    flip = (w2 >> np.uint64(31)).astype(np.bool_) if config.flip else np.zeros(count, np.bool_)
    if config.is_lit(epoch):
        normals = sample_normals(seed, epoch, indices, _LIGHTING_STREAMS)
        alphas = (normals * config.lighting_std).astype(np.float32)
    return AugmentParams(crop_yx, flip, alphas, sides)


def _ten_views(room: int, count: int) -> AugmentParams:
    corners = [(0, 0), (0, room), (room // 2, room // 2), (room, 0), (room, room)]
    crop_yx = np.tile(np.array(corners * 2, np.int64), (count, 1))
    flip = np.tile(np.repeat([False, True], 5), count)
    return AugmentParams(crop_yx, flip, np.zeros((10 * count, 3), np.float32))
