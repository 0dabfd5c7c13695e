"""What only the DALI backend has to prove; the rest is in test_loader_contract.py."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="no nvidia-dali wheel here")

from lmdali.pipeline import AugmentConfig, LoaderConfig, create_loader, load_manifest, timing
from lmdali.pipeline.augment import AugmentParams
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.dali import DaliBackend
from lmdali.pipeline.errors import RecordError
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.transfer import HeldMemory
from lmdali.pipeline.verify_policy import CrcPolicy

pytestmark = pytest.mark.dali


@pytest.mark.parametrize("crop", [48, 47, 41, 24, 16, 1])
def test_every_offset_arrives_exactly(small_raw_dataset: Path, crop: int) -> None:
    reader = ShardReader(small_raw_dataset, load_manifest(small_raw_dataset))
    room = 48 - crop
    spec = OutputSpec(room + 1, 1, crop, "uint8", "NHWC", torch.device("cpu"))
    transform = PixelTransform(np.zeros((48, 48, 3), np.float32), np.ones(3, np.float32), np.zeros((3, 3), np.float32))
    crc, timers = CrcPolicy("always", 37), StageTimers()
    backend = DaliBackend(reader, transform, spec, num_threads=1, prefetch=3, crc=crc, timers=timers)
    offsets = np.stack([np.arange(room + 1), np.arange(room + 1)[::-1]], axis=1)
    params = AugmentParams(offsets, np.arange(room + 1) % 2 == 1, np.zeros((room + 1, 3), np.float32))
    plan = BatchPlan(np.full(room + 1, 7), params, np.zeros((room + 1, 3), np.float32), np.ones(3, np.float32))
    images = backend.finish(backend.start(plan)).images.numpy()
    pixels = reader.read(7, lambda record: decode_stored(record.data, 48).copy())
    for image, (y, x), flip in zip(images, offsets, params.flip, strict=True):
        expected = pixels[y : y + crop, x : x + crop]
        assert (image == (expected[:, ::-1] if flip else expected)).all()
    backend.close()


def test_all_33_offsets_of_the_papers_crop_arrive_exactly(raw_dataset: Path) -> None:
    config = LoaderConfig(
        dataset=raw_dataset, batch_size=60, backend="dali", augment=AugmentConfig.pixels(), dtype="uint8"
    )
    cpu = LoaderConfig(**{**vars(config), "backend": "cpu"})
    with create_loader(config) as ours, create_loader(cpu) as theirs:
        for _ in range(3):
            for one, other in zip(ours, theirs, strict=True):
                assert torch.equal(one.images, other.images)


@pytest.fixture
def raw_backend(small_raw_dataset: Path) -> Iterator[DaliBackend]:
    reader = ShardReader(small_raw_dataset, load_manifest(small_raw_dataset))
    spec = OutputSpec(8, 1, 48, "uint8", "NHWC", torch.device("cpu"))
    transform = PixelTransform(np.zeros((48, 48, 3), np.float32), np.ones(3, np.float32), np.zeros((3, 3), np.float32))
    backend = DaliBackend(
        reader, transform, spec, num_threads=2, prefetch=3, crc=CrcPolicy("first", 37), timers=StageTimers()
    )
    yield backend
    backend.close()


def whole_images(indices: list[int]) -> BatchPlan:
    count = len(indices)
    params = AugmentParams(np.zeros((count, 2), np.int64), np.zeros(count, np.bool_), np.zeros((count, 3), np.float32))
    return BatchPlan(np.array(indices), params, np.zeros((count, 3), np.float32), np.ones(3, np.float32))


def test_raw_records_enter_as_pixels_without_a_decoder_or_a_copy(
    raw_backend: DaliBackend, small_raw_dataset: Path
) -> None:
    pending = raw_backend.start(whole_images([3, 30, 7]))
    for task in pending.tasks:
        task.result()
    assert all(image.shape == (48, 48, 3) and not image.flags.owndata for image in pending.images)
    batch = raw_backend.finish(pending)
    reader = ShardReader(small_raw_dataset, load_manifest(small_raw_dataset))
    for image, index in zip(batch.images.numpy(), [3, 30, 7], strict=True):
        assert (image == reader.read(index, lambda record: decode_stored(record.data, 48))).all()
    operators = raw_backend._pipeline.serialize()
    assert b"ExternalSource" in operators and b"ImageDecoder" not in operators and b"decoders" not in operators


def test_a_raw_record_of_another_size_is_named(small_raw_dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_raw_dataset, tmp_path / "copy"))
    path = copy / "shards" / "00001" / "data.mdb"
    content = path.read_bytes()
    assert content.count(b"P6\n48 48\n") == 8
    path.write_bytes(content.replace(b"P6\n48 48\n", b"P6\n48 47\n", 1))
    augment = AugmentConfig(crop_size=40, normalize="none", lighting="none")
    config = LoaderConfig(dataset=copy, batch_size=37, backend="dali", augment=augment)
    with (
        create_loader(replace(config, dtype="uint8", verify="never")) as loader,
        pytest.raises(RecordError, match=rf"{path}: record \d+, key \d+_.*not the 48 x 48 pixels"),
    ):
        list(loader)


def test_kept_jpegs_of_any_sampling_arrive_as_their_stored_pixels(
    tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    """Files that others encoded: DALI and the CPU loader, which has no compiled path for most of them, agree."""
    (tmp_path / "source" / "a").mkdir(parents=True)
    for number, sampling in enumerate(("444", "422", "440", "420") * 2):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        option = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")]
        assert cv2.imwrite(str(tmp_path / f"source/a/{number}.jpg"), cv2.resize(coarse, (64, 64)), option)
    dataset = make_dataset(tmp_path / "source", tmp_path / "out", size=64, reuse_jpeg=True)
    reader = ShardReader(dataset, load_manifest(dataset))
    stored = np.stack([reader.read(row, lambda record: decode_stored(record.data, 64).copy()) for row in range(8)])
    kept = {reader.read(row, lambda record: bytes(record.data)) for row in range(8)}
    assert kept == {path.read_bytes() for path in (tmp_path / "source/a").iterdir()}
    augment = AugmentConfig(crop="center", crop_size=48, flip=False, normalize="none", lighting="none")
    for backend in ("cpu", "dali"):
        config = LoaderConfig(
            dataset=dataset,
            batch_size=8,
            order="sequential",
            backend=backend,
            augment=augment,
            dtype="uint8",
            layout="NHWC",
        )
        with create_loader(config) as loader:
            (batch,) = loader
        assert np.array_equal(batch.images.numpy(), stored[:, 8:56, 8:56]), backend


def test_delivered_batches_outlive_their_loader(small_jpeg_dataset: Path) -> None:
    augment = AugmentConfig(crop_size=40, normalize="none", lighting="none")
    config = LoaderConfig(dataset=small_jpeg_dataset, batch_size=5, backend="dali", augment=augment, dtype="uint8")
    with create_loader(config) as loader:
        held = [batch.images for batch in loader]
        expected = [images.clone() for images in held]
    del loader
    for _ in range(3):  # whoever got the memory next would write to it
        with create_loader(replace(config, seed=1)) as other:
            list(other)
    assert all(torch.equal(one, two) for one, two in zip(held, expected, strict=True))


class PassedLater:
    """An event of a stream, passed when the test says so."""

    def __init__(self) -> None:
        self.passed = False

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.passed = True


def test_dalis_memory_is_kept_until_the_device_has_passed_its_last_use(
    raw_backend: DaliBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a GPU's buffers are lent, with the CPU operators' buffers and events of our own."""
    events: list[PassedLater] = []

    def record(device: torch.device) -> PassedLater:
        events.append(PassedLater())
        return events[-1]

    share, streams = raw_backend._pipeline.share_outputs, list[object]()

    def share_on(cuda_stream: object = None) -> object:
        streams.append(cuda_stream)
        return share()

    monkeypatch.setattr(raw_backend._pipeline, "share_outputs", share_on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the consumer's stream")
    monkeypatch.setattr(raw_backend, "_on_gpu", True)
    monkeypatch.setattr(raw_backend, "_held", HeldMemory(torch.device("cpu"), record))
    batch = raw_backend.finish(raw_backend.start(whole_images([3, 30, 7])))
    assert streams == ["the consumer's stream"]
    assert len(events) == 1, "the host's memory, which DALI may still read"
    row = batch.images[1]
    expected, address = row.clone(), row.data_ptr()
    del batch
    assert len(events) == 1, "a view still looks at it"
    del row
    assert len(events) == 2, "the last look is in the stream, and has perhaps not happened yet"
    still_there = np.ctypeslib.as_array((ctypes.c_uint8 * expected.numel()).from_address(address))
    raw_backend.finish(raw_backend.start(whole_images([8, 9, 10])))
    assert (still_there == expected.flatten().numpy()).all()
    assert len(raw_backend._held) == 4
    for event in events:
        event.passed = True
    raw_backend._held.let_go()
    assert len(raw_backend._held) == 0
    monkeypatch.setattr(raw_backend, "_on_gpu", False)


def test_waiting_for_dali_is_told_apart_from_handing_over(jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(timing, "perf_counter", lambda: now)
    config = LoaderConfig(dataset=jpeg_dataset, batch_size=20, backend="dali", num_threads=1)
    with create_loader(config) as loader:
        pipeline = loader._backend._pipeline  # type: ignore[attr-defined]
        outputs = pipeline.share_outputs

        def waited_for(**options: Any) -> Any:
            nonlocal now
            now += 1
            return outputs(**options)

        monkeypatch.setattr(pipeline, "share_outputs", waited_for)
        assert len(list(loader)) == 3
        seconds = loader.stage_seconds()
    assert (seconds["decode"], seconds["copy"], seconds["wait"]) == (3, 0, 3)


def test_one_bad_image_among_several_batches_inside_dali_spares_the_others(
    small_jpeg_dataset: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_jpeg_dataset, tmp_path / "copy"))
    reader = ShardReader(copy, load_manifest(copy))
    data = reader.read(12, lambda record: bytes(record.data))
    number, _ = reader.index.locate(12)
    path = reader.data_file(reader.manifest.shards[number].name)
    reader.close()
    path.write_bytes(path.read_bytes().replace(data, bytes(len(data))))
    config = LoaderConfig(
        dataset=copy,
        batch_size=5,
        order="sequential",
        backend="dali",
        augment=AugmentConfig(crop_size=40, normalize="none", lighting="none"),
        dtype="uint8",
        verify="never",
        prefetch=5,
    )
    with create_loader(config) as loader:
        for _ in range(2):  # the pipeline that broke was replaced
            got = []
            with pytest.raises(RecordError, match=rf"{path}: record 12, key \d+_"):
                for batch in loader:
                    got += batch.indices.tolist()
            assert got == list(range(10))
        loader.load_state_dict(loader.state_dict() | {"sample_in_epoch": 15})
        assert [i for batch in loader for i in batch.indices.tolist()] == list(range(15, 37))


def test_a_program_may_end_in_the_middle_of_an_epoch(small_jpeg_dataset: Path) -> None:
    script = f"""
from lmdali.pipeline import AugmentConfig, LoaderConfig, create_loader
augment = AugmentConfig(crop_size=40, normalize="none", lighting="none")
config = LoaderConfig(dataset={str(small_jpeg_dataset)!r}, batch_size=5, backend="dali", augment=augment)
batches = iter(create_loader(config))
print(next(batches).indices.shape)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stderr) == (0, "") and "5" in done.stdout


def test_without_the_package_the_error_names_the_line_that_installs_it(small_jpeg_dataset: Path) -> None:
    script = f"""
import sys
sys.modules["nvidia.dali"] = None
from lmdali.pipeline import LoaderConfig, create_loader
from lmdali.pipeline.errors import MissingExtraError
try:
    create_loader(LoaderConfig(dataset={str(small_jpeg_dataset)!r}, batch_size=5, backend="dali"))
except Exception as error:
    assert "crop_size" in str(error), error
from lmdali.pipeline import AugmentConfig
try:
    config = LoaderConfig(dataset={str(small_jpeg_dataset)!r}, batch_size=5, backend="dali",
                          augment=AugmentConfig(crop_size=40))
    create_loader(config)
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250)
    assert "pip install 'lmdali[dali-cuda13]'" in done.stdout, done.stderr
