"""`ThroughputReport`: everything a profile found, as data and as tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from textwrap import fill
from typing import Any

from lmdali.tools.measurement import Rate
from lmdali.tools.report_table import megabytes, print_pairs, print_table
from lmdali.tools.suggestion import Suggestion
from lmdali.tools.verdict import Verdict

SCHEMA_VERSION = 1

_TEXT_COLUMNS = 74

_STAGE_WORDS = {
    "plan": "order and draws (consumer)",
    "read": "read: find records",
    "verify": "verify: compare CRCs",
    "decode": "decode: JPEG to planes (Huffman, IDCT)",
    "augment": "augment: colour, crop, flip, normalise",
    "collate": "collate: a finished batch (consumer)",
    "copy": "copy: to the device (consumer)",
    "wait": "wait: the consumer in next()",
}
_DALI_WORDS = {"decode": "decode: waiting for DALI (consumer)", "copy": "copy: out of DALI (consumer)"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What was profiled. None is what a loader that is not ours does not tell.

    Attributes:
        dataset: directory, or MODULE:FUNCTION that made a loader.
        dataset_digest: identity of the dataset.
        num_samples: records.
        encoding: of the records, "jpeg" or "raw".
        mean_record_bytes: stored image bytes per record.
        batch_size: samples per step.
        steps_per_epoch: batches of an epoch.
        num_threads: of the loader; its worker processes where it is not ours.
        backend: that delivered the batches, or the class of a loader that is not ours.
        backend_reason: why it was taken.
        order: of the samples.
        prefetch: batches worked on ahead.
        verify: when CRCs are compared.
        decoded_cache_bytes: memory for decoded images.
        readahead_bytes: stored bytes asked of storage ahead of time.
        device: of the batches and the model.
        dtype: of the batches.
        layout: of the batches.
        model: class name, None without a model.
        num_parameters: of the model.
    """

    dataset: str
    dataset_digest: str | None
    num_samples: int | None
    encoding: str | None
    mean_record_bytes: float | None
    batch_size: int
    steps_per_epoch: int | None
    num_threads: int | None
    backend: str
    backend_reason: str
    order: str | None
    prefetch: int | None
    verify: str | None
    decoded_cache_bytes: int | None
    readahead_bytes: int | None
    device: str
    dtype: str
    layout: str
    model: str | None
    num_parameters: int | None


@dataclass(frozen=True, kw_only=True)
class ThroughputReport:
    """What `lmdali profile run` measured. None means not measured, never zero.

    Attributes:
        setting: what was profiled.
        read: storage alone: every byte copied once.
        decode: libjpeg-turbo (simplejpeg) alone, to whole RGB images, on all threads; None for raw records. Our decoder
            leaves out what a crop does not need, so a loader may be faster than this.
        decode_one_thread: the same on one thread.
        memory_copy: memcpy alone; None for JPEG records.
        loader: the loader alone.
        model: training steps on one cached batch.
        together: training steps fed by the loader.
        time_to_first_batch_seconds: from asking for a loader to its first batch.
        epoch_gap_seconds: median wait for the first batch of an epoch that follows another.
        verdict: what holds the run back, and what to do.
        suggestion: the setting to try next, with the rate that is predicted for it; None where none should help.
        machine: where this was measured.
        cautions: what limits these numbers.
    """

    setting: Setting
    read: Rate | None
    decode: Rate | None
    decode_one_thread: Rate | None
    memory_copy: Rate | None
    loader: Rate
    model: Rate | None
    together: Rate | None
    time_to_first_batch_seconds: float
    epoch_gap_seconds: float | None
    verdict: Verdict
    suggestion: Suggestion | None
    machine: dict[str, Any]
    cautions: tuple[str, ...] = ()

    @property
    def data_stall(self) -> float | None:
        """1 - ideal step / measured step, 0..1."""
        return self.verdict.data_stall

    def shares(self) -> dict[str, float | None]:
        """Each rate over the lowest ceiling above it, 0..1; None for what has no ceiling here."""
        parts = [rate for rate in (self.read, self.decode, self.memory_copy) if rate is not None]
        return {
            "loader": _share(self.loader, parts),
            "together": _share(self.together, [rate for rate in (self.loader, self.model) if rate is not None]),
        }

    def to_json(self) -> dict[str, Any]:
        """One JSON-able document."""
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "verdict": {**asdict(self.verdict), "word": self.verdict.word},
            "shares": self.shares(),
            "megabytes_per_second": {
                name: _stored_megabytes(rate, self.setting)
                for name, rate in (("read", self.read), ("loader", self.loader))
            },
        }


def print_report(report: ThroughputReport) -> None:
    """Tables of at most 100 columns on stdout."""
    print_pairs(f"profile of {report.setting.dataset}", _setting(report))
    print_table(
        "rates, each alone and then together",
        ("", "images/s", "spread", "MB/s", "share of ceiling", "CPU ms/image"),
        _rate_rows(report),
    )
    print_table("inside the loader, alone", ("stage", "ms/image", "of thread time"), _stage_rows(report))
    print_pairs("verdict", _outcome(report))


def _stored_megabytes(rate: Rate | None, setting: Setting) -> float | None:
    """MB/s of stored bytes; None where there is no rate, or nobody knows how large the records are."""
    if rate is None or setting.mean_record_bytes is None:
        return None
    return rate.images_per_second * setting.mean_record_bytes / 1e6


def _share(rate: Rate | None, ceilings: list[Rate]) -> float | None:
    if rate is None or not ceilings:
        return None
    return rate.images_per_second / min(ceiling.images_per_second for ceiling in ceilings)


def _setting(report: ThroughputReport) -> list[tuple[str, object]]:
    machine, setting = report.machine, report.setting
    memory = "" if machine["memory_bytes"] is None else f", {machine['memory_bytes'] / 1e9:.0f} GB"
    gpu = "" if machine["gpu"] is None else f", {machine['gpu']}"
    model = "none"
    if setting.model is not None:
        model = f"{setting.model}, {setting.num_parameters:,} parameters, {machine['torch_threads']} torch threads"
    return [
        ("machine", f"{machine['cpu']}, {machine['num_cpus']} CPUs{memory}{gpu}"),
        *(_ours(setting) if setting.encoding is not None else _foreign(setting)),
        (
            "batch",
            f"{setting.batch_size} {setting.dtype} {setting.layout} on {setting.device}, "
            f"{'?' if setting.steps_per_epoch is None else setting.steps_per_epoch} an epoch",
        ),
        ("model", model),
    ]


def _ours(setting: Setting) -> list[tuple[str, object]]:
    size = (setting.mean_record_bytes or 0) / 1e3
    return [
        ("dataset", f"{setting.num_samples:,} {setting.encoding} records, {size:.1f} kB each"),
        ("loader", f"{setting.backend} ({setting.backend_reason}), {setting.num_threads} threads"),
        ("", f"order {setting.order}, prefetch {setting.prefetch}, CRC {setting.verify}"),
        ("", f"{_sized('readahead', setting.readahead_bytes)}, {_sized('decoded cache', setting.decoded_cache_bytes)}"),
    ]


def _foreign(setting: Setting) -> list[tuple[str, object]]:
    samples = "" if setting.num_samples is None else f", {setting.num_samples:,} samples"
    workers = "" if setting.num_threads is None else f", {setting.num_threads} workers"
    return [("loader", f"{setting.backend}{samples}{workers}: not ours, ceilings are not known")]


def _sized(what: str, num_bytes: int | None) -> str:
    return f"{what} of {megabytes(num_bytes)}" if num_bytes else f"no {what}"


def _rate_rows(report: ThroughputReport) -> list[tuple[str, ...]]:
    shares = report.shares()
    named = (
        ("LMDB read", report.read, None, True),
        ("libjpeg-turbo, 1 thread", report.decode_one_thread, None, False),
        (f"libjpeg-turbo, {report.setting.num_threads} threads", report.decode, None, False),
        ("memory copy", report.memory_copy, None, False),
        ("loader", report.loader, shares["loader"], True),
        ("model on a cached batch", report.model, None, False),
        ("training step fed by the loader", report.together, shares["together"], False),
    )
    return [
        (
            name,
            f"{rate.images_per_second:,.0f}",
            f"± {rate.spread:.0%}",
            f"{moved:,.0f}" if moves_records and (moved := _stored_megabytes(rate, report.setting)) is not None else "",
            "" if share is None else f"{share:.0%}",
            f"{1e3 * rate.cpu_seconds_per_image:.3f}",
        )
        for name, rate, share, moves_records in named
        if rate is not None
    ]


def _stage_rows(report: ThroughputReport) -> list[tuple[str, ...]]:
    stages = report.loader.stage_seconds_per_image
    words = _STAGE_WORDS | (_DALI_WORDS if report.setting.backend == "dali" else {})
    busy = sum(seconds for stage, seconds in stages.items() if seconds is not None and stage != "wait")
    rows: list[tuple[str, ...]] = []
    for stage, seconds in stages.items():
        if seconds is None:
            rows.append((words.get(stage, stage), "not timed", ""))
        else:
            share = "" if stage == "wait" else f"{seconds / busy:.0%}"
            rows.append((words.get(stage, stage), f"{1e3 * seconds:.3f}", share))
    return rows


def _outcome(report: ThroughputReport) -> list[tuple[str, object]]:
    verdict = report.verdict
    pairs: list[tuple[str, object]] = [("verdict", verdict.word or "none without a model")]
    if verdict.data_stall is not None and report.model is not None and report.together is not None:
        pairs.append(
            ("data stall", f"{verdict.data_stall:.0%}: a step takes {1e3 * report.together.step_seconds:.1f} ms, "
                           f"{1e3 * report.model.step_seconds:.1f} ms with data for free")
        )  # fmt: skip
    pairs.append(("first batch after", f"{report.time_to_first_batch_seconds:.2f} s"))
    if report.epoch_gap_seconds is not None:
        pairs.append(("gap between epochs", f"{1e3 * report.epoch_gap_seconds:.0f} ms"))
    texts = [("why", verdict.reason), ("advice", verdict.advice)]
    if report.suggestion is not None:
        texts.append(("try", _suggested(report.suggestion)))
    if report.decode is not None:
        texts.append(
            ("libjpeg-turbo", "decodes whole images (simplejpeg); we skip what crops lack: over 100 % is right")
        )
    texts += [("caution", caution) for caution in report.cautions]
    return pairs + [(name, fill(text, _TEXT_COLUMNS)) for name, text in texts]


def _suggested(suggestion: Suggestion) -> str:
    text = (
        f"{suggestion.option}: predicted {suggestion.predicted_images_per_second:,.0f} images/s, "
        f"now {suggestion.baseline_images_per_second:,.0f} ({suggestion.why})"
    )
    if suggestion.measured_images_per_second is None:
        return f"{text}; --try measures it"
    return f"{text}; measured {suggestion.measured_images_per_second:,.0f}"
