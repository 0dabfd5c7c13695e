from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from lmdali.pipeline import jpeg_decoder, paint_kernel, record_kernel
from lmdali.pipeline.augment import AugmentConfig, draw_params
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.dataset_plan import DatasetPlan
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import ConfigError, RecordError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import Manifest, load_manifest
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.pixel_transform import pixel_transform
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.record_threads import RecordThreads
from lmdali.pipeline.records import pack_record
from lmdali.pipeline.shard_output import ShardContent
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.shard_writer import ShardWriter
from lmdali.pipeline.timing import StageTimers

SIZE = 64
CROP = AugmentConfig(crop_size=56, normalize="none", lighting="none")
RESIZED = replace(CROP, crop="resized", max_aspect=4.0)


def pixels(seed: int) -> np.ndarray[Any, Any]:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.ascontiguousarray(cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC))


def cv2_jpeg(seed: int, *parameters: int) -> bytes:
    return cv2.imencode(".jpg", pixels(seed)[:, :, ::-1], parameters)[1].tobytes()


def jpeg(kind: str, seed: int) -> bytes:
    if kind == "ours":
        return bytes(simplejpeg.encode_jpeg(pixels(seed), 90, "RGB", "420", fastdct=False))
    if kind == "4:4:4":
        return bytes(simplejpeg.encode_jpeg(pixels(seed), 90, "RGB", "444", fastdct=False))
    if kind == "another quality each":
        return bytes(simplejpeg.encode_jpeg(pixels(seed), 60 + seed % 40, "RGB", "420", fastdct=False))
    if kind == "own Huffman tables":
        return cv2_jpeg(seed, cv2.IMWRITE_JPEG_OPTIMIZE, 1)
    if kind == "progressive":
        return cv2_jpeg(seed, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert kind == "restart markers"
    return cv2_jpeg(seed, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)


def dataset(directory: Path, files: list[bytes]) -> Path:
    """A dataset of one shard that holds these files."""
    plan = DatasetPlan(SIZE, "jpeg", ("a",), len(files), len(files), {}, {})
    writer = DatasetWriter(directory, plan)
    with writer.hold(resume=False, overwrite=False):
        shard: ShardWriter
        with writer.open_shard("00000", 0, len(files)) as shard:
            for position, data in enumerate(files):
                shard.put(position, "x", data, label=0, height=SIZE, width=SIZE)
            info = writer.finish_shard("00000", shard, ShardContent([], [], Moments.zero(SIZE, SIZE)))
    Manifest(SIZE, "jpeg", ("a",), (len(files),), len(files), 0, (info,), {}, {}, {}).save(directory)
    return directory


def batches(directory: Path, *, epochs: int = 1, **fields: Any) -> list[Any]:
    config = LoaderConfig(
        dataset=directory, batch_size=7, backend="cpu", num_threads=2, drop_last=False, **{"augment": CROP} | fields
    )
    with create_loader(config) as loader:
        return [(b.images.clone(), b.indices.clone()) for _ in range(epochs) for b in loader]


def expected(directory: Path, indices: torch.Tensor, augment: AugmentConfig) -> np.ndarray[Any, Any]:
    """Batches as the reference makes them of what libjpeg-turbo decodes: (B, 3, S, S) float32."""
    reader = ShardReader(directory, load_manifest(directory))
    stored = np.stack([reader.read(i, lambda record: decode_stored(record.data, SIZE)) for i in indices.tolist()])
    params = draw_params(augment, seed=0, epoch=0, indices=indices.numpy(), positions=indices.numpy(), image_size=SIZE)
    return apply_params(stored, params, pixel_transform(augment, None, SIZE), 56).transpose(0, 3, 1, 2)


KINDS = ["ours", "4:4:4", "another quality each", "own Huffman tables", "progressive", "restart markers"]


@pytest.mark.parametrize("augment", [CROP, RESIZED], ids=["crops", "windows"])
@pytest.mark.parametrize("kind", [*KINDS, "all mixed"])
def test_files_of_any_encoder_give_libjpegs_pixels(tmp_path: Path, kind: str, augment: AugmentConfig) -> None:
    kinds = KINDS if kind == "all mixed" else [kind]
    directory = dataset(tmp_path / "d", [jpeg(kinds[n % len(kinds)], n) for n in range(31)])
    for images, indices in batches(directory, augment=augment):
        assert np.array_equal(images.numpy(), expected(directory, indices, augment))


def test_ten_views_of_any_encoder(tmp_path: Path) -> None:
    directory = dataset(tmp_path / "d", [jpeg(KINDS[n % 3], n) for n in range(9)])
    ten = AugmentConfig(crop_size=56, crop="ten", flip=False, normalize="none", lighting="none")
    for images, indices in batches(directory, augment=ten, order="sequential"):
        params = draw_params(ten, seed=0, epoch=0, indices=indices.numpy(), positions=indices.numpy(), image_size=SIZE)
        whole = np.stack([decode_stored(jpeg(KINDS[n % 3], n), SIZE) for n in indices.tolist()])
        reference = apply_params(whole, params, pixel_transform(ten, None, SIZE), 56)
        assert np.array_equal(images.numpy(), reference.transpose(0, 3, 1, 2))


def test_no_more_layouts_are_learnt_than_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    read_layout = jpeg_decoder.read_layout
    monkeypatch.setattr(jpeg_decoder, "read_layout", lambda head: asked.append(1) or read_layout(head))
    batches(dataset(tmp_path / "d", [jpeg("own Huffman tables", n) for n in range(31)]), epochs=3)
    assert len(asked) == 4


@pytest.mark.parametrize("room", [0, 1, 10, 31, 100])
@pytest.mark.parametrize(("kind", "augment"), [("ours", CROP), ("all mixed", CROP), ("all mixed", RESIZED)])
def test_a_decoded_cache_changes_no_pixel(tmp_path: Path, kind: str, augment: AugmentConfig, room: int) -> None:
    kinds = KINDS if kind == "all mixed" else [kind]
    directory = dataset(tmp_path / "d", [jpeg(kinds[n % len(kinds)], n) for n in range(31)])
    plain = batches(directory, epochs=3, augment=augment)
    cached = batches(directory, epochs=3, augment=augment, decoded_cache_bytes=room * 3 * SIZE * SIZE)
    assert len(plain) == len(cached) == 15
    for (images, indices), (cached_images, cached_indices) in zip(plain, cached, strict=True):
        assert torch.equal(indices, cached_indices)
        assert torch.equal(images, cached_images)


def test_from_the_second_epoch_on_cached_images_are_neither_read_nor_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = dataset(tmp_path / "d", [jpeg(KINDS[n % 3], n) for n in range(31)])
    config = LoaderConfig(dataset=directory, batch_size=7, backend="cpu", augment=CROP, drop_last=False,
                          decoded_cache_bytes=1 << 20, order="sequential")  # fmt: skip
    with create_loader(config) as loader:
        labels = [batch.labels.tolist() for batch in loader]
        decoding = loader.stage_seconds()["decode"]
        assert decoding > 0
        monkeypatch.delattr(RecordThreads, "find")
        assert [batch.labels.tolist() for batch in loader] == labels
        assert loader.stage_seconds()["decode"] == decoding
        assert loader._backend._cache.holds(np.arange(31)).all()  # type: ignore[attr-defined]


def test_colours_of_windows_count_as_those_of_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`profile run --help`: decode ends with the planes in the file, augment begins with upsampling."""
    stage, painted = threading.local(), []
    measure, paint_windows = StageTimers.measure, paint_kernel.paint_windows

    def named(self: StageTimers, name: str) -> Any:
        stage.name = name
        return measure(self, name)

    monkeypatch.setattr(StageTimers, "measure", named)
    monkeypatch.setattr(
        paint_kernel, "paint_windows", lambda *arguments: painted.append(stage.name) or paint_windows(*arguments)
    )
    batches(dataset(tmp_path / "d", [jpeg("ours", n) for n in range(9)]), augment=RESIZED)
    assert painted and set(painted) == {"augment"}


def test_a_damaged_record_is_named_with_and_without_a_cache(tmp_path: Path) -> None:
    files = [jpeg("ours", n) for n in range(10)]
    files[6] = files[6][: len(files[6]) // 2]
    directory = dataset(tmp_path / "d", files)
    for options in ({}, {"decoded_cache_bytes": 1 << 20}):
        # Its checksum is right: the file was damaged before it was stored.
        with pytest.raises(RecordError, match=r"record 6, key 00000006_x: a stored image does not decode"):
            batches(directory, order="sequential", **options)


def test_a_cache_that_could_not_be_used_is_refused(small_raw_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raw records need no decoded cache"):
        batches(small_raw_dataset, decoded_cache_bytes=1000, augment=AugmentConfig(crop_size=40))
    for fields in ({"backend": "dali"}, {"backend": "synthetic"}, {"decode": "gpu"}):
        with pytest.raises(ConfigError, match="backend cpu"):
            LoaderConfig(dataset="d", decoded_cache_bytes=1, **fields)
    with pytest.raises(ConfigError, match="at least 0"):
        LoaderConfig(dataset="d", decoded_cache_bytes=-1)


def test_whoever_touches_records_first_lets_others_run_meanwhile() -> None:
    """The pages may have to come from a disk, and with the lock kept they would come one at a time."""
    value = np.frombuffer(pack_record(b"x" * 100, label=3, height=SIZE, width=SIZE), np.uint8)
    num = 1_000_000
    starts, stops = np.zeros(num, np.int64), np.full(num, len(value))
    written = [np.empty(num, np.int64) for _ in range(4)]
    head = record_kernel.head_bytes(SIZE)
    record_kernel.parse_heads(value, starts[:1], stops[:1], head, record_kernel.TAIL, *written)  # compiled
    turns, stop = [0], threading.Event()

    def others() -> None:
        while not stop.is_set():
            turns[0] += 1
            sleep(1e-4)

    thread = threading.Thread(target=others)
    before = sys.getswitchinterval()
    thread.start()
    sys.setswitchinterval(60)  # from here on nobody gets the lock who is not given it
    try:
        seen = turns[0]
        for _ in range(50):  # one is enough, but for a machine that is busy with something else
            assert record_kernel.parse_heads(value, starts, stops, head, record_kernel.TAIL, *written) == num
            if turns[0] > seen:
                break
        assert turns[0] > seen
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join()
