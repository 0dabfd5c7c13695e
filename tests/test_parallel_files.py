"""Tasks in threads: the first error ends all, and whoever waits or asks for the time is stopped."""

from __future__ import annotations

import threading

import pytest

from lmdali.pipeline.errors import RemoteError
from lmdali.pipeline.remote_file import FetchStopped
from lmdali.tools.parallel_files import run_all, stoppable_clock


def test_all_tasks_run_and_somebody_looks() -> None:
    done, looks = [], []
    tasks = [lambda number=number: done.append(number) for number in range(20)]  # type: ignore[misc]
    run_all(tasks, threads=3, stop=threading.Event(), look=lambda: looks.append(len(done)))
    assert sorted(done) == list(range(20)) and looks


def test_the_first_error_stops_those_that_wait() -> None:
    stop, begun, ended = threading.Event(), threading.Event(), []
    clock = stoppable_clock(stop)

    def patient() -> None:
        begun.set()
        try:
            clock.sleep(60)
        except FetchStopped:
            ended.append("patient")
            raise

    def failing() -> None:
        begun.wait(30)
        raise RemoteError("not there")

    with pytest.raises(RemoteError, match="not there"):
        run_all([patient, failing], threads=2, stop=stop, look=lambda: None)
    assert ended == ["patient"] and stop.is_set()
    with pytest.raises(FetchStopped):
        clock.now()


def test_a_signal_while_waiting_ends_the_work() -> None:
    stop = threading.Event()
    clock = stoppable_clock(stop)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([lambda: clock.sleep(60)] * 2, threads=1, stop=stop, look=interrupted)


def test_time_passes_until_it_is_stopped() -> None:
    clock = stoppable_clock(threading.Event())
    before = clock.now()
    clock.sleep(0)
    assert clock.now() >= before


def test_what_tasks_wait_for_is_interrupted_until_all_have_ended() -> None:
    stop, begun, answers = threading.Event(), threading.Event(), [threading.Event() for _ in range(2)]
    interrupts = []

    def patient() -> None:
        begun.set()
        for answer in answers:
            answer.wait(1000)

    def interrupted() -> None:
        if begun.is_set():
            raise KeyboardInterrupt

    def interrupt() -> None:
        assert stop.is_set()
        answers[len(interrupts)].set()
        interrupts.append(len(interrupts))

    with pytest.raises(KeyboardInterrupt):
        run_all([patient] * 3, threads=1, stop=stop, look=interrupted, interrupt=interrupt)
    assert interrupts == [0, 1]
