"""How long and how much memory one image may take, and what the end of a worker process says about it.

The limits are kept by the kernel, because nothing else can: a decoder that hangs or runs wild is C code, in which no
Python handler runs and which no thread can leave.
"""

from __future__ import annotations

import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.path_kind import exists
from lmdali.pipeline.rejection import Rejection

EXIT_OUT_OF_MEMORY = 71
"""What a worker ends with that was refused memory: it leaves rather than go on with what is left of its heap."""

_STATM = Path("/proc/self/statm")
_MAX_SECONDS = 1_000_000.0


@dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """What the conversion of one image may take in a worker process.

    Attributes:
        seconds: wall time of reading, decoding and encoding one image.
        memory_mb: MB (10^6 bytes) a worker may allocate beyond what it has when it starts. The default is for the
            largest image the decode policy lets through: a TIFF of 178,956,970 pixels of 16-bit RGB, read from 1.1 GB
            and decoded at 30 bytes a pixel, beside the pages of a shard.
    """

    seconds: float = 60.0
    memory_mb: int = 8_000

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= _MAX_SECONDS:
            raise ConfigError(f"the time limit must be above 0 and at most {_MAX_SECONDS:.0f} s, found {self.seconds}")
        if self.memory_mb < 1:
            raise ConfigError(f"the memory limit must be at least 1 MB, found {self.memory_mb}")

    def apply(self) -> None:
        """Limit the memory of this process, and let its timers end it whatever it is doing."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        # Not RLIMIT_AS: LMDB reserves address space for whole shards, which is no memory.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = _data_bytes() + self.memory_mb * 1_000_000
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
        # A decoder that crashes would leave gigabytes of a core file each time.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

    def verdict(self, exit_code: int) -> tuple[Rejection, str]:
        """Why an image is rejected that ends a process in which it is alone; `exit_code` as `Process` gives it."""
        if exit_code == EXIT_OUT_OF_MEMORY:
            return Rejection.OUT_OF_MEMORY, f"needs more than the {self.memory_mb} MB that a worker may take"
        if exit_code == -signal.SIGALRM:
            return Rejection.TIMED_OUT, f"was not converted within {self.seconds:g} s"
        return Rejection.DECODER_CRASHED, f"the decoder ended its process: {describe_end(exit_code)}"


def describe_end(exit_code: int) -> str:
    """`SIGSEGV`, or `exit code 3`."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal
        return f"signal {-exit_code}"


def _data_bytes() -> int:
    """What counts towards RLIMIT_DATA already; 0 where the system does not tell (there the limit is kept loosely)."""
    if not exists(_STATM):
        return 0
    return int(_STATM.read_text().split()[5]) * resource.getpagesize()
