"""What `lmdali eval` found out: one document, and tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdali.model.error_analysis import ClassFigures, ErrorAnalysis
from lmdali.model.probabilities_file import Probabilities
from lmdali.pipeline.dataset_place import Place, place_shown
from lmdali.tools.report_table import print_pairs, print_table

NETWORK_COLUMNS = ("network", "weight", "top-1 error, %", "top-5 error, %", "loss, nats")
CLASS_COLUMNS = ("class", "images", "top-1 error, %", "top-5 error, %", "most often taken for")
BIN_COLUMNS = ("highest probability", "images", "mean, %", "right, %")
_SHOWN = 10
"""Classes and pairs in the tables; JSON and the page have all of them."""


@dataclass(frozen=True, kw_only=True)
class MemberFigures:
    """One of the networks that were averaged, by itself.

    Attributes:
        path: as it was given: checkpoint, run directory or file of probabilities.
        source: what its probabilities are of.
        weight: in the average, 0..1.
        top1_error: 0..1.
        top5_error: 0..1.
        loss: nats.
    """

    path: Path
    source: dict[str, Any]
    weight: float
    top1_error: float
    top5_error: float
    loss: float

    def to_json(self) -> dict[str, Any]:
        """One flat object."""
        return {
            "path": str(self.path),
            **self.source,
            "weight": self.weight,
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "loss": self.loss,
        }


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """What was evaluated, and how it did.

    Attributes:
        dataset: where it is.
        members: each network by itself, in the order given.
        analysis: of the average; of a single network, its own.
        probabilities: of the average.
        class_names: readable, in label order.
        world_size: processes that shared the work.
        cache_dir, cache_bytes: of the loader, for the pictures of a dataset at an address.
    """

    dataset: Place
    members: tuple[MemberFigures, ...]
    analysis: ErrorAnalysis
    probabilities: Probabilities
    class_names: Sequence[str]
    world_size: int = 1
    cache_dir: Place | None = None
    cache_bytes: int | None = None

    @property
    def num_views(self) -> int:
        """Views per image, 1 or 10."""
        return self.probabilities.num_views

    def to_json(self) -> dict[str, Any]:
        """Everything but the probabilities; classes carry their names."""
        figures = self.analysis.to_json()
        names = self.probabilities.class_names
        for entry in figures["classes"]:
            entry["class"] = names[entry["label"]]
        for pair in figures["confusions"]:
            pair["class"], pair["predicted_class"] = names[pair["label"]], names[pair["predicted"]]
        overall = ("top1_error", "top5_error", "loss", "num_samples")
        return {
            **{name: figures.pop(name) for name in overall},
            "num_views": self.num_views,
            "dataset": place_shown(self.dataset),
            "dataset_digest": self.probabilities.dataset_digest,
            "class_list_hash": self.probabilities.class_list_hash,
            "world_size": self.world_size,
            "networks": [member.to_json() for member in self.members],
            **figures,
        }


def print_evaluation(report: EvalReport) -> None:
    """The tables for people."""
    if len(report.members) > 1:
        print_table(
            f"{len(report.members)} networks on {place_shown(report.dataset)}, views of each image: {report.num_views}",
            NETWORK_COLUMNS,
            table_rows(report),
        )
    else:
        print_pairs(
            f"{report.members[0].source.get('checkpoint', report.members[0].path)} on {place_shown(report.dataset)}",
            _pairs(report),
        )
    analysis = report.analysis
    print_table(
        f"classes with the highest error, of {len(analysis.classes)}",
        CLASS_COLUMNS,
        class_rows(report)[:_SHOWN],
    )
    print_table(
        f"calibration: expected error {100 * analysis.calibration_error:.2f} %",
        BIN_COLUMNS,
        reliability_rows(report),
    )


def table_rows(report: EvalReport) -> list[tuple[str, ...]]:
    """Rows of `NETWORK_COLUMNS`, and one for the average."""
    rows: list[tuple[str, ...]] = [
        (str(m.path), f"{m.weight:.3g}", percent(m.top1_error), percent(m.top5_error), f"{m.loss:.4f}")
        for m in report.members
    ]
    if len(rows) > 1:
        a = report.analysis
        name = f"average of {len(rows)}"
        rows.append((name, "", percent(a.top1_error), percent(a.top5_error), f"{a.loss:.4f}"))
    return rows


def worst_classes(report: EvalReport) -> list[ClassFigures]:
    """The classes that have images, the highest top-1 error first."""
    found = [entry for entry in report.analysis.classes if entry.num_images]
    return sorted(found, key=lambda entry: (-(entry.top1_error or 0.0), entry.label))


def class_rows(report: EvalReport) -> list[tuple[str, ...]]:
    """Rows of `CLASS_COLUMNS`, of `worst_classes`."""
    names = report.class_names
    partners: dict[int, str] = {}
    for pair in report.analysis.confusions:
        partners.setdefault(pair.label, f"{names[pair.predicted]} ({pair.num_images})")
    return [
        (
            names[entry.label],
            f"{entry.num_images:,}",
            percent(entry.top1_error),
            percent(entry.top5_error),
            partners.get(entry.label, ""),
        )
        for entry in worst_classes(report)
    ]


def confusion_rows(report: EvalReport) -> list[tuple[str, ...]]:
    """One row per pair of classes that occurs: true, taken for, images, share of the true class."""
    names = report.class_names
    return [
        (names[pair.label], names[pair.predicted], f"{pair.num_images:,}", percent(pair.share))
        for pair in report.analysis.confusions
    ]


def reliability_rows(report: EvalReport) -> list[tuple[str, ...]]:
    """Rows of `BIN_COLUMNS`, of the bins that have images."""
    return [
        (
            f"{100 * entry.low:.0f} to {100 * entry.high:.0f} %",
            f"{entry.num_images:,}",
            percent(entry.confidence),
            percent(entry.accuracy),
        )
        for entry in report.analysis.reliability
        if entry.num_images
    ]


def percent(share: float | None) -> str:
    """0..1 as a number in percent."""
    return "" if share is None else f"{100 * share:.2f}"


def _pairs(report: EvalReport) -> list[tuple[str, str]]:
    analysis, source = report.analysis, report.members[0].source
    rows = [
        ("samples, views of each", f"{analysis.num_samples:,}, {report.num_views}"),
        ("top-1 error", f"{percent(analysis.top1_error)} %   (accuracy {100 * (1 - analysis.top1_error):.2f} %)"),
        ("top-5 error", f"{percent(analysis.top5_error)} %   (accuracy {100 * (1 - analysis.top5_error):.2f} %)"),
        ("loss", f"{analysis.loss:.4f} nats"),
    ]
    if "step" in source:
        rows.append(("trained for", f"{source['epoch']} epochs, {source['step']:,} steps"))
    if "device" in source:
        rows.append(("device, loader", f"{source['device']}, {source['backend']}"))
    return rows
