"""Whether two backends make the same pixels: the same batches from each, and the differences in gray levels.

The reference is the cpu backend on the CPU. Order and draws are the same by construction, so what is compared are
decoders and arithmetic:

* Raw pixels, stored or cropped and flipped, are the same bytes everywhere: no difference is allowed.
* JPEG by DALI on a CPU: both sides use the accurate IDCT and interpolated upsampling of libjpeg-turbo. Largest
  difference 0 on 2,144 ImageNet photographs at quality 90 (DALI 2.4, simplejpeg 1.9); 1 gray level is allowed, and a
  mean of 0.1, for a build of libjpeg-turbo that rounds another way at some pixels.
* JPEG by nvJPEG on a GPU: its IDCT and upsampling round in their own way, more at edges of colour. The mean is held to
  1 gray level; the largest is told and not judged.
* Windows that are resized: one filter, by DALI in floating point and with weights from a table. Largest difference 2 on
  2,144 ImageNet photographs, mean 0.001; on noise of black and white means are 0.013. So 2 gray levels and a mean of
  0.05 are allowed more than without a filter. The outermost pixels of a patch are left out: there
  the filter of a window that gets smaller reaches over its border, where DALI repeats the last pixel and the reference,
  as Pillow, takes what there is. From 512 pixels to 224 that was 10 gray levels on photographs, 13 on noise.
* Mean, lighting and scale in float32: 0 with those photographs and a mean image; DALI adds a mean per channel and the
  lighting up first, which rounds differently (5e-7 of a value of 1), so 1e-3 gray levels are allowed.

The mean of all pixels of a channel is told beside that and not judged: rounding comes out even there, and what is
wrong everywhere (a colour conversion, a mean that is off) stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lmdali.pipeline.errors import IntegrityError, MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "train", "comparing backends") from error

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import BackendName, DType
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.pixel_transform import IMAGENET_DEVIATION

ARITHMETIC_LIMIT = 1e-3
LIBJPEG_LIMIT, LIBJPEG_MEAN_LIMIT = 1.0, 0.1
RESIZE_LIMIT, RESIZE_MEAN_LIMIT = 2.0, 0.05
NVJPEG_MEAN_LIMIT = 1.0


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """One form of batches from one backend beside the reference.

    Attributes:
        form: "stored images", "crops and flips", "resized windows", "mean and lighting", "central mean" or
            "channel means".
        backend: what was compared, such as "dali on cuda:0"; the reference is "cpu on cpu".
        num_images: images compared.
        largest: difference of any value, gray levels; of windows that are resized without the outermost pixels.
        mean: difference of all these values, gray levels.
        bias: difference of the mean of these values, of the channel where that is largest, gray levels.
        largest_limit: allowed; infinite where only the mean is judged.
        mean_limit: allowed.
    """

    form: str
    backend: str
    num_images: int
    largest: float
    mean: float
    bias: float
    largest_limit: float
    mean_limit: float

    @property
    def passed(self) -> bool:
        """Whether both differences are within their limits."""
        return self.largest <= self.largest_limit and self.mean <= self.mean_limit


def compare_backends(
    dataset: Path,
    *,
    device: str = "cpu",
    backends: tuple[BackendName, ...] | None = None,
    batch_size: int = 32,
    num_batches: int = 8,
    num_threads: int | None = None,
) -> Iterator[ParityRow]:
    """Differences between backends on a device and the cpu backend on the CPU, over the first batches of epoch 0.

    Args:
        dataset: made by `lmdali convert`, with its statistics.
        device: of the backends that are compared: "cpu" or "cuda:N".
        backends: that are compared; None is dali, and on a GPU cpu as well.
        batch_size: samples per step.
        num_batches: of each form.
        num_threads: of each loader; None means every CPU this process may use.

    Yields:
        A row for each form and backend.

    Raises:
        ConfigError: options that cannot work.
        InputError: not a finished dataset, or its statistics are of another one.
        IntegrityError: the dataset is damaged, or a backend delivers other samples than the reference.
        MachineError: DALI or the device is missing.
    """
    manifest = load_manifest(dataset)
    on_gpu = device != "cpu"
    chosen = backends or (("cpu", "dali") if on_gpu else ("dali",))
    for form, dtype, augment in _forms(manifest.image_size):
        config = LoaderConfig(
            dataset=dataset,
            batch_size=min(batch_size, manifest.num_records),
            augment=augment,
            dtype=dtype,
            layout="NHWC",
            num_threads=num_threads,
        )
        for backend in chosen:
            raw, resized = manifest.encoding == "raw", augment.crop == "resized"
            found = _differences(config, backend, device, num_batches, int(resized))
            largest_limit, mean_limit = _limits(raw, backend, dtype, on_gpu=on_gpu, resized=resized)
            yield ParityRow(
                form=form,
                backend=f"{backend} on {device}",
                **found,
                largest_limit=largest_limit,
                mean_limit=mean_limit,
            )


def _forms(image_size: int) -> Iterator[tuple[str, DType, AugmentConfig]]:
    whole = AugmentConfig(crop="center", crop_size=image_size, flip=False, lighting="none", normalize="none")
    crop_size = min(AugmentConfig.crop_size, image_size)
    yield "stored images", "uint8", whole
    yield "crops and flips", "uint8", replace(AugmentConfig.pixels(), crop_size=crop_size)
    yield "resized windows", "uint8", replace(AugmentConfig.pixels(), crop_size=crop_size, crop="resized")
    # The preset that has all of the arithmetic: a mean image's window, lighting, and a scale.
    original = replace(AugmentConfig.original2012(), crop_size=crop_size)
    yield "mean and lighting", "float32", replace(original, mean_window="aligned")
    yield "central mean", "float32", original
    yield "channel means", "float32", replace(original, normalize="imagenet")


def _limits(raw: bool, backend: str, dtype: DType, *, on_gpu: bool, resized: bool) -> tuple[float, float]:
    """Largest and mean difference allowed, gray levels."""
    arithmetic = 0.0 if dtype == "uint8" else ARITHMETIC_LIMIT
    if backend == "cpu":
        return arithmetic, arithmetic
    largest, mean = (RESIZE_LIMIT, RESIZE_MEAN_LIMIT) if resized else (arithmetic, arithmetic)
    if raw:
        return largest, mean
    if on_gpu:
        return math.inf, NVJPEG_MEAN_LIMIT
    return LIBJPEG_LIMIT + largest, LIBJPEG_MEAN_LIMIT + mean


def _differences(
    config: LoaderConfig, backend: BackendName, device: str, num_batches: int, border: int
) -> dict[str, Any]:
    """What a `ParityRow` has of them; `border` pixels of each side are left out."""
    count, values, largest, total = 0, 0, 0.0, 0.0
    of_channels = torch.zeros(3, dtype=torch.float64)
    unit = torch.ones(3)
    if config.augment.normalize == "imagenet":
        unit = torch.from_numpy(IMAGENET_DEVIATION).to(torch.float32)
    with ExitStack() as stack:
        reference = stack.enter_context(_open(config, "cpu", "cpu"))
        other = stack.enter_context(_open(config, backend, device))
        for expected, found in islice(zip(reference, other, strict=True), num_batches):
            if not torch.equal(expected.indices, found.indices) or not torch.equal(expected.labels, found.labels.cpu()):
                raise IntegrityError(
                    f"{config.dataset}: {backend} on {device} delivers other samples than cpu: please report this"
                )
            difference = unit * (found.images.cpu().to(torch.float32) - expected.images.to(torch.float32))
            height, width = difference.shape[1:3]
            difference = difference[:, border : height - border, border : width - border]
            of_channels += difference.sum((0, 1, 2), dtype=torch.float64)
            largest = max(largest, float(difference.abs().max()))
            total += float(difference.abs().sum(dtype=torch.float64))
            count, values = count + len(difference), values + difference.numel()
    bias = 3 * float(of_channels.abs().max()) / values
    return {"num_images": count, "largest": largest, "mean": total / values, "bias": bias}


def _open(config: LoaderConfig, backend: BackendName, device: str) -> DatasetLoader:
    # Rank and world size are given: under torchrun, too, this looks at one process on its own.
    return create_loader(replace(config, backend=backend), device, rank=0, world_size=1)
