"""What a GPU and its bus could do alone: the copy of crops to the device, and nvJPEG without any augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.tools.ceilings import sample_records
from lmdali.tools.measurement import Rate, WindowPlan, measure
from lmdali.tools.step_probes import DeviceCopyProbe

CROP_SIZE = 224
HARDWARE_SHARES = (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)
"""Parts of a batch that go to the decode engines; `dali_graph.HARDWARE_SHARE` should be near the best of them."""

_SAMPLE_BYTES = 16_000_000


class DecodeProbe:
    """DALI's mixed decoder on records in memory, and nothing else.

    Args:
        records: JPEG files.
        size: side of the images, pixels.
        device: a GPU.
        batch_size: images per step.
        hardware_share: of a batch that the decode engines take.
    """

    warmup_steps = 4

    def __init__(
        self, records: list[bytes], size: int, device: torch.device, batch_size: int, hardware_share: float
    ) -> None:
        from nvidia.dali.pipeline import Pipeline

        from lmdali.pipeline.dali_graph import stored_pixels

        self._records = [np.frombuffer(record, np.uint8) for record in records]
        self._batch_size = batch_size
        self._pipeline: Any = Pipeline(batch_size, usable_cpus(), device.index or 0, prefetch_queue_depth=1)
        with self._pipeline:
            self._pipeline.set_outputs(stored_pixels(size, hardware_share, raw=False, on_gpu=True))
        self._pipeline.build()

    def run(self) -> Iterator[int]:
        """Each step is one batch; two are inside DALI."""
        position, inside = 0, 0
        try:
            while True:
                while inside < 2:
                    chosen = [self._records[(position + i) % len(self._records)] for i in range(self._batch_size)]
                    self._pipeline.feed_input("images", chosen)
                    self._pipeline.schedule_run()
                    position, inside = position + self._batch_size, inside + 1
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()
                inside -= 1
                yield self._batch_size
        finally:
            for _ in range(inside):
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()

    def stage_seconds(self) -> dict[str, float]:
        """One kind of work."""
        return {}


def copy_ceiling(device: torch.device, batch_size: int, plan: WindowPlan) -> Rate:
    """Crops per second over the bus."""
    probe = DeviceCopyProbe(device, (batch_size, CROP_SIZE, CROP_SIZE, 3))
    return measure([probe], plan, synchronize=lambda: torch.cuda.synchronize(device))[0]


def nvjpeg_ceilings(
    dataset: Path, size: int, device: torch.device, batch_size: int, plan: WindowPlan
) -> dict[float, Rate]:
    """Images per second that nvJPEG decodes, by the share that goes to the decode engines."""
    records = sample_records(dataset, max_bytes=_SAMPLE_BYTES)
    rates = {}
    for share in HARDWARE_SHARES:
        probe = DecodeProbe(records, size, device, batch_size, share)
        rates[share] = measure([probe], plan, synchronize=lambda: torch.cuda.synchronize(device))[0]
    return rates
