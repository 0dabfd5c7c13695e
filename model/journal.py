"""The run's record: `metrics.jsonl`, which a resumed run continues without a gap or a repeat, and TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from lmdali.pipeline.errors import InputError, IntegrityError, MissingExtraError
from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.json_keys import require_keys
from lmdali.pipeline.path_kind import exists, is_file

METRICS_FILE = "metrics.jsonl"
EPOCH_FIGURES = (
    "lr",
    *(f"{part}_{name}" for part in ("train", "val") for name in ("loss", "top1_error", "top5_error")),
)
"""Of an epoch's line, the numbers that curves are drawn of."""
_EPOCH_KEYS = {
    **dict.fromkeys(("epoch", "step"), "a whole number"),
    **dict.fromkeys((*EPOCH_FIGURES, "best_top1_error"), "a number or null or nothing"),
}


class _ScalarWriter(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def close(self) -> None: ...


class Journal:
    """Appends one JSON object per line; every line has `kind`, `epoch` and `step`.

    Kinds are `step`, `epoch`, `warning` (with its name and text) and `failure`.

    Args:
        run_dir: existing directory; the file is `metrics.jsonl` in it.
        resume_bytes: length of the part that a checkpoint knows of. What follows was written by steps that will be
            taken again, and is cut off. None starts a new file. Where lines of that part were edited since, and the
            length is no line's end any more, the lines say themselves which of them are of earlier steps.
        tensorboard: write the same numbers as TensorBoard events below `run_dir/tensorboard`.
        resume_step: the step that the run continues after.
        resume_epoch: the epoch that it continues in.

    Raises:
        MissingExtraError: TensorBoard was asked for and is not installed.
        InputError: the line of an epoch has no number where one belongs: better now than when the curve is drawn.
        IntegrityError: another line is not a JSON object with a `kind`.
        StorageError: the file cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        resume_bytes: int | None = None,
        tensorboard: bool = False,
        resume_step: int = 0,
        resume_epoch: int = 0,
    ) -> None:
        self.path = run_dir / METRICS_FILE
        self.shortfall_bytes = 0
        kept = b""
        if resume_bytes is not None and exists(self.path):
            with storage_errors(self.path):
                kept = _earlier_part(self.path.read_bytes(), resume_bytes, resume_step, resume_epoch)
            _parsed(kept, self.path)
        self._scalars = _open_tensorboard(run_dir, resume_step) if tensorboard else None
        with storage_errors(self.path):
            self._file = self.path.open("wb" if resume_bytes is None else "ab")
            if resume_bytes is not None:
                self.shortfall_bytes = max(0, resume_bytes - len(kept))
                os.truncate(self.path, len(kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; numbers also go to TensorBoard under `kind/name`.

        Raises:
            StorageError: the disk is full or failed.
        """
        with storage_errors(self.path):
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
        if self._scalars is not None:
            for name, value in record.items():
                if isinstance(value, int | float) and name not in ("step", "epoch"):
                    self._scalars.add_scalar(f"{record['kind']}/{name}", float(value), int(record["step"]))

    def position_bytes(self) -> int:
        """Length of the file, once all of it is on the disk: what a checkpoint keeps."""
        with storage_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close both files; may be called twice."""
        self._file.close()
        if self._scalars is not None:
            self._scalars.close()
            self._scalars = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a `metrics.jsonl`; a last line that was cut off in writing is left out.

    Raises:
        InputError: there is no such file, or the line of an epoch has no number where one belongs.
        IntegrityError: another line is not a JSON object with a `kind`.
    """
    if not is_file(path):
        raise InputError(f"{path}: no such file: give a run directory with a {METRICS_FILE}")
    with storage_errors(path):
        payload = path.read_bytes()
    return _parsed(payload, path)


def best_epoch(epochs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of a run's epochs, one or more, that with the lowest validation error, as its checkpoints know it.

    Where the run went on with another validation set the lowest error began anew, and so rose from one line to the
    next; what was measured before says nothing of the set that it has now.
    """
    begin, known = 0, [record.get("best_top1_error") for record in epochs]
    for number, (before, after) in enumerate(pairwise(known), start=1):
        if before is not None and after is not None and after > before:
            begin = number
    return min(epochs[begin:], key=lambda record: record["val_top1_error"])


def _parsed(payload: bytes, path: Path) -> list[dict[str, Any]]:
    cure = "put it right, or remove the line"
    records = []
    # What follows the last newline is empty or incomplete.
    for number, line in enumerate(payload.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise IntegrityError(f"{path}, line {number}: not JSON ({error}): edited or damaged: {cure}") from error
        if not isinstance(record, dict) or "kind" not in record:
            found = "no 'kind'" if isinstance(record, dict) else f"a {type(record).__name__}, expected an object"
            raise IntegrityError(
                f"{path}, line {number}: found {found}: edited, or not written by `lmdali train`: {cure}"
            )
        if record["kind"] == "epoch":
            require_keys(record, _EPOCH_KEYS, where=f"{path}, line {number}", cure=cure)
        records.append(record)
    return records


def _earlier_part(payload: bytes, known_bytes: int, step: int, epoch: int) -> bytes:
    """The lines that were there when a checkpoint was taken after `step`, in `epoch`, and `known_bytes` long."""
    known = payload[:known_bytes]
    is_whole = len(known) == known_bytes and (not known or known.endswith(b"\n"))
    if is_whole and not any(_is_later(line, step, epoch) for line in known.split(b"\n")):
        return known
    # Cut within a line, the next one written would be a part of it; cut behind a later one, that would be there twice.
    earlier = b""
    for line in payload.split(b"\n")[:-1]:
        if _is_later(line, step, epoch):
            break
        earlier += line + b"\n"
    return earlier


def _is_later(line: bytes, step: int, epoch: int) -> bool:
    try:
        record = json.loads(line)
        return bool(record["epoch"] >= epoch if record["kind"] == "epoch" else record["step"] > step)
    except (ValueError, KeyError, TypeError):
        return False  # no line of ours: whoever reads the file is told of it


def _open_tensorboard(run_dir: Path, resume_step: int) -> _ScalarWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("tensorboard", "tensorboard", "TensorBoard output") from None
    writer: _ScalarWriter = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)
    return writer
