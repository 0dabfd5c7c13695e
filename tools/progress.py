"""Progress on stderr: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_PLAIN_INTERVAL_SECONDS = 10.0


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} {self._unit}/s", style="progress.data.speed")


@contextmanager
def progress_bar(
    label: str, total: int, *, before: int = 0, unit: str = "images", quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many are done so far, besides those of an earlier run (`before`)."""
    if quiet:
        yield lambda done: None
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn(unit))
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, completed=before)
            yield lambda done: bar.update(task, completed=before + done)
    else:
        yield _plain_lines(label, total, before, unit)


def _plain_lines(label: str, total: int, before: int, unit: str) -> Callable[[int], None]:
    start = last = monotonic()

    def update(done: int) -> None:
        nonlocal last
        now = monotonic()
        if now - last >= _PLAIN_INTERVAL_SECONDS:
            last = now
            rate = done / (now - start)
            left = (total - before - done) / rate if rate else 0.0
            counts = f"{label}: {before + done}/{total} {unit}"
            print(f"{counts}, {rate:.0f} {unit}/s, {left:.0f} s left", file=sys.stderr, flush=True)

    return update
