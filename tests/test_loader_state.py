"""States as they are stored: what is refused, what earlier versions meant, and many ranks' states made one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.loader_state import STATE_VERSION, LoaderState, merge_states

STATE = LoaderState(
    epoch=2,
    sample_in_epoch=12,
    seed=9,
    num_samples=37,
    manifest_digest="m" * 64,
    order="shuffled",
    rank=0,
    world_size=1,
    epoch_digest=0xF00000000000000D,
)


def of_rank(rank: int, world_size: int, digest: int | None, **fields: Any) -> dict[str, Any]:
    changed = dataclasses.replace(STATE, rank=rank, world_size=world_size, epoch_digest=digest, **fields)
    return changed.to_json()


def test_a_state_is_ten_plain_values_that_json_keeps() -> None:
    stored = STATE.to_json()
    assert stored == {
        "state_version": STATE_VERSION,
        "epoch": 2,
        "sample_in_epoch": 12,
        "seed": 9,
        "num_samples": 37,
        "manifest_digest": "m" * 64,
        "order": "shuffled",
        "rank": 0,
        "world_size": 1,
        "epoch_digest": "f00000000000000d",
    }
    assert LoaderState.parse(json.loads(json.dumps(stored))) == STATE


def test_a_state_of_version_1_has_a_place_and_no_digest() -> None:
    names = ("epoch", "sample_in_epoch", "seed", "num_samples", "manifest_digest")
    state = LoaderState.parse({"state_version": 1, **{name: getattr(STATE, name) for name in names}})
    assert (state.epoch, state.sample_in_epoch, state.epoch_digest) == (2, 12, None)
    assert state.differences(STATE) == []
    assert state.digest_for(0, 1) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_version": STATE_VERSION + 1}, f"version {STATE_VERSION + 1}, this reads {STATE_VERSION}: upgrade"),
        ({"state_version": "2"}, "state_version '2', expected an integer"),
        ({"epoch": True}, "epoch True, expected an integer"),
        ({"epoch": -1}, "epoch -1"),
        ({"epoch": 2**32}, "epoch 4294967296"),
        ({"sample_in_epoch": -1}, "sample -1"),
        ({"rank": 1}, "rank 1 of 1"),
        ({"world_size": 0}, "rank 0 of 0"),
        ({"epoch_digest": 17}, "epoch_digest 17, expected 16 hexadecimal digits"),
        ({"epoch_digest": "F00000000000000D"}, "expected 16 hexadecimal digits"),
    ],
)
def test_damaged_states_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoaderState.parse(STATE.to_json() | change)


@pytest.mark.parametrize("stored", [None, [], "state"])
def test_what_is_no_dictionary_is_refused(stored: Any) -> None:
    with pytest.raises(InputError, match="expected the dictionary of state_dict"):
        LoaderState.parse(stored)


def test_missing_fields_are_named() -> None:
    stored = STATE.to_json()
    del stored["order"], stored["seed"]
    with pytest.raises(InputError, match="lacks seed, order"):
        LoaderState.parse(stored)


def test_differences_name_both_values() -> None:
    other = dataclasses.replace(STATE, seed=3, order="block:8", rank=1, world_size=2)
    assert other.differences(STATE) == ["seed 3 there, 9 here", "order 'block:8' there, 'shuffled' here"]


def test_the_first_rank_inherits_the_digest_of_all_and_the_others_nothing() -> None:
    assert [STATE.digest_for(rank, 3) for rank in range(3)] == [STATE.epoch_digest, 0, 0]


def test_each_rank_may_go_on_from_its_own_state() -> None:
    states = [LoaderState.parse(of_rank(rank, 2, 100 + rank)) for rank in range(2)]
    assert [state.digest_for(rank, 2) for rank, state in enumerate(states)] == [100, 101]


def test_one_of_several_ranks_states_leaves_the_digest_unknown_and_says_so() -> None:
    state = LoaderState.parse(of_rank(0, 2, 100))
    assert [state.digest_for(*ranks) for ranks in ((1, 2), (0, 1), (0, 3))] == [None, None, None]
    at_start = dataclasses.replace(state, sample_in_epoch=0)
    assert at_start.digest_for(1, 2) == 0, "nothing was delivered, so nothing is unknown"


def test_merging_adds_the_digests_modulo_two_to_the_64() -> None:
    states = [of_rank(rank, 3, digest) for rank, digest in enumerate((2**64 - 1, 5, 7))]
    merged = LoaderState.parse(merge_states([states[2], states[0], states[1]]))
    assert merged == dataclasses.replace(STATE, epoch_digest=11)
    assert merge_states([STATE.to_json()]) == STATE.to_json()


def test_one_unknown_digest_makes_the_sum_unknown() -> None:
    assert merge_states([of_rank(0, 2, None), of_rank(1, 2, 5)])["epoch_digest"] is None


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "expected at least one state"),
        ([of_rank(0, 2, 1)], r"ranks \[0\], expected one of each rank below 2"),
        ([of_rank(0, 2, 1), of_rank(0, 2, 1)], r"ranks \[0, 0\]"),
        ([of_rank(0, 2, 1), of_rank(1, 3, 1)], "world_size is 2 on rank 0 and 3 on rank 1"),
        ([of_rank(0, 2, 1), of_rank(1, 2, 1, sample_in_epoch=14)], "sample_in_epoch is 12 on rank 0 and 14 on rank 1"),
        ([of_rank(0, 2, 1), of_rank(1, 2, 1, seed=1)], "seed is 9 on rank 0 and 1 on rank 1"),
    ],
)
def test_states_that_do_not_fit_together_are_refused(states: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        merge_states(states)
