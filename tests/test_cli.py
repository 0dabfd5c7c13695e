"""The program `lmdali`: its verbs, its exit codes, and the border between errors and the shell."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

from lmdali.pipeline import errors
from lmdali.tools import cli as cli_module
from lmdali.tools.cli import _SUMMARIES, VERBS, cli
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.convert import command as convert_command
from lmdali.tools.exit_codes import Terminated, run_command, termination_as_exception


def raising(error: BaseException) -> Any:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type)], ids=lambda kind: kind.__name__
)
def test_every_error_of_ours_ends_with_its_code_and_one_line(
    kind: type[errors.LmdaliError], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("numba", "train", "x") if kind is errors.MissingExtraError else ("a: two\nlines \x1b[31m",)
    assert run_command(raising(kind(*arguments))) == kind.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"lmdali: {kind.__name__}: ")
    assert line.isprintable()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (click.UsageError("no such thing"), 2, "Error: no such thing"),
        (click.BadParameter("bad"), 2, "Invalid value: bad"),
        (click.exceptions.Exit(0), 0, ""),
        (click.exceptions.Exit(5), 5, ""),
        (click.Abort(), 130, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (OSError(28, "No space left on device"), 4, "No space left on device"),
        (PermissionError(13, "Permission denied", "/x\udcff"), 4, "StorageError: /x\\udcff: Permission denied"),
    ],
)
def test_other_endings_have_their_codes(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error)) == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_a_bug_is_not_dressed_up_as_anything_else() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))


def test_success_is_zero() -> None:
    assert run_command(lambda: "whatever") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_unwinds_the_stack_and_the_handler_goes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    unwound = []
    with pytest.raises(Terminated), termination_as_exception():
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            unwound.append(True)
    assert unwound and signal.getsignal(number) is before


def test_help_names_every_verb_and_all_exit_codes() -> None:
    with click.Context(cli) as context:
        text = cli.get_help(context)
    assert list(_SUMMARIES) == list(VERBS)
    for verb, summary in _SUMMARIES.items():
        assert f"  {verb} " in text and summary in text
    for code in (1, 2, 3, 4, 5, 6, 7, 8, 9, 130, 143):
        assert f"{code}" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_command_with_help(verb: str) -> None:
    with click.Context(cli) as context:
        command = cli.get_command(context, verb)
    assert command is not None and command.help
    assert command is import_module(f"lmdali.tools.{VERBS[verb]}").command
    with click.Context(command, info_name=verb) as context:
        assert "Usage:" in command.get_help(context)


def test_a_verb_whose_packages_are_missing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'x'", name=name)

    monkeypatch.setattr("lmdali.tools.cli.import_module", lambda module: lacking("torch"))
    assert run_command(lambda: cli(["train", "--help"], standalone_mode=False)) == 8
    assert "lmdali train needs the package 'torch', which is not installed: pip install" in capsys.readouterr().err
    monkeypatch.setattr("lmdali.tools.cli.import_module", lambda module: lacking("lmdali.tools.nothing"))
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda: cli(["train", "--help"], standalone_mode=False))


def test_a_dataset_where_profile_expects_its_command_is_told_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, said in ((str(tmp_path), str(tmp_path)), ("https://ann:secret@host/set", "https://host/set")):
        assert run_command(lambda given=given: cli(["profile", given], standalone_mode=False)) == 2
        assert f"No such command '{said}'. Did you mean `lmdali profile run {said}`?" in capsys.readouterr().err
    assert run_command(lambda: cli(["profile", "fly"], standalone_mode=False)) == 2
    assert "profile run" not in capsys.readouterr().err


def test_an_unknown_verb_is_a_usage_error_and_a_near_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: cli(["fly"], standalone_mode=False)) == 2
    assert "No such command 'fly'.\n" in capsys.readouterr().err
    assert run_command(lambda: cli(["conver"], standalone_mode=False)) == 2
    assert "No such command 'conver'. Did you mean 'convert'?" in capsys.readouterr().err


def test_options_of_convert_are_the_fields_of_its_config_with_their_defaults() -> None:
    options = {parameter.name: parameter.default for parameter in convert_command.params}
    for field in fields(ConvertConfig):
        assert options[field.name] == field.default
    assert set(options) - {field.name for field in fields(ConvertConfig)} == {
        "source",
        "out",
        "source_format",
        "root",
        "follow_links",
        "classes",
        "allow_missing_classes",
        "devkit",
        "ground_truth",
        "patch",
        "split_half",
        "split",
        "image_column",
        "label_column",
        "workers",
        "executor_name",
        "scheduler",
        "time_limit",
        "memory_limit",
        "part",
        "scratch",
        "check_duplicates",
        "resume",
        "overwrite",
        "dry_run",
        "as_json",
        "quiet",
    }


def test_the_module_and_the_script_are_one_program() -> None:
    outputs = []
    for command in ([sys.executable, "-m", "lmdali.tools"], [os.path.join(os.path.dirname(sys.executable), "lmdali")]):  # noqa: PTH118, PTH120
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("lmdali, version ")


@pytest.mark.parametrize(("handler", "written"), [("strict", b"caf\\udce9\n"), ("surrogateescape", b"caf\xe9\n")])
def test_a_path_that_is_no_text_is_printed_all_the_same(
    handler: str, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=handler)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(cli_module, "cli", lambda **_: print("caf\udce9"))
    with pytest.raises(SystemExit, match="0"):
        cli_module.main()
    stdout.seek(0)
    assert stdout.buffer.read() == written


@pytest.mark.parametrize(
    ("category", "written"),
    [("NetworkDiskWarning", "lmdali: NetworkDiskWarning: a\\nb\n"), ("UserWarning", "<string>:3: UserWarning: a\nb\n")],
)
def test_a_warning_of_ours_is_one_line(category: str, written: str) -> None:
    script = f"""import warnings
from lmdali.pipeline.filesystem import NetworkDiskWarning
from lmdali.tools import cli; cli.cli = lambda **_: warnings.warn("a\\nb", {category}, stacklevel=1); cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", written)


@pytest.mark.parametrize("verb", [["cache", "ls", "--json"], ["doctor", "--no-trial"]])
def test_a_reader_of_the_output_that_has_left_is_no_error(verb: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "LMDALI_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", "from lmdali.tools.cli import main; main()", *verb]
    done = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, timeout=250, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
