"""What is taken for a whole number, a switch or a choice, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.whole_number import check_fields, real_number, whole_number


@dataclass(frozen=True)
class Settings:
    size: Any = 1
    limit: Any = None
    flip: Any = True
    share: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, numbers=("size", "limit"), switches=("flip",))


@pytest.mark.parametrize("value", [7, 7.0, np.int32(7), np.uint64(7), np.float64(7), torch.tensor(7)])
def test_any_integer_becomes_pythons(value: Any) -> None:
    found = whole_number("size", value)
    assert found == 7 and type(found) is int


@pytest.mark.parametrize("value", [None, True, np.True_, "7", 7.5, float("nan"), float("inf"), [7]])
def test_anything_else_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ConfigError, match="size must be a whole number, found"):
        whole_number("size", value)


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int8(3), torch.tensor(3.0)])
def test_any_number_becomes_pythons(value: Any) -> None:
    found = real_number("share", value)
    assert found == 3.0 and type(found) is float


@pytest.mark.parametrize("value", [None, True, np.True_, "3", b"3", [3.0], 3j])
def test_what_is_no_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ConfigError, match="share must be a number, found"):
        real_number("share", value)


def test_fields_become_pythons_and_only_optional_ones_may_be_none() -> None:
    settings = Settings(size=np.int64(3), limit=1e9, flip=np.False_, share=np.float32(0.25))
    assert [type(value) for value in vars(settings).values()] == [int, int, bool, float]
    assert settings == Settings(3, 10**9, False, 0.25)
    with pytest.raises(ConfigError, match="share must be a number, found 'a half'"):
        Settings(share="a half")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="size must be a whole number, found None"):
        Settings(size=None)
    with pytest.raises(ConfigError, match="flip must be True or False, found 'no'"):
        Settings(flip="no")
