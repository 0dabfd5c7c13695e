"""Ranks that disagree are told so, all of them, before the first batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranked_loader import start_ranks

from lmdali.model.parallel import Ranks
from lmdali.pipeline import AugmentConfig, LoaderConfig, create_loader
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.rank_agreement import process_group_gather, require_agreement

WORLD = 2
EQUAL: dict[str, Any] = {"dataset": "synthetic:40x3", "batch_size": 4}
SMALL = AugmentConfig(crop_size=8)
# What rank 1 has instead; rank 0 has EQUAL.
SCENARIOS: dict[str, dict[str, Any]] = {
    "equal": {},
    "other threads and prefetch": {"num_threads": 1, "prefetch": 7},
    "seed": {"seed": 3},
    "dataset": {"dataset": "synthetic:50x3"},
    "batch size": {"batch_size": 5},
    "order": {"order": "block"},
    "records": {"records": range(20)},
    "augmentation": {"augment": AugmentConfig(crop_size=8, flip=False)},
    "rank": {},
    "equal again": {},
    "evaluation": {"order": "sequential"},
}


def run_rank(ranks: Ranks, directory: Path) -> None:
    """What a rank of a job does: a loader for each scenario, and what came of it into a file."""
    rank = ranks.rank
    outcomes = {}
    for name, other in SCENARIOS.items():
        fields = {**EQUAL, "augment": SMALL} | (other if rank == 1 or name == "evaluation" else {})
        claimed = 0 if name == "rank" else rank
        try:
            with create_loader(LoaderConfig(backend="synthetic", **fields), rank=claimed, world_size=WORLD) as loader:
                indices = [index for batch in loader for index in batch.indices.tolist()]
                outcomes[name] = {"indices": indices, "digest": loader.epoch_digest}
        except ConfigError as error:
            outcomes[name] = {"error": str(error)}
    # A loader of this rank alone asks nobody, or the other would wait for ever.
    if rank == 1:
        create_loader(LoaderConfig(backend="synthetic", **EQUAL, augment=SMALL, seed=8), rank=0, world_size=1).close()
        create_loader(LoaderConfig(backend="synthetic", **EQUAL, augment=SMALL, seed=8), rank=1, world_size=3).close()
    (directory / f"{rank}.json").write_text(json.dumps(outcomes))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank, by scenario."""
    directory = tmp_path_factory.mktemp("job")
    assert start_ranks(WORLD, run_rank, directory) == [0] * WORLD
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_ranks_that_agree_share_an_epoch(outcomes: list[dict[str, Any]]) -> None:
    for name in ("equal", "other threads and prefetch", "equal again", "evaluation"):
        parts = [one[name]["indices"] for one in outcomes]
        assert sorted(parts[0] + parts[1]) == list(range(40))
        assert outcomes[0][name]["digest"] != outcomes[1][name]["digest"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seed", "ranks disagree: seed is 0 on rank 0, 3 on rank 1: start all ranks with the same options"),
        ("dataset", "manifest_digest is synthetic:40x3 on rank 0, synthetic:50x3 on rank 1; steps_per_epoch is 5 on"),
        ("batch size", "batch_size is 4 on rank 0, 5 on rank 1; steps_per_epoch is 5 on rank 0, 4 on rank 1"),
        ("order", "order is shuffled on rank 0, block on rank 1; block_shards is nothing on rank 0, 8 on rank 1"),
        ("records", "records is nothing on rank 0, "),
        ("augmentation", "augment.flip is True on rank 0, False on rank 1"),
        ("rank", "processes of this job make loaders for ranks [0, 0], expected each of 0..1 once"),
    ],
)
def test_every_rank_is_told_each_ranks_value(outcomes: list[dict[str, Any]], name: str, message: str) -> None:
    errors = [one[name]["error"] for one in outcomes]
    assert message in errors[0]
    assert errors[0] == errors[1]
    assert "\n" not in errors[0]


def test_without_a_process_group_nobody_is_asked() -> None:
    assert process_group_gather(2, torch.device("cpu")) is None


def test_many_ranks_are_told_in_one_line() -> None:
    def gather(mine: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"rank": rank, "facts": {"seed": "1" if rank == 7 else "0"}} for rank in reversed(range(16))]

    with pytest.raises(ConfigError) as caught:
        require_agreement(0, {"seed": 0}, gather)
    assert "seed is 0 on ranks 0, 1, 2, 3, 4, 5, 6, 8 and 7 more, 1 on rank 7" in str(caught.value)


def test_what_only_newer_versions_compare_is_a_difference_too() -> None:
    def gather(mine: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"rank": 0, "facts": mine["facts"]}, {"rank": 1, "facts": {}}]

    with pytest.raises(ConfigError, match=r"lmdali is 0\.2 on rank 0, nothing on rank 1"):
        require_agreement(0, {"lmdali": "0.2"}, gather)
