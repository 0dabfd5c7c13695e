from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from virtual_time import VirtualTime

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.jpeg_decoder import JpegDecoder
from lmdali.pipeline.loader import create_loader
from lmdali.tools.measurement import Rate, WindowPlan, measure
from lmdali.tools.prediction import Costs, Resources, loader_rate, predict, step_rate
from lmdali.tools.profile_config import ProfileConfig
from lmdali.tools.step_probes import LoaderProbe
from lmdali.tools.suggestion import Situation, suggest
from lmdali.tools.what_if import Case, answer

COSTS = Costs(worker={"read": 1e-4, "decode": 7e-4, "augment": 2e-4}, consumer={"plan": 1e-5}, loader_cpu=1e-3)
TWO = Resources(num_cpus=2, num_threads=2, batch_size=128, prefetch=3)


def situation(costs: Costs = COSTS, resources: Resources = TWO, **changes: Any) -> Situation:
    given: dict[str, Any] = {
        "bound": "INPUT-BOUND",
        "measured": 1500.0,
        "encoding": "jpeg",
        "backend": "cpu",
        "verify": "first",
        "decoded_cache_bytes": 0,
        "decoded_bytes": 10**12,
        "memory_bytes": 10**10,
    }
    return Situation(costs=costs, resources=resources, **(given | changes))


def test_the_scarcest_resource_sets_the_loaders_pace() -> None:
    assert loader_rate(COSTS, replace(TWO, num_threads=1)) == pytest.approx(1000)
    assert loader_rate(COSTS, replace(TWO, num_threads=8)) == pytest.approx(2000)  # two CPUs
    # The consumer plans each image.
    assert loader_rate(COSTS, replace(TWO, num_threads=200, num_cpus=400, prefetch=200)) == pytest.approx(1e5)
    assert loader_rate(replace(COSTS, worker={}, consumer={}, loader_cpu=0.0), TWO) == float("inf")


def test_a_batch_of_few_samples_keeps_no_more_threads_busy_than_there_are_tasks() -> None:
    assert replace(TWO, batch_size=8, num_threads=16).busy_threads == 4
    assert replace(TWO, batch_size=128, num_threads=16).busy_threads == 16
    assert replace(TWO, batch_size=128, num_threads=16, prefetch=1).busy_threads == 16


def test_steps_wait_for_the_slower_side_and_share_a_cpu_where_there_is_no_gpu() -> None:
    with_model = replace(COSTS, model=2e-4, model_cpu=4e-4)
    assert step_rate(with_model, TWO) == pytest.approx(2 / 1.4e-3)
    assert step_rate(replace(with_model, on_gpu=True), TWO) == pytest.approx(2000)
    assert step_rate(replace(with_model, on_gpu=True, model=1e-2), TWO) == pytest.approx(100)


def test_what_the_model_misses_stays_in_the_prediction() -> None:
    before, after = (COSTS, TWO), (COSTS, replace(TWO, num_threads=4, num_cpus=4))
    assert predict(1500, before, after) == pytest.approx(3000)
    nothing = Costs(worker={}, consumer={}, loader_cpu=0.0)
    assert predict(1500, (nothing, TWO), (nothing, TWO)) is None


def test_a_stage_that_is_left_out_takes_its_share_of_the_cpu_along() -> None:
    without = COSTS.scaled({"decode": 0.0})
    assert without.worker["decode"] == 0
    assert without.loader_cpu == pytest.approx(1e-3 - 7e-4 * 1e-3 / 1.01e-3)


# What is suggested.


def test_idle_cpus_are_suggested_to_be_used() -> None:
    found = suggest(situation(resources=replace(TWO, num_threads=2, num_cpus=8)))
    assert found is not None and found.option == "--num-threads 8"
    assert found.predicted_images_per_second == pytest.approx(6000)


def test_more_threads_than_cpus_are_suggested_only_where_threads_wait_for_storage() -> None:
    # A busy machine and a slow disk look alike from inside: stages take far longer than their CPU time.
    waits = replace(COSTS, loader_cpu=2e-4)
    assert suggest(situation(waits)) is None
    one = suggest(situation(waits, replace(TWO, num_threads=1)))
    assert one is not None and one.option == "--num-threads 2"
    found = suggest(situation(waits, reads_storage=True))
    assert found is not None and found.option == "--num-threads 8"
    assert "wait for storage" in found.why


def test_with_all_cpus_busy_a_cache_is_suggested_if_it_fits() -> None:
    assert suggest(situation()) is None
    found = suggest(situation(decoded_bytes=4 * 10**9))
    assert found is not None and found.changes == {"decoded_cache_bytes": 4 * 10**9}
    assert found.predicted_images_per_second > 4 * 1500
    assert suggest(situation(decoded_bytes=6 * 10**9)) is None
    assert suggest(situation(decoded_bytes=4 * 10**9, encoding="raw")) is None


def test_checksums_on_every_read_are_suggested_to_be_compared_once() -> None:
    costs = replace(COSTS, worker={**COSTS.worker, "verify": 1e-3}, loader_cpu=2e-3)
    found = suggest(situation(costs, verify="always"))
    assert found is not None and found.option == "--verify first"
    assert suggest(situation(costs)) is None


def test_threads_that_find_no_batch_to_work_on_are_given_one() -> None:
    found = suggest(situation(resources=replace(TWO, num_cpus=16, num_threads=16, batch_size=16)))
    assert found is not None and found.option == "--prefetch 16"


def test_threads_that_are_added_get_the_batches_that_the_loader_gives_them_by_default() -> None:
    few = replace(TWO, batch_size=16, prefetch=None)
    assert few.depth == 7 and replace(few, batch_size=128).depth == 3
    more = replace(few, num_cpus=8, num_threads=8)
    assert more.busy_threads == 8 and replace(more, prefetch=3).busy_threads == 4
    found = answer("cpus=8", situation(resources=few), 22_000.0)
    assert found.predicted_images_per_second == pytest.approx(4 * 1500)


def test_a_model_on_a_gpu_that_waits_for_nothing_needs_fewer_threads() -> None:
    costs = replace(COSTS, model=1e-3, on_gpu=True)
    many = replace(TWO, num_cpus=16, num_threads=16)
    found = suggest(situation(costs, many, bound="COMPUTE-BOUND", measured=1000.0))
    assert found is not None and found.option == "--num-threads 2"
    assert found.predicted_images_per_second == 1000


@pytest.mark.parametrize("changes", [{"bound": "INVALID"}, {"backend": "dali"}])
def test_nothing_is_predicted_from_what_was_not_measured(changes: dict[str, str]) -> None:
    assert suggest(situation(resources=replace(TWO, num_cpus=8), **changes)) is None


# What-if.


def test_more_cpus_are_given_as_many_threads() -> None:
    found = answer("cpus=16", situation(), 20_000)
    assert found.predicted_images_per_second == pytest.approx(8 * 1500)
    assert (found.baseline_images_per_second, found.limit, found.bound) == (1500, "the CPUs", None)


def test_a_disk_limits_what_it_cannot_deliver_and_nothing_else() -> None:
    slow, fast = (answer(question, situation(), 20_000) for question in ("disk=10MB/s", "disk=500MB/s"))
    assert (slow.predicted_images_per_second, slow.limit) == (pytest.approx(500), "the disk")
    assert (fast.predicted_images_per_second, fast.limit) == (pytest.approx(1500), "the CPUs")


def test_raw_pixels_need_no_decoding_but_more_bytes_to_compare() -> None:
    verified = replace(COSTS, worker={**COSTS.worker, "verify": 1e-5})
    found = answer("raw", situation(verified, raw_bytes=200_000), 20_000).predicted_images_per_second
    assert found is not None and 2 * 1500 < found < 3 * 1500
    assert answer("raw", situation(encoding="raw"), 200_000).predicted_images_per_second == pytest.approx(1500)
    assert answer("raw", situation(backend="dali"), 20_000).predicted_images_per_second is None


def on_a_gpu(model: float) -> Situation:
    """A loader of 2,000 images/s on two CPUs, and a model of so many on a GPU; what is missed: a quarter of it."""
    costs = replace(COSTS, model=1 / model, on_gpu=True)
    return situation(costs, measured=0.75 * min(2000, model), bound=None)


@pytest.mark.parametrize(
    ("model", "question", "predicted", "limit", "bound"),
    [
        (500, "gpus=2", 1000, "the model", "COMPUTE-BOUND"),
        (1000, "gpus=2", 2000, "the CPUs", "BALANCED"),
        (1000, "gpus=4", 2000, "the CPUs", "INPUT-BOUND (decode)"),  # steps four times as fast, input as fast as before
        (1000, "gpus=4,cpus=8", 4000, "the model", "COMPUTE-BOUND"),
        (1000, "gpus=4,disk=12MB/s", 800, "the disk", "INPUT-BOUND (read)"),
        (1000, "raw,gpus=8", 6516, "the CPUs", "INPUT-BOUND (augment)"),
        (1000, "raw,gpus=8,disk=300MB/s", 2000, "the disk", "INPUT-BOUND (read)"),  # pixels are ten times as large
    ],
)
def test_more_gpus_are_fed_by_the_same_input(
    model: float, question: str, predicted: float, limit: str, bound: str
) -> None:
    now = replace(on_a_gpu(model), raw_bytes=200_000)
    found = answer(question, now, 20_000)
    capped = limit == "the disk"
    disk = {"gpus=4,disk=12MB/s": 600, "raw,gpus=8,disk=300MB/s": 1500}.get(question)
    assert found.predicted_images_per_second == pytest.approx(disk if capped else 0.75 * predicted, rel=1e-3)
    assert (found.limit, found.bound, found.unknown) == (limit, bound, None)


def test_a_slowed_loader_and_model_of_known_rates_are_predicted_to_the_number() -> None:
    """Sleeps: 10 ms an image and thread in read, 2 ms in the model; no CPU at all."""
    costs = Costs(worker={"read": 1e-2}, consumer={}, loader_cpu=0.0, model=2e-3, on_gpu=True)
    now = situation(costs, replace(TWO, num_threads=2), measured=200.0)
    for question, rate, limit in (("cpus=4", 400, "the loader's threads"), ("cpus=16", 500, "the model")):
        found = answer(question, now, 20_000)
        assert (found.predicted_images_per_second, found.limit) == (pytest.approx(rate), limit)
    both = answer("cpus=16,gpus=2", now, 20_000)
    assert (both.predicted_images_per_second, both.limit) == (pytest.approx(1000), "the model")


def test_what_was_not_measured_is_not_predicted_and_says_why() -> None:
    for changes, question, why in (
        ({}, "gpus=2", "no model was measured on a GPU"),
        ({"backend": "dali"}, "cpus=4", "stages are not timed"),
    ):
        found = answer(question, situation(**changes), 20_000)
        assert found.predicted_images_per_second is None and found.limit is None
        assert found.unknown is not None and why in found.unknown


def test_a_shared_cpu_is_judged_by_the_larger_half() -> None:
    costs = replace(COSTS, model=2e-4, model_cpu=4e-4)
    assert answer("cpus=4", situation(costs), 20_000).bound == "INPUT-BOUND (decode)"
    assert answer("raw", situation(replace(costs, model_cpu=4e-3, model=2e-3)), 20_000).bound == "COMPUTE-BOUND"


@pytest.mark.parametrize("question", ["cpus=0", "cpus=two", "gpus=0", "disk=500", "disk=0MB/s", "magic", "", "raw,"])
def test_what_cannot_be_answered_is_refused(question: str) -> None:
    with pytest.raises(ConfigError, match="expected cpus=16"):
        Case.parse(question)
    with pytest.raises(ConfigError, match="expected cpus=16"):
        ProfileConfig(what_if=(question,))
    with pytest.raises(ConfigError, match="cpus is given twice"):
        Case.parse("cpus=2,cpus=4")


# Beside a measurement.


def test_two_threads_are_predicted_from_one(small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time, decode = VirtualTime(monkeypatch), JpegDecoder.decode

    def asleep(self: JpegDecoder, data: Any, starts: Any, *rest: Any) -> Any:
        time.sleep(0.06)  # a call has the eight images of a batch
        return decode(self, data, starts, *rest)

    monkeypatch.setattr(JpegDecoder, "decode", asleep)

    def measured(num_threads: int) -> Rate:
        options = ProfileConfig(batch_size=8, num_threads=num_threads, steps=10)
        config = options.loader_config(small_jpeg_dataset, AugmentConfig(crop_size=24))
        with create_loader(config, rank=0, world_size=1) as loader:
            return measure([LoaderProbe(loader)], WindowPlan(steps=20, windows=5))[0]

    one, two = measured(1), measured(2)
    now = Resources(num_cpus=2, num_threads=1, batch_size=8, prefetch=3)
    costs = Costs.measured(one, None, on_gpu=False)
    predicted = predict(one.images_per_second, (costs, now), (costs, replace(now, num_threads=2)))
    assert predicted == pytest.approx(2 * one.images_per_second)
    assert two.images_per_second == pytest.approx(predicted, rel=0.01)
