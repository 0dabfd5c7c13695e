"""From windows to rows: medians, lowest and highest, and shares of the ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from peers import Contestant
from peers.task import FORM_TITLES

FORM_CEILING = {"ceiling:pass", "ceiling:compiled"}
"""What a loader can reach at most: everything but the loader. For raw records it is the reference itself."""


@dataclass
class Row:
    """One contestant in one form.

    Attributes:
        contestant: who.
        form: which batches.
        version: of its package.
        error: why there is no figure, or none any more; "" if all is well.
        windows: one per round.
    """

    contestant: Contestant
    form: str
    version: str = ""
    error: str = ""
    windows: list[dict[str, Any]] = field(default_factory=list)


def results(
    reference: Contestant, reference_windows: Sequence[dict[str, Any]], rows: Sequence[Row], form: str
) -> dict[str, Any]:
    """All rows of one form, JSON-able; the reference is the first."""
    first = Row(reference, form)
    cpu = median(window["cpu_seconds_per_image"] for window in reference_windows)
    first.windows = [
        window | {"round": None, "reference_images_per_second": window["images_per_second"]}
        for window in reference_windows
    ]
    ceiling = next((row for row in (first, *rows) if row.contestant.key in FORM_CEILING and not row.error), None)
    limits: dict[int | None, float] = {}
    if ceiling is first:
        limits = dict.fromkeys([None, *(window["round"] for row in rows for window in row.windows)], 1.0)
    elif ceiling is not None:
        limits = {window["round"]: _ratio(window) for window in ceiling.windows}
    return {
        "form": form,
        "title": FORM_TITLES[form],
        "reference": reference.label,
        "ceiling": None if ceiling is None else ceiling.contestant.label,
        # On a machine that others use as well, CPU time is steadier than the clock.
        "rows": [
            summary | ({} if summary["error"] else {"cpu_ratio": cpu / summary["cpu_seconds_per_image"]})
            for summary in (_summary(row, limits) for row in (first, *rows))
        ],
    }


def _summary(row: Row, limits: dict[int | None, float]) -> dict[str, Any]:
    contestant = row.contestant
    document: dict[str, Any] = {
        "key": contestant.key,
        "label": contestant.label,
        "kind": contestant.kind,
        "setting": contestant.setting,
        "package": contestant.package,
        "version": row.version,
        "error": row.error,
    }
    if row.error or not row.windows:
        return document | {"error": row.error or "was not measured"}
    rates = [window["images_per_second"] for window in row.windows]
    ratios = [_ratio(window) for window in row.windows]
    of_ceiling = [_ratio(w) / limits[w["round"]] for w in row.windows if w["round"] in limits]
    return document | {
        "images_per_second": median(rates),
        "images_per_second_low": min(rates),
        "images_per_second_high": max(rates),
        "ratio": median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "of_ceiling": median(of_ceiling) if of_ceiling else None,
        "cpu_seconds_per_image": median(window["cpu_seconds_per_image"] for window in row.windows),
        "memory_bytes": max(window["memory_bytes"] for window in row.windows),
        "windows": row.windows,
    }


def _ratio(window: dict[str, Any]) -> float:
    """Its rate over that of the reference beside it."""
    return float(window["images_per_second"] / window["reference_images_per_second"])
