"""From stored image files to patches in a batch buffer, a run of samples at a time and compiled from end to end.

JPEG records are decoded to the planes that the file holds, as far as their crops reach; upsampling, colour, crop, flip,
arithmetic and layout are then one pass into the batch. Raw pixels are cropped straight out of the mapped shard, cached
ones out of the cache. What the compiled decoder does not take (a file of another encoder, a damaged one) goes through
libjpeg-turbo, which gives the same pixels or says what is wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline import crop_kernel, jpeg_kernel, paint_kernel
from lmdali.pipeline.backend import OutputSpec
from lmdali.pipeline.decoded_cache import DecodedCache
from lmdali.pipeline.errors import RecordError
from lmdali.pipeline.half_kernel import to_bfloat16, to_float16
from lmdali.pipeline.jpeg_decoder import JpegDecoder
from lmdali.pipeline.manifest import Manifest
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.record_codec import decode_stored, ppm_header
from lmdali.pipeline.record_kernel import first_unlike
from lmdali.pipeline.record_threads import ImageRun
from lmdali.pipeline.resize_kernel import resize_run
from lmdali.pipeline.resized_crop import resize_table
from lmdali.pipeline.timing import StageTimers

_IMAGES_AT_ONCE = 32
"""So many decoded images, 98 kB each as planes, wait for their crops. Fewer would fit a core's second-level cache, but
that cannot be measured, and every call more is one more wait for Python's lock. Raw and cached ones wait for nobody, so
all of a task's are cropped together."""

_RESIZED_AT_ONCE = 8
"""Windows resized to patches, 150 kB each of uint8, before these are cropped, mirrored and normalised as images are."""

_HALVED_AT_ONCE = 4
"""Patches in float32, 0.6 MB each, that wait to be halved: fewer cost more calls, more leave the cache before that."""


class Samples(NamedTuple):
    """Some samples of a batch, and everything that happens to them.

    Attributes:
        run: their image files.
        indices: (n,) int64 record numbers.
        crop_yx: (n * V, 2) int64.
        sides: (n, 2) int64, of windows that are resized, one of each image; None where patches are cut as they are.
        flip: (n * V,) bool.
        shifts: (n * V, 3) float32.
        scale: (3,) float32.
        out: (n * V, ...) where the patches go.
    """

    run: ImageRun
    indices: NDArray[np.int64]
    crop_yx: NDArray[np.int64]
    sides: NDArray[np.int64] | None
    flip: NDArray[np.bool_]
    shifts: NDArray[np.float32]
    scale: NDArray[np.float32]
    out: NDArray[Any]

    def part(self, first: int, stop: int) -> Samples:
        """Samples first..stop-1, or as many of them as there are."""
        if first == 0 and stop >= len(self.indices):
            return self
        views = len(self.flip) // len(self.indices)
        v = slice(first * views, stop * views)
        run = ImageRun(
            self.run.bytes, self.run.starts[first:stop], self.run.stops[first:stop], self.run.labels[first:stop]
        )
        sides = None if self.sides is None else self.sides[first:stop]
        draws = self.crop_yx[v], sides, self.flip[v], self.shifts[v], self.scale
        return Samples(run, self.indices[first:stop], *draws, self.out[v])


class PatchCutter:
    """Cuts the patches of one dataset and output form; thread-safe.

    Args:
        manifest: of the dataset.
        transform: the arithmetic; None where patches hold pixels.
        spec: form of the output.
        describe: (record number, problem) to an error message that names the record.
        cache: decoded images to use and to fill, or None.
        timers: where `decode` and `augment` are counted.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: PixelTransform | None,
        spec: OutputSpec,
        *,
        describe: Callable[[int, str], str],
        cache: DecodedCache | None,
        timers: StageTimers,
    ) -> None:
        self._size, self._is_raw = manifest.image_size, manifest.encoding == "raw"
        self._num_views, self._describe, self._cache, self._timers = spec.num_views, describe, cache, timers
        self._header = np.frombuffer(ppm_header(self._size), np.uint8)
        self._decoder, self._crop_size = JpegDecoder(self._size), spec.crop_size
        self._table = resize_table(self._size, spec.crop_size) if spec.resized else None
        self._scratch = threading.local()
        planar = spec.layout == "NCHW"
        self._mean: tuple[NDArray[np.float32], bool] | None = None
        self._crop: Callable[..., None]
        self._paint: Callable[..., None]
        if transform is None:
            self._crop = crop_kernel.crop_run_pixels_planar if planar else crop_kernel.crop_run_pixels
            self._paint = paint_kernel.paint_run_planar if planar else paint_kernel.paint_run
        else:
            self._mean = crop_kernel.mean_rows(transform, planar=planar), transform.centered
            self._crop = crop_kernel.crop_run_normalized_planar if planar else crop_kernel.crop_run_normalized
            self._paint = paint_kernel.paint_run_normalized_planar if planar else paint_kernel.paint_run_normalized
        self._dtype = spec.dtype

    def cut(self, samples: Samples) -> None:
        """Fill `samples.out`.

        Raises:
            RecordError: an image is damaged; its record is named.
        """
        if self._is_raw:
            self._crop_from(samples, samples.run.bytes, self._raw_pixels(samples))
        elif self._cache is None:
            self._decode_and_crop(samples)
        else:
            self._crop_cached(samples, self._cache)

    def _raw_pixels(self, samples: Samples) -> NDArray[np.int64]:
        """First pixel of each raw record."""
        run = samples.run
        args = run.bytes, run.starts, run.stops, self._header, 3 * self._size * self._size
        if (odd := first_unlike(*args)) < len(run.starts):
            self._decode(samples, odd, None)  # names what is wrong, unless it is an image of another kind
            problem = "it is not stored as raw pixels, as the manifest says of all records"
            raise RecordError(self._describe(int(samples.indices[odd]), problem))
        return run.starts + len(self._header)

    def _crop_cached(self, samples: Samples, cache: DecodedCache) -> None:
        places = cache.find(samples.indices)
        for is_cached, first, stop in _stretches(places >= 0):
            some = samples.part(first, stop)
            if is_cached:
                self._crop_from(some, cache.pixels.reshape(-1), places[first:stop] * cache.image_bytes)
            else:
                self._decode_and_crop(some)

    def _decode_and_crop(self, samples: Samples) -> None:
        for first in range(0, len(samples.indices), _IMAGES_AT_ONCE):
            self._decode_and_crop_few(samples.part(first, first + _IMAGES_AT_ONCE))

    def _decode_and_crop_few(self, part: Samples) -> None:
        if part.sides is None:
            windows = jpeg_kernel.view_windows(part.crop_yx, self._num_views, self._crop_size)
        else:
            windows = np.stack([part.crop_yx, part.crop_yx + part.sides], axis=2).reshape(-1, 4)
        places = np.full(len(part.indices), -1)
        if self._cache is not None:
            places = self._cache.reserve(part.indices)
            windows[places >= 0] = 0, self._size, 0, self._size
        with self._timers.measure("decode"):
            words = jpeg_kernel.plane_words(self._size, self._size)
            planes = self._buffer("planes", (_IMAGES_AT_ONCE, words), np.uint64)
            decoded = self._decoder.decode(part.run.bytes, part.run.starts, part.run.stops, windows, planes)
        try:
            for is_decoded, first, stop in _stretches(decoded):
                if is_decoded:
                    self._paint_from(part.part(first, stop), planes[first:stop], places[first:stop])
                else:
                    self._crop_by_libjpeg(part.part(first, stop), places[first:stop])
        except RecordError:
            if self._cache is not None:
                self._cache.give_back(part.indices[places >= 0])
            raise

    def _paint_from(self, part: Samples, planes: NDArray[np.uint64], places: NDArray[np.int64]) -> None:
        def paint(few: Samples, at: slice, form: tuple[Any, ...], out: NDArray[Any]) -> None:
            self._paint(planes[at], self._size, self._num_views, few.crop_yx, few.flip, *form, out)

        if part.sides is None:
            self._augment(part, paint)
        else:
            with self._timers.measure("augment"):  # as colour is of any crop
                pixels = self._buffer("pixels", (len(planes), self._size, self._size, 3), np.uint8)
                paint_kernel.paint_windows(planes, part.crop_yx, part.sides, pixels)
            self._crop_from(part, pixels.reshape(-1), np.arange(len(planes)) * pixels[0].size)
        if self._cache is not None:
            kept = np.flatnonzero(places >= 0)
            for at in kept.tolist():
                place = slice(places[at], places[at] + 1)
                paint_kernel.paint_whole(planes[at : at + 1], self._cache.pixels[place])
            self._cache.publish(part.indices[kept], part.run.labels[kept])

    def _crop_by_libjpeg(self, part: Samples, places: NDArray[np.int64]) -> None:
        with self._timers.measure("decode"):
            pixels = self._buffer("pixels", (_IMAGES_AT_ONCE, self._size, self._size, 3), np.uint8)
            for at in range(len(part.indices)):
                self._decode(part, at, pixels[at])
            if self._cache is not None:
                kept = np.flatnonzero(places >= 0)
                self._cache.pixels[places[kept]] = pixels[kept]
                self._cache.publish(part.indices[kept], part.run.labels[kept])
        self._crop_from(part, pixels.reshape(-1), np.arange(len(part.indices)) * pixels[0].size)

    def _decode(self, part: Samples, at: int, out: NDArray[np.uint8] | None) -> None:
        data = part.run.bytes[part.run.starts[at] : part.run.stops[at]].data
        try:
            decode_stored(data, self._size, out=out)
        except RecordError as error:
            raise RecordError(self._describe(int(part.indices[at]), str(error))) from error

    def _crop_from(self, part: Samples, data: NDArray[np.uint8], starts: NDArray[np.int64]) -> None:
        if part.sides is None:
            self._crop_images(part, data, starts, self._size)
            return
        for first in range(0, len(starts), _RESIZED_AT_ONCE):
            few = part.part(first, first + _RESIZED_AT_ONCE)
            patches = self._resized(few, data, starts[first : first + _RESIZED_AT_ONCE])
            # Images of a patch's size, of which nothing is cut off.
            few, places = few._replace(crop_yx=np.zeros_like(few.crop_yx), sides=None), np.arange(len(patches))
            self._crop_images(few, patches.reshape(-1), places * patches[0].size, self._crop_size)

    def _crop_images(self, part: Samples, data: NDArray[np.uint8], starts: NDArray[np.int64], size: int) -> None:
        def crop(few: Samples, at: slice, form: tuple[Any, ...], out: NDArray[Any]) -> None:
            self._crop(data, starts[at], size, self._num_views, few.crop_yx, few.flip, *form, out)

        self._augment(part, crop)

    def _resized(self, part: Samples, data: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Windows as (n, S, S, 3) uint8 patches, in this thread's memory."""
        assert self._table is not None and part.sides is not None
        with self._timers.measure("augment"):
            patches = self._buffer("patches", (len(starts), self._crop_size, self._crop_size, 3), np.uint8)
            resize_run(data, starts, self._size, part.crop_yx, part.sides, *self._table, patches)
        return patches

    def _augment(self, part: Samples, fill: Callable[[Samples, slice, tuple[Any, ...], NDArray[Any]], None]) -> None:
        """Let `fill` write the patches of some samples, which lie at a slice of `part`; halve them if asked for."""
        with self._timers.measure("augment"):
            count = len(part.indices)
            if self._dtype not in ("float16", "bfloat16"):
                fill(part, slice(0, count), self._form(part), part.out)
            else:
                step = max(1, _HALVED_AT_ONCE // self._num_views)
                for first in range(0, count, step):
                    few = part.part(first, first + step)
                    floats = self._buffer("floats", few.out.shape, np.float32)
                    fill(few, slice(first, first + step), self._form(few), floats)
                    self._halve(floats.reshape(-1), few.out.reshape(-1))

    def _form(self, part: Samples) -> tuple[Any, ...]:
        """What kernels take of the arithmetic, between the draws and the output."""
        return () if self._mean is None else (*self._mean, part.shifts, part.scale)

    def _halve(self, floats: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
        if self._dtype == "float16":
            to_float16(floats, floats.view(np.uint32), out)
        else:
            to_bfloat16(floats.view(np.uint32), out)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """This thread's memory of that name, at least `shape` large: written again and again."""
        buffer: NDArray[Any] | None = getattr(self._scratch, name, None)
        if buffer is None or len(buffer) < shape[0]:
            buffer = np.empty(shape, dtype)
            setattr(self._scratch, name, buffer)
        return buffer[: shape[0]]


def _stretches(flags: NDArray[np.bool_]) -> Iterator[tuple[bool, int, int]]:
    """(flag, first, past the last) of the longest runs of equal flags."""
    if flags.all():  # nearly always
        yield True, 0, len(flags)
        return
    edges = [0, *(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(flags)]
    for first, stop in pairwise(edges):
        yield bool(flags[first]), first, stop
