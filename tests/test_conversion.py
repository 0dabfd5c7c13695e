"""From a source to shards, in this process."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.decode import decode_source
from lmdali.pipeline.eigenbasis import load_moments
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.perceptual_hash import HASH_KIND, picture_hash
from lmdali.pipeline.record_codec import decode_stored, encode_jpeg
from lmdali.pipeline.records import record_crc
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.shard_walk import iterate_lmdb
from lmdali.pipeline.table_reader import read_rows
from lmdali.pipeline.vectors import HAS_PAIR_SUMS
from lmdali.tools import conversion, resize
from lmdali.tools.area_filter import AreaFilter
from lmdali.tools.bicubic_filter import BicubicFilter
from lmdali.tools.conversion import ConvertConfig, convert_image, make_plan, shard_jobs
from lmdali.tools.resize import ResizeRecipe, resize_and_crop
from lmdali.tools.shard_making import make_shard
from lmdali.tools.sources import open_source


@pytest.mark.parametrize(
    "fields",
    [
        {"encoding": "webp"},
        {"quality": 0},
        {"quality": 101},
        {"shard_bytes": 10},
        {"max_bad": 1.5},
        {"max_bad": float("nan")},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ConvertConfig(**fields)


def test_impossible_sizes_and_orientations_are_refused_at_once() -> None:
    for size in (0, 5000):
        with pytest.raises(ConfigError, match="size"):
            ConvertConfig(size=size)
    with pytest.raises(ConfigError, match="orientation"):
        ConvertConfig(orientation="flip")  # type: ignore[arg-type]


def photo(photo_folder: Path) -> bytes:
    return (photo_folder / "apple" / "000.jpg").read_bytes()


def test_a_stored_jpeg_is_the_recipe_step_by_step(photo_folder: Path) -> None:
    data = photo(photo_folder)
    stored, pixels, source = convert_image(data, "000.jpg", ConvertConfig())
    by_hand = resize_and_crop(decode_source(data).pixels, ResizeRecipe(size=256))
    assert stored == encode_jpeg(by_hand, 95)
    assert (pixels == decode_stored(stored, 256)).all()
    assert (source.width, source.height) == decode_source(data).pixels.shape[1::-1]


def test_a_raw_record_is_the_resized_pixels_themselves(photo_folder: Path) -> None:
    data = photo(photo_folder)
    stored, pixels, _ = convert_image(data, "x", ConvertConfig(encoding="raw", size=64))
    assert stored.startswith(b"P6\n64 64\n255\n") and len(stored) == 13 + 64 * 64 * 3
    assert (pixels == resize_and_crop(decode_source(data).pixels, ResizeRecipe(size=64))).all()


def test_the_exif_orientation_is_followed_only_when_asked(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.fromarray(np.repeat(np.repeat(np.arange(0, 256, 4, np.uint8)[:, None, None], 64, 1), 3, 2))
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    image.save(tmp_path / "x.png", exif=exif)
    data = (tmp_path / "x.png").read_bytes()
    ignored = convert_image(data, "x.png", ConvertConfig(encoding="raw", size=64))[1]
    applied = convert_image(data, "x.png", ConvertConfig(encoding="raw", size=64, orientation="apply"))[1]
    assert (applied == np.rot90(ignored, -1)).all() and not (applied == ignored).all()


def test_a_broken_image_has_a_named_reason() -> None:
    with pytest.raises(SourceRejected) as caught:
        convert_image(b"", "x.jpg", ConvertConfig())
    assert caught.value.reason is Rejection.EMPTY


# The plan.


def test_shards_are_sized_by_bytes_and_cut_finer_for_small_sets(photo_folder: Path) -> None:
    source = open_source(photo_folder)
    assert make_plan(source, ConvertConfig()).shards() == [("00000", 0, 60)]
    raw = make_plan(source, ConvertConfig(encoding="raw", shard_bytes=1_000_000))
    assert raw.shard_sources == 1_000_000 // (256 * 256 * 3 + 64 + 2048)
    assert len(raw.shards()) == 12


def test_more_shards_than_there_are_names_are_refused_before_the_first() -> None:
    """A dataset of them could be written, and its manifest not be read again."""
    smallest = ConvertConfig(encoding="raw", size=1024, shard_bytes=1_000_000)  # one picture a shard
    many = SimpleNamespace(entries=range(100_001))
    with pytest.raises(InputError, match="cut into 100001 shards, more than 100000: raise --shard-bytes"):
        make_plan(many, smallest)  # type: ignore[arg-type]


def test_the_plan_depends_on_everything_that_decides_the_bytes(photo_folder: Path, tmp_path: Path) -> None:
    source = open_source(photo_folder)
    configs = [
        ConvertConfig(),
        ConvertConfig(size=128),
        ConvertConfig(encoding="raw"),
        ConvertConfig(quality=90),
        ConvertConfig(orientation="apply"),
        ConvertConfig(seed=1),
        ConvertConfig(shard_bytes=1_000_000),
    ]
    plans = {make_plan(source, config).fingerprint for config in configs}
    shutil.copytree(photo_folder, tmp_path / "more")
    (tmp_path / "more/apple/000.jpg").rename(tmp_path / "more/apple/0000.jpg")
    plans.add(make_plan(open_source(tmp_path / "more"), ConvertConfig()).fingerprint)
    assert len(plans) == 8
    assert make_plan(source, ConvertConfig(max_bad=0.5)).fingerprint == make_plan(source, ConvertConfig()).fingerprint


def test_raw_plans_do_not_record_a_jpeg_quality(photo_folder: Path) -> None:
    source = open_source(photo_folder)
    plans = {make_plan(source, ConvertConfig(encoding="raw", quality=q)).fingerprint for q in (10, 95)}
    assert len(plans) == 1


def test_every_source_is_in_exactly_one_job_and_no_shard_is_one_class(photo_folder: Path, tmp_path: Path) -> None:
    source = open_source(photo_folder)
    config = ConvertConfig(encoding="raw", shard_bytes=4_000_000)
    jobs = list(shard_jobs(source, config, DatasetWriter(tmp_path / "o", make_plan(source, config))))
    assert sorted(entry for job in jobs for entry in job.entries) == sorted(source.entries)
    assert [job.first_position for job in jobs] == [0, 20, 40]
    assert all(len({entry.label for entry in job.entries}) == 3 for job in jobs)


@pytest.mark.parametrize(("pictures", "pays"), [(60, False), (30, True)])
def test_compiled_loops_pay_where_each_cpu_has_many_pictures(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: int, pays: bool
) -> None:
    monkeypatch.setattr(conversion, "_PICTURES_WORTH_COMPILING", pictures)
    monkeypatch.setattr(conversion, "usable_cpus", lambda: 2)
    source = open_source(photo_folder)  # 60 photographs
    jobs = shard_jobs(source, ConvertConfig(), DatasetWriter(tmp_path / "o", make_plan(source, ConvertConfig())))
    assert {job.pays_compiling for job in jobs} == {pays}


@pytest.mark.parametrize("options", [{}, {"encoding": "raw"}, {"filter": "bicubic"}])
def test_compiled_loops_make_the_same_files(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    for name, made in (("AREA", AreaFilter()), ("BICUBIC", BicubicFilter())):
        monkeypatch.setattr(conversion, name, made)
        monkeypatch.setattr(resize, name, made)
    files = []
    source, config = open_source(photo_folder), ConvertConfig(size=96, **options)
    for pays in (False, True):
        writer = DatasetWriter(tmp_path / str(pays), make_plan(source, config))
        with writer.hold(resume=False, overwrite=False):
            for job in shard_jobs(source, config, writer):
                make_shard(replace(job, pays_compiling=pays))
            writer.publish()
        paths = sorted(path for path in writer.directory.rglob("*") if path.is_file())
        files.append({path.relative_to(writer.directory): path.read_bytes() for path in paths})
    assert conversion.AREA.is_compiled is (config.filter == "area")
    assert conversion.BICUBIC.is_compiled is (config.filter == "bicubic" and HAS_PAIR_SUMS)
    assert files[0] == files[1]


# The dataset.


def test_keys_tables_and_records_agree(small_jpeg_dataset: Path, small_source: Path) -> None:
    rows = read_rows(small_jpeg_dataset / "records.parquet")
    manifest = load_manifest(small_jpeg_dataset)
    stored = [
        (key.decode(), bytes(record.data), record.label, record.crc32c, record.shape)
        for shard in manifest.shards
        for key, record in iterate_lmdb(small_jpeg_dataset / "shards" / shard.name)
    ]
    assert len(rows) == len(stored) == manifest.num_records == 37
    for row, (key, data, label, crc, shape) in zip(rows, stored, strict=True):
        assert key == row["key"] == f"{row['position']:08d}_{row['source']}"
        assert (label, crc, shape) == (row["label"], row["crc32c"], (3, 48, 48))
        assert manifest.class_names[label] == row["source"].split("/")[0]
        source = (small_source / row["source"]).read_bytes()
        assert row["source_sha256"] == hashlib.sha256(source).hexdigest()
        assert row["source_bytes"] == len(source)
        decoded = decode_source(source)
        assert (row["source_width"], row["source_height"]) == (decoded.width, decoded.height)
        assert data == convert_image(source, row["source"], ConvertConfig(size=48))[0]
        assert crc == record_crc(data, label)


def test_rejects_are_counted_and_named(small_jpeg_dataset: Path) -> None:
    rows = {row["source"]: row for row in read_rows(small_jpeg_dataset / "rejects.parquet")}
    assert {name: row["reason"] for name, row in rows.items()} == {
        "a/002.jpg": "empty",
        "a/011.jpg": "truncated",
        "b/007.jpg": "truncated",
    }
    assert rows["b/007.jpg"]["label"] == 1
    assert rows["b/007.jpg"]["source_bytes"] == 26
    assert rows["a/002.jpg"]["source_bytes"] == 0
    assert rows["a/002.jpg"]["source_sha256"] == hashlib.sha256(b"").hexdigest()
    manifest = load_manifest(small_jpeg_dataset)
    assert manifest.num_rejected == 3
    assert sorted(p for s in manifest.shards for p in s.rejected) == sorted(row["position"] for row in rows.values())
    assert manifest.class_counts == (18, 19)


def test_oddities_of_the_sources_are_kept(jpeg_dataset: Path) -> None:
    rows = {row["source"]: row["oddities"] for row in read_rows(jpeg_dataset / "records.parquet")}
    assert rows["apple/000.jpg"] == ""
    assert rows["apple/003.jpg"] == "gray"
    assert rows["apple/005.png"] == "not_jpeg"


def test_odd_sides_and_blank_pictures_are_named_and_pictures_hashed(tmp_path: Path, make_dataset: Any) -> None:
    random = np.random.default_rng(3)
    (tmp_path / "source/x").mkdir(parents=True)
    sides = {"plain": (64, 256), "small": (63, 100), "wide": (70, 281), "blank": (80, 80)}
    for name, side in sides.items():
        pixels = random.integers(0, 256, (*side, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"source/x/{name}.png"), pixels // 255 if name == "blank" else pixels)
    out = make_dataset(tmp_path / "source", tmp_path / "out", size=64)
    rows = read_rows(out / "records.parquet")
    assert {Path(row["source"]).stem: row["oddities"] for row in rows} == {
        "plain": "not_jpeg",
        "small": "not_jpeg,upscaled",
        "wide": "not_jpeg,extreme_aspect",
        "blank": "not_jpeg,blank",
    }
    reader = ShardReader(out, load_manifest(out))
    for row in rows:
        assert row["phash"] == reader.read(row["index"], lambda record: picture_hash(decode_stored(record.data, 64)))
    reader.close()
    assert reader.manifest.recipe["perceptual_hash"] == HASH_KIND


@pytest.mark.parametrize("fixture", ["jpeg_dataset", "raw_dataset"])
def test_moments_are_those_of_the_pixels_that_were_stored(fixture: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(fixture)
    reader = ShardReader(directory, load_manifest(directory))
    again = Moments.zero(256, 256)
    for index in range(reader.manifest.num_records):
        again.add_image(reader.read(index, lambda record: decode_stored(record.data, 256).copy()))
    reader.close()
    kept, _ = load_moments(directory)
    assert kept.to_json() == again.to_json()
    assert kept.image_sums is not None and again.image_sums is not None
    assert (kept.image_sums == again.image_sums).all()


@pytest.mark.parametrize("fixture", ["jpeg_dataset", "raw_dataset"])
def test_opencv_reads_every_record_to_the_same_pixels(fixture: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(fixture)
    count = 0
    for shard in load_manifest(directory).shards:
        for _, record in iterate_lmdb(directory / "shards" / shard.name):
            theirs = cv2.imdecode(np.frombuffer(record.data, np.uint8), cv2.IMREAD_COLOR)
            assert theirs is not None
            assert (cv2.cvtColor(theirs, cv2.COLOR_BGR2RGB) == decode_stored(record.data, 256)).all()
            count += 1
    assert count == 60


def test_the_same_source_gives_the_same_bytes(small_source: Path, small_raw_dataset: Path, make_dataset: Any) -> None:
    again = make_dataset(small_source, small_raw_dataset.parent / "again", shard_sources=8, size=48, encoding="raw")
    for path in small_raw_dataset.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(small_raw_dataset)).read_bytes()


def test_a_stopped_shard_leaves_nothing(small_source: Path, tmp_path: Path) -> None:
    source, config = open_source(small_source), ConvertConfig(size=48)
    writer = DatasetWriter(tmp_path / "out", make_plan(source, config))
    guards = iter([nullcontext()] * 5)
    with writer.hold(resume=False, overwrite=False):
        (job,) = shard_jobs(source, config, writer)
        with pytest.raises(StopIteration):
            make_shard(job, lambda position: next(guards))
        assert list((tmp_path / "out/shards").iterdir()) == []
        assert writer.unfinished() == writer.plan.shards()


def test_names_of_any_bytes_are_converted(tmp_path: Path, photo_folder: Path, make_dataset: Any) -> None:
    folder = bytes(tmp_path) + b"/source/gr\xfcn"
    Path(folder.decode("utf-8", "surrogateescape")).mkdir(parents=True)
    names = [
        b"a b.jpg",
        b"-x.jpg",
        b"new\nline.jpg",
        b"\xff\xfe.jpg",
        "é🐈.jpg".encode(),
        b'q"u.jpg',
        b"x" * 250 + b".jpg",
    ]
    for name in names:
        with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(photo(photo_folder))
    out = make_dataset(tmp_path / "source", tmp_path / "out", size=32)
    manifest = load_manifest(out)
    assert manifest.num_records == len(names)
    assert manifest.class_names == ("gr\udcfcn",)
    rows = read_rows(out / "records.parquet")
    assert {row["source"] for row in rows} >= {"gr\\xfcn/new\\nline.jpg", "gr\\xfcn/\\xff\\xfe.jpg", "gr\\xfcn/é🐈.jpg"}
    keys = [key for key, _ in iterate_lmdb(out / "shards" / "00000")]
    assert {key[9:] for key in keys} == {b"gr\xfcn/" + name for name in names}


@pytest.mark.dali
@pytest.mark.parametrize("fixture", ["jpeg_dataset", "raw_dataset"])
def test_dalis_caffe_reader_reads_every_record_to_the_same_pixels(fixture: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("nvidia.dali", reason="no nvidia-dali wheel here")
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    directory = request.getfixturevalue(fixture)
    manifest = load_manifest(directory)
    pipeline = Pipeline(batch_size=20, num_threads=2, device_id=None)
    with pipeline:
        paths = [str(directory / "shards" / shard.name) for shard in manifest.shards]
        encoded, labels = fn.readers.caffe(path=paths, name="reader")
        pixels = fn.decoders.image(encoded, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True)
        pipeline.set_outputs(pixels, labels)
    pipeline.build()
    assert pipeline.epoch_size("reader") == 60
    reader = ShardReader(directory, manifest)
    for first in (0, 20, 40):
        images, numbers = pipeline.run()
        for offset in range(20):
            ours, label = reader.read(first + offset, lambda r: (decode_stored(r.data, 256).copy(), r.label))
            assert (images.at(offset) == ours).all()
            assert numbers.at(offset).tolist() == [label]
    reader.close()


def test_make_dataset_is_a_conversion_like_the_commands(jpeg_dataset: Path, photo_folder: Path) -> None:
    manifest = load_manifest(jpeg_dataset)
    assert (manifest.num_records, manifest.class_counts) == (60, (20, 20, 0, 20))
    assert manifest.recipe["resize"]["size"] == 256
    assert manifest.source["fingerprint"] == open_source(photo_folder).fingerprint
