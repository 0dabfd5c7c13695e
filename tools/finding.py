"""What `lmdali doctor` finds: a thing that was looked at, what it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "caution", "problem"]
"""A note is worth knowing and needs nothing; with a caution things work, but slower or not all of them; a problem is
what some command will fail of."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name, the same on every machine.
        found: what it is here, in a line.
        verdict: what to think of it.
        advice: the next step; empty where there is none.
    """

    what: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""


def first_line(error: BaseException) -> str:
    """An exception as a part of a line: its kind, and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
