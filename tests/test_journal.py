"""The metrics file: appended, cut where a checkpoint says, and read back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lmdali.model.journal import Journal, best_epoch, read_metrics
from lmdali.pipeline.errors import InputError, IntegrityError, LmdaliError


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


def test_lines_that_were_edited_since_are_told_from_later_ones_by_what_they_say(tmp_path: Path) -> None:
    """Cut at the length that the checkpoint knows, a line would be torn, and the next one written a part of it."""
    journal = Journal(tmp_path)
    epoch = {"kind": "epoch", "epoch": 0, "step": 2}
    lines = [line(1), line(2), epoch, {"kind": "step", "epoch": 1, "step": 3}, {"kind": "step", "epoch": 1, "step": 4}]
    for record in lines:
        journal.write(record)
        if record["step"] == 3:
            known = journal.position_bytes()
    journal.close()
    whole = journal.path.read_bytes()
    first = whole[: whole.index(b"\n") + 1]
    for edited, steps, lost in (
        (whole.replace(b"1.5", b'1.5, "note": "a word of mine"'), [1, 2, 2, 3], False),
        (whole.replace(b'"loss"', b'"L"'), [1, 2, 2, 3], True),
        (whole.removeprefix(first), [2, 2, 3], True),
        (whole[: known - 20], [1, 2, 2], True),  # its end is gone
    ):
        journal.path.write_bytes(edited)
        resumed = Journal(tmp_path, resume_bytes=known, resume_step=3, resume_epoch=1)
        resumed.write(line(9))
        resumed.close()
        assert [record["step"] for record in read_metrics(journal.path)] == [*steps, 9]
        assert (resumed.shortfall_bytes > 0) == lost
    # A line as long as the first later one was removed: the length is again a line's end.
    same = [{"kind": "step", "epoch": 0, "step": step} for step in (1, 2, 3)]
    rows = [json.dumps(record).encode() + b"\n" for record in same]
    journal.path.write_bytes(rows[1] + rows[2])
    Journal(tmp_path, resume_bytes=len(rows[0] + rows[1]), resume_step=2, resume_epoch=0).close()
    assert read_metrics(journal.path) == same[1:2]
    # Stopped behind the last step of an epoch, before it was validated: its line is to come again.
    journal.path.write_bytes(whole.replace(b"1.5", b"1.50"))
    Journal(tmp_path, resume_bytes=known, resume_step=2, resume_epoch=0).close()
    assert [record["kind"] for record in read_metrics(journal.path)] == ["step", "step"]


@pytest.mark.parametrize("damaged", [b'{"kind": "epoch", "epoch": 0, "step": 1, "val_loss": "low"}', b"a word of mine"])
def test_what_the_end_of_a_run_could_not_read_is_told_when_it_is_resumed(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(damaged + b"\n")
    with pytest.raises(LmdaliError, match=r"line 1: .*put it right, or remove the line"):
        Journal(tmp_path, resume_bytes=len(damaged) + 1, resume_step=1, resume_epoch=1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == damaged + b"\n"


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


@pytest.mark.parametrize(
    ("errors", "lowest", "best"),
    [
        ([0.5, 0.3, 0.4, 0.3], [0.5, 0.3, 0.3, 0.3], 1),
        ([0.5, 0.3, 0.9, 0.8, 0.85], [0.5, 0.3, 0.9, 0.8, 0.8], 3),  # another set from the third on
        ([0.5, 0.3, 0.9, 0.2, 0.6], [0.5, 0.3, 0.9, 0.2, 0.6], 4),  # and yet another for the last
        ([0.5, 0.3, 0.4], [None, None, None], 1),  # not known: all of them are of one set
    ],
)
def test_the_best_epoch_is_of_the_validation_set_that_the_run_has_now(
    errors: list[float], lowest: list[float | None], best: int
) -> None:
    epochs = [
        {"epoch": epoch, "val_top1_error": error, "best_top1_error": known}
        for epoch, (error, known) in enumerate(zip(errors, lowest, strict=True))
    ]
    assert best_epoch(epochs)["epoch"] == best


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
