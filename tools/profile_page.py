"""`lmdali profile report`: profiles as one HTML page that needs no network and no program but a browser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.output_file import write_output
from lmdali.tools.fetch_figures import fetch_rows
from lmdali.tools.html_page import (
    KeyFigure,
    Section,
    Tone,
    bullets,
    callout,
    details,
    figure,
    heading,
    key_figures,
    page,
    pairs,
    paragraph,
    table,
)
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.profile_documents import (
    RANK_COLUMNS,
    load_profile,
    rank_rows,
    rank_words,
    rate_name,
    rate_rows,
    rates,
    spread_of,
)
from lmdali.tools.stage_parts import stage_parts
from lmdali.tools.svg_chart import Bar, Line, bar_chart, line_chart
from lmdali.tools.verdict import word_of

_TONES: dict[str | None, Tone] = {"COMPUTE-BOUND": "good", "BALANCED": "good", "INVALID": "bad", None: "plain"}
_SERIES = {"cold.loader": 2, "loader": 2, "model": 3, "together": 4}
"""Colours of the bars and lines; ceilings have the first and the last ones."""

_OVER_TIME = {"read": 1, "decode": 5, "augment": 6, "loader": 2, "model": 3, "together": 4}
"""Colours of what is followed over time: a line for each colour, and not for each rate."""

_ALL_ROUNDS = 20  # up to which every round has its number below the plot


def profile_page(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The page of one profile, or of several side by side and then one after the other.

    Args:
        reports: names and documents of `lmdali profile run --json`; at least one.
    """
    if not reports:
        raise ConfigError("a page needs at least one profile")
    versions = {document["machine"].get("packages", {}).get("lmdali", "?") for _, document in reports}
    footer = f"Written by lmdali profile report from measurements of lmdali {', '.join(sorted(versions))}."
    if len(reports) == 1:
        ((_, document),) = reports
        title = f"Profile of {document['setting'].get('dataset') or document['setting'].get('loader')}"
        return page(title, profile_sections(document), subtitle=_subtitle(document), footer=footer)
    sections = [Section(title="Side by side", body=_side_by_side(reports))]
    for name, document in reports:
        parts = [heading(part.title) + part.body for part in profile_sections(document)]
        sections.append(Section(title=name, body=paragraph(_subtitle(document)) + "".join(parts)))
    return page(f"{len(reports)} profiles", sections, footer=footer)


def profile_sections(document: Mapping[str, Any]) -> list[Section]:
    """What a page says of one profile, the outcome first."""
    found = rates(document)
    sections = [
        Section(title="Verdict", body=_verdict(document)),
        Section(title="Rates, each alone and then together", body=_ladder(document, found)),
    ]
    if stages := (document.get("loader") or {}).get("stage_seconds_per_image"):
        body = stage_parts(stages, document.get("inside"), document.get("dali_operators"), document.get("lock"))
        sections.append(Section(title="Inside the loader", body=body))
    if ranks := document.get("ranks"):
        body = table(RANK_COLUMNS, rank_rows(ranks["ranks"]), text_columns=2)
        sections.append(Section(title="Ranks", body=body + bullets(rank_words(ranks))))
    if figures := document.get("fetch"):
        sections.append(Section(title="Fetching", body=pairs(fetch_rows(figures))))
    if any(len(rate["per_window"]) > 1 for rate in found.values()):
        sections.append(Section(title="Over time", body=_windows(found)))
    if cases := document.get("what_if"):
        sections.append(Section(title="What if", body=_what_if(cases)))
    sections += [
        Section(title="Setting", body=pairs(_flat(document["setting"]))),
        Section(title="Machine", body=pairs(_flat(document["machine"]))),
        Section(title="Cautions", body=bullets(document.get("cautions") or ["none"])),
        Section(title="All numbers", body=details("Every field of the profile", pairs(_flat(document)))),
    ]
    return sections


def _subtitle(document: Mapping[str, Any]) -> str:
    setting, machine = document["setting"], document["machine"]
    device = machine.get("gpu") or f"{machine.get('num_cpus')} CPUs"
    records, threads = setting.get("num_samples"), setting.get("num_threads")
    facts = [
        "" if records is None else f"{records:,} {setting.get('encoding') or ''} records".replace("  ", " "),
        f"batch {setting['batch_size']}" if setting.get("batch_size") else "",
        f"{setting.get('backend') or 'unknown'} loader" + ("" if threads is None else f", {threads} threads"),
        f"{machine.get('cpu')}, {device}",
    ]
    return " · ".join(fact for fact in facts if fact)


def _verdict(document: Mapping[str, Any]) -> str:
    verdict = document["verdict"]
    box = callout(
        _word(verdict),
        [*_sentences(verdict), *_suggestion(document.get("suggestion"))],
        tone=_TONES.get(verdict.get("bound"), "warn"),
    )
    return box + key_figures(_key_figures(document))


def _word(verdict: Mapping[str, Any]) -> str:
    bound = verdict.get("bound")
    if verdict.get("rank") is not None:
        return f"{bound} rank {verdict['rank']}"
    return word_of(bound, verdict.get("stage")) or "No verdict without a model"


def _sentences(verdict: Mapping[str, Any]) -> list[str]:
    reason, advice = str(verdict.get("reason") or ""), verdict.get("advice")
    return [text for text in (_sentence(reason), advice and f"What to do: {advice}") if text]


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}." if words else ""


def _suggestion(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is not None:
        tried = found.get("measured_images_per_second")
        outcome = "not tried" if tried is None else f"measured {tried:,.0f}"
        yield (
            f"Try {found['option']}: {found['predicted_images_per_second']:,.0f} images/s predicted, "
            f"{found['baseline_images_per_second']:,.0f} now, {outcome}. {_sentence(found['why'])}"
        )


def _key_figures(document: Mapping[str, Any]) -> Iterator[KeyFigure]:
    stall = document["verdict"].get("data_stall")
    if stall is not None:
        yield KeyFigure(label="data stall", value=f"{stall:.0%}", note="of a step is input")
    for path, label in (("loader", "loader alone"), ("model", "model alone"), ("together", "both together")):
        if rate := document.get(path):
            note = f"images/s, ± {spread_of(rate):.0%}"
            yield KeyFigure(label=label, value=f"{rate['images_per_second']:,.0f}", note=note)
    first = document.get("time_to_first_batch_seconds")
    if first is not None:
        yield KeyFigure(label="first batch after", value=f"{first:.2f} s")
    gap = document.get("epoch_gap_seconds")
    if gap is not None:
        yield KeyFigure(label="epoch gap", value=f"{1e3 * gap:.0f} ms")


def _ladder(document: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> str:
    bars = [_rate_bar(rate_name(path), rate, _SERIES.get(path, 1)) for path, rate in found.items()]
    plot = bar_chart(bars, unit="images/s", description="Rates of the parts alone and together, images/s")
    caption = "Medians; whiskers from the slowest window to the fastest. Blue are the parts alone."
    columns = ("", "images/s", "spread", "MB/s", "of next ceiling", "of step time", "CPU ms/image")
    return figure(plot, caption) + table(columns, rate_rows(document))


def _rate_bar(label: str, rate: Mapping[str, Any], series: int) -> Bar:
    windows = rate["per_window"]
    return Bar(
        label=label,
        value=rate["images_per_second"],
        text=f"{rate['images_per_second']:,.0f}",
        low=min(windows),
        high=max(windows),
        series=series,
    )


def _windows(found: Mapping[str, Mapping[str, Any]]) -> str:
    followed = [path for path in found if path in _OVER_TIME] or list(found)[: len(_OVER_TIME)]
    lines = [
        Line(
            name=rate_name(path),
            points=_of_median(found[path]["per_window"]),
            series=_OVER_TIME.get(path),
        )
        for path in followed
    ]
    rounds = max(len(line.points) for line in lines)
    plot = line_chart(
        lines,
        x_label="round",
        y_label="% of its median",
        description="Rates of all windows over the rounds of the measurement, in percent of their median",
        x_ticks=range(1, rounds + 1) if rounds <= _ALL_ROUNDS else None,
    )
    caption = (
        "In a round each part is measured once, one after the other: lines that fall together show a machine that "
        "became slower, one that jumps alone shows noise."
    )
    return figure(plot, caption)


def _what_if(cases: Sequence[Mapping[str, Any]]) -> str:
    """Predictions in grey, beside what was measured."""
    now = cases[0]["baseline_images_per_second"]
    bars, words = [Bar(label="now, measured", value=now, text=f"{now:,.0f}", series=4)], []
    for case in cases:
        predicted, limit = case["predicted_images_per_second"], case.get("limit")
        if predicted is not None:
            bars.append(Bar(label=case["question"], value=predicted, text=f"{predicted:,.0f}", series=6))
        if predicted is None:
            reason = case.get("unknown")
            words.append(f"{case['question']}: not known" + (f": {reason}" if reason else ""))
        elif limit:
            bound = case.get("bound")
            words.append(f"{case['question']}: limited by {limit}" + (f", {bound}" if bound else ""))
    plot = bar_chart(bars, unit="images/s", description="Predicted rates, images/s", linear=True)
    caption = "Predicted from what the parts cost, and not measured."
    return figure(plot, caption) + (bullets(words) if words else "")


def _of_median(windows: Sequence[float]) -> list[tuple[float, float]]:
    """Rounds, from 1, and what each has of the median, %."""
    middle = median(windows)
    return [(number, 100 * window / middle) for number, window in enumerate(windows, 1)]


def _side_by_side(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    bars, rows = [], []
    for name, document in reports:
        cells = [name, _word(document["verdict"])]
        for path in ("loader", "model", "together"):
            rate = document.get(path)
            cells.append("" if rate is None else f"{rate['images_per_second']:,.0f}")
            if rate is not None and path != "model":
                bars.append(_rate_bar(f"{name}: {'loader' if path == 'loader' else 'step'}", rate, _SERIES[path]))
        stall = document["verdict"].get("data_stall")
        rows.append([*cells, "" if stall is None else f"{stall:.0%}"])
    plot = bar_chart(bars, unit="images/s", description="Rates of the loaders, and of training steps fed by them")
    columns = ("", "verdict", "loader, images/s", "model", "together", "data stall")
    caption = "Loaders alone, and training steps fed by them; whiskers from the slowest window to the fastest."
    return figure(plot, caption) + table(columns, rows, text_columns=2)


def _flat(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every number and word below a mapping, with its path; null is what was not measured."""
    for key, found in value.items():
        path = f"{prefix}{key}"
        if isinstance(found, Mapping):
            yield from _flat(found, f"{path}.")
        elif isinstance(found, list) and any(isinstance(item, Mapping) for item in found):
            yield from _flat(dict(enumerate(found)), f"{path}.")
        elif isinstance(found, list):
            yield path, ", ".join(map(_shown, found)) or "none"
        else:
            yield path, _shown(found)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


@click.command("report")
@click.argument("reports", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=OUTPUT_FILE, required=True, help="HTML file to write.")
def report_command(reports: tuple[Path, ...], out: Path) -> None:
    """Write one HTML page on REPORTS, files of `profile run --json`; several are also shown side by side.

    The page holds everything it shows: no network, no JavaScript, for screen (light and dark) and paper.
    """
    documents = [(path.stem, load_profile(path)) for path in reports]
    write_output(out, profile_page(documents).encode())
    print(out)
