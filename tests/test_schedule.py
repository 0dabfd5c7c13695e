"""Schedules by hand-made error series and epochs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmdali.model.schedule import Plateau, continue_as, create_schedule
from lmdali.pipeline.errors import ConfigError


def factors(schedule_text: str, errors: list[float]) -> list[float]:
    """The factor each epoch starts with, until the schedule stops."""
    schedule = create_schedule(schedule_text, epochs=len(errors))
    out = []
    for epoch, error in enumerate(errors):
        if schedule.finished:
            break
        out.append(schedule.factor(float(epoch)))
        schedule.end_epoch(error)
    return out


def test_fixed_cuts_divide_by_ten_when_the_epochs_begin() -> None:
    got = factors("fixed:2,4", [0.5] * 6)
    assert got == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_fixed_cuts_may_name_the_last_epoch() -> None:
    assert len(factors("fixed:23,51,78:93", [0.5] * 200)) == 93


def test_plateau_cuts_patience_plus_one_epochs_after_the_last_improvement() -> None:
    got = factors("plateau:2", [0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7])
    # Best at epoch 2; epochs 3, 4 and 5 do not improve, so epoch 6 runs at a tenth.
    assert got == pytest.approx([1, 1, 1, 1, 1, 1, 0.1])


def test_a_spike_of_one_epoch_does_not_cut() -> None:
    got = factors("plateau:1", [0.9, 0.8, 0.95, 0.7, 0.6, 0.95, 0.5, 0.4])
    assert got == [1] * 8


def test_an_improvement_below_the_threshold_does_not_count() -> None:
    assert factors("plateau:0,0.01", [0.5, 0.495, 0.48, 0.47])[1:] == pytest.approx([1, 0.1, 0.1])
    assert factors("plateau:0,0.001", [0.5, 0.495, 0.48, 0.47])[1:] == pytest.approx([1, 1, 1])


def test_plateau_reduces_three_times_and_then_stops() -> None:
    got = factors("plateau:0", [0.5] * 20)
    assert got == pytest.approx([1, 1, 0.1, 0.01, 0.001])


def test_after_a_cut_the_patience_is_as_long_as_before() -> None:
    got = factors("plateau:2", [0.5] * 20)
    assert got == pytest.approx([1] * 4 + [0.1] * 3 + [0.01] * 3 + [0.001] * 3)


def test_plateau_resumed_in_the_middle_of_counting_cuts_in_the_same_epoch() -> None:
    errors = [0.9, 0.7, 0.8, 0.8, 0.8, 0.6, 0.7, 0.7, 0.7, 0.7]
    whole = Plateau(patience=2)
    for stop in range(len(errors)):
        part = Plateau(patience=2)
        for error in errors[:stop]:
            part.end_epoch(error)
        resumed = Plateau(patience=2)
        resumed.load_state_dict(json.loads(json.dumps(part.state_dict())))
        for error in errors[stop:]:
            resumed.end_epoch(error)
        if stop == 0:
            whole = resumed
        assert resumed == whole


def test_cosine_rises_and_falls() -> None:
    schedule = create_schedule("cosine:2", epochs=10)
    assert [schedule.factor(e) for e in (0.0, 1.0, 2.0, 6.0, 10.0, 11.0)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert not schedule.finished


def test_constant_never_changes() -> None:
    assert factors("constant", [0.9] * 5) == [1] * 5


@pytest.mark.parametrize("text", ["fixed:2,4:5", "plateau:1", "cosine:1", "constant"])
def test_state_is_plain_json_and_restores(text: str) -> None:
    schedule, copy = create_schedule(text, 8), create_schedule(text, 8)
    for error in (0.5, 0.5, 0.6):
        schedule.end_epoch(error)
    copy.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert copy == schedule


def continued(before: str, after: str, errors: list[float]) -> Any:
    """A schedule that takes over from another one after some epochs."""
    old, new = create_schedule(before, 9), create_schedule(after, 9)
    for error in errors:
        old.end_epoch(error)
    continue_as(new, json.loads(json.dumps(old.state_dict())), epochs_done=len(errors))
    return new


def test_fixed_cuts_that_take_over_count_from_the_beginning_of_the_run() -> None:
    for before in ("fixed:1,2", "plateau:0", "constant", "cosine"):
        schedule = continued(before, "fixed:2,4:6", [0.5] * 4)
        schedule.end_epoch(0.5)
        assert not schedule.finished
        schedule.end_epoch(0.5)
        assert schedule.finished


def test_a_plateau_that_takes_over_from_another_keeps_its_cuts() -> None:
    schedule = continued("plateau:0", "plateau:1", [0.5, 0.5, 0.5])
    assert schedule.factor(3.0) == pytest.approx(0.01)
    assert (schedule.patience, schedule.best_error) == (1, 0.5)
    ended = continued("plateau:0", "plateau:2", [0.5] * 5)
    assert not ended.finished
    assert ended.factor(5.0) == pytest.approx(0.001)


def test_a_plateau_that_takes_over_from_another_kind_begins() -> None:
    assert continued("fixed:1,2", "plateau", [0.5] * 3) == create_schedule("plateau", 9)


@pytest.mark.parametrize(
    "text",
    ["", "step", "fixed", "fixed:", "fixed:a", "fixed:5,3", "fixed:0", "fixed:3:0", "plateau:x", "plateau:-1",
     "plateau:1,2", "cosine:9", "cosine:-1", "constant:1"],
)  # fmt: skip
def test_unknown_schedules_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        create_schedule(text, epochs=5)


@pytest.mark.parametrize("text", ["fixed", "fixed:", "fixed:a", "fixed:2,3:b", "plateau:x", "cosine:x", "nothing"])
def test_a_schedule_without_its_numbers_is_told_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"schedule '{text}' is none: use plateau.*fixed:EPOCH"):
        create_schedule(text, epochs=5)


def test_a_warm_up_that_is_too_long_is_told_both_ways_out() -> None:
    with pytest.raises(ConfigError, match=r"warm-up of 2 epochs does not fit into a run of 1: take more .* cosine:WAR"):
        create_schedule("cosine:2", epochs=1)
    with pytest.raises(ConfigError, match=r"warm-up of 2 epochs does not fit into a run of 2"):
        create_schedule("cosine:2", epochs=2)  # the rate would only rise
