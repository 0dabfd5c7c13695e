"""How long a remote file is tried for: pauses that grow, what a server asks for, and an end to it all.

Whoever waits is told: the first failure is logged as a warning, which Python shows on stderr unless logging is set up.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lmdali.pipeline.errors import ConfigError, RemoteError

Result = TypeVar("Result")

_log = logging.getLogger(__name__)
_QUIET_SECONDS = 60.0
"""Between two notices about one server: if it is away, every file that is wanted from it fails."""

_LATER = "see that the server and the way to it are up, then run this again"

_told: dict[str, float] = {}
"""Server -> when a notice about it was given. Of the process: its threads fetch files of one server each by itself."""


class TransientError(Exception):
    """What may be over when it is tried again.

    Args:
        reason: in words.
        retry_after_seconds: what the server asked for, or None.
    """

    def __init__(self, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason, retry_after_seconds)
        self.reason, self.retry_after_seconds = reason, retry_after_seconds


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """Patience with a remote file.

    Attributes:
        tries: in a row without a single byte that had not come before, after which it is given up.
        first_pause_seconds: before the second try; each pause is twice the one before, and shortened at random by up to
            half, so that a thousand ranks do not come back in the same moment.
        longest_pause_seconds: where doubling ends.
        read_timeout_seconds: for one read, and for a connection to reach `min_bytes_per_second`.
        min_bytes_per_second: a slower connection is given up for another; each byte that came in extends the budget by
            what it may take at this rate.
        budget_seconds: for one file, pauses and all.
    """

    tries: int = 8
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 30.0
    read_timeout_seconds: float = 20.0
    min_bytes_per_second: float = 50_000.0
    budget_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} must be over 0, found {value}")

    def pause_seconds(self, failures: int) -> float:
        """The pause after so many failures in a row, before it is shortened."""
        return min(self.first_pause_seconds * 2.0 ** (failures - 1), self.longest_pause_seconds)


@dataclass(frozen=True)
class Clock:
    """Time and chance as `Attempts` knows them.

    Attributes:
        now: seconds, never going back.
        sleep: waits for so many seconds, or less where whoever waits is wanted elsewhere.
        chance: uniform in 0..1.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    chance: Callable[[], float] = random.random


class Attempts:
    """The tries for one file: counts them, waits between them, and ends them.

    Args:
        what: the file in messages, without credentials.
        config: patience.
        clock: time.
    """

    def __init__(self, what: str, config: RetryConfig, clock: Clock | None = None) -> None:
        self._what, self._config, self._clock = what, config, clock or Clock()
        self._failures = 0
        self._begin = self._try_begin = self._clock.now()
        self._bytes = self._try_bytes = self._try_start = self._reached = 0

    def run(self, call: Callable[[], Result]) -> Result:
        """What `call` returns, once it raises no `TransientError`.

        Raises:
            RemoteError: it was called often enough.
        """
        while True:
            self.begin()
            try:
                return call()
            except TransientError as error:
                self.failed(error)

    def begin(self, start: int | None = None) -> None:
        """A connection is about to be made.

        Args:
            start: first byte of the file that it brings; None for what comes behind all that came before.
        """
        self._try_begin, self._try_bytes = self._clock.now(), 0
        self._try_start = self._reached if start is None else start

    def forget(self) -> None:
        """What came was wrong: the same bytes count again."""
        self._reached = 0

    def received(self, num_bytes: int) -> None:
        """Bytes came in.

        Raises:
            TransientError: the connection is too slow.
            RemoteError: the budget is over.
        """
        self._bytes += num_bytes
        self._try_bytes += num_bytes
        if self._try_start + self._try_bytes > self._reached:
            # Only what never came before: one who sends the same half again and again would be asked for ever.
            self._reached, self._failures = self._try_start + self._try_bytes, 0
        seconds = self._clock.now() - self._try_begin
        rate = self._config.min_bytes_per_second
        if self._seconds_left() < 0:
            since = self._clock.now() - self._begin
            raise RemoteError(f"{self._what}: {self._bytes} bytes in {since:.0f} s: too slow: {_LATER}")
        if seconds > self._config.read_timeout_seconds + self._try_bytes / rate:
            raise TransientError(f"{self._try_bytes} bytes in {seconds:.0f} s, fewer than {rate:.0f} a second")

    def failed(self, error: TransientError) -> None:
        """A try went wrong: wait for the next one.

        Raises:
            RemoteError: there is none.
        """
        self._failures += 1
        config = self._config
        if self._failures >= config.tries:
            raise RemoteError(f"{self._what}: {error.reason}; given up after {self._failures} tries: {_LATER}")
        pause = config.pause_seconds(self._failures) * (1 - self._clock.chance() / 2)
        asked = error.retry_after_seconds
        if asked is not None:
            pause = max(pause, asked)
        if pause > self._seconds_left():
            wish = "" if asked is None else f" and asks to wait for {asked:.0f} s"
            raise RemoteError(
                f"{self._what}: {error.reason}{wish}; given up, for there are {config.budget_seconds:.0f} s for a "
                f"file: {_LATER}"
            )
        if self._failures == 1:
            self._tell(error.reason, pause)
        self._clock.sleep(pause)

    def _tell(self, reason: str, pause: float) -> None:
        """Say what is waited for, and for how long at most, where it was not said of this server just now."""
        server, now = "/".join(self._what.split("/", 3)[:3]), time.monotonic()
        if now - _told.get(server, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return
        _told[server] = now
        more = self._config.tries - 1
        pauses = pause + sum(map(self._config.pause_seconds, range(2, more + 1)))
        _log.warning(
            "%s: %s; trying again, up to %d times, with pauses of at most %.0f s in all",
            self._what,
            reason,
            more,
            min(pauses, self._seconds_left()),
        )

    def _seconds_left(self) -> float:
        earned = self._bytes / self._config.min_bytes_per_second
        return self._begin + self._config.budget_seconds + earned - self._clock.now()
