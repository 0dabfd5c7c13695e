"""Encoders and codes on disk: JSON that says what they are, and plain NumPy files beside it.

ENCODER/encoder.json  weights.npz      an auto-encoder, by what features it was trained on
CODES/codes.json  codes.npy            (words, N) uint64, see hamming.py; mapped, not read
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.model.code_network import CodeNetwork
from lmdali.model.hamming import WORD_BITS, pack_codes
from lmdali.pipeline.errors import InputError, IntegrityError
from lmdali.pipeline.files import file_sha256, npy_bytes, read_sealed, seal, storage_errors, write_atomic, write_json
from lmdali.pipeline.path_kind import exists, is_dir, is_file

ENCODER_FILE, WEIGHTS_FILE = "encoder.json", "weights.npz"
CODES_FILE, WORDS_FILE = "codes.json", "codes.npy"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What an encoder is.

    Attributes:
        bits: length of its codes.
        dims: length of the features that it takes.
        source: what computes those features: a checkpoint's path, or "pixels".
        source_digest: identity of that.
        features_digest: of the features that it was trained on.
        loss: mean squared error of the last epoch; 1 is that of no code at all.
        config: `CodeConfig.to_json()`.
        weights_sha256: of its weights' file: the encoder's identity.
    """

    bits: int
    dims: int
    source: str
    source_digest: str
    features_digest: str
    loss: float
    config: dict[str, Any]
    weights_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class CodesInfo:
    """What a file of codes is.

    Attributes:
        bits: length of a code.
        num_records: records of the dataset, in whose order codes are.
        dataset: directory of the dataset.
        dataset_digest: its identity.
        image_size: side of the dataset's images, pixels.
        source: what computed the features: a checkpoint's path, or "pixels".
        source_digest: identity of that.
        encoder: directory of the encoder.
        encoder_digest: its identity.
        words_sha256: of the codes' file.
    """

    bits: int
    num_records: int
    dataset: str
    dataset_digest: str
    image_size: int
    source: str
    source_digest: str
    encoder: str
    encoder_digest: str
    words_sha256: str = ""


_Info = TypeVar("_Info", EncoderInfo, CodesInfo)


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of a dataset.

    Attributes:
        directory: where they are.
        info: what they are.
        words: `(words, N)` uint64, mapped.
    """

    directory: Path
    info: CodesInfo
    words: NDArray[np.uint64]


def save_encoder(directory: Path, network: CodeNetwork, info: EncoderInfo, *, overwrite: bool = False) -> EncoderInfo:
    """Write an encoder; returns `info` with the identity filled in.

    Raises:
        InputError: `directory` has content, and `overwrite` was not asked for.
        StorageError: it cannot be written.
    """
    require_room(directory, (ENCODER_FILE, WEIGHTS_FILE), overwrite=overwrite)
    content = io.BytesIO()
    np.savez(content, **{name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()})
    _replace(directory / WEIGHTS_FILE, content.getvalue(), directory / ENCODER_FILE)
    fields = {**asdict(info), "weights_sha256": file_sha256(directory / WEIGHTS_FILE)}
    write_json(directory / ENCODER_FILE, seal({"format": "lmdali-encoder", "version": _VERSION, **fields}))
    return EncoderInfo(**fields)


def load_encoder(directory: Path, device: torch.device | str = "cpu") -> tuple[CodeNetwork, EncoderInfo]:
    """Read an encoder; nothing in its files is executed.

    Raises:
        InputError: there is none.
        IntegrityError: it is damaged.
    """
    info = _read(directory, ENCODER_FILE, EncoderInfo, "lmdali-encoder", "`lmdali codes train`")
    path = directory / WEIGHTS_FILE
    _require_hash(path, info.weights_sha256)
    with np.load(path, allow_pickle=False) as stored:
        state = {name: torch.from_numpy(stored[name]) for name in stored.files}
    network = CodeNetwork(info.dims, info.bits)
    network.load_state_dict(state)
    return network.to(device).eval(), info


def save_codes(directory: Path, bits: NDArray[np.bool_], info: CodesInfo, *, overwrite: bool = False) -> Codes:
    """Write the codes of a dataset, `(N, bits)` bool.

    Raises:
        InputError: `directory` has content, and `overwrite` was not asked for.
        StorageError: it cannot be written.
    """
    require_room(directory, (CODES_FILE, WORDS_FILE), overwrite=overwrite)
    _replace(directory / WORDS_FILE, npy_bytes(pack_codes(bits)), directory / CODES_FILE)
    fields = {**asdict(info), "words_sha256": file_sha256(directory / WORDS_FILE)}
    write_json(directory / CODES_FILE, seal({"format": "lmdali-codes", "version": _VERSION, **fields}))
    return load_codes(directory)


def load_codes(directory: Path) -> Codes:
    """Map the codes of a dataset.

    Raises:
        InputError: there are none.
        IntegrityError: they are damaged.
    """
    info = _read(directory, CODES_FILE, CodesInfo, "lmdali-codes", "`lmdali codes encode`")
    path = directory / WORDS_FILE
    _require_hash(path, info.words_sha256)
    words = np.load(path, mmap_mode="r", allow_pickle=False)
    expected = (-(-info.bits // WORD_BITS), info.num_records)
    if words.shape != expected or words.dtype != np.uint64:
        raise IntegrityError(f"{path}: holds {words.shape} {words.dtype}, expected {expected} uint64: encode again")
    return Codes(directory, info, words)


def require_room(directory: Path, own: tuple[str, ...], *, overwrite: bool) -> None:
    """Refuse an output that has content of others, or of ours and may not be replaced.

    Raises:
        InputError: naming it.
    """
    if not exists(directory):
        return
    if not is_dir(directory):
        raise InputError(f"{directory}: exists and is not a directory: choose another output")
    names = sorted(path.name for path in directory.iterdir() if not path.name.endswith(".tmp"))
    foreign = [name for name in names if name not in own]
    if foreign:
        raise InputError(f"{directory}: holds {foreign[0]!r}, which does not belong there: choose another output")
    if names and not overwrite:
        raise InputError(f"{directory}: already holds {names[0]}: add --overwrite, or choose another output")


def _replace(path: Path, payload: bytes, description: Path) -> None:
    """Write the content of a pair; the file that describes it is gone meanwhile, and is written last."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        description.unlink(missing_ok=True)
    write_atomic(path, payload)


def _read(directory: Path, name: str, kind: type[_Info], form: str, maker: str) -> _Info:
    path = directory / name
    if not is_file(path):
        raise InputError(f"{directory}: no {name} here: expected what {maker} makes")
    document = read_sealed(path)
    if (document.pop("format", None), document.pop("version", None)) != (form, _VERSION):
        raise InputError(f"{path}: not of version {_VERSION}: upgrade lmdali or make it again")
    document.pop("digest", None)
    try:
        return kind(**document)
    except TypeError as error:
        raise IntegrityError(f"{path}: a field is missing or unknown ({error}): make it again") from error


def _require_hash(path: Path, sha256: str) -> None:
    with storage_errors(path):
        found = file_sha256(path) if is_file(path) else "nothing"
    if found != sha256:
        raise IntegrityError(f"{path}: holds {found[:12]}, expected {sha256[:12]}: damaged or replaced, make it again")
