"""`lmdali doctor`: what is shown and when, the exit code, and a real trial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from lmdali.pipeline.errors import IntegrityError
from lmdali.tools import cli as cli_module
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


def test_records_that_read_back_otherwise_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = SimpleNamespace(problems=["shard 00000: record 3"])
    monkeypatch.setattr(trial, "verify_dataset", lambda dataset, quiet: damaged)
    (finding,) = trial.trial_findings()
    assert (finding.what, finding.verdict) == ("convert", "problem")
    assert finding.found == "IntegrityError: what was written reads back otherwise: shard 00000: record 3"


def test_an_epoch_without_a_record_is_a_problem(small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(list[Any]):
        num_samples = 3

    batches = Forgetful([SimpleNamespace(indices=torch.tensor([2, 0]))])
    monkeypatch.setattr("lmdali.pipeline.loader.create_loader", lambda *_, **__: nullcontext(batches))
    with pytest.raises(IntegrityError, match=r"an epoch of 3 samples delivered \[0, 2\]"):
        trial._load(small_jpeg_dataset)


def test_pixels_that_differ_are_a_problem(small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [SimpleNamespace(form="pixels", largest=0.0, mean=0.0, passed=True)]
    monkeypatch.setattr("lmdali.pipeline.parity.compare_backends", lambda *_, **__: iter(rows))
    assert trial._compare(small_jpeg_dataset, "dali", "cpu").startswith("the CPU's batches")
    rows.append(SimpleNamespace(form="floats", largest=90.0, mean=7.5, passed=False))
    with pytest.raises(IntegrityError, match=r"floats differ from the CPU's by 90 gray levels, 7.5 in mean"):
        trial._compare(small_jpeg_dataset, "dali", "cpu")


def test_without_torch_the_trial_is_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(trial, "import_module", missing)
    (finding,) = trial.trial_findings()
    assert (finding.what, finding.verdict) == ("convert", "ok")


def test_no_temporary_folder_is_a_problem_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prefix: str) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(trial, "TemporaryDirectory", refuse)
    (finding,) = trial.trial_findings()
    assert finding.verdict == "problem" and "TMPDIR" in finding.advice


BROKEN_PACKAGE = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == PACKAGE:
            raise ERROR
sys.meta_path.insert(0, Broken())
from lmdali.tools.cli import main
main()
"""


def with_broken(package: str, error: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a fresh process where a package that is installed cannot be imported."""
    script = BROKEN_PACKAGE.replace("PACKAGE", repr(package)).replace("ERROR", error)
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.parametrize(
    ("package", "error", "told"),
    [
        ("cv2", "ImportError('libGL.so.1: not found')", {"opencv-python-headless", "storage checks", "machine checks"}),
        ("pyarrow", "ImportError('undefined symbol')", {"pyarrow", "storage checks"}),
        ("numpy", "ImportError('numpy: not found')", {"numpy", "machine checks"}),  # cv2 prints what it thinks of it
        ("numba", "OSError('libllvmlite.so: not found')", {"compiled loops"}),
        ("torch", "OSError('libcudart.so: not found')", {"torch"}),
    ],
)
def test_it_runs_to_its_end_where_a_package_is_broken(package: str, error: str, told: set[str]) -> None:
    """It ended in a traceback, or as a disk's error, before it had said anything of that package."""
    done = with_broken(package, error, "doctor", "--no-trial", "--json")
    assert done.returncode == 8, done.stderr
    problems = [finding for finding in json.loads(done.stdout)["findings"] if finding["verdict"] == "problem"]
    assert told <= {finding["what"] for finding in problems}
    assert all("not found" in finding["found"] or "undefined" in finding["found"] for finding in problems)
    assert all(finding["advice"] for finding in problems)


@pytest.mark.parametrize(("package", "verb"), [("pyarrow", "info"), ("torch", "train")])
def test_other_verbs_send_there_whoever_has_a_broken_package(package: str, verb: str) -> None:
    done = with_broken(package, "OSError('x.so: not found')", verb, "--help")
    assert done.returncode == 8 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"lmdali {verb}: a package cannot be imported: OSError: x.so: not found: `lmdali doctor` says" in line


def test_a_mistake_of_ours_is_no_broken_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: str) -> None:
        raise ImportError("cannot import name 'x' from 'lmdali.tools.y'", name="lmdali.tools.y")

    monkeypatch.setattr(cli_module, "import_module", fail)
    with pytest.raises(ImportError, match="cannot import name"):
        cli(["info"], standalone_mode=False)


def test_it_runs_without_stderr() -> None:
    command = [sys.executable, "-c", "from lmdali.tools.cli import main; main()", "doctor", "--no-trial"]
    close = "import os, sys; os.close(2); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", close, *command], stdout=subprocess.PIPE, timeout=250, check=False)
    assert done.returncode == 0 and b"0 problems" in done.stdout


TERMINATED = """
import os, signal
from lmdali.tools import doctor, trial
from lmdali.tools.cli import main
doctor.all_checks = lambda *places, **options: {"trial": trial.trial_findings}
trial.convert = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGTERM)
main()
"""


def test_a_termination_leaves_no_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TERMINATED, "doctor", "--json"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "terminated\n")
    assert not list(tmp_path.glob("lmdali-doctor-*"))


def test_a_check_that_fails_ends_its_own_topic_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Iterator[Finding]:
        yield SOUND
        raise PermissionError(13, "Permission denied", "/proc/x")

    topics: Any = {"house": failing, "garden": lambda: iter([SOUND])}
    monkeypatch.setattr(doctor, "all_checks", lambda places, trial: topics)
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    house, failed, garden = json.loads(result.stdout)["findings"]
    assert (house["what"], garden["topic"], failed["what"]) == ("sky", "garden", "house checks")
    assert failed["verdict"] == "problem" and "PermissionError" in failed["found"]
