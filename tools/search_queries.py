"""Queries as they are typed: record numbers, or picture files that are encoded as the searched records were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmdali.model.features_file import Features
from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.feature_encoder import open_encoder, require_encoder
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
    """

    queries: Path | None = None
    checkpoint: str | None = None
    device: str = "auto"
    basis: Path | None = None
    dataset: Path | None = None


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
    if not texts:
        raise ConfigError("no query: give record numbers or picture files")
    features.require_same_source(asked.plan, asked.directory)
    numbers = {place: int(text) for place, text in enumerate(texts) if text.isdecimal()}
    require_records(list(numbers.values()), len(asked), asked.directory)
    vectors = np.empty((len(texts), features.plan.dims), np.float64)
    own = np.full(len(texts), -1, np.int64)
    if numbers:
        records = np.array(list(numbers.values()), np.int64)
        vectors[list(numbers)] = asked.rows(records)
        if asked.digest == features.digest:
            own[list(numbers)] = records
    files = {place: Path(text) for place, text in enumerate(texts) if place not in numbers}
    pictures = {place: read_picture_file(path, features.plan.image_size) for place, path in files.items()}
    if pictures:
        vectors[list(pictures)] = _encode(features, list(pictures.values()), options)
    return Queries(tuple(texts), vectors, own, pictures)


def _encode(features: Features, pictures: Sequence[Pixels], options: QueryOptions) -> NDArray[np.float64]:
    plan = features.plan
    source = options.checkpoint or plan.source
    encoder = open_encoder(source, plan.image_size, device=options.device, basis=options.basis)
    require_encoder(encoder, plan.source_digest, features.directory)
    vectors = encoder.encode(np.stack(pictures))
    if not np.isfinite(vectors).all():
        raise InputError(f"{encoder.source}: its features of the queries are not finite: the training diverged")
    return vectors


def find_dataset(features: Features, given: Path | None) -> Path | None:
    """The dataset that features were made of: where `given` says, or where it was then; None where it is gone.

    Raises:
        InputError: there is another dataset in that place, or none where `given` says.
    """
    place = given or Path(features.plan.dataset)
    if given is None and not place.is_dir():
        return None
    features.require_dataset(load_manifest(place).digest, place)
    return place
