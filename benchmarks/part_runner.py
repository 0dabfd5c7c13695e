"""Parts of a long check, in processes that may hang, crash or be killed: what was found until then is told and kept.

A worker process runs parts one after the other and says on its standard output, one JSON document a line, which of them
begins, each row that it finds, and how it ends. `PartRunner` starts workers, hands rows on as they come, and kills a
worker whose part takes longer than it may, with everything below it. A part that failed costs its worker: after an
error of CUDA's nothing on that GPU works in that process any more. The next part then begins in another one.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, TextIO

Row = dict[str, Any]
"""What was found: `what` and `result` in words, whether that `passed`, and numbers by any other name."""

Part = Callable[[], Iterator[Row]]

_START_SECONDS = 120.0
"""For a worker to import what it needs, and to begin."""

_SAY_SECONDS, _FAREWELL_SECONDS = 1.0, 5.0
"""For a worker that is given up to say where it is, and for one that was killed to be gone."""


def claim_stdout() -> TextIO:
    """This process's standard output for documents alone: what anything else prints goes to standard error."""
    documents = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return documents


def work(parts: Mapping[str, Part], names: Sequence[str], documents: TextIO, facts: Row) -> None:
    """Run parts in this process, until one of them fails.

    Args:
        parts: by name.
        names: of those to run, in order.
        documents: see `claim_stdout`.
        facts: said first.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)

    def say(document: Row) -> None:
        documents.write(json.dumps(document, allow_nan=False) + "\n")
        documents.flush()

    say({"facts": facts})
    for name in names:
        say({"begin": name})
        try:
            for row in parts[name]():
                say({"row": {"part": name} | row})
        except Exception as error:  # whatever it is: it is what this is there to show
            traceback.print_exc()
            say({"row": failure(name, type(error).__name__, str(error))})
            return
        say({"end": name})


def failure(name: str, what: str, result: str) -> Row:
    """A row that says why a part has no more of them."""
    return {"part": name, "what": what, "result": result, "passed": False}


class PartRunner:
    """Runs parts in workers.

    Args:
        command: (names) to the command of a worker that calls `work` with them.
        limit: seconds that a part may take, by its name.
        take: given each document of `work` as it comes, and rows of parts that were given up.
    """

    def __init__(
        self, command: Callable[[list[str]], list[str]], limit: Callable[[str], float], take: Callable[[Row], None]
    ) -> None:
        self._command, self._limit, self._take = command, limit, take
        self._worker: subprocess.Popen[str] | None = None

    def run(self, names: Sequence[str], deadline: float) -> list[str]:
        """Run parts until the deadline, by `monotonic`; those that have not begun by then come back."""
        left = list(names)
        while left and monotonic() < deadline:
            # Whatever a worker does, another one is not asked for the same part again.
            left = left[max(self._one_worker(left, deadline), 1) :]
        return left

    def close(self) -> None:
        """Kill the worker, and what it has started."""
        worker, self._worker = self._worker, None
        if worker is not None:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):  # a hung driver may keep it for ever
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait(_FAREWELL_SECONDS)

    def _one_worker(self, names: list[str], deadline: float) -> int:
        """How many of these parts it has begun."""
        self._worker = subprocess.Popen(
            self._command(names), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, process_group=0
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._worker.stdout, lines), daemon=True).start()
        current, begun, allowed = names[0], 0, _START_SECONDS
        until = min(monotonic() + allowed, deadline)
        try:
            while (line := lines.get(timeout=max(until - monotonic(), 0.001))) is not None:
                document = json.loads(line)
                if "begin" in document:
                    current, begun = document["begin"], begun + 1
                    allowed = min(self._limit(current), deadline - monotonic())
                    until = monotonic() + allowed
                self._take(document)
                if "end" in document and (begun == len(names) or monotonic() >= deadline):
                    return begun
        except queue.Empty:
            self._take({"row": failure(current, "TimeoutError", f"given up after {allowed:.0f} s")})
            self._say_where_it_is()
        else:
            code = self._worker.wait()
            if code != 0:
                ending = f"signal {-code}" if code < 0 else f"exit code {code}"
                self._take({"row": failure(current, "the process", f"ended with {ending}")})
        finally:
            self.close()
        return begun

    def _say_where_it_is(self) -> None:
        """Stacks of its threads, on standard error."""
        assert self._worker is not None
        self._worker.send_signal(signal.SIGUSR1)
        with suppress(subprocess.TimeoutExpired):
            self._worker.wait(_SAY_SECONDS)


def _read(lines: TextIO, into: queue.Queue[str | None]) -> None:
    with lines:
        for line in lines:
            into.put(line)
    into.put(None)
