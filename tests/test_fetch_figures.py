"""What fetching does to a run, from known numbers."""

from __future__ import annotations

import pytest
from profile_document import rate

from lmdali.pipeline.fetch_counts import FetchCounts
from lmdali.tools.fetch_figures import FetchFigures, fetch_cautions, fetch_rows, stall_share, waits_for_shards

IDLE: dict[str, float | None] = {"fetch": 0.0, "read": 1e-5, "decode": 4e-4, "wait": 1e-3}


def stages(fetch: float, wait: float = 1.0) -> dict[str, float | None]:
    return IDLE | {"fetch": fetch, "wait": wait}


def figures(counts: FetchCounts, loader: float, fetch: float, model: float | None = None) -> FetchFigures:
    rates = {"loader": rate(loader, stages(fetch))}
    if model is not None:
        rates |= {"model": rate(model), "together": rate(min(loader, model), stages(fetch))}
    return FetchFigures.of(counts, rates, bytes_per_image=25_000, num_threads=2, num_cpus=2, on_gpu=True)


def test_a_stall_is_the_smaller_of_what_threads_and_the_consumer_wait() -> None:
    assert stall_share(rate(1000, stages(1e-3)), num_threads=2) == pytest.approx(0.5)
    assert stall_share(rate(1000, stages(1e-3, wait=2e-4)), num_threads=2) == pytest.approx(0.2), "batches were ready"
    assert stall_share(rate(1000, IDLE), num_threads=2) == 0.0
    assert stall_share(rate(1000, {"wait": 1e-3}), num_threads=2) == 0.0, "a directory"


def test_the_bandwidth_needed_is_that_of_the_run_without_waiting() -> None:
    # Half of the time is waiting: 1000 images/s would be 2000, and 2 CPUs have time for as many.
    alone = figures(FetchCounts(0, 10, 50_000_000, 2.0), loader=1000, fetch=1e-3)
    assert alone.needed_megabytes_per_second == pytest.approx(50)
    assert (alone.megabytes_per_second, alone.fetched_bytes, alone.step_stall) == (25, 50_000_000, None)
    assert alone.is_too_slow and alone.cache_hit_share == 0.0
    # A model that takes 1200 needs no more.
    fed = figures(FetchCounts(30, 10, 50_000_000, 1.0), loader=1000, fetch=1e-3, model=1200)
    assert fed.needed_megabytes_per_second == pytest.approx(30)
    assert not fed.is_too_slow and fed.cache_hit_share == 0.75 and fed.step_stall == pytest.approx(0.5)


def test_nothing_fetched_is_not_measured_and_not_zero() -> None:
    warm = figures(FetchCounts(40, 0, 0, 0.0), loader=1000, fetch=0.0)
    assert warm.megabytes_per_second is None and not warm.is_too_slow and warm.cache_hit_share == 1.0
    assert "first epoch" in fetch_cautions(warm)[0]
    words = dict(fetch_rows(vars(warm)))
    assert words["fetched"] == "0 MB" and words["cache hits"] == "100% of the shards"


def test_shards_that_others_had_brought_almost_whole_say_nothing_of_the_line() -> None:
    found = figures(FetchCounts(0, 3, 0, 0.5), loader=1000, fetch=0.0)
    assert found.megabytes_per_second is None and not found.is_too_slow and found.cache_hit_share == 0.0


def test_a_slow_line_that_was_not_felt_yet_is_a_caution() -> None:
    lucky = figures(FetchCounts(0, 10, 5_000_000, 1.0), loader=1000, fetch=0.0)
    assert lucky.loader_stall == 0.0 and lucky.is_too_slow
    assert "it will wait" in fetch_cautions(lucky)[0]
    assert fetch_cautions(figures(FetchCounts(0, 10, 5_000_000, 1.0), loader=100, fetch=1e-2)) == ()


@pytest.mark.parametrize(
    ("fetch", "model", "waits"),
    [
        (1e-3, None, True),  # more than any other stage
        (3e-4, None, False),  # 15 % of the time, decoding takes 20 %
        (3e-4, 1100.0, True),  # and yet without it the model would be fed
        (3e-4, 5000.0, False),  # which it would not be here
        (1e-4, 1020.0, False),  # 5 % is not worth a word
    ],
)
def test_fetching_is_blamed_where_it_is_the_longest_or_all_that_is_missing(
    fetch: float, model: float | None, waits: bool
) -> None:
    of_model = None if model is None else rate(model)
    assert waits_for_shards(rate(1000, stages(fetch)), of_model, 2, {"read": 1e-5, "decode": 4e-4}) is waits
