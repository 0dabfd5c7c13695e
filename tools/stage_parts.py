"""The inside of a loader on a profile's page: thread time of its stages, single calls of them, and its queue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmdali.tools.html_page import details, figure, heading, paragraph, table
from lmdali.tools.lock_wait import lock_words
from lmdali.tools.profile_documents import OPERATOR_COLUMNS, operator_rows
from lmdali.tools.svg_chart import Bar, bar_chart

_PERCENTILES = ("p50", "p90", "p99")


def stage_parts(
    stages: Mapping[str, float | None],
    inside: Mapping[str, Any] | None,
    operators: Sequence[Mapping[str, Any]] | None = None,
    lock: Mapping[str, Any] | None = None,
) -> str:
    """HTML of the section.

    Args:
        stages: seconds per image of all threads together; None for what was not timed.
        inside: single calls by stage and thread, and the queue, as `profile run --json` has them; None without.
        operators: what each step of the DALI graph adds; None where DALI does not deliver.
        lock: waits for Python's lock; None where they were not sampled.
    """
    timed = {stage: seconds for stage, seconds in stages.items() if seconds is not None}
    busy = sum(seconds for stage, seconds in timed.items() if stage != "wait")
    rows = [
        (
            stage,
            "not timed" if seconds is None else f"{1e3 * seconds:.3f}",
            "" if seconds is None or stage == "wait" or not busy else f"{seconds / busy:.0%}",
        )
        for stage, seconds in stages.items()
    ]
    html = table(("stage", "ms/image", "of thread time"), rows)
    if timed:
        bars = [
            Bar(label=stage, value=1e3 * seconds, text=f"{1e3 * seconds:.3f}", series=6 if stage == "wait" else 2)
            for stage, seconds in timed.items()
        ]
        what = "Thread time of the loader's stages, ms/image"
        plot = bar_chart(bars, unit="thread time, ms per image", description=what, linear=True)
        html = figure(plot, "Time of all threads together; wait is the consumer's, in grey, and is no work.") + html
    html += "" if inside is None else _single_calls(inside)
    html += "" if lock is None else paragraph(f"Python's lock: {lock_words(lock)}.")
    return html + ("" if operators is None else _dali_operators(operators))


def _dali_operators(operators: Sequence[Mapping[str, Any]]) -> str:
    what = "Graphs that end early, measured against each other: a step costs what it adds."
    return heading("Inside DALI") + table(OPERATOR_COLUMNS, operator_rows(operators)) + paragraph(what)


def _single_calls(inside: Mapping[str, Any]) -> str:
    columns = ("thread", "stage", "calls", *(f"{name}, ms" for name in _PERCENTILES))
    html = heading("Single calls") + table(columns, _call_rows({"all": inside.get("stages") or {}}), text_columns=2)
    if threads := inside.get("threads"):
        html += details("Each thread", table(columns, _call_rows(threads), text_columns=2))
    queue = inside.get("queue")
    if queue is None:
        return html
    return html + paragraph(
        f"Asked for a batch, the loader had {queue['mean_ready']:.1f} ready on average, of {queue['mean_started']:.1f} "
        f"begun; {queue['empty_share']:.0%} of the times it had none."
    )


def _call_rows(threads: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for thread, stages in threads.items():
        for stage, calls in stages.items():
            yield thread, stage, f"{calls['count']:,}", *(f"{1e3 * calls[name]:.3f}" for name in _PERCENTILES)
