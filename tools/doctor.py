"""`lmdali doctor`: what this machine and these packages can do, what will not work, and what to do about it."""

from __future__ import annotations

import faulthandler
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import asdict
from typing import Any

import click

from lmdali.pipeline.errors import MachineError
from lmdali.pipeline.release import lmdali_version
from lmdali.tools.exit_codes import one_line, termination_as_exception
from lmdali.tools.finding import Finding, Verdict, first_line
from lmdali.tools.package_checks import package_findings

Checks = Callable[[], Iterator[Finding]]

_COLOURS: dict[Verdict, str] = {"ok": "green", "note": "cyan", "caution": "yellow", "problem": "red"}
_WIDTH = 18
"""Columns of a thing's name; longer ones push the rest of their line."""


def all_checks(places: tuple[str, ...], *, trial: bool) -> dict[str, Checks]:
    """Topic -> checks, in the order in which they are run: what others need comes first.

    Only the packages' are imported with this file: it must run where one that all others need is broken.

    Args:
        places: datasets, or directories for some.
        trial: convert, load and train for a moment, too.
    """
    checks: dict[str, Checks] = {
        "packages": package_findings,
        "machine": _of_machine,
        "GPU": _of_gpus,
        "storage": lambda: _of_places(places),
    }
    return checks | ({"trial": _of_trial} if trial else {})


def _of_machine() -> Iterator[Finding]:
    from lmdali.tools.machine_checks import machine_findings

    return machine_findings()


def _of_gpus() -> Iterator[Finding]:
    from lmdali.tools.gpu_checks import gpu_findings

    return gpu_findings()


def _of_places(places: tuple[str, ...]) -> Iterator[Finding]:
    from lmdali.pipeline.dataset_place import parse_place
    from lmdali.tools.place_checks import cache_findings, place_findings

    yield from cache_findings()
    for place in places:
        yield from place_findings(parse_place(place))


def _of_trial() -> Iterator[Finding]:
    from lmdali.tools.trial import trial_findings

    return trial_findings()


def _to_the_end(topic: str, checks: Checks) -> Iterator[Finding]:
    """What the checks of a topic find; an error that ends them is a finding, too, and the next topic follows."""
    try:
        yield from checks()
    except Exception as error:  # of a broken package or an odd machine, which this program is there to show
        advice = "mend what is named here and above, and run it again"
        yield Finding(f"{topic} checks", f"ended early: {first_line(error)}", "problem", advice)


@click.command("doctor")
@click.argument("places", nargs=-1)
@click.option(
    "--trial/--no-trial",
    default=True,
    show_default=True,
    help="Also convert, load and train for a moment, on two dozen drawn pictures: some 10 s, and 20 s more where loops "
    "are compiled for the first time.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(places: tuple[str, ...], trial: bool, as_json: bool) -> None:
    """Say what this machine can do with lmdali, what will not work, and what to do about it.

    PLACES are datasets, their addresses, or directories to write datasets into. Each thing is ok, a note (worth
    knowing), a caution (works, but slower or in part) or a problem (some command will fail of it); a problem makes the
    exit code 8.
    """
    # A package that was built for another processor ends the program without a word; this says where.
    with suppress(OSError, RuntimeError):  # there is no stderr
        faulthandler.enable()
    show = (lambda line: None) if as_json else click.echo
    show(f"lmdali {lmdali_version()}, {platform.python_implementation()} {platform.python_version()}, {_system()}")
    findings: list[tuple[str, Finding]] = []
    # Packages say things when they are imported, broken ones above all; the document is to be alone.
    with termination_as_exception(), redirect_stdout(sys.stderr) if as_json else nullcontext():
        for topic, checks in all_checks(places, trial=trial).items():
            show(f"\n{topic}")
            for finding in _to_the_end(topic, checks):
                findings.append((topic, finding))
                _show(finding, show)
    counts = Counter(finding.verdict for _, finding in findings)
    if as_json:
        click.echo(json.dumps(_document(findings, counts)))
    show("\n" + ", ".join(_count(counts[verdict], verdict) for verdict in _COLOURS if verdict != "ok"))
    if counts["problem"]:
        first = next(finding for _, finding in findings if finding.verdict == "problem")
        number = _count(counts["problem"], "problem")
        raise MachineError(f"{number} found, the first: {first.what}: {first.found}: {first.advice}")


def _show(finding: Finding, show: Callable[[str], object]) -> None:
    """A line as soon as it is known, so that whoever is killed by the next check has said so much."""
    verdict = click.style(f"{finding.verdict:<8}", fg=_COLOURS[finding.verdict])
    show(f"  {verdict}{one_line(finding.what):<{_WIDTH}}  {one_line(finding.found)}")
    if finding.advice:
        show(f"{'':<{12 + _WIDTH}}-> {one_line(finding.advice)}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _document(findings: list[tuple[str, Finding]], counts: Counter[Verdict]) -> dict[str, Any]:
    return {
        "lmdali": lmdali_version(),
        "python": platform.python_version(),
        "system": _system(),
        "problems": counts["problem"],
        "cautions": counts["caution"],
        "notes": counts["note"],
        "findings": [{"topic": topic} | asdict(finding) for topic, finding in findings],
    }
