"""Caffe LMDBs as sources: encoded and raw records, labels, damage; and datasets of ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
from command_line import run

from lmdali.pipeline.errors import InputError, ShardError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.records import pack_record
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.table_reader import read_rows
from lmdali.tools.caffe_lmdb import looks_like_lmdb
from lmdali.tools.sources import Source, open_source


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def datum(
    data: bytes, label: int | None, shape: tuple[int, int, int], *, encoded: bool | None, extra: bytes = b""
) -> bytes:
    """A `Datum` as Caffe's tools write it: `encoded` may be left out, and the label be absent."""
    channels, height, width = shape
    out = b"\x08" + varint(channels) + b"\x10" + varint(height) + b"\x18" + varint(width)
    out += b"\x22" + varint(len(data)) + data if data else b""
    out += b"" if label is None else b"\x28" + varint(label)
    return out + extra + (b"" if encoded is None else b"\x38" + varint(int(encoded)))


def write_lmdb(folder: Path, values: dict[bytes, bytes]) -> Path:
    version: dict[str, Any] = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}
    with lmdb.open(str(folder), map_size=1 << 26, **version) as environment, environment.begin(write=True) as write:
        for key, value in values.items():
            write.put(key, value)
    return folder


def jpeg(side: int, seed: int, *options: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    pixels = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", pixels, list(options))[1].tobytes()


def pixels_of(dataset: Path) -> list[np.ndarray[Any, Any]]:
    reader = ShardReader(dataset, load_manifest(dataset))
    return [
        reader.read(index, lambda record: decode_stored(record.data, reader.manifest.image_size).copy())
        for index in range(reader.manifest.num_records)
    ]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three classes: JPEGs, raw planes in colour and gray, and what cannot be an image."""
    planes = np.random.default_rng(0).integers(0, 256, (3, 32, 48), np.uint8)
    return write_lmdb(
        tmp_path / "caffe",
        {
            b"00000000_a.jpg": datum(jpeg(40, 1), 0, (3, 40, 40), encoded=True),
            b"00000001_b.jpg": datum(jpeg(40, 2), 2, (0, 0, 0), encoded=None),
            b"00000002_raw": datum(planes.tobytes(), 1, planes.shape, encoded=False),
            b"00000003_gray": datum(planes[:1].tobytes(), 1, (1, 32, 48), encoded=False),
            b"00000004_old": datum(planes.tobytes(), 2, planes.shape, encoded=None),
            b"00000005_ours.jpg": pack_record(jpeg(40, 3), label=0, height=40, width=40),
            b"00000006_four": datum(bytes(4 * 8 * 8), 0, (4, 8, 8), encoded=False),
            b"00000007_short": datum(bytes(100), 0, (3, 8, 8), encoded=False),
            b"00000008_float": datum(b"", 0, (3, 2, 2), encoded=False, extra=b"\x32" + varint(48) + bytes(48)),
            b"00000009_empty": datum(b"", 0, (0, 0, 0), encoded=True),
        },
    )


def reason(source: Source, index: int) -> Rejection:
    with pytest.raises(SourceRejected) as caught:
        source.read(source.entries[index])
    return caught.value.reason


def test_records_are_entries_in_the_order_of_keys(mixed: Path) -> None:
    source = open_source(mixed)
    assert source.kind == "caffe-lmdb" and source.class_names == ("0", "1", "2")
    assert [(entry.path.split("_")[1], entry.label) for entry in source.entries][:4] == [
        ("a.jpg", 0),
        ("b.jpg", 2),
        ("raw", 1),
        ("gray", 1),
    ]
    assert source.read(source.entries[0]) == jpeg(40, 1)
    assert source.read(source.entries[1]) == jpeg(40, 2)
    assert source.read(source.entries[5]) == jpeg(40, 3)
    assert open_source(mixed / "data.mdb").fingerprint == source.fingerprint


def test_raw_planes_become_image_files_of_the_same_pixels(mixed: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (3, 32, 48), np.uint8)
    source = open_source(mixed)
    for index in (2, 4):
        image = cv2.imdecode(np.frombuffer(source.read(source.entries[index]), np.uint8), cv2.IMREAD_COLOR)
        assert (image == planes.transpose(1, 2, 0)).all()  # both BGR
    gray = cv2.imdecode(np.frombuffer(source.read(source.entries[3]), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert (gray == planes[0]).all()


def test_what_is_no_image_is_rejected_by_name(mixed: Path) -> None:
    source = open_source(mixed)
    reasons = [reason(source, index) for index in (6, 7, 8, 9)]
    assert reasons == [Rejection.UNSUPPORTED, Rejection.CORRUPT, Rejection.UNSUPPORTED, Rejection.EMPTY]


def test_a_file_that_is_gone_changed_or_a_pipe_stops_the_run(mixed: Path, tmp_path: Path) -> None:
    source, file = open_source(mixed), mixed / "data.mdb"
    os.utime(file, ns=(0, 0))
    with pytest.raises(InputError, match=r"data\.mdb': changed after it was scanned"):
        source.read(source.entries[0])
    file.unlink()
    with pytest.raises(InputError, match=r"data\.mdb': cannot be opened \(No such file"):
        source.read(source.entries[0])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe': no regular file"):
        open_source(tmp_path / "pipe", "caffe-lmdb")


def test_labels_are_checked_against_the_class_list(mixed: Path, tmp_path: Path) -> None:
    assert open_source(mixed, classes=("x", "y", "z")).class_names == ("x", "y", "z")
    with pytest.raises(InputError, match=r"key '00000001_b.jpg': label 2 is too large; there are 2 classes"):
        open_source(mixed, classes=("x", "y"))
    unlabelled = write_lmdb(tmp_path / "unlabelled", {b"k": datum(jpeg(8, 1), None, (3, 8, 8), encoded=True)})
    with pytest.raises(InputError, match="key 'k': has no label"):
        open_source(unlabelled)


@pytest.mark.parametrize(("change", "message"), [("cut", "needs"), ("noise", "LMDB"), ("garbage", "not a Caffe Datum")])
def test_damaged_files_are_one_error_that_names_them(mixed: Path, tmp_path: Path, change: str, message: str) -> None:
    data = bytearray((mixed / "data.mdb").read_bytes())
    if change == "garbage":
        write_lmdb(tmp_path / "other", {b"key": b"\xff\xff not a datum"})
        data = bytearray((tmp_path / "other" / "data.mdb").read_bytes())
    (tmp_path / "damaged").mkdir()
    if change == "noise":
        data[:8192] = np.random.default_rng(0).bytes(8192)
    (tmp_path / "damaged" / "data.mdb").write_bytes(data[: len(data) // 2] if change == "cut" else data)
    with pytest.raises((InputError, ShardError), match=message) as caught:
        open_source(tmp_path / "damaged", "caffe-lmdb")
    assert "damaged" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_the_newer_engine_is_recognised_and_refused(tmp_path: Path) -> None:
    if int(lmdb.__version__.split(".")[0]) < 3:
        pytest.skip(f"lmdb {lmdb.__version__} cannot write format 3")
    with lmdb.open(str(tmp_path / "new"), lib_version=1) as environment, environment.begin(write=True) as write:
        write.put(b"a", b"b")
    assert looks_like_lmdb(tmp_path / "new")
    with pytest.raises(ShardError, match="only format 1"):
        open_source(tmp_path / "new")


def test_an_imported_lmdb_is_a_dataset_with_its_rejects(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("convert", mixed, out, "--size", 40, "--encoding", "raw", "-j", 1, "--quiet", "--max-bad", 1) == 0
    manifest = load_manifest(out)
    assert (manifest.num_records, manifest.num_rejected, manifest.class_counts) == (6, 4, (2, 2, 2))
    sources = {row["source"]: row["index"] for row in read_rows(out / "records.parquet")}
    stored = pixels_of(out)
    expected = cv2.imdecode(np.frombuffer(jpeg(40, 2), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert (stored[sources["00000001_b.jpg"]] == expected).all()


def test_planes_of_the_right_size_are_stored_without_any_loss_as_raw(tmp_path: Path) -> None:
    planes = {b"%08d" % n: np.random.default_rng(n).integers(0, 256, (3, 256, 256), np.uint8) for n in range(3)}
    values = {key: datum(pixels.tobytes(), 0, pixels.shape, encoded=False) for key, pixels in planes.items()}
    source = write_lmdb(tmp_path / "caffe", values)
    assert run("convert", source, tmp_path / "out", "--encoding", "raw", "-j", 1, "--quiet") == 0
    keys = [row["source"].encode() for row in read_rows(tmp_path / "out" / "records.parquet")]
    for key, pixels in zip(keys, pixels_of(tmp_path / "out"), strict=True):
        assert (pixels == planes[key][::-1].transpose(1, 2, 0)).all(), "BGR planes became RGB pixels"


@pytest.mark.parametrize("label_first", [True, False])
def test_the_label_is_found_wherever_it_lies_in_a_datum(tmp_path: Path, label_first: bool) -> None:
    label, data = b"\x28" + varint(300), b"\x22" + varint(len(image := jpeg(32, 1))) + image
    source = write_lmdb(tmp_path / "caffe", {b"a": label + data if label_first else data + label})
    (entry,) = open_source(source).entries
    assert entry.label == 300 and open_source(source).read(entry) == image


def test_jpegs_of_the_right_size_are_kept_byte_for_byte_when_asked(tmp_path: Path) -> None:
    """Also 4:4:4; progressive, gray, larger and turned ones are encoded again as ever."""
    full = [int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR), int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)]
    kept = {b"0_a.jpg": jpeg(64, 1), b"1_b.jpg": jpeg(64, 2, *full)}
    made = {b"2_c.jpg": jpeg(64, 3, int(cv2.IMWRITE_JPEG_PROGRESSIVE), 1), b"3_d.jpg": jpeg(80, 4)}
    values = {key: datum(data, 0, (3, 64, 64), encoded=True) for key, data in (kept | made).items()}
    source = write_lmdb(tmp_path / "caffe", values)
    options = ["--size", 64, "-j", 1, "--quiet"]
    assert run("convert", source, tmp_path / "kept", *options, "--reuse-jpeg") == 0
    assert run("convert", source, tmp_path / "made", *options) == 0
    reader = ShardReader(tmp_path / "kept", load_manifest(tmp_path / "kept"))
    for row in read_rows(tmp_path / "kept" / "records.parquet"):
        key = row["source"].encode()
        stored = reader.read(row["index"], lambda record: bytes(record.data))
        assert (stored == (kept | made)[key]) == ("kept" in row["oddities"]) == (key in kept)
    assert load_manifest(tmp_path / "kept").recipe["reuse_jpeg"] is True
    assert "reuse_jpeg" not in load_manifest(tmp_path / "made").recipe
    assert run("verify", tmp_path / "kept", "--quiet") == 0
    assert run("convert", source, tmp_path / "raw", *options, "--reuse-jpeg", "--encoding", "raw") == 2


def test_kept_records_are_read_by_the_loader_and_repaired(tmp_path: Path) -> None:
    from lmdali.pipeline.augment import AugmentConfig
    from lmdali.pipeline.loader import LoaderConfig, create_loader

    full = [int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR), int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)]
    files = {b"%d.jpg" % n: jpeg(256, n, *(full if n % 2 else [])) for n in range(4)}
    source = write_lmdb(
        tmp_path / "caffe", {key: datum(data, 0, (3, 256, 256), encoded=True) for key, data in files.items()}
    )
    dataset = tmp_path / "out"
    assert run("convert", source, dataset, "-j", 1, "--quiet", "--reuse-jpeg") == 0
    config = LoaderConfig(
        dataset=dataset,
        batch_size=4,
        order="sequential",
        dtype="uint8",
        layout="NHWC",
        augment=AugmentConfig(crop="center", flip=False, normalize="none", lighting="none"),
        backend="cpu",
    )
    with create_loader(config, device="cpu") as loader:
        images = next(iter(loader)).images.numpy()
    for image, whole in zip(images, pixels_of(dataset), strict=True):
        assert (image == whole[16:240, 16:240]).all()
    data_file = dataset / "shards" / "00000" / "data.mdb"
    before = data_file.read_bytes()
    data_file.write_bytes(before[:9000] + bytes([before[9000] ^ 1]) + before[9001:])
    assert run("verify", dataset, "--quiet") == 5
    assert run("repair", dataset, "--source", source, "--quiet") == 0
    assert data_file.read_bytes() == before


def test_a_dataset_of_ours_can_be_converted_again(small_jpeg_dataset: Path, make_dataset: Callable[..., Path]) -> None:
    source = open_source(small_jpeg_dataset)
    manifest = load_manifest(small_jpeg_dataset)
    assert source.class_names == manifest.class_names and source.class_counts == manifest.class_counts
    backwards = manifest.class_names[::-1]
    assert open_source(small_jpeg_dataset, classes=backwards).class_counts == manifest.class_counts[::-1]
