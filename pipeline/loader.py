"""`create_loader`: one call from a dataset directory to an iterator of batches on a device."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lmdali.pipeline.augment import AugmentConfig, PixelTransform, pixel_transform
from lmdali.pipeline.backend import Backend, DType, Layout, OutputSpec
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_loader import DatasetIdentity, DatasetLoader
from lmdali.pipeline.eigenbasis import load_eigenbasis
from lmdali.pipeline.errors import ConfigError, InputError, MachineError, MissingExtraError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.sampler import RankSlice
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.verify_policy import CrcPolicy, Verify

try:
    import torch
except ImportError as error:  # converting, checking and computing statistics need no torch
    raise MissingExtraError("torch", "train", "the loader") from error

from lmdali.pipeline.synthetic import SyntheticBackend, SyntheticDataset

BackendName = Literal["auto", "cpu", "dali", "synthetic"]


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What to load, and in which form.

    Attributes:
        dataset: directory made by `lmdali convert`; for the synthetic backend also "synthetic:SAMPLESxCLASSES".
        batch_size: samples per device and step.
        seed: decides order and draws, 0 to 2**64 - 1.
        augment: crops, flips, lighting, normalisation.
        shuffle: a new full permutation each epoch; False delivers records in storage order.
        drop_last: leave out the last, smaller global batch; None means as `shuffle`.
        backend: "cpu", "dali", "synthetic", or "auto": DALI where the device is a GPU and DALI is installed, else cpu.
        dtype: of the images; "uint8" holds pixels, so it takes neither normalisation nor lighting.
        layout: "NCHW" or "NHWC", the order of the tensor's axes.
        num_threads: worker threads; None means every CPU this process may use.
        prefetch: batches worked on ahead of the consumer.
        verify: compare a record's CRC the "first" time this process reads it, "always" or "never".
        basis: dataset whose statistics normalise and light; None means `dataset`. Validation takes its training set's.
    """

    dataset: str | Path
    batch_size: int = 128
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig.paper)
    shuffle: bool = True
    drop_last: bool | None = None
    backend: BackendName = "auto"
    dtype: DType = "float32"
    layout: Layout = "NCHW"
    num_threads: int | None = None
    prefetch: int = 3
    verify: Verify = "first"
    basis: str | Path | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}; found {getattr(self, name)!r}")
        for name, value in (("batch_size", self.batch_size), ("prefetch", self.prefetch)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, found {value}")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"num_threads must be at least 1, found {self.num_threads}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed must be in 0..2**64 - 1, found {self.seed}")
        if self.dtype == "uint8" and self.augment.needs_basis:
            raise ConfigError("uint8 batches hold pixels: use AugmentConfig.pixels(), or a float dtype")

    @property
    def drops_last(self) -> bool:
        """`drop_last` with its default filled in."""
        return self.shuffle if self.drop_last is None else self.drop_last


_CHOICES: dict[str, tuple[str, ...]] = {
    "backend": ("auto", "cpu", "dali", "synthetic"),
    "dtype": ("float32", "float16", "bfloat16", "uint8"),
    "layout": ("NCHW", "NHWC"),
    "verify": ("first", "always", "never"),
}


def create_loader(
    config: LoaderConfig,
    device: str | torch.device = "cpu",
    *,
    rank: int | None = None,
    world_size: int | None = None,
) -> DatasetLoader:
    """A loader that delivers `(images, labels)` batches on `device`.

    Args:
        config: what to load.
        device: "cpu", "cuda" or "cuda:N".
        rank: this process among those that share each global batch; None reads torchrun's RANK, or is 0.
        world_size: their number; None reads WORLD_SIZE, or is 1.

    Raises:
        ConfigError: options that cannot work together or with this dataset.
        InputError: `dataset` is not a finished dataset.
        IntegrityError: its manifest, statistics or shards are damaged.
        MachineError: the device or a package is missing.
    """
    target = _device(device)
    name, reason = _choose_backend(config.backend, target)
    reader = None if str(config.dataset).startswith("synthetic") and name == "synthetic" else _open(config.dataset)
    identity = _synthetic_identity(str(config.dataset)) if reader is None else _identity(reader)
    rank_slice = RankSlice(
        identity.num_samples,
        config.batch_size,
        _from_torchrun("RANK", 0) if rank is None else rank,
        _from_torchrun("WORLD_SIZE", 1) if world_size is None else world_size,
        config.drops_last,
    )
    if identity.image_size < config.augment.crop_size:
        raise ConfigError(
            f"crop_size {config.augment.crop_size} is larger than the images ({identity.image_size} pixels)"
        )
    timers = StageTimers()
    transform = _transform(config, identity, needed=name != "synthetic")
    return DatasetLoader(
        _make_backend(name, config, reader, identity, transform, target, timers),
        identity,
        rank_slice,
        transform,
        augment=config.augment,
        seed=config.seed,
        shuffle=config.shuffle,
        prefetch=config.prefetch,
        timers=timers,
        backend_name=name,
        backend_reason=reason,
    )


def _from_torchrun(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"the environment variable {name} is {text!r}, expected a number: unset it or use torchrun")
    return int(text)


def _device(device: str | torch.device) -> torch.device:
    target = torch.device(device)
    if target.type == "cuda":
        found = torch.cuda.device_count()
        if (target.index or 0) >= found:
            raise MachineError(f"device {target} was asked for, found {found} CUDA devices: use device cpu")
        target = torch.device("cuda", target.index or 0)
    elif target.type != "cpu":
        raise ConfigError(f"device must be cpu, cuda or cuda:N; found {device}")
    return target


def _choose_backend(wanted: BackendName, device: torch.device) -> tuple[BackendName, str]:
    """The backend to use, and the reason in words."""
    if wanted != "auto":
        return wanted, "asked for"
    if device.type == "cpu":
        return "cpu", "the device is the CPU"
    if importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None:
        return "dali", f"the device is {device} and DALI is installed"
    line = "pip install 'lmdali[dali-cuda13]' (in a checkout: pip install '.[dali-cuda13]')"
    return "cpu", f"the device is {device}, but DALI is not installed: {line}"


def _open(dataset: str | Path) -> ShardReader:
    directory = Path(dataset)
    reader = ShardReader(directory, load_manifest(directory))
    reader.check_files()
    return reader


def _identity(reader: ShardReader) -> DatasetIdentity:
    manifest = reader.manifest
    return DatasetIdentity(manifest.num_records, manifest.image_size, manifest.class_names, manifest.digest)


def _synthetic_identity(name: str) -> DatasetIdentity:
    pretended = SyntheticDataset.parse(name)
    names = tuple(str(label) for label in range(pretended.num_classes))
    return DatasetIdentity(pretended.num_samples, pretended.image_size, names, name)


def _transform(config: LoaderConfig, identity: DatasetIdentity, *, needed: bool) -> PixelTransform:
    if not needed or not config.augment.needs_basis:
        return pixel_transform(AugmentConfig.pixels(), None, identity.image_size)
    basis = load_eigenbasis(Path(config.dataset if config.basis is None else config.basis))
    if config.basis is None and basis.dataset_digest != identity.digest:
        raise InputError(
            f"{config.dataset}: its statistics are of another dataset: run `lmdali pca --recompute {config.dataset}`, "
            "or name the one to use as basis"
        )
    return pixel_transform(config.augment, basis, identity.image_size)


def _make_backend(
    name: BackendName,
    config: LoaderConfig,
    reader: ShardReader | None,
    identity: DatasetIdentity,
    transform: PixelTransform,
    device: torch.device,
    timers: StageTimers,
) -> Backend:
    augment = config.augment
    spec = OutputSpec(config.batch_size, augment.num_views, augment.crop_size, config.dtype, config.layout, device)
    if name == "synthetic" or reader is None:
        return SyntheticBackend(spec, len(identity.class_names))
    threads = config.num_threads or usable_cpus()
    crc = CrcPolicy(config.verify, identity.num_samples)
    # Imported here: each brings packages that the other does not need, and DALI exists on Linux only.
    if name == "dali":
        from lmdali.pipeline.dali import DaliBackend

        return DaliBackend(reader, transform, spec, num_threads=threads, crc=crc, timers=timers)
    from lmdali.pipeline.cpu import CpuBackend

    return CpuBackend(reader, transform, spec, num_threads=threads, crc=crc, timers=timers)
