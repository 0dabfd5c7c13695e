"""A sweep as `lmdali profile sweep` reports it, with known numbers."""

from __future__ import annotations

from typing import Any

from profile_document import NOISE, profile_report, rate

from lmdali.tools.sweep_report import SweepReport, SweptSetting


def setting(
    per_second: float, cpu_ms: float, megabytes: float | None, *, noise: tuple[float, ...] = NOISE, **changes: Any
) -> SweptSetting:
    """A loader of `per_second` images/s, whose windows are `noise` times that."""
    windows = tuple(per_second * factor for factor in noise)
    measured = rate(per_second).__dict__ | {
        "per_window": windows,
        "low": min(windows),
        "high": max(windows),
        "cpu_seconds_per_image": cpu_ms / 1e3,
    }
    given: dict[str, Any] = {
        "dataset": "photos/<jpeg>",
        "encoding": "jpeg",
        "num_threads": 2,
        "prefetch": 3,
        "batch_size": 128,
        "decode": "auto",
        "backend": "cpu",
    }
    return SweptSetting(
        **given | changes,
        rate=type(rate(1.0))(**measured),
        resident_bytes=None if megabytes is None else megabytes * 1e6,
    )


def sweep_report(*settings: SweptSetting, **changes: Any) -> SweepReport:
    """A report of these settings; `changes` replaces its other fields."""
    given: dict[str, Any] = {
        "shared": {
            "backend": "auto",
            "readahead_bytes": 64_000_000,
            "verify": "first",
            "order": "shuffled",
            "block_shards": 8,
            "device": "cpu",
            "dtype": "float32",
            "layout": "NCHW",
            "seed": 0,
            "augment": "random crops of 224, normalize mean_image, lighting eigenvalues",
        },
        "told": (),
        "target": None,
        "machine": profile_report().machine,
        "seen": ("the machine was busy & slow",),
        "elapsed_seconds": 61.5,
    }
    return SweepReport(settings=settings, **given | changes)


def wide_report() -> SweepReport:
    """Everything differs, in numbers of many digits."""
    axes: list[dict[str, Any]] = [
        {"dataset": dataset, "encoding": encoding, "num_threads": threads, "prefetch": prefetch, "batch_size": batch}
        for dataset, encoding in (("/somewhere/photos/<jpeg>", "jpeg"), ("/somewhere/photos/raw", "raw"))
        for threads in (8, 128)
        for prefetch, batch in ((1, 64), (16, 1024))
    ]
    return sweep_report(
        *(
            setting(
                123_456.0 / (1 + number),
                0.1 + number / 100,
                12_345.0 + number,
                decode=("cpu", "gpu")[number % 2],
                **each,
            )
            for number, each in enumerate(axes)
        )
    )
