"""One signal asks, a second one insists; an echo of the first does neither."""

from __future__ import annotations

import signal

import pytest

from lmdali.model.stop_signal import StopSignal


def test_the_first_signal_is_remembered_and_the_second_acts_as_ever() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_echo_of_the_first_signal_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("lmdali.model.stop_signal.time.monotonic", lambda: now)
    with StopSignal(echo_seconds=5.0) as stop:
        signal.raise_signal(signal.SIGTERM)
        now = 104.9
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGTERM
        now = 105.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGTERM
