"""`lmdali codes search`: the records whose codes differ least from those of a record or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.model.codes_file import Codes, load_codes, load_encoder
from lmdali.model.exact_search import Neighbours
from lmdali.model.hamming import pack_codes, search_hamming
from lmdali.pipeline.errors import InputError
from lmdali.tools.feature_encoder import open_encoder, require_encoder
from lmdali.tools.loader_options import cache_dir_option
from lmdali.tools.neighbour_list import dataset_at, describe_neighbours, picture_recipe, print_neighbours
from lmdali.tools.record_pictures import read_picture_file
from lmdali.tools.report_table import print_json
from lmdali.tools.search_queries import QueryOptions, query_options, split_queries


@dataclass(frozen=True, kw_only=True)
class CodesSearchConfig(QueryOptions):
    """How to search codes, and what `QueryOptions` says of the queries; `queries` are codes by the same encoder.

    Attributes:
        count: neighbours of each query.
        encoder: encodes pictures; None means the one named in the codes.
    """

    count: int = 6
    encoder: Path | None = None


def search_codes(codes: Codes, texts: Sequence[str], config: CodesSearchConfig | None = None) -> Neighbours:
    """The records nearest to each query by Hamming distance, as `nearest_records` has them.

    Args:
        codes: what is searched.
        texts: record numbers or picture files.
        config: see `CodesSearchConfig`.

    Raises:
        ConfigError: no query, or a record that is not there.
        InputError: a file is no picture, or something is of another model or encoder.
    """
    config = config or CodesSearchConfig()
    asked = codes if config.queries is None else load_codes(config.queries)
    if asked.info.encoder_digest != codes.info.encoder_digest:
        raise InputError(
            f"{asked.directory}: codes by {asked.info.encoder}, and {codes.directory} are by {codes.info.encoder}: "
            "both must come from one encoder"
        )
    numbers, files = split_queries(texts, asked.info.num_records, asked.directory)
    queries = np.empty((len(codes.words), len(texts)), np.uint64)
    own = np.full(len(texts), -1, np.int64)
    if numbers:
        records = np.array(list(numbers.values()), np.int64)
        queries[:, list(numbers)] = asked.words[:, records]
        if asked.info == codes.info:
            own[list(numbers)] = records
    if files:
        queries[:, list(files)] = _encode(codes, list(files.values()), config)
    is_own = bool((own >= 0).any())
    found = search_hamming(np.asarray(codes.words), queries, config.count + is_own)
    return found.without(own, config.count) if is_own else found


def _encode(codes: Codes, files: Sequence[Path], config: CodesSearchConfig) -> NDArray[np.uint64]:
    info = codes.info
    where, cache_dir = codes.directory, config.cache_dir
    recipe = picture_recipe(info.dataset, info.dataset_digest, config.dataset, where, cache_dir=cache_dir)
    pictures = np.stack([read_picture_file(path, info.image_size, recipe) for path in files])
    own = {"basis": config.basis, "cache_dir": cache_dir}
    source = open_encoder(config.checkpoint or info.source, info.image_size, device=config.device, **own)
    require_encoder(source, info.source_digest, where)
    directory = config.encoder or Path(info.encoder)
    network, trained = load_encoder(directory, source.device)
    if trained.weights_sha256 != info.encoder_digest:
        raise InputError(
            f"{directory}: not the encoder that made {codes.directory} ({trained.weights_sha256[:12]}, expected "
            f"{info.encoder_digest[:12]}): give that one with --encoder"
        )
    vectors = torch.from_numpy(source.encode(pictures)).float().to(source.device)
    return pack_codes(network.bits(vectors).cpu().numpy())


@click.command("search")
@click.argument("codes", type=click.Path(path_type=Path))
@click.argument("query", nargs=-1)
@click.option(
    "-k",
    "--count",
    type=click.IntRange(1),
    default=CodesSearchConfig.count,
    show_default=True,
    help="Neighbours of each.",
)
@query_options
@cache_dir_option
@click.option("--encoder", type=click.Path(path_type=Path), help="For pictures.  [default: the one that made CODES]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def search_command(codes: Path, query: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Find the records of CODES whose codes differ from that of each QUERY in the fewest bits.

    QUERY is a record number or a picture file. A record is no neighbour of itself; equal distances come in record
    order.
    """
    config, opened = CodesSearchConfig(**options), load_codes(codes)
    info, cache_dir = opened.info, config.cache_dir
    dataset = dataset_at(info.dataset, info.dataset_digest, config.dataset, codes, cache_dir=cache_dir)
    found = search_codes(opened, query, config)
    described = describe_neighbours(dataset, query, found, cache_dir=cache_dir)
    if as_json:
        print_json({"codes": str(codes), "bits": info.bits, "queries": described})
    else:
        print_neighbours(described, "bits")
