from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from lmdali.tools.process_start import children_deaf_to_signals

BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def blocked_here() -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def test_the_very_first_process_is_deaf_and_this_one_hears_again() -> None:
    # In a fresh interpreter: the first spawned process starts multiprocessing's tracker, which unblocks signals.
    program = """
import multiprocessing, os
from pathlib import Path
from lmdali.tools.process_start import children_deaf_to_signals
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    with children_deaf_to_signals():
        process.start()
    status = Path(f"/proc/{process.pid}/status").read_text()
    print(int(status.split("SigBlk:")[1].split()[0], 16))
    process.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=250, check=True)
    assert {number for number in BLOCKED if int(done.stdout) >> (number - 1) & 1} == BLOCKED


def test_a_signal_that_arrives_meanwhile_is_acted_on_afterwards() -> None:
    before = blocked_here()
    with pytest.raises(KeyboardInterrupt):
        with children_deaf_to_signals():
            assert blocked_here() >= BLOCKED
            signal.raise_signal(signal.SIGINT)
            arrived = True
        raise AssertionError
    assert arrived and blocked_here() == before
