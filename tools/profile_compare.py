"""`lmdali profile compare`: two profiles side by side, with their noise, and limits that a program can enforce."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import click

from lmdali.pipeline.errors import ConfigError, InputError, ThresholdError
from lmdali.tools.profile_documents import (
    differences,
    load_profile,
    number_at,
    rate_name,
    rates,
    windows_at,
)
from lmdali.tools.rate_noise import CONFIDENCE, Interval, median_interval, quotient_interval
from lmdali.tools.report_table import print_json, print_pairs, print_table

_EXPRESSION = re.compile(
    r"\s*([A-Za-z_][\w.]*)\s*(<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(x?)\s*", re.IGNORECASE
)
_TEXT_COLUMNS, _LIMIT_COLUMNS = 74, 38


@dataclass(frozen=True)
class Limit:
    """A limit that fails the comparison.

    Attributes:
        expression: as it was written.
        path: of a number in the reports.
        operator: "<" or ">": what fails.
        bound: a number, or a multiple of the first report's.
        relative: which of the two.
    """

    expression: str
    path: str
    operator: str
    bound: float
    relative: bool

    @classmethod
    def parse(cls, expression: str) -> Limit:
        """Read "loader.images_per_second < 0.95x" or "verdict.data_stall > 0.1".

        Raises:
            ConfigError: it is written in another way.
        """
        found = _EXPRESSION.fullmatch(expression)
        if found is None:
            raise ConfigError(
                f"cannot read the limit {expression!r}: write FIELD < NUMBER or FIELD > NUMBER, with an x after the "
                "number for a multiple of A's, as in 'loader.images_per_second < 0.95x'"
            )
        path, operator, number, times = found.groups()
        return cls(expression.strip(), path, operator, float(number), bool(times))


@dataclass(frozen=True)
class Checked:
    """A limit and what was found.

    Attributes:
        expression: of the limit.
        found: B's number, or its quotient over A's, with its interval.
        bound: what it is compared with, in the same unit.
        met: whether the limit is kept.
        within_noise: whether noise alone could have decided the other way; None where noise is not known.
    """

    expression: str
    found: Interval
    bound: float
    met: bool
    within_noise: bool | None


@dataclass(frozen=True)
class Comparison:
    """Two reports side by side.

    Attributes:
        a: file of the first report.
        b: file of the second.
        rates: by path: A's and B's images/s, and B over A; None where one of them did not measure it.
        limits: in the order they were given.
        differences: between the reports, by kind and name.
        notes: what to keep in mind.
    """

    a: str
    b: str
    rates: dict[str, tuple[float | None, float | None, Interval | None]]
    limits: tuple[Checked, ...]
    differences: dict[str, dict[str, tuple[Any, Any]]]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """One JSON-able document."""
        named = {
            path: {"a": a, "b": b, "quotient": None if quotient is None else asdict(quotient)}
            for path, (a, b, quotient) in self.rates.items()
        }
        return {**asdict(self), "rates": named, "confidence": CONFIDENCE, "met": all(one.met for one in self.limits)}


def compare_profiles(
    first: Path, second: Path, limits: Sequence[Limit] = (), *, allow_different: bool = False
) -> Comparison:
    """Compare two reports of `lmdali profile run --json`.

    Args:
        first: what is compared with: A.
        second: what is judged: B.
        limits: that B must keep.
        allow_different: compare reports of different machines or datasets.

    Raises:
        ConfigError: a limit on something that reports do not have.
        InputError: not a report; another machine or dataset; a limit on something that was not measured.
        IntegrityError: a damaged file.
    """
    a, b = load_profile(first), load_profile(second)
    found = differences(a, b)
    foreign = {**found["machine"], **found["dataset"]}
    if foreign and not allow_different:
        raise InputError(
            f"{first} and {second} are of different {_kinds(found)}, so their rates say nothing about each other: "
            f"{_listed(foreign)} (compare all the same with --allow-different)"
        )
    rates_a, rates_b = rates(a), rates(b)
    return Comparison(
        a=str(first),
        b=str(second),
        rates={path: _side_by_side(rates_a.get(path), rates_b.get(path)) for path in {**rates_a, **rates_b}},
        limits=tuple(_check(limit, (a, str(first)), (b, str(second))) for limit in limits),
        differences=found,
        notes=tuple(_notes(a, b, _kinds(found) if foreign else "")),
    )


def _side_by_side(
    a: Mapping[str, Any] | None, b: Mapping[str, Any] | None
) -> tuple[float | None, float | None, Interval | None]:
    quotient = None if a is None or b is None else quotient_interval(b["per_window"], a["per_window"])
    medians = [None if rate is None else float(rate["images_per_second"]) for rate in (a, b)]
    return medians[0], medians[1], quotient


def _check(limit: Limit, a: tuple[Mapping[str, Any], str], b: tuple[Mapping[str, Any], str]) -> Checked:
    value = number_at(b[0], limit.path, b[1])
    interval = _absolute(b[0], limit.path, value)
    if limit.relative:
        base = number_at(a[0], limit.path, a[1])
        if base <= 0:
            raise InputError(f"{a[1]}: {limit.path} is {base:g}, and there is no multiple of that: give a number")
        interval = _relative(a[0], b[0], limit.path, value / base)
    failed = interval.value < limit.bound if limit.operator == "<" else interval.value > limit.bound
    return Checked(limit.expression, interval, limit.bound, not failed, interval.contains(limit.bound))


def _absolute(document: Mapping[str, Any], path: str, value: float) -> Interval:
    behind = windows_at(document, path)
    if behind is None:
        return Interval(value)
    noise = median_interval(behind[0])
    return _scaled(value, noise, inverse=behind[1])


def _relative(a: Mapping[str, Any], b: Mapping[str, Any], path: str, value: float) -> Interval:
    behind_a, behind_b = windows_at(a, path), windows_at(b, path)
    if behind_a is None or behind_b is None:
        return Interval(value)
    return _scaled(value, quotient_interval(behind_b[0], behind_a[0]), inverse=behind_b[1])


def _scaled(value: float, noise: Interval, *, inverse: bool) -> Interval:
    """The interval around a reported value that is as wide as that of its windows, turned round for a time."""
    if noise.low is None or noise.high is None or noise.low <= 0:
        return Interval(value)
    ends = (noise.low / noise.value, noise.high / noise.value)
    low, high = (1 / ends[1], 1 / ends[0]) if inverse else ends
    return Interval(value, value * low, value * high)


def _kinds(found: Mapping[str, Mapping[str, Any]]) -> str:
    return " and ".join(f"{kind}s" for kind in ("machine", "dataset") if found[kind])


def _listed(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} {_short(a)} and {_short(b)}" for name, (a, b) in pairs.items())


def _short(value: object) -> str:
    words = "unknown" if value is None else str(value)
    return words if len(words) <= 32 else f"{words[:16]}..."


def _notes(a: Mapping[str, Any], b: Mapping[str, Any], kinds: str) -> list[str]:
    notes = [f"these are different {kinds}: the rates say nothing about the programs"] if kinds else []
    owners: dict[str, list[str]] = {}
    for name, document in (("A", a), ("B", b)):
        verdict = document.get("verdict") or {}
        invalid = [f"INVALID: {verdict.get('reason')}"] if verdict.get("bound") == "INVALID" else []
        for note in [*invalid, *(document.get("cautions") or ())]:
            owners.setdefault(note, []).append(name)
    return notes + [f"{' and '.join(names)}: {note}" for note, names in owners.items()]


def print_comparison(comparison: Comparison) -> None:
    """Tables of at most 100 columns on stdout."""
    reports = [("A", fill(comparison.a, _TEXT_COLUMNS)), ("B", fill(comparison.b, _TEXT_COLUMNS))]
    different = [(name, f"{_short(a)} in A, {_short(b)} in B") for name, (a, b) in _flat(comparison.differences)]
    notes = [("note", fill(note, _TEXT_COLUMNS)) for note in comparison.notes]
    print_pairs("profiles", [*reports, *different, *notes])
    rows = [
        (
            rate_name(path),
            *("not measured" if rate is None else f"{rate:,.0f}" for rate in (a, b)),
            "" if quotient is None else _percent(quotient),
        )
        for path, (a, b, quotient) in comparison.rates.items()
    ]
    print_table(f"images/s; change, and its interval of {100 * CONFIDENCE:.0f} %", ("", "A", "B", "change"), rows)
    if comparison.limits:
        outcomes = [(fill(one.expression, _LIMIT_COLUMNS), _found(one), _outcome(one)) for one in comparison.limits]
        print_table("limits: what must not be", ("", "found", "limit"), outcomes)


def _flat(found: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> list[tuple[str, tuple[Any, Any]]]:
    return [(name, pair) for kind in found.values() for name, pair in kind.items()]


def _percent(quotient: Interval) -> str:
    change = f"{quotient.value - 1:+.1%}"
    if quotient.low is None or quotient.high is None:
        return change
    return f"{change}  ({quotient.low - 1:+.1%} to {quotient.high - 1:+.1%})"


def _found(one: Checked) -> str:
    unit = "x" if one.expression.lower().endswith("x") else ""
    words = f"{one.found.value:,.4g}{unit}"
    if one.found.low is not None and one.found.high is not None:
        words += f" ({one.found.low:,.4g} to {one.found.high:,.4g})"
    return words


def _outcome(one: Checked) -> str:
    noise = {None: ", noise not known", True: ", within noise", False: ""}[one.within_noise]
    return ("kept" if one.met else "BROKEN") + noise


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    metavar="LIMIT",
    help="Exit with 9 where this is so of B, as in 'loader.images_per_second < 0.95x' (x: times A's); may be repeated.",
)
@click.option("--beyond-noise", is_flag=True, help="Exit with 9 only where noise cannot explain it.")
@click.option("--allow-different", is_flag=True, help="Compare different machines or datasets.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def compare_command(
    a: Path, b: Path, fail_if: tuple[str, ...], beyond_noise: bool, allow_different: bool, as_json: bool
) -> None:
    """Compare profiles A and B, files of `profile run --json`, and hold B to limits.

    A limit is a path into the file, < or >, and a number, or a multiple of A's number: 'together.images_per_second <
    1000', 'verdict.data_stall > 0.1', 'loader.step_seconds > 1.05x'. The noise is that of the windows of each run; what
    changes between two runs of a program, it cannot know.
    """
    comparison = compare_profiles(a, b, [Limit.parse(text) for text in fail_if], allow_different=allow_different)
    if as_json:
        print_json(comparison.to_json())
    else:
        print_comparison(comparison)
    failed = [one for one in comparison.limits if not one.met and not (beyond_noise and one.within_noise)]
    if failed:
        raise ThresholdError(
            f"{len(failed)} of {len(comparison.limits)} limits broken by B: "
            + "; ".join(f"{one.expression} (found {_found(one)}{_noisy(one)})" for one in failed)
        )


def _noisy(one: Checked) -> str:
    return ", within noise: measure for longer" if one.within_noise else ""
