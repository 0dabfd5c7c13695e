"""`lmdali doctor`: what this machine and these packages can do, what will not work, and what to do about it."""

from __future__ import annotations

import faulthandler
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

from lmdali.pipeline.dataset_place import Place
from lmdali.pipeline.errors import MachineError
from lmdali.pipeline.release import lmdali_version
from lmdali.pipeline.tables import printable
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.finding import Finding, Verdict
from lmdali.tools.gpu_checks import gpu_findings
from lmdali.tools.machine_checks import machine_findings
from lmdali.tools.package_checks import package_findings
from lmdali.tools.place_checks import cache_findings, place_findings
from lmdali.tools.report_table import print_json
from lmdali.tools.trial import trial_findings

Checks = Callable[[], Iterator[Finding]]

_COLOURS: dict[Verdict, str] = {"ok": "green", "note": "cyan", "caution": "yellow", "problem": "red"}
_WIDTH = 18
"""Columns of a thing's name; longer ones push the rest of their line."""


def all_checks(places: tuple[Place, ...], *, trial: bool) -> dict[str, Checks]:
    """Topic -> checks, in the order in which they are run: what others need comes first.

    Args:
        places: datasets, or directories for some.
        trial: convert, load and train for a moment, too.
    """
    checks: dict[str, Checks] = {
        "packages": package_findings,
        "machine": machine_findings,
        "GPU": gpu_findings,
        "storage": lambda: _of_places(places),
    }
    return checks | ({"trial": trial_findings} if trial else {})


def _of_places(places: tuple[Place, ...]) -> Iterator[Finding]:
    yield from cache_findings()
    for place in places:
        yield from place_findings(place)


@click.command("doctor")
@click.argument("places", nargs=-1, type=DATASET)
@click.option(
    "--trial/--no-trial",
    default=True,
    show_default=True,
    help="Also convert, load and train for a moment, on two dozen drawn pictures: some 10 s, and 20 s more where loops "
    "are compiled for the first time.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(places: tuple[Place, ...], trial: bool, as_json: bool) -> None:
    """Say what this machine can do with lmdali, what will not work, and what to do about it.

    PLACES are datasets, their addresses, or directories to write datasets into. Each thing is ok, a note (worth
    knowing), a caution (works, but slower or in part) or a problem (some command will fail of it); a problem makes the
    exit code 8.
    """
    # A package that was built for another processor ends the program without a word; this says where.
    with suppress(OSError):  # there is no stderr
        faulthandler.enable()
    show = (lambda line: None) if as_json else click.echo
    show(f"lmdali {lmdali_version()}, {platform.python_implementation()} {platform.python_version()}, "
         f"{platform.system()} {platform.release()} {platform.machine()}")  # fmt: skip
    findings: list[tuple[str, Finding]] = []
    for topic, checks in all_checks(places, trial=trial).items():
        show(f"\n{topic}")
        for finding in checks():
            findings.append((topic, finding))
            _show(finding, show)
    counts = Counter(finding.verdict for _, finding in findings)
    if as_json:
        print_json(_document(findings, counts))
    show("\n" + ", ".join(_count(counts[verdict], verdict) for verdict in _COLOURS if verdict != "ok"))
    if counts["problem"]:
        first = next(finding for _, finding in findings if finding.verdict == "problem")
        number = _count(counts["problem"], "problem")
        raise MachineError(f"{number} found, the first: {first.what}: {first.found}: {first.advice}")


def _show(finding: Finding, show: Callable[[str], object]) -> None:
    """A line as soon as it is known, so that whoever is killed by the next check has said so much."""
    verdict = click.style(f"{finding.verdict:<8}", fg=_COLOURS[finding.verdict])
    show(f"  {verdict}{printable(finding.what):<{_WIDTH}}  {printable(finding.found)}")
    if finding.advice:
        show(f"{'':<{12 + _WIDTH}}-> {printable(finding.advice)}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _document(findings: list[tuple[str, Finding]], counts: Counter[Verdict]) -> dict[str, Any]:
    return {
        "lmdali": lmdali_version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "problems": counts["problem"],
        "cautions": counts["caution"],
        "notes": counts["note"],
        "findings": [{"topic": topic} | asdict(finding) for topic, finding in findings],
    }
