"""Checkpoints: everything a run needs to go on, in one file that is whole or absent and proves it when read."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError, LockedError
from lmdali.pipeline.files import storage_errors, sync_directory, write_atomic
from lmdali.pipeline.path_kind import exists, is_dir, is_file

BEST_NAME = "best.pt"
_FORMAT = "lmdali-checkpoint"
_VERSION = 2
_STEP_NAME = re.compile(r"step-(\d{9,})\.pt")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run between two steps. All tensors are on the CPU once loaded.

    It does not depend on the devices and ranks that the run had: any others can go on from it.

    Attributes:
        model: weights and biases by name, in the one-device layout.
        velocities: the optimiser's momentum by the same names; none for parameters that were never updated.
        schedule: the schedule's state.
        progress: the trainer's position and sums, see `trainer.TrainState`.
        train_loader: the training loader's position, that of all ranks together.
        rng: of each rank, its generator states by device, `(n,)` uint8.
        model_config: `AlexNetConfig.to_json()`.
        train_config: `TrainConfig.to_json()`.
        loader_config: how the training images were made, as the caller described it.
        class_names: the position is the label.
        manifest_digest: identity of the training set.
        lmdali_version: the version that wrote it.
    """

    model: dict[str, Tensor]
    velocities: dict[str, Tensor]
    schedule: dict[str, Any]
    progress: dict[str, Any]
    train_loader: dict[str, Any]
    rng: tuple[dict[str, Tensor], ...]
    model_config: dict[str, Any]
    train_config: dict[str, Any]
    loader_config: dict[str, Any]
    class_names: tuple[str, ...]
    manifest_digest: str
    lmdali_version: str


def content_digest(value: Any) -> str:
    """sha256 of nested plain values and tensors: equal for equal content, on whatever device and in whatever file."""
    digest = hashlib.sha256()
    _feed(digest.update, value)
    return digest.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    if isinstance(value, Tensor):
        update(f"tensor {value.dtype} {tuple(value.shape)}:".encode())
        update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        update(f"dict {len(value)}:".encode())
        for key, item in value.items():
            _feed(update, key)
            _feed(update, item)
    elif isinstance(value, list | tuple):
        update(f"list {len(value)}:".encode())
        for item in value:
            _feed(update, item)
    elif value is None or isinstance(value, bool | int | float | str):
        text = repr(value).encode()
        update(f"{type(value).__name__} {len(text)}:".encode() + text)
    else:
        raise TypeError(f"a checkpoint holds plain values and tensors, not {type(value).__name__}")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write one checkpoint: aside, synced, renamed.

    Raises:
        StorageError: the disk is full or refuses; what was under `path` before is still there.
    """
    content = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    document = {"format": _FORMAT, "version": _VERSION, "digest": content_digest(content), "content": content}
    # Through memory, because torch reports a full disk as a RuntimeError that does not say so.
    buffer = io.BytesIO()
    torch.save(document, buffer)
    write_atomic(path, buffer.getvalue())


class CheckpointVersionError(InputError):
    """A checkpoint in a format that this version of lmdali does not read."""


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint; nothing in the file is executed.

    Raises:
        InputError: there is no such file, or it is not a checkpoint of lmdali.
        CheckpointVersionError: another version of lmdali wrote it.
        IntegrityError: it is truncated, or its content is not what was written.
        StorageError: it cannot be read.
    """
    if not is_file(path):
        raise InputError(
            f"{path}: no such checkpoint: give a checkpoint file, or a run directory; its {BEST_NAME} comes with the "
            "first finished epoch"
        )
    with storage_errors(path):
        payload = path.read_bytes()
    try:
        document = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Not in torch's words, which recommend to load it without this protection.
        raise InputError(
            f"{path}: refused: not a checkpoint, damaged, or with more in it than tensors and plain values; nothing of "
            "it was run: give a checkpoint of `lmdali train`"
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ValueError ... for damaged archives
        raise IntegrityError(
            f"{path}: not a readable checkpoint ({type(error).__name__}), damaged or truncated: use an earlier one"
        ) from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise InputError(f"{path}: a torch file, but not a checkpoint of lmdali: give one of `lmdali train`")
    if document.get("version") not in (1, _VERSION):
        raise CheckpointVersionError(
            f"{path}: checkpoint format {document.get('version')}, this lmdali reads 1 and {_VERSION}: "
            "use the version that wrote it"
        )
    try:
        whole = document["digest"] == content_digest(document["content"])
        fields = document["content"] if document["version"] == _VERSION else _from_version_1(document["content"])
        tuples = {name: tuple(fields[name]) for name in ("class_names", "rng")}
        checkpoint = Checkpoint(**fields | tuples)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise IntegrityError(f"{path}: a field is missing or of another kind ({error}): use an earlier one") from error
    if not whole:
        raise IntegrityError(f"{path}: the content differs from its digest, the file is damaged: use an earlier one")
    return checkpoint


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Fields of today: format 1 knew one rank, and counted parameters as its optimiser did, weights before biases."""
    fields = dict(content)
    optimizer, model = fields.pop("optimizer"), fields["model"]
    names = [name for name, weight in model.items() if weight.ndim >= 2]
    names += [name for name, weight in model.items() if weight.ndim < 2]
    velocities = {names[place]: state["velocity"] for place, state in optimizer["state"].items()}
    progress = {"lr": float(optimizer["param_groups"][0]["lr"]), **fields["progress"]}
    return fields | {"velocities": velocities, "progress": progress, "rng": (fields["rng"],)}


def require_same_run(
    checkpoint: Checkpoint, *, model_config: dict[str, Any], class_names: tuple[str, ...], manifest_digest: str
) -> None:
    """Refuse to continue another run's checkpoint.

    Raises:
        InputError: names every field that differs, with both values.
        ConfigError: the checkpoint's network has fields that this version does not know.
    """
    # Through the class: a checkpoint of an earlier version has no fields for what that version could not do.
    theirs = AlexNetConfig.from_json(checkpoint.model_config).to_json()
    differences = [
        f"{name} is {theirs[name]!r} in the checkpoint and {value!r} here"
        for name, value in model_config.items()
        if theirs[name] != value
    ]
    if checkpoint.class_names != class_names:
        found = class_difference(checkpoint.class_names, class_names, (" in the checkpoint", " here"))
        differences.append(f"class names: {found}")
    if checkpoint.manifest_digest != manifest_digest:
        differences.append(
            f"training set {checkpoint.manifest_digest[:12]} in the checkpoint and {manifest_digest[:12]} here"
        )
    if differences:
        raise InputError(
            f"the checkpoint is of another run: {'; '.join(differences)}. Use its settings or another run directory"
        )


def class_difference(one: Sequence[str], other: Sequence[str], places: tuple[str, str] = ("", "")) -> str:
    """In words, how class names differ: their numbers, or the first label that means two things.

    Args:
        one: names by label.
        other: names by label, not the same.
        places: what is said behind those of `one`, and of `other`.
    """
    here, there = places
    if len(one) != len(other):
        return f"{len(one)}{here} and {len(other)}{there}"
    label = next(label for label, (name, another) in enumerate(zip(one, other, strict=True)) if name != another)
    return f"label {label} is {one[label]!r}{here} and {other[label]!r}{there}"


class CheckpointDirectory:
    """`step-<nine digits>.pt` files of one run, the newest few, and `best.pt`.

    Args:
        directory: made when first written to.
        keep: newest checkpoints that are kept, at least 1; two or more survive damage to the newest.
    """

    def __init__(self, directory: Path, *, keep: int = 3) -> None:
        if keep < 1:
            raise ConfigError(f"at least one checkpoint must be kept, found {keep}")
        self.directory, self.keep = directory, keep
        self._seen: list[Path] | None = None

    def paths(self) -> list[Path]:
        """Checkpoints, oldest first, `best.pt` not among them."""
        if not is_dir(self.directory):
            return []
        found = ((_STEP_NAME.fullmatch(path.name), path) for path in self.directory.iterdir())
        return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]

    def candidates(self) -> list[Path]:
        """What a run can go on from, the newest last; before all others the best one, which may outlive them."""
        best = self.directory / BEST_NAME
        return [*([best] if exists(best) else []), *self.paths()]

    def save(self, checkpoint: Checkpoint, *, step: int, best: bool = False) -> Path:
        """Write the checkpoint of `step`, point `best.pt` to it if `best`, and remove those that are too many.

        Those of later steps go first: they are damaged, or this run would have gone on from them.
        """
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"step-{step:09d}.pt"
        save_checkpoint(path, checkpoint)
        paths = self.paths()
        for later in paths[paths.index(path) + 1 :]:
            later.unlink(missing_ok=True)
        self._arrange(path if best else None)
        return path

    def recover(self, best: Path | None) -> None:
        """Finish what a save did not come to when it was killed; nobody else may write here now.

        Args:
            best: the checkpoint that `best.pt` should be, where that is known.

        Raises:
            LockedError: somebody has written here since `latest` was called, whose steps the next save would remove.
        """
        seen, self._seen = self._seen, None
        if seen is not None and self.paths() != seen:
            raise LockedError(
                f"{self.directory}: another run has trained here since this one looked for a checkpoint: resume again, "
                "from its last one"
            )
        if is_dir(self.directory):
            for aside in self.directory.glob(".*.tmp"):
                aside.unlink(missing_ok=True)
            self._arrange(best)

    def latest(self, warn: Callable[[str], None]) -> tuple[Path, Checkpoint] | None:
        """The newest whole checkpoint, or else the best one, or None; `warn` is told each damaged one on the way.

        Raises:
            CheckpointVersionError: one on the way is another version's; to train on from an older one would remove it.
        """
        self._seen = self.paths()
        for path in reversed(self.candidates()):
            try:
                return path, load_checkpoint(path)
            except CheckpointVersionError:
                raise
            except (IntegrityError, InputError) as error:
                warn(f"checkpoint passed over: {error}")
        return None

    def _arrange(self, best: Path | None) -> None:
        if best is not None and not (exists(self.directory / BEST_NAME) and best.samefile(self.directory / BEST_NAME)):
            self._mark_best(best)
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)

    def _mark_best(self, path: Path) -> None:
        aside = self.directory / f".{BEST_NAME}.{secrets.token_hex(4)}.tmp"
        with storage_errors(self.directory / BEST_NAME):
            try:
                os.link(path, aside)
            except OSError:  # a file system without hard links
                write_atomic(self.directory / BEST_NAME, path.read_bytes())
                return
            aside.replace(self.directory / BEST_NAME)
            sync_directory(self.directory)
