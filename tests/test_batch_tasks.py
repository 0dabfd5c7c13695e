"""Batches in flight, and tasks of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.batch_tasks import default_prefetch, samples_per_task
from lmdali.pipeline.loader import LoaderConfig


@given(batch_size=st.integers(1, 5000), num_threads=st.integers(1, 300))
def test_memory_and_tasks_have_bounds(batch_size: int, num_threads: int) -> None:
    prefetch = default_prefetch(batch_size, num_threads)
    assert 3 <= prefetch <= 7
    assert 16 <= samples_per_task(batch_size, num_threads, prefetch) <= 64


@given(batch_size=st.integers(16, 5000), num_threads=st.integers(1, 300), prefetch=st.integers(1, 20))
def test_threads_have_two_tasks_or_one_of_some_size(batch_size: int, num_threads: int, prefetch: int) -> None:
    size = samples_per_task(batch_size, num_threads, prefetch)
    tasks = (prefetch + 1) * -(-batch_size // size)
    assert tasks >= (2 if size > 32 else 1) * num_threads or size == 16


@pytest.mark.parametrize(
    ("batch_size", "num_threads", "prefetch", "samples"),
    [
        (128, 2, 3, 64),
        (32, 2, 3, 32),
        (8, 2, 7, 32),  # a task is a batch
        (128, 16, 7, 32),  # the paper's batch on the sixteen processors beside a GPU
        (512, 16, 3, 64),
        (128, 32, 7, 32),
        (128, 64, 7, 16),
    ],
)
def test_what_some_machines_get(batch_size: int, num_threads: int, prefetch: int, samples: int) -> None:
    assert default_prefetch(batch_size, num_threads) == prefetch
    assert samples_per_task(batch_size, num_threads, prefetch) == samples
    config = LoaderConfig(dataset="any", batch_size=batch_size, num_threads=num_threads)
    assert config.depth == prefetch
    assert LoaderConfig(dataset="any", prefetch=2).depth == 2


def test_ten_views_are_ten_images() -> None:
    config = LoaderConfig(dataset="any", batch_size=32, num_threads=16)
    assert config.depth == 7
    assert replace(config, augment=AugmentConfig.ten_crop()).depth == 3
