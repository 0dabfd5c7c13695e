"""The loader's options on the command line, spelled once for every command that makes a loader.

One option is one field of `LoaderConfig`, with its name and its default. A command's own configuration inherits
`LoaderOptions` or `EpochOptions`, its click command has the decorators of the same groups, and `loader_arguments` hands
everything on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import click

from lmdali.pipeline.backend import BackendName, DType, Layout
from lmdali.pipeline.block_order import OrderName
from lmdali.pipeline.decode_choice import Decode
from lmdali.pipeline.loader_config import LoaderConfig
from lmdali.pipeline.verify_policy import Verify
from lmdali.tools.param_type import ParamType

BACKENDS = tuple(name for name in get_args(BackendName) if name != "synthetic")
"""Those that deliver a dataset's pictures."""

_Option: TypeAlias = "tuple[Sequence[str], click.ParamType[Any], str]"
"""Flags where they are not just the field's name, type, help."""

_LOADER: dict[str, _Option] = {
    "backend": ((), click.Choice(BACKENDS), "Who makes the batches; auto is cpu on a CPU, and as --decode on a GPU."),
    "decode": ((), click.Choice(get_args(Decode)), "Where JPEG is decoded for a GPU; auto measures both once."),
    "num_threads": (("-j", "--workers", "--num-threads"), click.IntRange(1), "Loader threads."),
    "prefetch": ((), click.IntRange(1), "Batches worked on ahead."),
    "readahead_bytes": ((), click.IntRange(0), "Stored bytes asked of storage ahead of time; 0 for none."),
    "verify": ((), click.Choice(get_args(Verify)), "Compare a record's CRC when it is first read, always or never."),
    "cache_dir": ((), click.Path(), "Of a dataset at an address: where its shards are kept."),
    "cache_bytes": ((), click.IntRange(1), "Of a dataset at an address: room for shards."),
    "fetches": ((), click.IntRange(1), "Of a dataset at an address: shards fetched at once."),
}
_EPOCH: dict[str, _Option] = {
    "order": (
        (),
        click.Choice(get_args(OrderName)),
        "Of the samples; block: storage read in sequence; shuffled_once: as in 2012.",
    ),
    "block_shards": ((), click.IntRange(1), "Shards in a block of the block order."),
    "block_nodes": ((), click.IntRange(1), "Machines that the block order gives shards of their own."),
    "decoded_cache_bytes": (
        (),
        click.IntRange(0),
        "Memory for decoded JPEGs: from the second epoch on they cost a copy; 0 for none.",
    ),
}
_FORM: dict[str, _Option] = {
    "dtype": ((), click.Choice(get_args(DType)), "Of the images; uint8 leaves out mean and lighting."),
    "layout": ((), click.Choice(get_args(Layout)), "Order of the images' axes."),
}
OPTION_HELP = {name: text for name, (_, _, text) in {**_LOADER, **_EPOCH}.items()}
"""Help of `loader_options` and `epoch_options`, by field of `LoaderConfig`."""

_BATCH: dict[str, _Option] = {"batch_size": (("-b", "--batch-size"), click.IntRange(1), "Samples per step.")}

_SHOWN_DEFAULTS = {
    "num_threads": "every usable CPU, divided among ranks",
    "prefetch": "3, or up to 7 for many threads or small batches",
    "cache_dir": "LMDALI_CACHE_DIR",
    "cache_bytes": "LMDALI_CACHE_BYTES",
}

_SWEPT_BY_ITSELF = {
    "num_threads": "1, 2, 4, ... and every usable CPU",
    "prefetch": "1, 3, and up to 7 where threads are many",
}


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What any command may be told about its loaders; each field is the one of `LoaderConfig` with that name.

    Attributes:
        backend: who makes the batches.
        decode: where JPEG is decoded for a GPU.
        num_threads: loader threads; None means every CPU this process may use, divided among ranks of this machine.
        prefetch: batches worked on ahead of the consumer; None means 3, or up to 7 where threads are many for a batch.
        readahead_bytes: stored bytes that the kernel is asked for ahead of the loader.
        verify: when a record's CRC is compared.
        cache_dir: where shards of a dataset at an address are kept; None means LMDALI_CACHE_DIR.
        cache_bytes: room for them; None means LMDALI_CACHE_BYTES.
        fetches: shards fetched at once.

    Raises:
        ConfigError: a value that `LoaderConfig` refuses.
    """

    backend: BackendName = LoaderConfig.backend
    decode: Decode = LoaderConfig.decode
    num_threads: int | None = LoaderConfig.num_threads
    prefetch: int | None = LoaderConfig.prefetch
    readahead_bytes: int = LoaderConfig.readahead_bytes
    verify: Verify = LoaderConfig.verify
    cache_dir: str | Path | None = LoaderConfig.cache_dir
    cache_bytes: int | None = LoaderConfig.cache_bytes
    fetches: int = LoaderConfig.fetches

    def __post_init__(self) -> None:
        # The rules are LoaderConfig's own, asked before a checkpoint is read. Which dtype is possible depends on the
        # augmentation, which is not known here.
        arguments = self.loader_arguments()
        LoaderConfig(dataset="", **{name: arguments[name] for name in (*_LOADER, *_EPOCH) if name in arguments})

    def loader_arguments(self) -> dict[str, Any]:
        """The arguments of `LoaderConfig` among this configuration's fields."""
        known = {name: getattr(self, name) for name in (*_LOADER, *_EPOCH, *_FORM) if hasattr(self, name)}
        return {name: value for name, value in known.items() if value is not None or name != "order"}


@dataclass(frozen=True, kw_only=True)
class EpochOptions(LoaderOptions):
    """`LoaderOptions`, and what matters to whoever goes through a dataset again and again.

    Attributes:
        order: of the samples; None leaves it to the recipe, or to `LoaderConfig`.
        block_shards: shards in a block of the block order.
        block_nodes: machines that the block order gives shards of their own.
        decoded_cache_bytes: memory for decoded images of JPEG records; 0 keeps none.
    """

    order: OrderName | None = None
    block_shards: int = LoaderConfig.block_shards
    block_nodes: int = LoaderConfig.block_nodes
    decoded_cache_bytes: int = LoaderConfig.decoded_cache_bytes


def loader_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a click command with the fields of `LoaderOptions`."""
    return _decorate(function, _LOADER)


def epoch_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a click command with the fields of `EpochOptions` that `LoaderOptions` lacks."""
    return _decorate(function, _EPOCH)


def form_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a click command with `--dtype` and `--layout`."""
    return _decorate(function, _FORM)


def cache_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a click command that reads records by number with `--cache-dir` and `--cache-bytes`."""
    return _decorate(function, {name: _LOADER[name] for name in ("cache_dir", "cache_bytes")})


def cache_dir_option(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a click command that reads manifest, statistics and tables, but no shard, with `--cache-dir`."""
    flags, kind, _ = _LOADER["cache_dir"]
    return _decorate(function, {"cache_dir": (flags, kind, "Of a dataset at an address: where its tables are kept.")})


def swept_options(defaults: Mapping[str, tuple[Any, ...]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a click command with `-b` and the loader's options, without the decoded cache; some take several values.

    Args:
        defaults: of those that do, by name; an empty one is the command's to fill in.
    """
    known = {**_BATCH, **_LOADER, **_EPOCH, **_FORM}
    options = {name: option for name, option in known.items() if name != "decoded_cache_bytes"}
    return lambda function: _decorate(function, options, defaults)


class _Several(ParamType[Any]):
    """Values of a kind with commas between them, as a tuple that has each once."""

    name = "list"

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(dict.fromkeys(self._kind.convert(part.strip(), param, ctx) for part in value.split(",")))


def _decorate(
    function: Callable[..., None], options: dict[str, _Option], swept: Mapping[str, tuple[Any, ...]] | None = None
) -> Callable[..., None]:
    for name, (flags, kind, text) in reversed(options.items()):
        default, shown, metavar = getattr(LoaderConfig, name), _SHOWN_DEFAULTS.get(name, True), None
        if swept is not None and name in swept:
            default, kind, metavar = swept[name], _Several(kind), f"{kind.name.upper().partition(' ')[0]},..."
            shown = ",".join(map(str, default)) or _SWEPT_BY_ITSELF[name]
        declared = flags or (f"--{name.replace('_', '-')}",)
        function = click.option(
            *declared, name, type=kind, default=default, show_default=shown, metavar=metavar, help=text
        )(function)
    return function
