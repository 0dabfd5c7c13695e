"""The inside of a converter's own process: `python convert_run.py KEY JOB` converts (see convert.py)."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from converters import CONVERTERS, Converter, Job


def find(key: str) -> Converter:
    """The converter of a name."""
    return next(converter for converter in CONVERTERS if converter.key == key)


def module_of(name: str) -> Any:
    """A module of `converters`, with what it needs."""
    return import_module(f"converters.{name}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    module_of(find(sys.argv[1]).module).convert(Job.from_json(sys.argv[2]))
