"""What only the DALI backend has to prove; the rest is in test_loader_contract.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="no nvidia-dali wheel here")

from lmdali.pipeline import AugmentConfig, LoaderConfig, create_loader, load_manifest
from lmdali.pipeline.augment import AugmentParams, PixelTransform
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.dali import DaliBackend
from lmdali.pipeline.decode import decode_stored
from lmdali.pipeline.errors import RecordError
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.verify_policy import CrcPolicy

pytestmark = pytest.mark.dali


@pytest.mark.parametrize("crop", [48, 47, 41, 24, 16, 1])
def test_every_offset_arrives_exactly(small_raw_dataset: Path, crop: int) -> None:
    reader = ShardReader(small_raw_dataset, load_manifest(small_raw_dataset))
    room = 48 - crop
    spec = OutputSpec(room + 1, 1, crop, "uint8", "NHWC", torch.device("cpu"))
    transform = PixelTransform(np.zeros((48, 48, 3), np.float32), np.ones(3, np.float32), np.zeros((3, 3), np.float32))
    crc, timers = CrcPolicy("always", 37), StageTimers()
    backend = DaliBackend(reader, transform, spec, num_threads=1, crc=crc, timers=timers)
    offsets = np.stack([np.arange(room + 1), np.arange(room + 1)[::-1]], axis=1)
    params = AugmentParams(offsets, np.arange(room + 1) % 2 == 1, np.zeros((room + 1, 3), np.float32))
    plan = BatchPlan(np.full(room + 1, 7), params, np.zeros((room + 1, 3), np.float32))
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


def test_one_bad_image_among_several_batches_inside_dali_spares_the_others(
    small_jpeg_dataset: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_jpeg_dataset, tmp_path / "copy"))
    reader = ShardReader(copy, load_manifest(copy))
    data = reader.read(12, lambda record: bytes(record.data))
    number, _ = reader._index.locate(12)
    path = reader.data_file(reader.manifest.shards[number].name)
    reader.close()
    path.write_bytes(path.read_bytes().replace(data, bytes(len(data))))
    config = LoaderConfig(
        dataset=copy,
        batch_size=5,
        shuffle=False,
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
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pip install 'lmdali[dali-cuda13]'" in done.stdout, done.stderr
