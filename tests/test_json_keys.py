"""Keys that are needed, and what is said where they are missing or of another kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.json_keys import read_keys, require_keys

GOOD: dict[str, Any] = {"a text": "", "a whole number": 0, "a number": 1.5, "an object": {}, "a list": [], "null": None}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("found", [*GOOD.values(), True, float("nan")])
def test_each_kind_takes_its_own_values_only(kind: str, found: Any) -> None:
    fits = found is GOOD[kind] or (kind == "a number" and found == 0 and found is not True and found is not False)
    if fits:
        require_keys({"key": found}, {"key": kind}, where="file", cure="go on")
        return
    with pytest.raises(InputError, match=f"file: key is .*, expected {kind}: it was edited or damaged: go on"):
        require_keys({"key": found}, {"key": kind}, where="file", cure="go on")


def test_keys_lie_in_objects_and_may_be_missing_where_that_is_said() -> None:
    document = {"outer": {"inner": 1}, "text": "x"}
    kinds = {"outer.inner": "a number", "outer.none": "a text or nothing", "text.inner": "nothing"}
    require_keys(document, kinds, where="file", cure="go on")
    with pytest.raises(InputError, match=r"file: has no outer\.none, expected a text or null: "):
        require_keys(document, {"outer.none": "a text or null"}, where="file", cure="go on")
    with pytest.raises(InputError, match=r"file: outer is \{.{56}\.\.\., expected a text"):
        require_keys({"outer": {"key": "x" * 90}}, {"outer": "a text"}, where="file", cure="go on")


def test_a_file_that_is_no_object_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with pytest.raises(InputError, match="no such file"):
        read_keys(path, {}, cure="go on")
    for damaged in ("", "[]", '{"a": 1', '{"a": 1, "a": 2}'):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"run\.json: .*: go on$"):
            read_keys(path, {}, cure="go on")
    path.write_text(json.dumps({"a": 1}))
    assert read_keys(path, {"a": "a number"}, cure="go on") == {"a": 1}
