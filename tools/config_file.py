"""Settings from a TOML or JSON file, in the sections and with the names of `lmdali train --print-config`."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdali.model.presets import PRESETS
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.path_kind import is_file
from lmdali.tools.recipe_fields import DERIVED, FIELDS

ORIGINS = "origins"
"""Section of `--print-config --json` that says where values came from; whoever reads a file passes over it."""


@dataclass(frozen=True)
class GivenSettings:
    """Settings of one source, checked one by one.

    Attributes:
        origin: of all of them, as people are told.
        values: section -> name -> value; only those that are given.
        preset: name of a preset, or None.
        num_classes: that a file expects its dataset to have, or None.
    """

    origin: str
    values: Mapping[str, Mapping[str, Any]]
    preset: str | None = None
    num_classes: int | None = None


def load_document(path: Path) -> dict[str, Any]:
    """A TOML file, or a JSON file if its name ends in `.json`, as nested plain values.

    Raises:
        InputError: there is no such file, or it is not what its name says.
        StorageError: it cannot be read.
    """
    if not is_file(path):
        raise InputError(f"{path}: no such file: check the path")
    with storage_errors(path):
        payload = path.read_bytes()
    try:
        text = payload.decode()
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # what both parsers and the decoder raise
        kind = "JSON" if path.suffix == ".json" else "TOML (a JSON file's name ends in .json)"
        raise InputError(f"{path}: not {kind}: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: found a {type(document).__name__}, expected sections: {', '.join(FIELDS)}")
    return document


def load_settings(path: Path) -> GivenSettings:
    """A configuration file, or the `run.json` of a run, which has its settings under `recipe`.

    Raises:
        ConfigError: a section, name or value that there is not, with the nearest that there is; or a run whose settings
            a program gave, and nobody wrote down.
        InputError: no such file, or not TOML or JSON.
    """
    document, origin = load_document(path), f"config file {path}"
    if "recipe" in document and "sessions" in document:
        document = document["recipe"]
        if not isinstance(document, dict):
            raise ConfigError(f"{origin}: recipe is {document!r}, expected the settings of a run of `lmdali train`")
    return read_settings(document, origin=origin)


def read_settings(document: Mapping[str, Any], *, origin: str) -> GivenSettings:
    """The settings in a document of `preset` and the sections model, train, augment and loader.

    Raises:
        ConfigError: a section, name or value that there is not, with the nearest that there is.
    """
    values: dict[str, dict[str, Any]] = {}
    num_classes: int | None = None
    preset = document.get("preset")
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise ConfigError(f"{origin}: {unknown('preset', str(preset), PRESETS)}")
    for section, given in document.items():
        if section in ("preset", ORIGINS):
            continue
        if section not in FIELDS:
            raise ConfigError(f"{origin}: {unknown('section', section, ('preset', *FIELDS))}")
        if not isinstance(given, Mapping):
            raise ConfigError(f"{origin}: {section} is {given!r}, expected names and values")
        if section == "model" and "num_classes" in given:
            given = dict(given)
            num_classes = _count(given.pop("num_classes"), origin)
        values[section] = _read_section(section, given, origin)
    return GivenSettings(origin, values, preset, num_classes)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`no such preset: papre; did you mean paper?`, or all that there are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return f"no such {what}: {name}; {hint}"


def _read_section(section: str, given: Mapping[str, Any], origin: str) -> dict[str, Any]:
    values = {}
    for name, raw in given.items():
        if name not in FIELDS[section]:
            homes = [other for other in FIELDS if name in FIELDS[other]]
            hint = f"{name} belongs to section {homes[0]}" if homes else unknown("field", name, FIELDS[section])
            raise ConfigError(f"{origin}, section {section}: {hint}")
        try:
            values[name] = FIELDS[section][name].read(raw)
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from error
    return values


def _count(raw: object, origin: str) -> int | None:
    if raw is not None and (isinstance(raw, bool) or not isinstance(raw, int)):
        raise ConfigError(f"{origin}: model.num_classes is {DERIVED['num_classes']}, found {raw!r}: leave it out")
    return raw
