"""`run.json`: what a run directory says of its own making: datasets, settings with their origins, machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.files import read_json, write_json
from lmdali.pipeline.release import lmdali_version
from lmdali.tools.machine import machine_facts

RUN_FILE = "run.json"


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
    """Write them; the sessions of a file that is there already come first.

    Raises:
        StorageError: the file cannot be written.
    """
    earlier = load_run_facts(run_dir)
    sessions = (*(earlier.sessions if earlier is not None and facts.sessions[0]["step"] else ()), *facts.sessions)
    write_json(run_dir / RUN_FILE, {**vars(facts), "sessions": list(sessions)})


def load_run_facts(run_dir: Path) -> RunFacts | None:
    """Read them; None where there are none that can be read, as in runs of earlier versions."""
    try:
        document = read_json(run_dir / RUN_FILE)
        return RunFacts(**{**document, "sessions": tuple(document["sessions"])})
    except (LmdaliError, KeyError, TypeError):
        return None
