"""What the parts of a loader can do alone: LMDB, decoder, memory. The loader's rate is judged against these.

Each part runs on as many threads as the loader has, with nothing else going on: no order of batches to keep, no
augmentation, no batch to fill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import local

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.sampler import EpochOrder
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.tools.measurement import Probe

SAMPLE_BYTES = 64_000_000
"""Records kept in memory for the decode ceiling: more than any cache holds, less than anybody misses."""

MAX_READ_RECORDS = 1 << 17
"""Records the read ceiling goes through before it begins again."""

IMAGES_PER_CHUNK = 16
"""Images of one step of a ceiling."""

_CHUNKS_AHEAD = 2


class Scratch:
    """One buffer per thread, written again and again: fresh memory costs more than what is measured here."""

    def __init__(self) -> None:
        self._local = local()

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """The first bytes of this thread's buffer."""
        buffer: NDArray[np.uint8] | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < num_bytes:
            buffer = self._local.buffer = np.empty(num_bytes, np.uint8)
        return buffer[:num_bytes]


class ThreadedProbe(Probe):
    """The same work on every image, on a number of threads that never wait for each other.

    Args:
        work: handles the images `first` to `stop - 1` of an endless sequence.
        num_threads: threads.
        num_images: after which the sequence repeats itself; 0 where that is of no interest.
        close: called at the end of each window, when no thread works any more.
    """

    warmup_steps = 4

    def __init__(
        self,
        work: Callable[[int, int], None],
        num_threads: int,
        *,
        num_images: int = 0,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._work, self._num_threads, self.num_images = work, num_threads, num_images
        self._close = close
        self._position = 0

    def run(self) -> Iterator[int]:
        """Each step is one chunk of images."""
        in_flight: deque[Future[None]] = deque()
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="lmdali-ceiling")
        try:
            while True:
                while len(in_flight) < (1 + _CHUNKS_AHEAD) * self._num_threads:
                    first = self._position
                    self._position += IMAGES_PER_CHUNK
                    in_flight.append(pool.submit(self._work, first, self._position))
                in_flight.popleft().result()
                yield IMAGES_PER_CHUNK
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._close()


def sample_records(dataset: Path, *, seed: int = 0, max_bytes: int = SAMPLE_BYTES) -> list[bytes]:
    """The image files of the first records in the order of epoch 0, copied to memory."""
    reader = ShardReader(dataset, load_manifest(dataset))
    count = reader.manifest.num_records
    order = EpochOrder(count, seed, 0, shuffle=True)
    sample: list[bytes] = []
    total = 0
    for index in order.indices(0, min(count, MAX_READ_RECORDS)).tolist():
        sample.append(reader.read(index, lambda record: bytes(record.data), verify=False))
        total += len(sample[-1])
        if total >= max_bytes:
            break
    return sample


def read_probe(dataset: Path, *, num_threads: int, seed: int = 0, shuffle: bool = True) -> ThreadedProbe:
    """LMDB records found, shuffled or in storage order, and every byte copied once out of the mapped shard."""
    reader = ShardReader(dataset, load_manifest(dataset))
    count = reader.manifest.num_records
    order = EpochOrder(count, seed, 0, shuffle=shuffle).indices(0, min(count, MAX_READ_RECORDS))
    scratch = Scratch()

    def work(first: int, stop: int) -> None:
        located = reader.locate(order[np.arange(first, stop) % len(order)])
        for start, end in zip(located.starts.tolist(), located.stops.tolist(), strict=True):
            # Finding a record touches none of its pages; a ceiling that leaves them on the disk would be no ceiling.
            np.copyto(scratch.take(end - start), located.bytes[start:end])

    return ThreadedProbe(work, num_threads, num_images=len(order))


def decode_probe(sample: list[bytes], image_size: int, *, num_threads: int) -> ThreadedProbe:
    """libjpeg-turbo alone: JPEG files in memory to whole RGB images in reused buffers, accurate IDCT."""
    scratch, num_bytes = Scratch(), 3 * image_size * image_size
    shape = (image_size, image_size, 3)

    def work(first: int, stop: int) -> None:
        pixels = scratch.take(num_bytes).reshape(shape)
        for position in range(first, stop):
            simplejpeg.decode_jpeg(
                sample[position % len(sample)], "RGB", fastdct=False, fastupsample=False, buffer=pixels
            )

    return ThreadedProbe(work, num_threads)


def copy_probe(sample: list[bytes], image_size: int, *, num_threads: int) -> ThreadedProbe:
    """Memory alone, the ceiling of raw records: whole RGB images copied to reused buffers."""
    scratch = Scratch()
    images = [decode_stored(data, image_size).reshape(-1) for data in sample]

    def work(first: int, stop: int) -> None:
        for position in range(first, stop):
            image = images[position % len(images)]
            np.copyto(scratch.take(len(image)), image)

    return ThreadedProbe(work, num_threads)
