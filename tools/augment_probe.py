"""What augmenting alone gives: crop, flip and arithmetic of decoded images, by the loader's own kernels."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentConfig, draw_params
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.cpu import BUFFER_DTYPES
from lmdali.pipeline.eigenbasis import load_eigenbasis
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.patches import PatchCutter, Samples
from lmdali.pipeline.pixel_transform import PixelTransform, pixel_transform
from lmdali.pipeline.record_codec import decode_stored, ppm_header
from lmdali.pipeline.record_threads import ImageRun
from lmdali.pipeline.timing import StageTimers
from lmdali.tools.ceilings import IMAGES_PER_CHUNK, SAMPLE_BYTES, Scratch, ThreadedProbe


def first_plan(dataset: Path, augment: AugmentConfig, count: int, *, seed: int) -> tuple[PixelTransform, BatchPlan]:
    """The arithmetic of a dataset in epoch 0, and a plan with the draws of its first `count` positions."""
    size = load_manifest(dataset).image_size
    basis = load_eigenbasis(dataset) if augment.needs_basis else None
    transform = pixel_transform(augment, basis, size).at(0)
    indices = np.arange(count, dtype=np.int64)
    params = draw_params(augment, seed=seed, epoch=0, indices=indices, positions=indices, image_size=size)
    return transform, BatchPlan(indices, params, transform.shifts(params), transform.scale)


class DecodedImages:
    """Some records as raw ones in memory, and the draws of epoch 0 for them.

    Args:
        sample: image files of records.
        dataset: they are of; its statistics are used where the augmentation needs them.
        augment: what is drawn and computed.
        spec: form of the patches. For a GPU threads only cut them, uint8, and the arithmetic is done there.
        seed: of the draws.
    """

    def __init__(
        self, sample: list[bytes], dataset: Path, augment: AugmentConfig, spec: OutputSpec, *, seed: int
    ) -> None:
        manifest = load_manifest(dataset)
        size = manifest.image_size
        header = np.frombuffer(ppm_header(size), np.uint8)
        count = min(len(sample), max(IMAGES_PER_CHUNK, SAMPLE_BYTES // (3 * size * size)))
        files = [np.concatenate([header, decode_stored(data, size).reshape(-1)]) for data in sample[:count]]
        self.count, self._views = count, augment.num_views
        self._bytes, file_bytes = np.concatenate(files), len(files[0])
        self._starts = np.arange(count, dtype=np.int64) * file_bytes
        self._stops = self._starts + file_bytes
        cuts_only = spec.holds_pixels or spec.device.type == "cuda"
        self.spec = replace(spec, dtype="uint8", layout="NHWC") if spec.device.type == "cuda" else spec
        transform, self._plan = first_plan(dataset, augment, count, seed=seed)
        self._cutter = PatchCutter(
            replace(manifest, encoding="raw"),
            None if cuts_only else transform,
            self.spec,
            describe=lambda index, problem: problem,
            cache=None,
            timers=StageTimers(),
        )

    def cut(self, first: int, stop: int, out: NDArray[Any]) -> None:
        """Patches of images first..stop-1, which are in the list, into (n * V, ...) `out`."""
        views = slice(first * self._views, stop * self._views)
        labels = np.zeros(stop - first, np.int64)
        run = ImageRun(self._bytes, self._starts[first:stop], self._stops[first:stop], labels)
        params, plan = self._plan.params.part(views.start, views.stop), self._plan
        draws = params.crop_yx, params.sides, params.flip, plan.shifts[views], plan.scale
        self._cutter.cut(Samples(run, np.arange(first, stop), *draws, out))


def augment_probe(images: DecodedImages, *, num_threads: int) -> ThreadedProbe:
    """Crop, flip and arithmetic alone, into reused memory of one chunk for each thread."""
    scratch, dtype = Scratch(), np.dtype(BUFFER_DTYPES[images.spec.dtype])
    shape = IMAGES_PER_CHUNK * images.spec.num_views, *images.spec.image_shape()

    def work(first: int, stop: int) -> None:
        out = scratch.take(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
        done, views = 0, images.spec.num_views
        while done < stop - first:  # the list may end within a chunk
            begin = (first + done) % images.count
            end = min(begin + stop - first - done, images.count)
            images.cut(begin, end, out[done * views : (done + end - begin) * views])
            done += end - begin

    return ThreadedProbe(work, num_threads)
