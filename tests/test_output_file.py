"""Files that a command writes under a name it was given: refused before the work, their folders made with them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import run

from lmdali.pipeline.errors import StorageError
from lmdali.pipeline.output_file import check_output_file, write_output
from lmdali.tools import pca
from lmdali.tools.cli import VERBS, cli
from lmdali.tools.output_argument import OutputDirectory, OutputFile

WRITING = [
    ("ablate", "--html"),
    ("audit", "--out"),
    ("audit", "--sheet"),
    ("codes compare", "--out"),
    ("eval", "--html"),
    ("eval", "--save-probabilities"),
    ("figure kernels", "--out"),
    ("figure neighbours", "--out"),
    ("figure predictions", "--out"),
    ("preview", "--out"),
    ("profile report", "--out"),
    ("profile run", "--trace"),
    ("profile sweep", "--html"),
    ("profile sweep", "--write"),
    ("report", "--out"),
]


def test_missing_folders_are_made_with_the_file_and_not_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "page.html"
    check_output_file(path)
    assert list(tmp_path.iterdir()) == []
    write_output(path, b"first")
    check_output_file(path)
    write_output(path, b"second")
    assert path.read_bytes() == b"second"
    assert [*path.parent.iterdir()] == [path]


def test_a_name_that_takes_no_file_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="is a directory: name a file in it"):
        check_output_file(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file is no directory"):
        check_output_file(tmp_path / "file" / "page.html")
    with pytest.raises(StorageError):
        write_output(tmp_path / "file" / "page.html", b"")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StorageError, match="disk is full"):
        check_output_file(tmp_path / "page.html")


def commands() -> Iterator[tuple[str, click.Command]]:
    with click.Context(cli) as context:
        for verb in VERBS:
            command = cli.get_command(context, verb)
            assert command is not None
            if isinstance(command, click.Group):
                yield from ((f"{verb} {name}", part) for name, part in command.commands.items())
            else:
                yield verb, command


def test_these_are_all_options_that_write_a_file() -> None:
    assert (
        sorted(
            (verb, option.opts[0])
            for verb, command in commands()
            for option in command.params
            if isinstance(option.type, OutputFile)
        )
        == WRITING
    )


@pytest.mark.parametrize(("verb", "option"), WRITING)
def test_every_verb_refuses_a_file_that_it_could_not_write_before_it_begins(
    verb: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(name: object) -> str:
        assert run(*verb.split(), option, name) == code
        captured = capsys.readouterr()
        assert captured.out == "" and list(tmp_path.iterdir()) == []
        return captured.err.replace("\n", " ")

    code = 4
    assert "StorageError" in (message := refused(tmp_path)) and "is a directory: name a file in it" in message
    code = 2
    assert "is an address, and this is written to a disk" in refused("s3://bucket/file.html")


def test_a_directory_for_statistics_is_refused_before_anything_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [
        (verb, option.opts[0])
        for verb, command in commands()
        for option in command.params
        if isinstance(option.type, OutputDirectory)
    ] == [("pca", "--out")]
    monkeypatch.setattr(pca, "count_moments", lambda *_, **__: pytest.fail("counted"))
    (tmp_path / "file").touch()
    assert run("pca", tmp_path, "--out", tmp_path / "file" / "statistics") == 4
    assert "file is no directory" in capsys.readouterr().err.replace("\n", " ")
    assert run("pca", tmp_path, "--out", tmp_path / "file") == 4
    assert run("pca", tmp_path, "--out", "s3://bucket/statistics") == 2
    assert "is an address, and this is written to a disk" in capsys.readouterr().err.replace("\n", " ")


def test_a_dataset_that_cannot_take_its_statistics_is_refused_before_they_are_counted(
    raw_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shutil.copytree(raw_dataset, tmp_path / "copy")
    (dataset / "statistics.json").unlink()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", refuse)
        patched.setattr(pca, "count_moments", lambda *_, **__: pytest.fail("counted"))
        assert run("pca", dataset, "--quiet") == 4
        assert "disk is full" in capsys.readouterr().err.replace("\n", " ")
    assert run("pca", dataset, "--out", tmp_path / "a" / "b", "--quiet") == 0
    assert (tmp_path / "a" / "b" / "statistics.json").exists() and not (dataset / "statistics.json").exists()
