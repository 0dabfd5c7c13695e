"""`run.json`: what a run directory says of its own making: datasets, settings with their origins, machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.files import write_json
from lmdali.pipeline.json_keys import read_keys, require_keys
from lmdali.pipeline.path_kind import exists
from lmdali.pipeline.release import lmdali_version
from lmdali.tools.machine import machine_facts

RUN_FILE = "run.json"
RECIPE_SECTIONS = ("model", "train", "augment", "loader")
_CURE = "remove it, and the report does without what it says"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The content of a `run.json`.

    Attributes:
        train: directory or address of the training set.
        val: the same of the validation set.
        train_digest: of its manifest.
        val_digest: of its manifest.
        recipe: what `--config` takes, with the origin of each value; None where a program gave the settings.
        sessions: of each start its time, step, devices, number of ranks, version and machine.
    """

    train: str
    val: str
    train_digest: str
    val_digest: str
    recipe: Mapping[str, Any] | None
    sessions: tuple[Mapping[str, Any], ...]


def describe_session(device: torch.device, devices: str, world_size: int, step: int) -> dict[str, Any]:
    """One start of a run.

    Args:
        device: whose machine facts are taken.
        devices: names of all devices of this process.
        world_size: number of ranks.
        step: updates made in earlier sessions.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "devices": devices,
        "world_size": world_size,
        "lmdali_version": lmdali_version(),
        "machine": machine_facts(device),
    }


def save_run_facts(run_dir: Path, facts: RunFacts) -> None:
    """Write them; the sessions of a file that is there already come first, where it can be read.

    Raises:
        StorageError: the file cannot be written.
    """
    earlier = None
    with suppress(InputError):  # what is said of a training must not stop it
        earlier = load_run_facts(run_dir)
    sessions = (*(earlier.sessions if earlier is not None and facts.sessions[0]["step"] else ()), *facts.sessions)
    write_json(run_dir / RUN_FILE, {**vars(facts), "sessions": list(sessions)})


def load_run_facts(run_dir: Path) -> RunFacts | None:
    """Read them; None where there are none, as in runs of earlier versions.

    Raises:
        InputError: the file was edited or damaged; it names the key.
        StorageError: it cannot be read.
    """
    path = run_dir / RUN_FILE
    if not exists(path):
        return None
    texts = dict.fromkeys(("train", "val", "train_digest", "val_digest"), "a text")
    document = read_keys(path, {**texts, "recipe": "an object or null", "sessions": "a list"}, cure=_CURE)
    if document["recipe"] is not None:
        kinds = {"origins": "an object"} | dict.fromkeys(RECIPE_SECTIONS, "an object")
        kinds |= {f"origins.{name}": "an object or nothing" for name in RECIPE_SECTIONS}
        require_keys(document["recipe"], kinds, where=f"{path}, recipe", cure=_CURE)
    sessions = document["sessions"]
    if not sessions:
        raise InputError(f"{path}: sessions is empty, expected one for each start: it was edited or damaged: {_CURE}")
    for number, session in enumerate(sessions):
        where, kinds = f"{path}, sessions[{number}]", {"started": "a text", "step": "a whole number"}
        kinds |= {"machine": "an object", "machine.packages": "an object or nothing"}
        require_keys({"session": session}, {"session": "an object"}, where=where, cure=_CURE)
        require_keys(session, kinds, where=where, cure=_CURE)
    return RunFacts(**{field.name: document[field.name] for field in fields(RunFacts)} | {"sessions": tuple(sessions)})
