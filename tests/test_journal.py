"""The metrics file: appended, cut where a checkpoint says, and read back."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lmdali.model.journal import Journal, read_metrics
from lmdali.pipeline.errors import InputError, IntegrityError


def line(step: int) -> dict[str, Any]:
    return {"kind": "step", "epoch": 0, "step": step, "loss": 1.5}


def test_lines_are_read_back_as_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in range(3):
        journal.write(line(step))
    journal.close()
    journal.close()
    assert read_metrics(journal.path) == [line(0), line(1), line(2)]


def test_resuming_cuts_off_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(line(0))
    known = journal.position_bytes()
    journal.write(line(1))
    journal.close()
    resumed = Journal(tmp_path, resume_bytes=known)
    resumed.write(line(7))
    resumed.close()
    assert read_metrics(journal.path) == [line(0), line(7)]
    assert resumed.shortfall_bytes == 0


def test_missing_earlier_lines_are_counted_not_filled_with_zeros(tmp_path: Path) -> None:
    journal = Journal(tmp_path, resume_bytes=1000)
    journal.write(line(3))
    journal.close()
    assert journal.shortfall_bytes == 1000
    assert read_metrics(journal.path) == [line(3)]


def test_without_resuming_the_file_starts_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        journal = Journal(tmp_path)
        journal.write(line(step))
        journal.close()
    assert read_metrics(journal.path) == [line(2)]


def test_a_last_line_cut_off_in_writing_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step"}\n{"kind": "st')
    assert read_metrics(path) == [{"kind": "step"}]


@pytest.mark.parametrize("damaged", ["{kind}", "[1]", "1", '{"loss": 1}'])
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind": "step"}}\n{damaged}\n')
    with pytest.raises(IntegrityError, match="line 2"):
        read_metrics(path)
    with pytest.raises(InputError, match="no such file"):
        read_metrics(tmp_path / "other.jsonl")


def test_nan_is_not_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        journal.write({**line(1), "loss": float("nan")})
    journal.close()


def test_numbers_go_to_tensorboard_under_their_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Writer:
        def __init__(self, directory: str, purge_step: int) -> None:
            self.directory, self.purge_step, self.scalars, self.closed = directory, purge_step, [], False
            made.append(self)

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.scalars.append((tag, value, step))

        def close(self) -> None:
            self.closed = True

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    journal = Journal(tmp_path, tensorboard=True, resume_bytes=0, resume_step=4)
    journal.write(line(5) | {"note": "text"})
    journal.close()
    assert made[0].purge_step == 5
    assert made[0].directory == str(tmp_path / "tensorboard")
    assert made[0].scalars == [("step/loss", 1.5, 5)]
    assert made[0].closed
