"""What a GPU and its bus could do alone: the copy of crops to the device, and nvJPEG without any augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.tools.ceilings import sample_records
from lmdali.tools.dali_operators import GraphProbe
from lmdali.tools.measurement import Rate, WindowPlan, measure
from lmdali.tools.step_probes import DeviceCopyProbe

CROP_SIZE = 224
HARDWARE_SHARES = (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)
"""Parts of a batch that go to the decode engines; `dali_graph.HARDWARE_SHARE` should be near the best of them."""

_SAMPLE_BYTES = 16_000_000


def _decode_probe(
    records: list[bytes], size: int, device: torch.device, batch_size: int, hardware_share: float
) -> GraphProbe:
    """DALI's mixed decoder on JPEG files in memory, and nothing else.

    Args:
        records: JPEG files.
        size: side of the images, pixels.
        device: a GPU.
        batch_size: images per step.
        hardware_share: of a batch that the decode engines take.
    """
    from nvidia.dali.pipeline import Pipeline

    from lmdali.pipeline.dali_graph import stored_pixels

    pipeline: Any = Pipeline(batch_size, usable_cpus(), device.index or 0, prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(stored_pixels(size, raw=False, on_gpu=True, hardware_share=hardware_share))
    pipeline.build()
    return GraphProbe(pipeline, [np.frombuffer(record, np.uint8) for record in records], batch_size, lambda: None)


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
        probe = _decode_probe(records, size, device, batch_size, share)
        rates[share] = measure([probe], plan, synchronize=lambda: torch.cuda.synchronize(device))[0]
    return rates
