"""Reports of `lmdali profile run --json`, read back: values by their path, rates, and what two of them do not share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.files import read_json
from lmdali.tools.throughput import SCHEMA_VERSION

MACHINE_FACTS = ("cpu", "num_cpus", "memory_bytes", "gpu", "gpu_memory_bytes")
"""What makes another machine; its name is not known, and its load is told by the cautions."""

DATASET_FACTS = ("dataset_digest", "num_samples", "encoding")
"""What makes another dataset; it may lie elsewhere."""

RATE_WORDS = {
    "cold.storage_sequential": "storage, cold, in order",
    "cold.storage": "storage, cold, shuffled",
    "cold.read_sequential": "LMDB read, cold, in order",
    "cold.read": "LMDB read, cold, shuffled",
    "cold.loader": "loader, cold",
    "storage_sequential": "storage, in order",
    "storage": "storage, shuffled",
    "read_sequential": "LMDB read, in order",
    "read": "LMDB read, shuffled",
    "decode_one_thread": "libjpeg-turbo, 1 thread",
    "decode": "libjpeg-turbo",
    "memory_copy": "memory copy",
    "augment_one_thread": "augment, 1 thread",
    "augment": "augment",
    "device_copy": "copy to the device",
    "loader": "loader",
    "optimizer": "optimiser alone",
    "model": "model on a cached batch",
    "together": "step fed by the loader",
}
"""What the rates of a report are called, in the order in which they are shown: "in order" is the order of storage."""

MOVES_RECORDS = frozenset(
    path
    for path in RATE_WORDS
    if path.rpartition(".")[2] in ("storage_sequential", "storage", "read_sequential", "read", "loader")
)
"""Rates that are also ones of stored bytes."""


OPERATOR_WORDS = {
    "input": "input: records into DALI",
    "decode": "decode: JPEG to RGB",
    "crop": "crop and flip",
    "normalize": "normalise, layout",
    "mean_image": "subtract the mean image",
}
"""What the steps of a DALI graph are called."""


OPERATOR_COLUMNS = ("step", "ms/batch", "ms/image", "CPU ms/image", "graph so far, images/s")
"""Of `operator_rows`."""


def operator_rows(costs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The steps of a DALI graph, as they are in a report, as rows of a table."""
    return [
        (
            OPERATOR_WORDS.get(cost["name"], cost["name"]),
            f"{1e3 * cost['batch_seconds']:.2f}",
            f"{1e3 * cost['seconds_per_image']:.3f}",
            f"{1e3 * cost['cpu_seconds_per_image']:.3f}",
            f"{cost['graph_images_per_second']:,.0f}",
        )
        for cost in costs
    ]


RANK_COLUMNS = ("rank", "device", "loader", "model", "step alone", "in the job", "AU", "input ms/img", "compute ms/img")
"""Of `rank_rows`; rates are images/s."""


def rank_rows(ranks: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The ranks of a job, as they are in a report, as rows of a table."""
    return [
        (
            str(each["rank"]),
            f"{each['host']} {each['device']}",
            *(_rate_text(each[name]) for name in ("loader", "model", "alone", "together")),
            "" if each["au"] is None else f"{each['au']:.0%}",
            f"{1e3 * each['input_seconds']:.2f}",
            f"{1e3 * each['compute_seconds']:.2f}",
        )
        for each in ranks
    ]


def rank_words(report: Mapping[str, Any]) -> list[str]:
    """What a report says of a job's ranks, a sentence each."""
    slowest = f"rank {report['slowest']} is the slowest: {report['slowest_share']:.0%} of the others' pace"
    words = [
        f"{len(report['ranks'])} ranks, together {report['images_per_second']:,.0f} images/s"
        + ("" if report["au"] is None else f", AU {report['au']:.0%} of what their models do alone"),
        f"{slowest}, by its {report['cause']}" + ("" if report["straggler"] is not None else "; no straggler"),
    ]
    if report["averaging_share"] is not None:
        words.append(f"averaging gradients and waiting in turn is {report['averaging_share']:.0%} of its step")
    return words


def _rate_text(rate: Mapping[str, Any] | None) -> str:
    return "" if rate is None else f"{rate['images_per_second']:,.0f}"


def load_profile(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        InputError: no such file, another document than a report of this version, or one that tells no numbers.
        IntegrityError: not JSON.
    """
    document = read_json(path)
    if not isinstance(document.get("setting"), dict) or not isinstance(document.get("machine"), dict):
        raise InputError(f"{path}: not a profile: write one with `lmdali profile run DATASET --json > FILE`")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: a profile of schema version {version}, this program reads {SCHEMA_VERSION}: measure again"
        )
    if (problem := _problem(document)) is not None:
        raise InputError(f"{path}: {problem}: it was cut, edited or written by another program; measure again")
    return document


_SPEAKING: dict[str, tuple[str, ...]] = {
    "verdict": (),
    "suggestion": ("option", "predicted_images_per_second", "baseline_images_per_second", "why"),
    "what_if": ("question", "baseline_images_per_second", "predicted_images_per_second"),
    "lock": ("idle", "loading"),
}
"""Parts of a report that tell more than rates, and what each of them has; `what_if` is a list of such parts."""


def _problem(document: Mapping[str, Any]) -> str | None:
    """Why a document cannot be trusted, or None. A number that is none would keep every limit."""
    for path, value in _leaves(document, ""):
        if isinstance(value, float) and not isfinite(value):
            return f"{path} is no number ({value})"
    if not isinstance(document.get("verdict"), Mapping):
        return "it has no verdict"
    for name, keys in _SPEAKING.items():
        found = document.get(name) or {}
        for part in found if isinstance(found, list) else [found] if found else []:
            if not isinstance(part, Mapping) or not all(key in part for key in keys):
                return f"{name} lacks {', '.join(keys) or 'its fields'}"
    for path in RATE_WORDS:
        found = document
        for key in path.split("."):
            found = (found.get(key) if isinstance(found, Mapping) else None) or {}
        if found and not _is_sound(found):
            return f"{path} is no rate: images/s above zero, and those of its windows"
    return None


def _is_sound(rate: Any) -> bool:
    return is_rate(rate) and all(
        isinstance(value, int | float) and value > 0 for value in (rate["images_per_second"], *rate["per_window"])
    )


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    named: Iterator[tuple[Any, object]] = iter(())
    if isinstance(value, Mapping):
        named = iter(value.items())
    elif isinstance(value, list):
        named = iter(enumerate(value))
    else:
        yield path, value
    for key, found in named:
        yield from _leaves(found, f"{path}.{key}" if path else str(key))


def is_rate(value: object) -> bool:
    """Whether a value of a report is a measured rate, with its windows."""
    return isinstance(value, Mapping) and "images_per_second" in value and bool(value.get("per_window"))


def rates(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every rate of a report by its path; those that are not known here come last."""
    found = dict(_rates(document, ""))
    known = [path for path in RATE_WORDS if path in found]
    return {path: found[path] for path in [*known, *(path for path in found if path not in RATE_WORDS)]}


def _rates(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in document.items():
        path = f"{prefix}{key}"
        if is_rate(value):
            yield path, value
        elif isinstance(value, Mapping):
            yield from _rates(value, f"{path}.")


def rate_name(path: str) -> str:
    """What a rate is called; one that is not known here, by its path."""
    return RATE_WORDS.get(path, path.replace("_", " ").replace(".", ": "))


def spread_of(rate: Mapping[str, Any]) -> float:
    """Half the distance between a rate's slowest and fastest window, as a share of the median."""
    windows = rate["per_window"]
    return float((max(windows) - min(windows)) / 2 / rate["images_per_second"])


def rate_rows(document: Mapping[str, Any], name: Callable[[str], str] = rate_name) -> list[tuple[str, ...]]:
    """Every rate of a report as a row of a table.

    It has its name, images/s, spread, MB/s of stored bytes, shares of its next ceiling and of a step, CPU ms an image.

    Args:
        document: a report.
        name: what a rate is called, by its path.
    """
    record_bytes = document["setting"].get("mean_record_bytes")
    shares, steps = document.get("shares") or {}, document.get("shares_of_step") or {}
    rows = []
    for path, rate in rates(document).items():
        moved, cpu = record_bytes if path in MOVES_RECORDS else None, rate.get("cpu_seconds_per_image")
        rows.append(
            (
                name(path),
                f"{rate['images_per_second']:,.0f}",
                f"± {spread_of(rate):.0%}",
                f"{rate['images_per_second'] * moved / 1e6:,.0f}" if moved else "",
                *("" if (share := of.get(path)) is None else f"{share:.0%}" for of in (shares, steps)),
                "" if cpu is None else f"{1e3 * cpu:.3f}",
            )
        )
    return rows


def number_at(document: Mapping[str, Any], path: str, origin: str) -> float:
    """The number at a path such as `loader.images_per_second`.

    Args:
        document: a report.
        path: keys with dots between them.
        origin: of the report, for errors.

    Raises:
        ConfigError: there is no such number in a report.
        InputError: it was not measured in this one.
    """
    found: Any = document
    for key in path.split("."):
        if found is None:
            break
        if not isinstance(found, Mapping) or key not in found:
            known = ", ".join(map(str, found)) if isinstance(found, Mapping) else "nothing"
            raise ConfigError(f"{origin} has no {path}: below {key!r} there is nothing; where it would be: {known}")
        found = found[key]
    if found is None:
        raise InputError(f"{origin}: {path} was not measured (null), so no limit can be checked on it")
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ConfigError(f"{origin}: {path} is no number but {type(found).__name__}: name a number below it")
    return float(found)


def windows_at(document: Mapping[str, Any], path: str) -> tuple[list[float], bool] | None:
    """The windows behind a number: of a rate, or of a time that is its inverse.

    Returns:
        The rates of all windows, and whether the number falls where they rise; None where windows do not tell.
    """
    *parents, name = path.split(".")
    if name not in ("images_per_second", "step_seconds"):
        return None
    found: Any = document
    for key in parents:
        found = found.get(key) if isinstance(found, Mapping) else None
    return (list(found["per_window"]), name == "step_seconds") if is_rate(found) else None


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """What differs between two reports, by kind: machine, dataset, setting, packages."""
    machines, settings = (first["machine"], second["machine"]), (first["setting"], second["setting"])
    other = sorted({*settings[0], *settings[1]} - {*DATASET_FACTS, "dataset", "mean_record_bytes", "steps_per_epoch"})
    packages = machines[0].get("packages") or {}, machines[1].get("packages") or {}
    return {
        "machine": _differing(*machines, MACHINE_FACTS),
        "dataset": _differing(*settings, DATASET_FACTS),
        "setting": _differing(*settings, other),
        "packages": _differing(*packages, sorted({*packages[0], *packages[1]})),
    }


def _differing(
    first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, ...] | list[str]
) -> dict[str, tuple[Any, Any]]:
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}
