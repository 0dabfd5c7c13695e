"""The ceilings that a profile measures for a loader, by their names in its report."""

from __future__ import annotations

from pathlib import Path

import torch

from lmdali.pipeline.backend import OutputSpec
from lmdali.pipeline.loader_config import LoaderConfig
from lmdali.pipeline.manifest import Manifest
from lmdali.tools.augment_probe import DecodedImages, augment_probe
from lmdali.tools.ceilings import copy_probe, decode_probe, read_probe, sample_records
from lmdali.tools.measurement import Probe
from lmdali.tools.step_probes import DeviceCopyProbe
from lmdali.tools.storage_probe import storage_probe


def ceiling_probes(config: LoaderConfig, manifest: Manifest, device: torch.device) -> dict[str, Probe]:
    """Storage, LMDB, decoder, augmentation and bus, each alone.

    Args:
        config: of the loader; its threads, its order's seed, its augmentation and its form.
        manifest: of its dataset, a directory.
        device: where its batches go; without a GPU nothing is copied, and no rate is made up for that.
    """
    dataset, threads, size = Path(config.dataset), config.threads, manifest.image_size
    sample = sample_records(dataset, seed=config.seed)
    augment = config.augment
    spec = OutputSpec.of(augment, config.batch_size, config.dtype, config.layout, device)
    images = DecodedImages(sample, dataset, augment, spec, seed=config.seed)
    probes: dict[str, Probe] = {}
    for name, make in (("storage", storage_probe), ("read", read_probe)):
        probes[f"{name}_sequential"] = make(dataset, num_threads=threads, seed=config.seed, shuffle=False)
        if config.order != "sequential":  # its loader reads nothing out of order
            probes[name] = make(dataset, num_threads=threads, seed=config.seed)
    if manifest.encoding == "raw":
        probes["memory_copy"] = copy_probe(sample, size, num_threads=threads)
    else:
        if threads > 1:
            probes["decode_one_thread"] = decode_probe(sample, size, num_threads=1)
        probes["decode"] = decode_probe(sample, size, num_threads=threads)
    if threads > 1:
        probes["augment_one_thread"] = augment_probe(images, num_threads=1)
    probes["augment"] = augment_probe(images, num_threads=threads)
    if device.type == "cuda":
        probes["device_copy"] = DeviceCopyProbe(device, (spec.num_images, augment.crop_size, augment.crop_size, 3))
    return probes
