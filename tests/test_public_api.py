"""What other people's programs may import; a change here is a change for all of them."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

import lmdali.pipeline as pipeline


def test_the_public_names_are_frozen() -> None:
    assert pipeline.__all__ == [
        "AugmentConfig",
        "Batch",
        "DatasetLoader",
        "Eigenbasis",
        "LmdaliError",
        "Loader",
        "LoaderConfig",
        "Manifest",
        "create_loader",
        "load_eigenbasis",
        "load_manifest",
        "merge_states",
    ]


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    member = getattr(pipeline, name)
    assert member.__name__ == name
    assert inspect.getdoc(member)


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing


def test_the_options_of_a_loader_are_frozen() -> None:
    found = {field.name: field.default for field in fields(pipeline.LoaderConfig) if field.name != "augment"}
    del found["dataset"]
    assert found == {
        "batch_size": 128,
        "seed": 0,
        "order": "shuffled",
        "block_shards": 8,
        "block_nodes": 1,
        "drop_last": None,
        "backend": "auto",
        "decode": "auto",
        "required_images_per_second": None,
        "dtype": "float32",
        "layout": "NCHW",
        "num_threads": None,
        "prefetch": None,
        "decoded_cache_bytes": 0,
        "readahead_bytes": 64_000_000,
        "verify": "first",
        "cache_dir": None,
        "cache_bytes": None,
        "fetches": 4,
        "basis": None,
        "records": None,
    }
    assert pipeline.LoaderConfig(dataset="x").augment == pipeline.AugmentConfig.paper()
    assert list(inspect.signature(pipeline.create_loader).parameters) == ["config", "device", "rank", "world_size"]


def test_the_options_of_augmentation_are_frozen() -> None:
    assert {field.name: field.default for field in fields(pipeline.AugmentConfig)} == {
        "crop_size": 224,
        "crop": "random",
        "min_area": 0.08,
        "max_aspect": 4 / 3,
        "flip": True,
        "crop_chunk": 1,
        "normalize": "mean_image",
        "mean_window": "aligned",
        "lighting": "eigenvalues",
        "lighting_std": 0.1,
        "lighting_rescale": False,
        "lighting_epochs": None,
    }
