"""What a profile found, as tables for people."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from textwrap import fill

from lmdali.tools.fetch_figures import fetch_rows
from lmdali.tools.lock_wait import lock_words
from lmdali.tools.profile_documents import (
    OPERATOR_COLUMNS,
    RANK_COLUMNS,
    RATE_WORDS,
    operator_rows,
    rank_rows,
    rank_words,
    rate_rows,
)
from lmdali.tools.report_table import megabytes, print_pairs, print_table
from lmdali.tools.suggestion import Suggestion
from lmdali.tools.throughput import Setting, ThroughputReport
from lmdali.tools.what_if import Prediction

_TEXT_COLUMNS = 74

_STAGE_WORDS = {
    "plan": "order and draws (consumer)",
    "fetch": "fetch: waiting for shards",
    "read": "read: find records",
    "verify": "verify: compare CRCs",
    "decode": "decode: JPEG to planes (Huffman, IDCT)",
    "augment": "augment: colour, crop, flip, normalise",
    "collate": "collate: a finished batch (consumer)",
    "copy": "copy: to the device (consumer)",
    "wait": "wait: the consumer in next()",
}
_DALI_WORDS = {"decode": "decode: waiting for DALI (consumer)", "copy": "copy: out of DALI (consumer)"}


def print_report(report: ThroughputReport) -> None:
    """Tables of at most 100 columns on stdout."""
    document = report.to_json()
    print_pairs(fill(f"profile of {report.setting.dataset}", _TEXT_COLUMNS), _setting(report))
    print_table(
        "rates, each alone and then together",
        ("", "images/s", "spread", "MB/s", "of next", "of step", "CPU ms/img"),
        rate_rows(document, partial(_rate_word, report)),
    )
    columns = ("stage", "ms/image", "of thread time", "p50 ms", "p90 ms", "p99 ms")
    print_table("inside the loader, alone; percentiles of single calls", columns, _stage_rows(report))
    if report.dali_operators is not None:
        rows = operator_rows(document["dali_operators"])
        print_table("inside DALI, by what each step adds to the graph", OPERATOR_COLUMNS, rows)
    if report.ranks is not None:
        title = f"{report.ranks.world_size} ranks; rates are images/s, above are those of rank 0"
        print_table(title, RANK_COLUMNS, rank_rows(document["ranks"]["ranks"]))
    print_pairs("verdict", _outcome(report))


def _setting(report: ThroughputReport) -> list[tuple[str, object]]:
    machine, setting = report.machine, report.setting
    memory = "" if machine["memory_bytes"] is None else f", {machine['memory_bytes'] / 1e9:.0f} GB"
    gpu = "" if machine["gpu"] is None else f", {machine['gpu']}"
    model = "none"
    if setting.model is not None:
        model = f"{setting.model}, {setting.num_parameters:,} parameters, {machine['torch_threads']} torch threads"
    pairs: list[tuple[str, object]] = [
        ("machine", f"{machine['cpu']}, {machine['num_cpus']} CPUs{memory}{gpu}"),
        *(_ours(setting) if setting.encoding is not None else _foreign(setting)),
        (
            "batch",
            f"{setting.batch_size} {setting.dtype} {setting.layout} on {setting.device}, "
            f"{'?' if setting.steps_per_epoch is None else setting.steps_per_epoch} an epoch",
        ),
        ("model", model),
    ]
    return [(name, fill(str(value), _TEXT_COLUMNS)) for name, value in pairs]


def _ours(setting: Setting) -> list[tuple[str, object]]:
    size = (setting.mean_record_bytes or 0) / 1e3
    return [
        ("dataset", f"{setting.num_samples:,} {setting.encoding} records, {size:.1f} kB each"),
        ("loader", f"{setting.backend} ({setting.backend_reason}), {setting.num_threads} threads"),
        ("", f"order {setting.order}, prefetch {setting.prefetch}, CRC {setting.verify}"),
        ("", f"{_sized('readahead', setting.readahead_bytes)}, {_sized('decoded cache', setting.decoded_cache_bytes)}"),
        ("images", setting.augment),
    ]


def _foreign(setting: Setting) -> list[tuple[str, object]]:
    samples = "" if setting.num_samples is None else f", {setting.num_samples:,} samples"
    workers = "" if setting.num_threads is None else f", {setting.num_threads} workers"
    return [("loader", f"{setting.backend}{samples}{workers}: not ours, ceilings are not known")]


def _sized(what: str, num_bytes: int | None) -> str:
    return f"{what} of {megabytes(num_bytes)}" if num_bytes else f"no {what}"


def _rate_word(report: ThroughputReport, path: str) -> str:
    """What a rate is called here: with the threads that it had, and whether its bytes came from memory."""
    word, threads = RATE_WORDS[path], report.setting.num_threads
    if path in ("decode", "augment"):
        word = f"{word}, {threads} thread{'' if threads == 1 else 's'}"
    if path in ("storage_sequential", "storage", "read_sequential", "read", "loader") and report.cache is not None:
        word += "" if report.cache.state is None else f", {report.cache.state}"
    return word


def _stage_rows(report: ThroughputReport) -> list[tuple[str, ...]]:
    stages = report.loader.stage_seconds_per_image
    words = _STAGE_WORDS | (_DALI_WORDS if report.setting.backend == "dali" else {})
    busy = sum(seconds for stage, seconds in stages.items() if seconds is not None and stage != "wait")
    rows: list[tuple[str, ...]] = []
    for stage, seconds in stages.items():
        if seconds is None:
            rows.append((words.get(stage, stage), "not timed", "", "", "", ""))
        else:
            share = "" if stage == "wait" else f"{seconds / busy:.0%}"
            calls = None if report.inside is None else report.inside.stages.get(stage)
            percentiles = ("", "", "") if calls is None else tuple(f"{1e3 * value:.2f}" for value in calls.percentiles)
            rows.append((words.get(stage, stage), f"{1e3 * seconds:.3f}", share, *percentiles))
    return rows


def _outcome(report: ThroughputReport) -> list[tuple[str, object]]:
    verdict = report.verdict
    pairs: list[tuple[str, object]] = [("verdict", verdict.word or "none without a model")]
    # Of several ranks, the first one's steps without the others: what it waits for is its own input then.
    fed = report.together if report.ranks is None else report.ranks.ranks[0].alone
    if verdict.data_stall is not None and fed is not None:
        pairs.append(
            # Not the model's own step beside it: a stall is told round by round, and medians may say something else.
            ("data stall", f"{verdict.data_stall:.0%}: of the {1e3 * fed.step_seconds:.1f} ms of a step, "
                           f"{1e3 * verdict.data_stall * fed.step_seconds:.1f} ms are input")
        )  # fmt: skip
    pairs.append(("first batch after", f"{report.time_to_first_batch_seconds:.2f} s"))
    if report.inside is not None and report.inside.queue is not None:
        queue = report.inside.queue
        text = f"{queue.mean_ready:.1f} of {queue.mean_started:.1f} batches ready when one was asked for, "
        pairs.append(("queue", f"{text}none in {queue.empty_share:.0%}"))
    if report.lock is not None:
        pairs.append(("Python's lock", fill(lock_words(asdict(report.lock)), _TEXT_COLUMNS)))
    if report.epoch_gap_seconds is not None:
        pairs.append(("gap between epochs", f"{1e3 * report.epoch_gap_seconds:.0f} ms"))
    if report.fetch is not None:
        pairs += fetch_rows(asdict(report.fetch))
    texts = [("why", verdict.reason), ("advice", verdict.advice), *_cache_rows(report)]
    if report.ranks is not None:
        texts += [("ranks", words) for words in rank_words(report.ranks.to_json())]
    if report.suggestion is not None:
        texts.append(("try", _suggested(report.suggestion)))
    if report.decode is not None:
        texts.append(
            ("libjpeg-turbo", "decodes whole images (simplejpeg); we skip what crops lack: over 100 % is right")
        )
    texts += [("what if", f"{case.question}: {_predicted(case)}") for case in report.what_if]
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


def _cache_rows(report: ThroughputReport) -> list[tuple[str, str]]:
    named = (
        ("cold", None if report.cold is None else report.cold.cache),
        ("cache" if report.cache is None else report.cache.state, report.cache),
    )
    return [
        (
            f"{name or 'cache'} run",
            f"{_percent(cache.resident_before)} of the pages in memory before, {_percent(cache.resident_after)} after; "
            + (
                "device bytes not told"
                if cache.device_bytes_per_image is None
                else f"{cache.device_bytes_per_image / 1e3:,.1f} kB an image from a device"
            ),
        )
        for name, cache in named
        if cache is not None
    ]


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _predicted(case: Prediction) -> str:
    now = f"now {case.baseline_images_per_second:,.0f}"
    if case.predicted_images_per_second is None:
        return f"not known: {case.unknown} ({now})"
    bound = f"limited by {case.limit}" + ("" if case.bound is None else f", {case.bound}")
    return f"predicted {case.predicted_images_per_second:,.0f} images/s, {bound} ({now}); not measured"
