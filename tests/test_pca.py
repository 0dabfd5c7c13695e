"""`lmdali pca`: exact whatever it reads from, ours or anybody's Caffe LMDB."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from command_line import run

from lmdali.pipeline.eigenbasis import MEAN_FILE, STATISTICS_FILE, load_eigenbasis
from lmdali.pipeline.errors import InputError, RecordError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.pca import angles_degrees, dataset_moments


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


def datum(data: bytes, label: int, *, encoded: bool, size: tuple[int, int]) -> bytes:
    """A Datum as Caffe's own convert_imageset writes it: no CRC of ours."""
    sizes = b"" if encoded else b"\x08\x03\x10" + varint(size[0]) + b"\x18" + varint(size[1])
    return sizes + b"\x22" + varint(len(data)) + data + b"\x28" + varint(label) + b"\x38" + bytes([encoded])


def caffe_lmdb(directory: Path, values: list[bytes]) -> Path:
    with lmdb.open(str(directory), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for number, value in enumerate(values):
            transaction.put(b"%08d_x/%d.JPEG" % (number, number), value)
    return directory


def test_stored_and_recomputed_statistics_are_the_same_bytes(jpeg_dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(jpeg_dataset, tmp_path / "copy")
    for name in (STATISTICS_FILE, MEAN_FILE):
        (copy / name).unlink()
    assert run("pca", copy, "--quiet") == 0
    for name in (STATISTICS_FILE, MEAN_FILE):
        assert (copy / name).read_bytes() == (jpeg_dataset / name).read_bytes()


def test_raw_dataset_and_plain_caffe_lmdb_of_the_same_pixels_agree(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(n).integers(0, 256, (20, 30, 3), np.uint8) for n in range(5)]
    planar_bgr = [datum(p[:, :, ::-1].transpose(2, 0, 1).tobytes(), 1, encoded=False, size=(20, 30)) for p in pictures]
    png = [cv2.imencode(".png", p[:, :, ::-1])[1].tobytes() for p in pictures]
    files = [datum(data, 2, encoded=True, size=(20, 30)) for data in png]
    raw, raw_digest = dataset_moments(caffe_lmdb(tmp_path / "raw", planar_bgr), quiet=True)
    untold = [value.removesuffix(b"\x38\x00") for value in planar_bgr]  # as older tools leave it
    older, _ = dataset_moments(caffe_lmdb(tmp_path / "older", untold), quiet=True)
    encoded, _ = dataset_moments(caffe_lmdb(tmp_path / "encoded", files), quiet=True)
    pixels = np.stack(pictures).reshape(-1, 3).astype(np.int64)
    assert raw_digest == ""
    assert raw.to_json() == encoded.to_json() == older.to_json()
    assert raw.sums.tolist() == pixels.sum(axis=0).tolist()
    assert raw.products.tolist() == (pixels.T @ pixels).tolist()
    assert raw.image_sums is not None
    assert np.array_equal(raw.image_sums, np.stack(pictures).astype(np.int64).sum(axis=0))


def test_images_of_different_sizes_leave_no_mean_image(tmp_path: Path) -> None:
    shapes = [(8, 8), (9, 8), (8, 8)]
    values = [datum(bytes(3 * h * w), 0, encoded=False, size=(h, w)) for h, w in shapes]
    moments, _ = dataset_moments(caffe_lmdb(tmp_path / "lmdb", values), quiet=True)
    assert moments.image_sums is None
    assert moments.num_pixels == 8 * 8 + 9 * 8 + 8 * 8


def test_several_datasets_are_merged_and_written_where_asked(
    jpeg_dataset: Path, raw_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pca", jpeg_dataset, raw_dataset, "--out", tmp_path / "both", "--json", "--quiet") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["moments"]["num_images"] == 2 * load_manifest(jpeg_dataset).num_records
    assert document["manifest_digest"] == ""
    basis = load_eigenbasis(tmp_path / "both")
    assert basis.eigenvalues.tolist() == document["eigenvalues"]
    assert document["angles_to_published_degrees"] == angles_degrees(basis).tolist()


def test_a_directory_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither a dataset .* nor an LMDB"):
        dataset_moments(tmp_path, quiet=True)
    assert run("pca", tmp_path) == 3
    with pytest.raises(InputError, match="nowhere: no such directory"):
        dataset_moments(tmp_path / "nowhere", quiet=True)


def test_a_datum_that_is_no_picture_is_named(tmp_path: Path) -> None:
    directory = caffe_lmdb(tmp_path / "lmdb", [datum(b"nothing", 0, encoded=True, size=(1, 1))])
    with pytest.raises(RecordError, match=r"00000000_x/0\.JPEG"):
        dataset_moments(directory, quiet=True)


def test_statistics_of_another_dataset_are_not_taken(jpeg_dataset: Path, raw_dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(jpeg_dataset, tmp_path / "copy")
    for name in (STATISTICS_FILE, MEAN_FILE):
        shutil.copy(raw_dataset / name, copy / name)
    with pytest.raises(InputError, match="belongs to another dataset"):
        dataset_moments(copy, quiet=True)
    with pytest.raises(InputError, match="its statistics are of another dataset: run `lmdali pca --recompute` on it"):
        create_loader(LoaderConfig(dataset=copy, batch_size=4))
    with create_loader(LoaderConfig(dataset=copy, batch_size=4, basis=raw_dataset)) as loader:  # said on purpose
        assert len(loader) == 15


def test_the_table_shows_the_published_constants(jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pca", jpeg_dataset) == 0
    out = capsys.readouterr().out
    assert "0.2175" in out
    assert "angle to published" in out
