"""Which rate is the ceiling of which: each part beside the next thing that it cannot be faster than."""

from __future__ import annotations

from collections.abc import Mapping

from lmdali.tools.measurement import Rate

NEXT_CEILING: dict[str, tuple[str, ...]] = {
    "cold.storage": ("cold.storage_sequential",),
    "cold.read_sequential": ("cold.storage_sequential",),
    "cold.read": ("cold.storage",),
    "cold.loader": ("cold.storage",),  # not LMDB alone, which waits for each page: the loader asks for them ahead
    "storage": ("storage_sequential",),
    "read_sequential": ("storage_sequential",),
    "read": ("storage",),
    "decode": ("decode_one_thread",),
    "augment": ("augment_one_thread",),
    "loader": ("read", "decode", "memory_copy", "augment", "device_copy"),
    "together": ("loader", "model"),
}
"""Path of a rate in a report -> those of its ceilings, of which the lowest counts."""

_ONE_THREAD = "_one_thread"


def shares_of_ceilings(rates: Mapping[str, Rate | None], num_threads: int | None) -> dict[str, float | None]:
    """Each rate over the lowest of its ceilings, 0..1 or a little more; None for what has none here.

    Where nothing was read out of order, because the loader reads in order, the rates in order take that place.

    A storage read out of order is judged by one in order, LMDB by storage, what all threads do by so many times what
    one does, the loader by its parts, and the fed training step by loader and model.

    Args:
        rates: by their paths; None for what was not measured.
        num_threads: that can work side by side; None where it is not known.
    """
    return {path: _share(rates, path, num_threads) for path, rate in rates.items() if rate is not None}


def _share(rates: Mapping[str, Rate | None], path: str, num_threads: int | None) -> float | None:
    rate, ceilings = rates[path], []
    for name in NEXT_CEILING.get(path, ()):
        ceiling = rates.get(name) or rates.get(f"{name}_sequential")
        if ceiling is not None:
            ceilings.append(ceiling.images_per_second * ((num_threads or 1) if name.endswith(_ONE_THREAD) else 1))
    if rate is None or not ceilings:
        return None
    return rate.images_per_second / min(ceilings)


def shares_of_step(rates: Mapping[str, Rate | None]) -> dict[str, float | None]:
    """Time that each part takes alone, as a share of a fed training step; None without such a step.

    Parts that run side by side, on threads or on a GPU, add up to more than 1.
    """
    step = rates.get("together")
    return {
        path: None if step is None else step.images_per_second / rate.images_per_second
        for path, rate in rates.items()
        if rate is not None
    }
