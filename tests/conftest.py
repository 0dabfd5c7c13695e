"""Data that several test files share, made once per session.

photo_folder          60 sound pictures of many sizes, 20 in each of "apple", "fig" and "quince", and an empty class
                      folder "pear" (label 2); most are JPEG, some PNG, some gray. Only to be read.
jpeg_dataset          directory: `photo_folder` at 256 pixels, JPEG quality 95, shards of 21 sources. Only to be read.
raw_dataset           the same with raw pixels.
small_jpeg_dataset    directory: 37 records of 48 pixels in shards of 8 sources; three sources were rejected, so record
small_raw_dataset     numbers and plan positions differ. For tests that read a dataset many times.
make_dataset          function(source folder or list, out, *, shard_sources, **ConvertConfig fields) -> out: converts in
                      this process, which takes no second to start.
s3                    an S3 server (moto's) in this process, and the environment of whoever uses it; `written` counts.
make_photo_folder     function(out, classes, per_class, *, broken, sides, seed) -> out.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Triton reads it when it is imported: without a GPU its kernels run in its interpreter, on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from s3_server import BUCKET, S3Server, s3_serving

from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.tools.conversion import ConvertConfig, make_plan, shard_jobs
from lmdali.tools.shard_making import make_shard
from lmdali.tools.sources import open_source

# Two cores are shared with whatever else runs: a slow example is no failure, and examples must not change by the day.
settings.register_profile(
    "lmdali",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("lmdali")
# Tensors this small gain nothing from threads, which lose much where they wait for each other beside other tests.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported stays: the collections of garbage that tests ask for, hundreds, need not look at it again."""
    gc.collect()
    gc.freeze()


def picture(random: np.random.Generator, height: int, width: int) -> np.ndarray[Any, Any]:
    """A smooth random picture with an edge and some noise: (H, W, 3) uint8."""
    coarse = random.uniform(0, 255, (4, 5, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    smooth[height // 3 :, width // 2 :] *= random.uniform(0.3, 1.0)
    return np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def _make_photo_folder(
    out: Path,
    classes: Sequence[str] = ("apple", "fig", "quince"),
    per_class: int = 20,
    *,
    broken: int = 0,
    sides: tuple[int, int] = (180, 420),
    seed: int = 1,
) -> Path:
    random = np.random.default_rng(seed)
    for name in classes:
        (out / name).mkdir(parents=True)
        for number in range(per_class):
            height, width = random.integers(*sides, 2)
            pixels = picture(random, int(height), int(width))
            kind = ".png" if number == 5 else ".jpg"
            if number == 3:
                pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
            assert cv2.imwrite(str(out / name / f"{number:03d}{kind}"), pixels)
    for number in range(broken):
        name = classes[number % len(classes)]
        (out / name / f"broken{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a picture")
    return out


def _make_dataset(source: Path, out: Path, *, shard_sources: int | None = None, **options: Any) -> Path:
    opened, config = open_source(source), ConvertConfig(**options)
    plan = make_plan(opened, config)
    if shard_sources is not None:
        plan = replace(plan, shard_sources=shard_sources)
    writer = DatasetWriter(out, plan)
    with writer.hold(resume=False, overwrite=False):
        for job in shard_jobs(opened, config, writer):
            make_shard(job)
        writer.publish()
    return out


@pytest.fixture(scope="session")
def make_photo_folder() -> Callable[..., Path]:
    return _make_photo_folder


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    return _make_dataset


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _make_photo_folder(tmp_path_factory.mktemp("photos") / "source")
    (folder / "pear").mkdir()
    return folder


@pytest.fixture(scope="session")
def jpeg_dataset(photo_folder: Path) -> Path:
    return _make_dataset(photo_folder, photo_folder.parent / "jpeg", shard_sources=21)


@pytest.fixture(scope="session")
def raw_dataset(photo_folder: Path) -> Path:
    return _make_dataset(photo_folder, photo_folder.parent / "raw", shard_sources=21, encoding="raw")


@pytest.fixture(scope="session")
def small_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 sources, three of them broken."""
    folder = tmp_path_factory.mktemp("small") / "source"
    _make_photo_folder(folder, ("a", "b"), 20, sides=(40, 90), seed=2)
    for number, victim in enumerate(("a/002.jpg", "a/011.jpg", "b/007.jpg")):
        (folder / victim).write_bytes(b"" if number == 0 else b"\xff\xd8\xff\xe0 not much of a picture")
    return folder


@pytest.fixture(scope="session")
def small_jpeg_dataset(small_source: Path) -> Path:
    return _make_dataset(small_source, small_source.parent / "jpeg", shard_sources=8, size=48)


@pytest.fixture(scope="session")
def small_raw_dataset(small_source: Path) -> Path:
    return _make_dataset(small_source, small_source.parent / "raw", shard_sources=8, size=48, encoding="raw")


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    for package in ("moto", "s3fs"):
        pytest.importorskip(package, reason=f"S3 tests need {package}: pip install '.[remote,dev]'")
    with s3_serving() as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield server


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    s3_process.written.clear()
    yield s3_process
    s3_process.forget()
