"""A sweep for people: tables on stdout, and a page with the Pareto plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from textwrap import fill

from lmdali.tools.html_page import KeyFigure, Section, bullets, callout, figure, key_figures, page, pairs, table
from lmdali.tools.rate_noise import Interval
from lmdali.tools.report_table import print_pairs, print_table
from lmdali.tools.svg_chart import Bar, Line, bar_chart, line_chart
from lmdali.tools.sweep_report import AXES, SweepReport, SweptSetting

_TEXT_COLUMNS = 74
_FRONT_NOTE = "Pareto front: no other setting is as fast, as cheap in CPU time and as small, and better in one"
_LEGEND = "~ within noise of the fastest; * Pareto front; CPU ms for one image; of fastest: median over the rounds"
_MEMORY_NOTE = "memory that the process grew by, of 10^6 bytes; pages of the dataset's files are not counted"
_WORDS = {"num_threads": "threads", "batch_size": "batch"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def print_sweep(report: SweepReport) -> None:
    """Tables of at most 100 columns on stdout."""
    print_pairs("sweep", [(name, fill(words, _TEXT_COLUMNS)) for name, words in _facts(report)])
    # A page has room for the last column, a hundred columns have not.
    columns, rows = _columns(report)[:-1], [row[:-1] for row in _rows(report)]
    print_table("loaders alone, medians of windows in turn; CPU ms per image", columns, rows)
    notes = [*_outcome(report), *(("caution", caution) for caution in report.cautions)]
    print_pairs("outcome", [(name, fill(words, _TEXT_COLUMNS)) for name, words in notes])


def sweep_page(report: SweepReport) -> str:
    """One page: no network, no JavaScript."""
    best, facts = report.best, list(_facts(report))
    word = "No setting reaches the target" if best is None else _described(report, best)
    why = report.why()
    outcome = callout(word, [f"{why[:1].upper()}{why[1:]}."], tone="good" if best else "bad")
    if best is not None:
        outcome += key_figures(_key_figures(report, best))
    sections = [
        Section(title="Best", body=outcome),
        Section(title="Rate against cost", body=_cost_plots(report)),
        Section(title="Rates", body=_bars(report)),
        Section(title="All settings", body=table(_columns(report), _rows(report), caption=_LEGEND)),
        Section(title="Measured on", body=pairs(facts)),
        Section(title="Cautions", body=bullets(report.cautions or ("none",))),
    ]
    return page(
        f"Sweep of {len(report.settings)} loaders",
        sections,
        subtitle=" · ".join(_dataset_names(report).values()),
        footer="Written by lmdali profile sweep.",
    )


def _dataset_names(report: SweepReport) -> dict[str, str]:
    """A short name of each dataset: its encoding, after a letter where there are several."""
    encodings = {setting.dataset: setting.encoding for setting in report.settings}
    if len(encodings) == 1:
        return encodings
    return {dataset: f"{_letter(number)} {kind}" for number, (dataset, kind) in enumerate(encodings.items())}


def _letter(number: int) -> str:
    return _LETTERS[number] if number < len(_LETTERS) else f"{_LETTERS[number % 26]}{number // 26}"


def _swept(report: SweepReport) -> list[str]:
    """Axes with several values."""
    axes = [axis for axis in AXES if axis != "encoding"]
    return [axis for axis in axes if len({getattr(setting, axis) for setting in report.settings}) > 1]


def _facts(report: SweepReport) -> Iterator[tuple[str, str]]:
    machine, first = report.machine, report.settings[0]
    gpu = "" if machine["gpu"] is None else f", {machine['gpu']}"
    yield "machine", f"{machine['cpu']}, {machine['num_cpus']} CPUs{gpu}"
    for dataset, name in _dataset_names(report).items():
        yield f"dataset {name}", dataset
    fixed = [f"{_word(axis)} {_value(axis, first, {})}" for axis in AXES[2:] if axis not in _swept(report)]
    shared = report.shared
    form = f"{shared['dtype']} {shared['layout']}, order {shared['order'] or 'shuffled'}, verify {shared['verify']}"
    yield "all loaders", ", ".join([*fixed, form])
    yield "images", shared["augment"]
    windows = len(first.rate.per_window)
    yield "measured", f"{windows} windows of each in turn, {report.elapsed_seconds:.0f} s together"


def _word(axis: str) -> str:
    return _WORDS.get(axis, axis)


def _value(axis: str, setting: SweptSetting, names: dict[str, str]) -> str:
    found = getattr(setting, axis)
    return names[found] if axis == "dataset" else str(found)


def _described(report: SweepReport, setting: SweptSetting) -> str:
    """ "2 threads, prefetch 3", with everything that differs between settings."""
    names = _dataset_names(report)
    words = {"dataset": "{}", "num_threads": "{} thread" if setting.num_threads == 1 else "{} threads"}
    return ", ".join(
        words.get(axis, f"{_word(axis)} {{}}").format(_value(axis, setting, names)) for axis in _swept(report)
    )


def _short(report: SweepReport, setting: SweptSetting) -> str:
    """The same for a bar, beside which there is less room: options as they are typed."""
    names = {dataset: name.partition(" ")[0] for dataset, name in _dataset_names(report).items()}
    words = {"dataset": "{}", "num_threads": "-j {}", "batch_size": "-b {}"}
    return ", ".join(words.get(axis, f"{axis} {{}}").format(_value(axis, setting, names)) for axis in _swept(report))


def _columns(report: SweepReport) -> list[str]:
    axes = [_word(axis) for axis in _swept(report)]
    return ["", *axes, "images/s", "spread", "CPU ms", "MB", "", "of fastest"]


def _rows(report: SweepReport) -> list[tuple[str, ...]]:
    names, front = _dataset_names(report), report.front
    return [
        (
            str(number),
            *(_value(axis, setting, names) for axis in _swept(report)),
            f"{setting.rate.images_per_second:,.0f}",
            f"± {setting.rate.spread:.0%}",
            f"{1e3 * setting.rate.cpu_seconds_per_image:.3f}",
            "" if setting.resident_bytes is None else f"{setting.resident_bytes / 1e6:,.0f}",
            ("best" if setting is report.best else "~" if report.is_within_noise(setting) else "")
            + ("*" if setting in front else ""),
            _share(report.of_fastest(setting)),
        )
        for number, setting in enumerate(report.settings, 1)
    ]


def _share(found: Interval) -> str:
    ends = "" if found.low is None or found.high is None else f" ({found.low:.0%} to {found.high:.0%})"
    return f"{found.value:.0%}{ends}"


def _outcome(report: SweepReport) -> Iterator[tuple[str, str]]:
    best = report.best
    if best is not None:
        yield "best", f"{_described(report, best)}: {_figures(best)}"
    yield "why", report.why()
    yield "~", "within noise of the fastest"
    yield "*", _FRONT_NOTE
    yield "MB", _MEMORY_NOTE


def _figures(setting: SweptSetting) -> str:
    rate = setting.rate
    memory = "" if setting.resident_bytes is None else f", {setting.resident_bytes / 1e6:,.0f} MB"
    return f"{rate.images_per_second:,.0f} images/s, {1e3 * rate.cpu_seconds_per_image:.3f} ms CPU an image{memory}"


def _key_figures(report: SweepReport, best: SweptSetting) -> Iterator[KeyFigure]:
    rate = best.rate
    share = report.of_fastest(best).value
    yield KeyFigure(label="images/s", value=f"{rate.images_per_second:,.0f}", note=f"{share:.0%} of the fastest")
    yield KeyFigure(label="CPU time", value=f"{1e3 * rate.cpu_seconds_per_image:.3f} ms", note="per image")
    if best.resident_bytes is not None:
        yield KeyFigure(
            label="memory", value=f"{best.resident_bytes / 1e6:,.0f} MB", note="without the dataset's pages"
        )


def _cost_plots(report: SweepReport) -> str:
    note = f"Numbers are those of the table below. {_FRONT_NOTE}. Up and to the left is better."
    plots = figure(_scatter(report, "CPU time, ms per image", lambda one: 1e3 * one.rate.cpu_seconds_per_image), note)
    if any(setting.resident_bytes is None for setting in report.settings):
        return plots
    return plots + figure(_scatter(report, "memory, MB", lambda one: (one.resident_bytes or 0.0) / 1e6), _MEMORY_NOTE)


def _scatter(report: SweepReport, label: str, cost: Callable[[SweptSetting], float]) -> str:
    front, best = report.front, report.best
    numbers = {id(setting): str(number) for number, setting in enumerate(report.settings, 1)}
    kinds = {
        "other settings": (6, [each for each in report.settings if each not in front and each is not best]),
        "Pareto front": (1, [each for each in front if each is not best]),
        "best": (2, [] if best is None else [best]),
    }
    lines = [
        Line(
            name=name,
            points=[(cost(each), each.rate.images_per_second) for each in settings],
            series=series,
            joined=False,
            labels=[numbers[id(each)] for each in settings],
        )
        for name, (series, settings) in kinds.items()
        if settings
    ]
    description = f"Rate of each setting, images/s, against {label}"
    return line_chart(
        lines,
        x_label=label,
        y_label="images/s",
        description=description,
        from_zero=True,
        x_from_zero=True,
        height=340,
    )


def _bars(report: SweepReport) -> str:
    front, best = report.front, report.best
    bars = [
        Bar(
            label=f"{number}: {_short(report, setting)}",
            value=setting.rate.images_per_second,
            text=f"{setting.rate.images_per_second:,.0f}",
            low=setting.rate.low,
            high=setting.rate.high,
            series=2 if setting is best else 1 if setting in front else 6,
        )
        for number, setting in enumerate(report.settings, 1)
    ]
    plot = bar_chart(bars, unit="images/s", description="Rate of each setting, images/s", linear=True)
    caption = "Medians; whiskers from the slowest window to the fastest. Blue is the Pareto front, orange the best."
    return figure(plot, caption)
