"""`create_loader`: one call from a dataset directory to an iterator of batches on a device."""

from __future__ import annotations

from dataclasses import replace

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import Backend, BackendName, OutputSpec
from lmdali.pipeline.block_order import order_nodes
from lmdali.pipeline.dataset_identity import DatasetIdentity
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.dataset_place import open_reader, place_directory, place_manifest, place_shown
from lmdali.pipeline.decode_choice import Choice, Decode, first_records, fixed_choice, measured_choice
from lmdali.pipeline.decoded_cache import DecodedCache
from lmdali.pipeline.eigenbasis import STATISTICS_FILE, load_eigenbasis
from lmdali.pipeline.errors import ConfigError, InputError, MachineError, MissingExtraError
from lmdali.pipeline.loader_config import LoaderConfig as LoaderConfig
from lmdali.pipeline.loader_state import STATE_VERSION
from lmdali.pipeline.path_kind import is_file
from lmdali.pipeline.pixel_transform import PixelTransform, pixel_transform
from lmdali.pipeline.readahead import Readahead
from lmdali.pipeline.release import has_dali, lmdali_version
from lmdali.pipeline.sampler import RankSlice
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.shard_windows import needed_bytes
from lmdali.pipeline.streamed_reader import StreamedReader
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.verify_policy import CrcPolicy

try:
    import torch
except ImportError as error:  # converting, checking and computing statistics need no torch
    raise MissingExtraError("torch", "train", "the loader") from error

from lmdali.pipeline.rank_agreement import process_group_gather, rank_and_world_size, require_agreement
from lmdali.pipeline.synthetic import PREFIX, SyntheticBackend, SyntheticDataset


def create_loader(
    config: LoaderConfig,
    device: str | torch.device = "cpu",
    *,
    rank: int | None = None,
    world_size: int | None = None,
) -> DatasetLoader:
    """A loader that delivers `(images, labels)` batches on `device`.

    With several ranks, call `torch.distributed.init_process_group` first: then all ranks compare dataset, seed, order,
    batch size, steps, augmentation and version here, once, so every rank must make its loaders in the same order.
    Without a process group nothing is compared.

    Args:
        config: what to load.
        device: "cpu", "cuda" (torch's current one) or "cuda:N".
        rank: this process among those that share each global batch; None means that of the process group, or else
            torchrun's RANK, or 0.
        world_size: their number; None means that of the process group, or else WORLD_SIZE, or 1.

    Raises:
        ConfigError: options that cannot work together, with this dataset, or with those of other ranks; `config` is
            something else.
        InputError: `dataset` is not a finished dataset, or `basis` has no statistics.
        IntegrityError: its manifest, statistics or shards are damaged.
        RemoteError: it is remote, and cannot be read.
        MachineError: the device or a package is missing.
    """
    if not isinstance(config, LoaderConfig):
        raise ConfigError(f"create_loader takes a LoaderConfig, found {config!r}: give LoaderConfig(dataset=...)")
    target = _device(device)
    reader = None
    if config.backend != "synthetic":
        reader = open_reader(
            config.dataset, cache_dir=config.cache_dir, room_bytes=config.cache_bytes, fetches=config.fetches
        )
    identity = _synthetic_identity(config) if reader is None else DatasetIdentity.of(reader.manifest)
    identity = identity.listing(config.records)
    own_rank, num_ranks = rank_and_world_size()
    rank_slice = RankSlice(
        identity.num_samples,
        config.batch_size,
        own_rank if rank is None else rank,
        num_ranks if world_size is None else world_size,
        config.drops_last,
        order_nodes(config.order, config.block_nodes),
    )
    stream = reader if isinstance(reader, StreamedReader) else None
    if stream is not None:
        _require_room(config, identity, stream, rank_slice)
    if identity.image_size < config.augment.crop_size:
        raise ConfigError(
            f"crop_size {config.augment.crop_size} is larger than the images ({identity.image_size} pixels): choose a "
            "smaller one, or convert with a larger --size"
        )
    if config.decoded_cache_bytes and reader is not None and reader.manifest.encoding == "raw":
        raise ConfigError(
            f"{place_shown(config.dataset)}: raw records need no decoded cache: set decoded_cache_bytes to 0"
        )
    timers = StageTimers()
    transform = _transform(config, reader, identity)
    _agree(config, identity, rank_slice, target)
    config = replace(config, batch_size=rank_slice.largest_batch)  # what memory is taken for
    choice = _choose_backend(config, reader, identity, rank_slice, transform, target)
    cache = None
    if config.decoded_cache_bytes:
        cache = DecodedCache(config.decoded_cache_bytes, identity.image_size, identity.num_records)
    return DatasetLoader(
        config,
        _make_backend(choice.backend, config, reader, identity, transform, target, cache, timers),
        identity,
        rank_slice,
        transform,
        readahead=_make_readahead(config, reader, cache),
        stream=stream,
        timers=timers,
        choice=choice,
    )


def _agree(config: LoaderConfig, identity: DatasetIdentity, rank_slice: RankSlice, device: torch.device) -> None:
    """Compare with other ranks what decides the order, the draws and the number of steps."""
    gather = process_group_gather(rank_slice.world_size, device)
    if gather is None:
        return
    facts = {
        "manifest_digest": identity.digest,
        "seed": config.seed,
        "order": config.order,
        "batch_size": config.batch_size,
        "drop_last": config.drops_last,
        "steps_per_epoch": rank_slice.num_steps(),
        "augment": config.augment,
        "state_version": STATE_VERSION,
        "lmdali": lmdali_version(),
    }
    if identity.records is not None:
        facts["records"] = identity.records.digest
    if config.order == "block":
        facts |= {"block_shards": config.block_shards, "block_nodes": config.block_nodes}
    require_agreement(rank_slice.rank, facts, gather)


def _device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device must be cpu, cuda or cuda:N; found {device!r}") from None
    if target.type == "cuda":
        found = torch.cuda.device_count()
        if (target.index or 0) >= found:
            raise MachineError(f"device {target} was asked for, found {found} CUDA devices: use device cpu")
        # "cuda" is torch's current device, which each rank of a job has set to its own.
        target = torch.device("cuda", torch.cuda.current_device() if target.index is None else target.index)
    elif target.type != "cpu":
        raise ConfigError(f"device must be cpu, cuda or cuda:N; found {device}")
    return target


def _choose_backend(
    config: LoaderConfig,
    reader: ShardReader | None,
    identity: DatasetIdentity,
    rank_slice: RankSlice,
    transform: PixelTransform,
    device: torch.device,
) -> Choice:
    """The backend to use, and the reason in words."""
    raw = reader is not None and reader.manifest.encoding == "raw"
    # Cached images are those of CPU threads: there is nothing to choose.
    decode: Decode = "cpu" if config.decoded_cache_bytes else config.decode
    choice = fixed_choice(
        config.backend, decode, device=str(device), raw=raw, has_dali=device.type == "cuda" and has_dali()
    )
    if choice is not None:
        return choice
    assert reader is not None, "only the synthetic backend does without, and that was asked for"
    trial, records = replace(config, verify="never"), first_records(config.order_of(identity, 0), rank_slice)

    def make_backend(name: BackendName) -> Backend:
        backend = _make_backend(name, trial, reader, identity, transform, device, None, StageTimers())
        if isinstance(reader, StreamedReader):  # or it would let go of shards, and ask for them again, batch by batch
            reader.keep(records)
        return backend

    return measured_choice(
        make_backend,
        config.augment,
        transform,
        _output_spec(config, device),
        reader.manifest,
        records=records,
        gpu=torch.cuda.get_device_name(device),
        num_threads=config.threads,
        prefetch=config.depth,
        required=config.required_images_per_second,
    )


def _make_readahead(config: LoaderConfig, reader: ShardReader | None, cache: DecodedCache | None) -> Readahead | None:
    if reader is None or not config.readahead_bytes:
        return None
    not_read = None if cache is None else cache.holds
    if isinstance(reader, StreamedReader):  # only shards that are here have pages to ask for
        far = reader.is_far
        not_read = far if cache is None else lambda indices: cache.holds(indices) | far(indices)
    return Readahead(reader, config.batch_size, depth_bytes=config.readahead_bytes, not_read=not_read)


def _output_spec(config: LoaderConfig, device: torch.device) -> OutputSpec:
    augment = config.augment
    return OutputSpec.of(augment, config.batch_size, config.dtype, config.layout, device)


def _require_room(
    config: LoaderConfig, identity: DatasetIdentity, reader: StreamedReader, rank_slice: RankSlice
) -> None:
    shards, order = reader.manifest.shards, config.order_of(identity, 0)

    def needed(prefetch: int) -> int:
        in_flight = (prefetch + 2) * rank_slice.global_batch_size
        return needed_bytes(order, shards, config.block_shards, in_flight, rank_slice.own_nodes)

    room = reader.cache.limit_bytes
    if needed(config.depth) > room:
        fitting = next((less for less in reversed(range(1, config.depth)) if needed(less) <= room), None)
        less = "" if fitting is None else f"lower prefetch from {config.depth} to {fitting}, "
        other = 'take order "block" with fewer block_shards'
        if config.records is not None:
            other = "list records of fewer shards"
            other += " or in ascending order" if config.order == "sequential" else ""
        raise ConfigError(
            f"{reader.cache.directory}: room for {room} bytes of shards, order {config.order!r} needs "
            f"{needed(config.depth)}: {less}give the cache more (cache_bytes, --cache-bytes, LMDALI_CACHE_BYTES), or "
            f"{other}"
        )


def _synthetic_identity(config: LoaderConfig) -> DatasetIdentity:
    """The numbers of a dataset of which no record is read."""
    name = str(config.dataset)
    if name.partition(":")[0] != PREFIX:
        return DatasetIdentity.of(place_manifest(config.dataset, cache_dir=config.cache_dir))
    pretended = SyntheticDataset.parse(name)
    names = tuple(str(label) for label in range(pretended.num_classes))
    return DatasetIdentity(pretended.num_samples, pretended.image_size, names, name, pretended.shard_sizes)


def _transform(config: LoaderConfig, reader: ShardReader | None, identity: DatasetIdentity) -> PixelTransform:
    if reader is None:
        return pixel_transform(AugmentConfig.pixels(), None, identity.image_size)
    if not config.augment.needs_basis:
        return pixel_transform(config.augment, None, identity.image_size)
    directory = reader.directory if config.basis is None else place_directory(config.basis, cache_dir=config.cache_dir)
    if config.basis is not None and not is_file(directory / STATISTICS_FILE):
        raise InputError(f"{directory}: no {STATISTICS_FILE} here: give the training set's directory as basis")
    basis = load_eigenbasis(directory)
    if config.basis is None and basis.dataset_digest != identity.digest:
        raise InputError(
            f"{place_shown(config.dataset)}: its statistics are of another dataset: run `lmdali pca --recompute` on "
            "it, or name the one to use as basis"
        )
    return pixel_transform(config.augment, basis, identity.image_size)


def _make_backend(
    name: BackendName,
    config: LoaderConfig,
    reader: ShardReader | None,
    identity: DatasetIdentity,
    transform: PixelTransform,
    device: torch.device,
    cache: DecodedCache | None,
    timers: StageTimers,
) -> Backend:
    spec = _output_spec(config, device)
    if reader is None:
        return SyntheticBackend(spec, len(identity.class_names))
    threads = config.threads
    crc = CrcPolicy(config.verify, identity.num_records)
    # Imported here: each brings packages that the other does not need, and DALI exists on Linux only.
    if name == "dali":
        from lmdali.pipeline.dali import DaliBackend

        return DaliBackend(reader, transform, spec, num_threads=threads, prefetch=config.depth, crc=crc, timers=timers)
    from lmdali.pipeline.cpu import CpuBackend

    return CpuBackend(
        reader,
        transform,
        spec,
        num_threads=threads,
        prefetch=config.depth,
        crc=crc,
        cache=cache,
        timers=timers,
    )
