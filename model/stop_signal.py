"""SIGINT and SIGTERM as a request that is looked at between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self


class StopSignal:
    """While entered, the first SIGINT or SIGTERM is remembered instead of obeyed; the second acts as it always did.

    Outside the main thread Python does not allow handlers; there it does nothing.

    Args:
        echo_seconds: a signal within this time of the first is taken for the same request, which came twice.

    Attributes:
        received: number of the signal, or None.
    """

    def __init__(self, *, echo_seconds: float = 0.0) -> None:
        self.received: int | None = None
        self._echo_seconds, self._received_at = echo_seconds, 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = number, now
            if self._echo_seconds == 0.0:
                self._restore()
        elif now - self._received_at >= self._echo_seconds:
            # Whoever asks twice does not want to wait for a checkpoint.
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
