"""Numbers, switches and choices as callers give them: NumPy's are taken for Python's, anything else is refused."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lmdali.pipeline.errors import ConfigError


def whole_number(name: str, value: Any) -> int:
    """A whole number as Python's own `int`, which JSON and checkpoints take.

    Args:
        name: of the option, for the error.
        value: any integer, NumPy's too, or a float without a fraction (1e9 bytes).

    Raises:
        ConfigError: anything else, True and False among it.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        if not isinstance(value, bool | np.bool_):
            return operator.index(value)
    except TypeError:
        pass
    raise ConfigError(f"{name} must be a whole number, found {value!r}")


def real_number(name: str, value: Any) -> float:
    """A number as Python's own `float`: JSON takes no float32, whose logarithm would be another one, too.

    Args:
        name: of the option, for the error.
        value: any real number, NumPy's too.

    Raises:
        ConfigError: anything else, True and False among it.
    """
    try:
        if not isinstance(value, bool | np.bool_ | str | bytes):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{name} must be a number, found {value!r}")


def check_fields(config: Any, *, numbers: Sequence[str], switches: Sequence[str]) -> None:
    """In the `__post_init__` of a frozen dataclass: make fields Python's own numbers and switches.

    Args:
        config: the dataclass; fields whose default is None may be None. Those of type float hold any number.
        numbers: fields that hold whole numbers.
        switches: fields that are True or False.

    Raises:
        ConfigError: a field holds something else.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in (*numbers, *switches):
        value = getattr(config, name)
        if value is None and defaults[name] is None:
            continue
        if name in numbers:
            object.__setattr__(config, name, whole_number(name, value))
        elif isinstance(value, bool | np.bool_):
            object.__setattr__(config, name, bool(value))
        else:
            raise ConfigError(f"{name} must be True or False, found {value!r}")
    for field in dataclasses.fields(config):
        if field.type in ("float", float):
            object.__setattr__(config, field.name, real_number(field.name, getattr(config, field.name)))


def check_choices(config: Any, choices: Mapping[str, Collection[str]]) -> None:
    """In the `__post_init__` of a dataclass: refuse fields that are none of the names allowed for them.

    Raises:
        ConfigError: one is.
    """
    for name, allowed in choices.items():
        if (found := getattr(config, name)) not in tuple(allowed):  # a list is none of them, and in no dictionary
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}; found {found!r}")


def require_finite_fields(config: Any) -> None:
    """In the `__post_init__` of a dataclass: refuse fields that are infinite or NaN.

    Raises:
        ConfigError: one is.
    """
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number, found {value}")
