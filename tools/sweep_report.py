"""What a sweep found: every setting beside the fastest, the Pareto front, and the best as a configuration file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lmdali.pipeline.errors import ThresholdError
from lmdali.pipeline.output_file import write_output
from lmdali.tools.measurement import Rate
from lmdali.tools.rate_noise import Interval, median_interval

SCHEMA_VERSION = 1

CLEARLY_SLOWER = 0.9
"""Share of the fastest rate below which something within noise of it deserves a caution."""

SAME_CPU = 1.03
"""CPU seconds per image up to which a setting costs as much as the cheapest: then memory decides."""


@dataclass(frozen=True, kw_only=True)
class SweptSetting:
    """A loader of a sweep and what was measured of it.

    Attributes:
        dataset: directory.
        encoding: of its records, "jpeg" or "raw".
        num_threads: of the loader.
        prefetch: batches worked on ahead.
        batch_size: samples per step.
        decode: where JPEG is decoded for a GPU, as it was asked for.
        backend: that delivered.
        rate: of the loader alone.
        resident_bytes: by which the process grew, pages of mapped files not counted; None where that is not told.
    """

    dataset: str
    encoding: str
    num_threads: int
    prefetch: int
    batch_size: int
    decode: str
    backend: str
    rate: Rate
    resident_bytes: float | None


AXES = tuple(field.name for field in fields(SweptSetting))[:6]
"""Fields of `SweptSetting` that say what it is; the others say what was found."""


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """What `lmdali profile sweep` measured.

    Attributes:
        settings: in the order in which they took turns; at least one.
        shared: options of all loaders, by field of `LoaderConfig`, of which `to_config` writes those in `told`; and
            what they do to images, in words.
        told: names of the options that are not the loader's own defaults.
        target: images/s that are wanted, or None.
        machine: where this was measured.
        seen: what limited these numbers; `cautions` adds what they say themselves.
        elapsed_seconds: of all measuring, warm-ups included.
    """

    settings: tuple[SweptSetting, ...]
    shared: dict[str, Any]
    told: tuple[str, ...]
    target: float | None
    machine: dict[str, Any]
    seen: tuple[str, ...]
    elapsed_seconds: float

    @property
    def fastest(self) -> SweptSetting:
        """The one with the highest median."""
        return max(self.settings, key=lambda setting: setting.rate.images_per_second)

    def of_fastest(self, setting: SweptSetting) -> Interval:
        """A rate over the fastest one's, round by round: what slows a machine down slows both."""
        windows = zip(setting.rate.per_window, self.fastest.rate.per_window, strict=True)
        return median_interval([own / best for own, best in windows])

    def is_within_noise(self, setting: SweptSetting) -> bool:
        """Whether it may be as fast as the fastest."""
        found = self.of_fastest(setting)
        return setting is self.fastest or found.high is None or found.high >= 1

    def reaches_target(self, setting: SweptSetting) -> bool:
        """Whether it delivers what is wanted, noise allowed for."""
        found = median_interval(setting.rate.per_window)
        return self.target is not None and (found.value if found.low is None else found.low) >= self.target

    @property
    def candidates(self) -> tuple[SweptSetting, ...]:
        """Those that are fast enough: as fast as the fastest, or as the target."""
        fast_enough = self.is_within_noise if self.target is None else self.reaches_target
        return tuple(setting for setting in self.settings if fast_enough(setting))

    @property
    def best(self) -> SweptSetting | None:
        """The fewest CPU seconds per image of those fast enough, and of equals the least memory; None if none is."""
        candidates = self.candidates
        if not candidates:
            return None
        limit = SAME_CPU * min(setting.rate.cpu_seconds_per_image for setting in candidates)
        equals = [setting for setting in candidates if setting.rate.cpu_seconds_per_image <= limit]
        return min(equals, key=lambda setting: (setting.resident_bytes or 0, setting.rate.cpu_seconds_per_image))

    @property
    def front(self) -> tuple[SweptSetting, ...]:
        """The Pareto front: no other setting is as fast, as cheap in CPU seconds and as small, and better in one."""
        costs = {id(setting): _costs(setting) for setting in self.settings}

        def is_beaten(own: tuple[float, ...]) -> bool:
            others = costs.values()
            return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in others)

        return tuple(setting for setting in self.settings if not is_beaten(costs[id(setting)]))

    @property
    def cautions(self) -> tuple[str, ...]:
        """What limits these numbers, their own noise included."""
        if self.target is not None:
            return self.seen
        slowest = min(self.of_fastest(setting).value for setting in self.candidates)
        if slowest >= CLEARLY_SLOWER:
            return self.seen
        hidden = f"noise hides differences of {1 - slowest:.0%}: measure when it is quiet, or with more --seconds"
        return (hidden, *self.seen)

    def why(self) -> str:
        """How the best was found, in words."""
        fastest, number = self.fastest.rate.images_per_second, len(self.candidates)
        if self.target is None:
            among = f"the {number} within noise of the fastest ({fastest:,.0f} images/s)"
            if number == 1:
                return f"nothing else is within noise of its {fastest:,.0f} images/s"
        else:
            among = f"the {number} that reach {self.target:,.0f} images/s"
        if not number:
            return f"none reaches {self.target:,.0f} images/s with its noise; the fastest has {fastest:,.0f}"
        return f"of {among} it takes the fewest CPU seconds per image, and of equals (3 %) the least memory"

    def to_json(self) -> dict[str, Any]:
        """One JSON-able document."""
        best, front = self.best, self.front
        settings = [
            {
                **asdict(setting),
                "of_fastest": asdict(self.of_fastest(setting)),
                "within_noise_of_fastest": self.is_within_noise(setting),
                "on_front": setting in front,
            }
            for setting in self.settings
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "settings": settings,
            "best": None if best is None else self.settings.index(best),
            "why": self.why(),
            **{name: getattr(self, name) for name in ("target", "shared", "machine", "cautions", "elapsed_seconds")},
        }

    def to_config(self) -> dict[str, dict[str, Any]]:
        """Sections of a file that `lmdali train --config` takes: what was swept, and what was told otherwise.

        Raises:
            ThresholdError: no setting reaches the target.
        """
        best = self.best
        if best is None:
            raise ThresholdError(f"no setting to write: {self.why()}")
        swept = {name: getattr(best, name) for name in AXES[2:]}
        several = {name for name in swept if len({getattr(setting, name) for setting in self.settings}) > 1}
        chosen = {name: value for name, value in swept.items() if name in several or name in self.told}
        return {"loader": chosen | {name: self.shared[name] for name in self.told if name in self.shared}}


def _costs(setting: SweptSetting) -> tuple[float, ...]:
    """What should be small: seconds per image, CPU seconds per image, bytes."""
    rate = setting.rate
    return 1 / rate.images_per_second, rate.cpu_seconds_per_image, setting.resident_bytes or 0.0


def write_config(path: Path, report: SweepReport) -> None:
    """Write the best setting as TOML, or as JSON where the file's name ends in `.json`.

    Raises:
        ThresholdError: no setting reaches the target.
        StorageError: it cannot be written.
    """
    document, best = report.to_config(), report.best
    assert best is not None, "else there is no document"
    if path.suffix == ".json":
        text = json.dumps(document, indent=2) + "\n"
    else:
        lines = [
            f"# The best of {len(report.settings)} settings that lmdali profile sweep measured.",
            f"# dataset: {json.dumps(best.dataset)}, {best.encoding}",
            f"# machine: {json.dumps(report.machine['cpu'])}, {report.machine['num_cpus']} CPUs",
            f"# {best.rate.images_per_second:,.0f} images/s, "
            f"{1e3 * best.rate.cpu_seconds_per_image:.3f} ms CPU an image: {report.why()}",
        ]
        for section, values in document.items():
            # A text, an integer or a bool is written the same way in both formats.
            lines += ["", f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        text = "\n".join(lines) + "\n"
    write_output(path, text.encode())
