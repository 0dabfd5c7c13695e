"""What torchrun tells a process about its place, in environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping

from lmdali.pipeline.errors import ConfigError


def torchrun_number(name: str, default: int, environment: Mapping[str, str] = os.environ) -> int:
    """RANK, WORLD_SIZE, LOCAL_RANK or LOCAL_WORLD_SIZE; `default` where it is not set.

    Raises:
        ConfigError: it is no number.
    """
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"the environment variable {name} is {text!r}, expected a number: unset it or use torchrun")
    return int(text)
