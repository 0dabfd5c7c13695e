"""That a GPU delivers the right batches: parity of pixels, every record decoded, resuming equal to never stopping."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import BackendName
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.parity import compare_backends

_RESUMED_BATCHES = 6

Row = dict[str, Any]


def parity(dataset: Path, device: str, batch_size: int, backends: tuple[BackendName, ...]) -> Iterator[Row]:
    """`lmdali verify --parity` on this device."""
    rows = compare_backends(dataset, device=device, backends=backends, batch_size=batch_size, num_batches=4)
    for row in rows:
        yield {
            "what": f"{load_manifest(dataset).encoding}, {row.form}, {row.backend}",
            "result": f"largest difference {row.largest:.3g}, mean {row.mean:.3g} gray levels",
            "passed": row.passed,
            "largest": row.largest,
            "mean": row.mean,
        }


def every_record_decodes(dataset: Path, device: str, batch_size: int) -> Iterator[Row]:
    """DALI's decoder on this device takes each record of the dataset."""
    manifest = load_manifest(dataset)
    config = LoaderConfig(
        dataset=dataset,
        batch_size=batch_size,
        augment=AugmentConfig(
            crop="center", crop_size=manifest.image_size, flip=False, lighting="none", normalize="none"
        ),
        order="sequential",
        backend="dali",
        dtype="uint8",
    )
    decoded = 0
    with create_loader(config, device, rank=0, world_size=1) as loader:
        for batch in loader:
            decoded += len(batch.images.flatten(1).sum(dim=1).cpu())
    yield {
        "what": f"{manifest.encoding}, every record by dali on {device}",
        "result": f"{decoded:,} of {manifest.num_records:,} records",
        "passed": decoded == manifest.num_records,
    }


def resume(dataset: Path, device: str, batch_size: int, backends: tuple[BackendName, ...]) -> Iterator[Row]:
    """The rest of an epoch from a saved state, bit for bit the rest of the epoch that went on."""
    manifest = load_manifest(dataset)
    batch_size = max(1, min(batch_size, manifest.num_records // _RESUMED_BATCHES))
    for backend in backends:
        config = LoaderConfig(dataset=dataset, batch_size=batch_size, backend=backend)
        with create_loader(config, device, rank=0, world_size=1) as loader:
            batches = iter(loader)
            for _ in islice(batches, _RESUMED_BATCHES // 2):
                pass
            state = loader.state_dict()
            went_on = [_fingerprint(batch) for batch in islice(batches, _RESUMED_BATCHES // 2)]
        with create_loader(replace(config, num_threads=1), device, rank=0, world_size=1) as loader:
            loader.load_state_dict(state)
            resumed = [_fingerprint(batch) for batch in islice(loader, _RESUMED_BATCHES // 2)]
        yield {
            "what": f"{manifest.encoding}, resumed with one thread, {backend} on {device}",
            "result": f"{len(resumed)} batches of {batch_size}, equal: {resumed == went_on}",
            "passed": resumed == went_on and len(resumed) > 0,
        }


def _fingerprint(batch: Batch) -> str:
    content = hashlib.sha256(batch.indices.numpy().tobytes())
    content.update(batch.labels.cpu().numpy().tobytes())
    content.update(batch.images.cpu().numpy().tobytes())
    return content.hexdigest()
