"""`lmdali doctor`: what is shown and when, the exit code, and a real trial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lmdali.pipeline.errors import IntegrityError
from lmdali.tools import doctor, trial
from lmdali.tools.cli import cli
from lmdali.tools.exit_codes import run_command
from lmdali.tools.finding import Finding

SOUND = Finding("sky", "blue")
BROKEN = Finding("roof", "leaks", "problem", "mend it")


def with_checks(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    monkeypatch.setattr(doctor, "all_checks", lambda places, trial: {"house": lambda: iter(findings)})


def test_the_whole_of_it_on_this_machine(small_jpeg_dataset: Path) -> None:
    """A problem that it finds here would fail other tests, too."""
    result = CliRunner().invoke(cli, ["doctor", str(small_jpeg_dataset), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    found = {finding["what"]: finding for finding in document["findings"]}
    assert document["problems"] == 0
    assert found["convert"]["found"].startswith("22 of 24 pictures stored and read back, 2 broken ones set aside")
    assert found["load on cpu"]["found"].startswith("an epoch of 22 samples")
    assert "steps, loss 2." in found["train on cpu"]["found"]
    assert found[str(small_jpeg_dataset)]["topic"] == "storage"


def test_a_problem_makes_the_exit_code_8(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with_checks(monkeypatch, SOUND, BROKEN)
    assert run_command(lambda: cli(["doctor"], standalone_mode=False)) == 8
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "0 notes, 0 cautions, 1 problem"
    assert "roof: leaks: mend it" in err


def test_advice_stands_below_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_checks(monkeypatch, SOUND, Finding("wall", "damp", "note", "wait"))
    result = CliRunner().invoke(cli, ["doctor", "--no-trial"])
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    at = lines.index(["note", "wall", "damp"])
    assert lines[at - 1] == ["ok", "sky", "blue"] and lines[at + 1] == ["->", "wait"]


def test_lines_are_shown_as_they_become_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def checks() -> Iterator[Finding]:
        yield SOUND
        assert "blue" in capsys.readouterr().out
        yield BROKEN

    monkeypatch.setattr(doctor, "all_checks", lambda places, trial: {"house": checks})
    assert run_command(lambda: cli(["doctor"], standalone_mode=False)) == 8
    assert "leaks" in capsys.readouterr().out


def test_a_trial_is_left_out_where_none_is_wanted() -> None:
    assert "trial" not in doctor.all_checks((), trial=False)
    assert list(doctor.all_checks((), trial=True))[-1] == "trial"


def test_a_conversion_that_fails_ends_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise IntegrityError("shard 0 reads back otherwise\nand more")

    monkeypatch.setattr(trial, "convert", fail)
    (finding,) = trial.trial_findings()
    assert (finding.what, finding.verdict) == ("convert", "problem")
    assert finding.found == "IntegrityError: shard 0 reads back otherwise"


def test_without_torch_the_trial_is_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "installed_version", lambda package: None)
    (finding,) = trial.trial_findings()
    assert (finding.what, finding.verdict) == ("convert", "ok")


def test_no_temporary_folder_is_a_problem_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prefix: str) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(trial, "TemporaryDirectory", refuse)
    (finding,) = trial.trial_findings()
    assert finding.verdict == "problem" and "TMPDIR" in finding.advice
