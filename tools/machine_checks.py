"""What of the machine decides how lmdali works here: processors, memory, compiled loops, and who else is at work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from lmdali.pipeline.cpu_budget import cpu_name, usable_cpus
from lmdali.pipeline.release import installed_version
from lmdali.tools.finding import Finding, first_line
from lmdali.tools.report_table import megabytes

CGROUP = Path("/sys/fs/cgroup")
MEMORY = Path("/proc/meminfo")


def machine_findings() -> Iterator[Finding]:
    """Processors, memory, variables of ranks, then compiled loops where numba is here."""
    yield _processors()
    yield _memory()
    yield from _ranks()
    if installed_version("numba") is not None:
        yield from _compiled_loops()


def available_memory(memory: Path | None = None, cgroup: Path | None = None) -> int | None:
    """Bytes that this process can still have without swapping, a container's limit included; None where nobody says.

    Args:
        memory: as proc_meminfo(5) describes it; None means `MEMORY`.
        cgroup: a control group's folder, of version 2 or 1; None means `CGROUP`.
    """
    found = [_meminfo_available(memory or MEMORY), _cgroup_left(cgroup or CGROUP)]
    known = [number for number in found if number is not None]
    return min(known, default=None)


def _processors() -> Finding:
    usable, all_of_them = usable_cpus(), os.cpu_count() or 1
    found = f"{usable} of {all_of_them} usable, {cpu_name()}"
    try:
        load = os.getloadavg()[0]
    except OSError:
        return Finding("processors", f"{found}, load unknown")
    found += f", load {load:.1f}"
    if load > usable:
        advice = "measure rates when nobody else is at work here"
        return Finding("processors", f"{found}: others want more than there are", "note", advice)
    return Finding("processors", found)


def _memory() -> Finding:
    available = available_memory()
    return Finding("memory", "unknown" if available is None else f"{megabytes(available)} available")


def _compiled_loops() -> Iterator[Finding]:
    """Whether numba can compile, keep what it compiled, and use the processor's vectors."""
    try:
        import_module("numba")
    except Exception as error:  # whatever a broken build raises, of numba's or of its compiler's
        advice = "pip install --force-reinstall numba"
        yield Finding("compiled loops", f"numba cannot be used: {first_line(error)}", "problem", advice)
        return
    from lmdali.pipeline.crop_kernel import crop_pixels
    from lmdali.pipeline.vectors import HAS_PAIR_SUMS

    statistics = getattr(crop_pixels, "stats", None)
    if statistics is None:
        found = "numba does not compile (NUMBA_DISABLE_JIT), and loaders need it"
        yield Finding("compiled loops", found, "problem", "unset NUMBA_DISABLE_JIT")
        return
    vectors = "with AVX2" if HAS_PAIR_SUMS else "without AVX2, so decoding is slower"
    if statistics.cache_path is None:
        found = f"{vectors}; kept nowhere, so every process compiles for some 10 s"
        advice = "set NUMBA_CACHE_DIR to a folder that can be written"
        yield Finding("compiled loops", found, "caution", advice)
    else:
        yield Finding("compiled loops", f"{vectors}; kept in {statistics.cache_path}")


def _ranks() -> Iterator[Finding]:
    found = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if os.environ.get(name)}
    if found:
        said = ", ".join(f"{name}={value}" for name, value in found.items())
        advice = "unset them, unless torchrun set them"
        yield Finding("ranks", f"{said}: loaders take it for torchrun's word and load a part", "note", advice)


def _meminfo_available(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError, IndexError):
        return None


def _cgroup_left(cgroup: Path) -> int | None:
    """What a container's limit leaves; a limit higher than any memory is none."""
    old = cgroup / "memory"
    for limit, used, statistics, prefix in (
        (cgroup / "memory.max", cgroup / "memory.current", cgroup / "memory.stat", ""),
        (old / "memory.limit_in_bytes", old / "memory.usage_in_bytes", old / "memory.stat", "total_"),
    ):
        try:
            most = int(limit.read_text())
            return min(most, max(0, most - int(used.read_text()) + _cached_files(statistics, prefix)))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _cached_files(statistics: Path, prefix: str) -> int:
    """Bytes of files that a container has in memory, which count as used and make room as soon as some is wanted."""
    wanted = (f"{prefix}active_file", f"{prefix}inactive_file")
    try:
        pairs = [line.split() for line in statistics.read_text().splitlines()]
        return sum(int(pair[1]) for pair in pairs if pair and pair[0] in wanted)
    except (OSError, ValueError, IndexError):
        return 0
