from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_files import codes_info

from lmdali.model.code_network import CodeNetwork
from lmdali.model.codes_file import EncoderInfo, load_codes, load_encoder, save_codes, save_encoder
from lmdali.model.hamming import pack_codes
from lmdali.pipeline.errors import InputError, IntegrityError
from lmdali.pipeline.files import seal, write_json

ENCODER = EncoderInfo(
    bits=5,
    dims=7,
    source="pixels",
    source_digest="pixels-32",
    features_digest="f" * 64,
    loss=0.5,
    config={"bits": 5},
)
CODES = codes_info(bits=70, num_records=9)
BITS = np.random.default_rng(0).random((9, 70)) < 0.5


def test_an_encoder_comes_back_as_it_was(tmp_path: Path) -> None:
    network = CodeNetwork(7, 5, seed=1).eval()
    saved = save_encoder(tmp_path / "e", network, ENCODER)
    loaded, info = load_encoder(tmp_path / "e")
    rows = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.bits(rows), network.bits(rows))
    assert info == saved and info.weights_sha256 and not loaded.training
    again = save_encoder(tmp_path / "again", network, ENCODER)
    assert again.weights_sha256 == saved.weights_sha256


def test_codes_come_back_as_they_were(tmp_path: Path) -> None:
    saved = save_codes(tmp_path / "c", BITS, CODES)
    codes = load_codes(tmp_path / "c")
    assert codes.info == saved.info
    assert (codes.words == pack_codes(BITS)).all()
    assert codes.words.shape == (2, 9) and isinstance(codes.words, np.memmap)


def test_damage_is_found(tmp_path: Path) -> None:
    save_codes(tmp_path / "c", BITS, CODES)
    save_encoder(tmp_path / "e", CodeNetwork(7, 5), ENCODER)
    for path, load in ((tmp_path / "c" / "codes.npy", load_codes), (tmp_path / "e" / "weights.npz", load_encoder)):
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        with pytest.raises(IntegrityError, match="damaged or replaced"):
            load(path.parent)
        path.unlink()
        with pytest.raises(IntegrityError, match="holds nothing"):
            load(path.parent)
    description = tmp_path / "c" / "codes.json"
    description.write_text(description.read_text().replace('"bits": 70', '"bits": 71'))
    with pytest.raises(IntegrityError, match="edited or damaged"):
        load_codes(tmp_path / "c")


def test_fields_that_are_missing_or_unknown_are_damage(tmp_path: Path) -> None:
    save_codes(tmp_path / "c", BITS, CODES)
    description = tmp_path / "c" / "codes.json"
    fields = {name: value for name, value in json.loads(description.read_text()).items() if name != "digest"}
    write_json(description, fields)  # as files of no seal are
    assert load_codes(tmp_path / "c").info.bits == 70
    for changed in ({**fields, "colour": 1}, {name: value for name, value in fields.items() if name != "bits"}):
        write_json(description, seal(changed))
        with pytest.raises(IntegrityError, match="missing or unknown"):
            load_codes(tmp_path / "c")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lmdali codes encode"):
        load_codes(tmp_path)
    with pytest.raises(InputError, match="lmdali codes train"):
        load_encoder(tmp_path)


def test_content_is_replaced_only_when_asked(tmp_path: Path) -> None:
    save_codes(tmp_path / "c", BITS, CODES)
    with pytest.raises(InputError, match="add --overwrite"):
        save_codes(tmp_path / "c", BITS, CODES)
    changed = save_codes(tmp_path / "c", ~BITS, CODES, overwrite=True)
    assert (changed.words == pack_codes(~BITS)).all()
    with pytest.raises(InputError, match="which does not belong there"):
        save_encoder(tmp_path / "c", CodeNetwork(7, 5), ENCODER, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a directory"):
        save_codes(tmp_path / "file", BITS, CODES, overwrite=True)
