"""`lmdali search`: the records whose features are nearest to those of a record or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click

from lmdali.model.exact_search import SEARCH_RECORDS, Neighbours, search_exact
from lmdali.model.faiss_search import needs_index, search_faiss
from lmdali.model.features_file import Features, load_features
from lmdali.pipeline.errors import ConfigError
from lmdali.tools.loader_options import cache_dir_option
from lmdali.tools.neighbour_list import dataset_at, describe_neighbours, print_neighbours
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import print_json
from lmdali.tools.search_queries import Queries, QueryOptions, query_options, resolve_queries

IndexName = Literal["exact", "faiss"]


@dataclass(frozen=True, kw_only=True)
class SearchConfig(QueryOptions):
    """How to search, and what `QueryOptions` says of the queries.

    Attributes:
        count: neighbours of each query.
        index: "exact", or "faiss": quicker among many records, and may miss some.
    """

    count: int = 6
    index: IndexName = "exact"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"count must be at least 1, found {self.count}")
        if self.index not in get_args(IndexName):
            raise ConfigError(f"index must be exact or faiss, found {self.index!r}")


def search_features(
    features: Features, texts: Sequence[str], config: SearchConfig | None = None
) -> tuple[Queries, Neighbours]:
    """The nearest records of each query, by Euclidean distance.

    Args:
        features: what is searched.
        texts: record numbers or picture files.
        config: see `SearchConfig`.

    Raises:
        ConfigError: no query, or a record that is not there.
        InputError: a file is no picture, or something is of another model or dataset.
        MissingExtraError: faiss was asked for and is not installed.
    """
    config = config or SearchConfig()
    asked = features if config.queries is None else load_features(config.queries)
    queries = resolve_queries(features, texts, asked, config)
    return queries, nearest_records(features, queries, config)


def nearest_records(features: Features, queries: Queries, config: SearchConfig) -> Neighbours:
    """Search, a query that is a record of `features` not among its own neighbours.

    Where k is all records or more, a picture has one neighbour more than a record, whose list then ends in -1.

    Raises:
        MissingExtraError: faiss was asked for and is not installed.
    """
    is_own = bool((queries.own >= 0).any())
    wanted = config.count + is_own
    if config.index == "faiss":
        quiet = not needs_index(features)
        with progress_bar("index", len(features), unit="records", quiet=quiet) as progress:
            found = search_faiss(features, queries.vectors, wanted, on_progress=progress)
    else:
        found = search_exact(features.blocks(SEARCH_RECORDS), queries.vectors, wanted)
    return found.without(queries.own, config.count) if is_own else found


_DEFAULTS = SearchConfig()


@click.command("search")
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("query", nargs=-1)
@click.option(
    "-k", "--count", type=click.IntRange(1), default=_DEFAULTS.count, show_default=True, help="Neighbours of each."
)
@click.option(
    "--index",
    type=click.Choice(get_args(IndexName)),
    default=_DEFAULTS.index,
    show_default=True,
    help="faiss, an extra, builds an index beside FEATURES where there are more than 100,000, and may miss some.",
)
@query_options
@cache_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(features: Path, query: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Find the records of FEATURES that are nearest to each QUERY, by Euclidean distance.

    QUERY is a record number or a picture file. A record is no neighbour of itself. Equal distances come in record
    order; with --index exact the answer is that of a full sort of float64 distances.
    """
    config, opened = SearchConfig(**options), load_features(features)
    plan, cache_dir = opened.plan, config.cache_dir
    dataset = dataset_at(plan.dataset, plan.dataset_digest, config.dataset, features, cache_dir=cache_dir)
    queries, found = search_features(opened, query, config)
    described = describe_neighbours(dataset, queries.texts, found, cache_dir=cache_dir)
    if as_json:
        print_json({"features": str(features), "index": config.index, "queries": described})
        return
    print_neighbours(described, "distance")
