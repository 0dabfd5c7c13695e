"""Queries as they are typed: record numbers, or picture files that are encoded as the searched records were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from lmdali.model.features_file import Features
from lmdali.pipeline.dataset_place import Place
from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.feature_encoder import open_encoder, require_encoder
from lmdali.tools.neighbour_list import picture_recipe
from lmdali.tools.record_pictures import read_picture_file, require_records


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """How queries are understood.

    Attributes:
        queries: feature file whose records the numbers are; None means the one that is searched, where a record is
            then no neighbour of itself.
        checkpoint: encodes picture files; None means the one named in the feature file.
        device: auto, cpu or cuda:N, for the same.
        basis: directory with the training set's statistics, for the same.
        dataset: where the searched dataset is; None means where it was.
        cache_dir: for datasets at an address, as of `LoaderConfig`.
    """

    queries: Path | None = None
    checkpoint: str | None = None
    device: str = "auto"
    basis: Place | None = None
    dataset: Place | None = None
    cache_dir: Place | None = None


@dataclass(frozen=True, eq=False)
class Queries:
    """What is searched for.

    Attributes:
        texts: as typed.
        vectors: `(Q, D)` float64.
        own: `(Q,)` int64 record number of the query itself in what is searched, or -1.
        pictures: pixels of queries that are files, `(H, H, 3)` uint8 as they would be stored, by place.
    """

    texts: tuple[str, ...]
    vectors: NDArray[np.float64]
    own: NDArray[np.int64]
    pictures: dict[int, Pixels]


def resolve_queries(features: Features, texts: Sequence[str], asked: Features, options: QueryOptions) -> Queries:
    """Vectors of all queries.

    Args:
        features: what is searched.
        texts: record numbers, or paths of picture files (`./12` is a file of that name).
        asked: the feature file that record numbers are of; `features` itself, or another by the same network.
        options: see `QueryOptions`.

    Raises:
        ConfigError: no query, or a record that is not there.
        InputError: a file is no picture, or the checkpoint or the feature file is of another model.
    """
    numbers, files = split_queries(texts, len(asked), asked.directory)
    features.require_same_source(asked.plan, asked.directory)
    vectors = np.empty((len(texts), features.plan.dims), np.float64)
    own = np.full(len(texts), -1, np.int64)
    if numbers:
        records = np.array(list(numbers.values()), np.int64)
        vectors[list(numbers)] = asked.rows(records)
        if asked.digest == features.digest:
            own[list(numbers)] = records
    pictures: dict[int, Pixels] = {}
    if files:
        plan = features.plan
        where, cache_dir = features.directory, options.cache_dir
        recipe = picture_recipe(plan.dataset, plan.dataset_digest, options.dataset, where, cache_dir=cache_dir)
        pictures = {place: read_picture_file(path, plan.image_size, recipe) for place, path in files.items()}
        vectors[list(pictures)] = _encode(features, list(pictures.values()), options)
    return Queries(tuple(texts), vectors, own, pictures)


def split_queries(texts: Sequence[str], num_records: int, where: Path) -> tuple[dict[int, int], dict[int, Path]]:
    """Record numbers and picture files among what was typed, by place.

    Raises:
        ConfigError: nothing was typed, or a record that is not there.
    """
    if not texts:
        raise ConfigError("no query: give record numbers or picture files")
    numbers = {place: int(text) for place, text in enumerate(texts) if text.isdecimal()}
    require_records(list(numbers.values()), num_records, where)
    return numbers, {place: Path(text) for place, text in enumerate(texts) if place not in numbers}


def _encode(features: Features, pictures: Sequence[Pixels], options: QueryOptions) -> NDArray[np.float64]:
    plan = features.plan
    source = options.checkpoint or plan.source
    own = {"basis": options.basis, "cache_dir": options.cache_dir}
    encoder = open_encoder(source, plan.image_size, device=options.device, **own)
    require_encoder(encoder, plan.source_digest, features.directory)
    vectors = encoder.encode(np.stack(pictures))
    if not np.isfinite(vectors).all():
        raise InputError(
            f"{encoder.source}: its features of the queries are not finite: its training diverged: take an earlier one"
        )
    return vectors


def query_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a click command with the fields of `QueryOptions`, but for `--cache-dir`."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("--dataset", type=DATASET, help="Where the searched dataset is.  [default: where it was]"),
        click.option("--basis", type=DATASET, help="For pictures: directory with the training set's statistics.json."),
        click.option(
            "--device", default=QueryOptions.device, show_default=True, help="For pictures: auto, cpu, cuda:N."
        ),
        click.option("--checkpoint", help="For pictures: encodes them.  [default: the one it was made with]"),
        click.option("--queries", type=path, help="Whose records the numbers are.  [default: what is searched]"),
    ):
        function = option(function)
    return function
