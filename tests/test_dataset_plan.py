"""Parts of a plan, and what people are told where two plans differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_dataset_writer import PLAN, written

from lmdali.pipeline.dataset_plan import DatasetPlan, Part, differences, manifest_as_plan
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.manifest import load_manifest


@given(sources=st.integers(1, 200), per_shard=st.integers(1, 30), count=st.integers(1, 20))
def test_every_shard_is_in_one_part(sources: int, per_shard: int, count: int) -> None:
    plan = replace(PLAN, num_sources=sources, shard_sources=per_shard)
    shards = [shard for number in range(1, count + 1) for shard in plan.shards(Part(number, count))]
    assert sorted(shards) == plan.shards()


def test_part_i_of_n_has_the_shards_whose_number_leaves_i_minus_1() -> None:
    plan = replace(PLAN, num_sources=40)
    assert [shard.name for shard in plan.shards(Part(2, 4))] == ["00001", "00005", "00009"]


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1 / 2", "1/1000000"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected I/N"):
        Part.parse(text)


def test_a_part_is_read_as_it_is_written() -> None:
    assert Part.parse("2/8") == Part(2, 8)
    assert str(Part(2, 8)) == "2/8"


def test_a_plan_survives_its_file() -> None:
    assert DatasetPlan.from_json(PLAN.to_json()) == PLAN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"recipe": {"quality": 90, "seed": 7}}, "quality: 95 then, 90 now; seed: 0 then, 7 now"),
        ({"recipe": {"quality": 95}}, "seed: 0 then, None now"),
        ({"recipe": {"quality": 95, "seed": 0, "new": 1}}, "new: None then, 1 now"),
        ({"recipe": {"quality": (1, 2), "seed": 0}}, "quality: 95 then, [1, 2] now"),
        ({"class_names": ("a", "x", "c")}, "class_names: number 1 was 'b' then, is 'x' now"),
        ({"class_names": ("a", "b")}, "class_names: 3 then, 2 now"),
        ({"num_sources": 11}, "num_sources: 10 then, 11 now"),
        (
            {"source": {"kind": "folder", "fingerprint": "g" * 64}},
            "the source's files or labels: fingerprint f... then, gggggggggggg... now",
        ),
    ],
)
def test_what_differs_is_said_field_by_field(changes: dict[str, Any], message: str) -> None:
    assert differences(PLAN.to_json(), replace(PLAN, **changes).to_json()) == message


def test_nested_fields_are_named_alone() -> None:
    before, now = {"resize": {"size": 8, "down": "area"}}, {"resize": {"size": 8, "down": "cubic"}}
    assert differences(before, now) == "down: 'area' then, 'cubic' now"


def test_tuples_are_what_json_makes_of_them() -> None:
    assert differences({"recipe": {"a": [1, 2]}}, {"recipe": {"a": (1, 2)}}) == ""


def test_a_finished_dataset_tells_its_plan(tmp_path: Any) -> None:
    said = manifest_as_plan(load_manifest(written(tmp_path / "out")))
    assert said == PLAN.to_json()
