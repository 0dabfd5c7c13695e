"""Choosing and configuring a loader, and the synthetic dataset."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from lmdali.pipeline import AugmentConfig, LoaderConfig, create_loader
from lmdali.pipeline.backend import BackendName
from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError, MachineError, ManifestError, ShardError
from lmdali.pipeline.loader import _device
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.synthetic import SyntheticDataset


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"prefetch": 0}, "prefetch must be at least 1"),
        ({"block_shards": 0}, "block_shards must be at least 1"),
        ({"order": "random"}, "order must be one of shuffled, shuffled_once, sequential, block"),
        ({"num_threads": 0}, "num_threads must be at least 1"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**64}, "seed must be in"),
        ({"backend": "gpu"}, "backend must be one of auto, cpu, dali, synthetic"),
        ({"decode": "dali"}, "decode must be one of auto, gpu, cpu"),
        ({"required_images_per_second": 0.0}, "required_images_per_second must be over 0"),
        ({"required_images_per_second": float("nan")}, "required_images_per_second must be over 0"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"layout": "CHW"}, "layout must be one of"),
        ({"verify": "sometimes"}, "verify must be one of"),
        ({"batch_size": "8"}, "batch_size must be a whole number, found '8'"),
        ({"batch_size": 8.5}, "batch_size must be a whole number, found 8.5"),
        ({"batch_size": True}, "batch_size must be a whole number, found True"),
        ({"batch_size": None}, "batch_size must be a whole number, found None"),
        ({"seed": 0.5}, "seed must be a whole number, found 0.5"),
        ({"num_threads": "2"}, "num_threads must be a whole number, found '2'"),
        ({"prefetch": 2.5}, "prefetch must be a whole number"),
        ({"decoded_cache_bytes": "1GB"}, "decoded_cache_bytes must be a whole number, found '1GB'"),
        ({"drop_last": "no"}, "drop_last must be True or False, found 'no'"),
        ({"augment": "paper"}, "augment must be an AugmentConfig, as AugmentConfig.paper"),
        ({"dataset": None}, "dataset must be a path or an address, found None"),
        ({"basis": 3}, "basis must be a path or an address, found 3"),
        ({"required_images_per_second": "fast"}, "required_images_per_second must be a number, found 'fast'"),
        ({"dtype": "uint8"}, "uint8 batches hold pixels"),
        ({"dtype": "uint8", "augment": AugmentConfig(normalize="none")}, "uint8 batches hold pixels"),
        ({"dtype": "uint8", "augment": AugmentConfig.ten_crop()}, "uint8 batches hold pixels"),
        (
            {"dtype": "uint8", "augment": AugmentConfig(normalize="imagenet", lighting="none")},
            "uint8 batches hold pixels",
        ),
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoaderConfig(**{"dataset": "x"} | fields)


def test_training_drops_the_last_batch_and_evaluation_does_not() -> None:
    assert LoaderConfig(dataset="x").drops_last
    assert LoaderConfig(dataset="x", order="block").drops_last
    assert not LoaderConfig(dataset="x", order="block", drop_last=False).drops_last
    assert not LoaderConfig(dataset="x", order="sequential").drops_last
    assert LoaderConfig(dataset="x", order="sequential", drop_last=True).drops_last


def test_without_a_gpu_the_cpu_is_chosen_and_the_reason_given(jpeg_dataset: Path) -> None:
    with create_loader(LoaderConfig(dataset=jpeg_dataset, batch_size=8)) as loader:
        assert (loader.backend_name, loader.backend_reason) == ("cpu", "the device is the CPU")
        images, labels = next(iter(loader))
    assert images.shape == (8, 3, 224, 224) and labels.shape == (8,)


def test_decoding_on_a_gpu_needs_one(jpeg_dataset: Path) -> None:
    backends: tuple[BackendName, ...] = ("auto", "cpu", "dali")
    for backend in backends:
        with pytest.raises(ConfigError, match='decode="gpu" needs a GPU'):
            create_loader(LoaderConfig(dataset=jpeg_dataset, batch_size=8, decode="gpu", backend=backend))
    create_loader(LoaderConfig(dataset=jpeg_dataset, batch_size=8, decode="cpu")).close()


def test_devices_that_are_not_there_are_refused(jpeg_dataset: Path) -> None:
    config = LoaderConfig(dataset=jpeg_dataset)
    with pytest.raises(MachineError, match="device cuda:99 was asked for"):
        create_loader(config, "cuda:99")
    with pytest.raises(ConfigError, match="device must be cpu, cuda or cuda:N"):
        create_loader(config, "meta")


@pytest.mark.parametrize("device", ["gpu", "", None, 1.5])
def test_what_is_no_device_is_refused(device: Any) -> None:
    with pytest.raises(ConfigError, match="device must be cpu, cuda or cuda:N; found"):
        create_loader(LoaderConfig(dataset="synthetic", backend="synthetic"), device)


def test_cuda_without_a_number_is_the_device_that_torch_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that called `torch.cuda.set_device` must not fill the first GPU beside all others."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    assert [str(_device(name)) for name in ("cuda", "cuda:1")] == ["cuda:3", "cuda:1"]


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        create_loader(LoaderConfig(dataset=tmp_path / "nowhere"))
    with pytest.raises(InputError, match="lmdali convert"):
        create_loader(LoaderConfig(dataset=tmp_path))


def test_a_path_in_place_of_a_configuration_is_told_where_it_goes(jpeg_dataset: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes a LoaderConfig, found .*: give LoaderConfig\(dataset=\.\.\.\)"):
        create_loader(jpeg_dataset)  # type: ignore[arg-type]


@pytest.fixture
def copy(small_jpeg_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_jpeg_dataset, tmp_path / "copy"))


def small(dataset: Path, **fields: Any) -> LoaderConfig:
    return LoaderConfig(**{"dataset": dataset, "batch_size": 5, "augment": AugmentConfig(crop_size=40)} | fields)


def test_damage_is_found_before_the_first_batch(copy: Path) -> None:
    shutil.rmtree(copy / "shards" / "00001")
    shutil.rmtree(copy / "shards" / "00002")
    with pytest.raises(ShardError, match=r"2 of 5 shards are missing \(00001, 00002\)"):
        create_loader(small(copy))


def test_a_shard_of_another_size_is_refused(copy: Path) -> None:
    path = copy / "shards" / "00001" / DATA_FILE
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(ShardError, match="00001"):
        create_loader(small(copy))


def test_an_edited_manifest_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"num_rejected": 3', '"num_rejected": 2'))
    with pytest.raises(ManifestError, match="edited or damaged"):
        create_loader(small(copy))


def test_missing_statistics_are_refused_only_where_they_are_needed(copy: Path, small_raw_dataset: Path) -> None:
    (copy / "statistics.json").unlink()
    with pytest.raises(IntegrityError, match=r"statistics\.json.*lmdali pca"):
        create_loader(small(copy))
    create_loader(small(copy, augment=AugmentConfig(crop_size=40, normalize="none", lighting="none"))).close()
    create_loader(small(copy, basis=small_raw_dataset)).close()
    with pytest.raises(InputError, match=r"nowhere: no statistics.json here: give the training set's directory"):
        create_loader(small(copy, basis=copy / "nowhere"))


def test_a_mean_image_of_another_size_is_refused(copy: Path, jpeg_dataset: Path) -> None:
    with pytest.raises(ConfigError, match="needs a mean image of"):
        create_loader(small(copy, basis=jpeg_dataset))


def test_a_crop_larger_than_the_images_is_refused(copy: Path) -> None:
    with pytest.raises(ConfigError, match=r"crop_size 224 is larger than the images \(48 pixels\): choose a smaller"):
        create_loader(LoaderConfig(dataset=copy, batch_size=5))


def test_nothing_is_read_from_the_environment_but_rank_and_world(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"rank must be in 0\.\.1"):
        create_loader(small(copy))
    create_loader(small(copy), rank=1, world_size=2).close()


# Synthetic.


def test_ranks_are_those_of_the_process_group_where_there_is_no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `torch.multiprocessing.spawn`: each process would have taken all samples for its own."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    monkeypatch.setattr("lmdali.pipeline.loader.process_group_gather", lambda world_size, device: None)
    config = LoaderConfig(dataset="synthetic:20x2", backend="synthetic", batch_size=2, order="sequential")
    with create_loader(config) as loader:
        assert next(iter(loader)).indices.tolist() == [2, 3]
    with create_loader(config, rank=0, world_size=1) as loader:
        assert next(iter(loader)).indices.tolist() == [0, 1]


def test_the_synthetic_dataset_has_imagenets_numbers_or_those_asked_for() -> None:
    assert SyntheticDataset.parse("synthetic") == SyntheticDataset(1_281_167, 1000, 256)
    assert SyntheticDataset.parse("synthetic:500x10") == SyntheticDataset(500, 10, 256)


@pytest.mark.parametrize("text", ["synthetic:", "synthetic:5", "synthetic:ax2", "synthetic:0x1", "synthetic:5x0", "x"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="found dataset"):
        SyntheticDataset.parse(text)


def test_a_synthetic_loader_reads_no_record_of_the_dataset_whose_numbers_it_has(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, before = load_manifest(copy).digest, set(threading.enumerate())
    shutil.rmtree(copy / "shards")
    monkeypatch.chdir(copy.parent)
    copy.rename("synthetic_faces")
    with create_loader(small(Path("synthetic_faces"), backend="synthetic")) as loader:
        assert sum(len(batch.labels) for batch in loader) == 5 * len(loader)
        assert loader.manifest_digest == digest
        assert "lmdali-readahead" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_a_synthetic_dataset_needs_no_files() -> None:
    config = LoaderConfig(dataset="synthetic:100x7", batch_size=16, backend="synthetic", augment=AugmentConfig.pixels())
    with create_loader(config) as loader:
        assert (loader.num_samples, len(loader), len(loader.class_names)) == (100, 6, 7)
        for batch in loader:
            assert batch.labels.tolist() == [i % 7 for i in batch.indices.tolist()]
            assert batch.images.shape == (16, 3, 224, 224)
        assert json.loads(json.dumps(loader.state_dict()))["manifest_digest"] == "synthetic:100x7"
