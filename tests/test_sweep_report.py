from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run
from hypothesis import given
from hypothesis import strategies as st
from profile_document import NOISE
from swept_settings import setting, sweep_report

from lmdali.pipeline.errors import ThresholdError
from lmdali.tools.sweep_report import SweptSetting, write_config

STEADY = (1.0, 0.999, 1.001, 0.998, 1.002)


def test_the_best_is_the_cheapest_of_those_within_noise_of_the_fastest() -> None:
    slow = setting(500, 0.1, 10, noise=STEADY)
    cheap = setting(999, 0.3, 100, noise=STEADY[::-1])  # in some rounds it was faster than the fastest
    fastest = setting(1000, 0.5, 50, noise=STEADY)
    report = sweep_report(slow, cheap, fastest)
    assert report.fastest is fastest and report.best is cheap
    assert [report.is_within_noise(each) for each in report.settings] == [False, True, True]
    assert "of the 2 within noise of the fastest (1,000 images/s)" in report.why()
    assert sweep_report(slow, fastest).best is fastest
    assert "nothing else is within noise" in sweep_report(slow, fastest).why()


def test_what_slows_the_machine_down_slows_both_and_is_no_noise() -> None:
    drift = (1.0, 0.5, 0.8, 0.4, 1.2)
    fast, slow = setting(1000, 0.5, 10, noise=drift), setting(900, 0.1, 10, noise=drift)
    report = sweep_report(fast, slow)
    assert not report.is_within_noise(slow) and report.best is fast
    assert report.of_fastest(slow).value == pytest.approx(0.9)


def test_of_settings_that_cost_the_same_the_smaller_one_is_best() -> None:
    small, large = setting(990, 0.305, 60, noise=NOISE[::-1]), setting(1000, 0.300, 200)
    assert sweep_report(large, small).best is small
    dearer = setting(990, 0.320, 60, noise=NOISE[::-1])
    assert sweep_report(large, dearer).best is large
    unknown = [setting(990, 0.305, None, noise=NOISE[::-1]), setting(1000, 0.300, None)]
    assert sweep_report(*unknown).best is unknown[1]


def test_a_target_is_reached_by_what_stays_above_it_in_its_noise() -> None:
    settings = setting(2000, 0.5, 10), setting(1050, 0.2, 10), setting(1010, 0.1, 10)
    report = sweep_report(*settings, target=1000.0)
    assert report.best is settings[1]  # the third one falls to 970 in its slowest window
    assert "of the 2 that reach 1,000 images/s" in report.why()
    nothing = sweep_report(*settings, target=5000.0)
    assert nothing.best is None and "none reaches 5,000" in nothing.why()
    assert nothing.to_json()["best"] is None
    with pytest.raises(ThresholdError, match="the fastest has 2,000"):
        nothing.to_config()


def test_the_front_leaves_out_what_another_setting_beats_in_everything() -> None:
    fast, frugal, small = setting(1000, 0.5, 50), setting(500, 0.3, 60), setting(400, 0.6, 10)
    beaten, equal = setting(400, 0.6, 60), setting(1000, 0.5, 50)
    assert sweep_report(fast, frugal, small, beaten, equal).front == (fast, frugal, small, equal)


@given(st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=1, max_size=8))
def test_each_setting_is_on_the_front_or_beaten_by_one_that_is(numbers: list[tuple[int, int, int]]) -> None:
    settings = [setting(rate, cpu, memory) for rate, cpu, memory in numbers]

    def beats(one: SweptSetting, other: SweptSetting) -> bool:
        a, b = ((-s.rate.images_per_second, s.rate.cpu_seconds_per_image, s.resident_bytes) for s in (one, other))
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))  # type: ignore[operator]

    front = sweep_report(*settings).front
    for each in settings:
        assert (each in front) != any(beats(other, each) for other in front)


def test_the_document_has_every_setting_and_which_is_the_best() -> None:
    report = sweep_report(setting(500, 0.1, 10), setting(1000, 0.5, 50))
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["best"] == 1 and document["schema_version"] == 1
    assert [each["on_front"] for each in document["settings"]] == [True, True]
    assert document["settings"][0]["of_fastest"]["value"] == pytest.approx(0.5)
    assert document["settings"][1]["rate"]["per_window"][0] == 1000
    assert document["elapsed_seconds"] == 61.5


@pytest.mark.parametrize("name", ["best.toml", "best.json"])
def test_the_trainer_takes_the_best_and_says_where_it_comes_from(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = sweep_report(
        setting(500, 0.1, 10, num_threads=1, prefetch=1),
        setting(1000, 0.1, 10, num_threads=3, prefetch=7, dataset='a "b"\n[train]'),
        told=("verify", "readahead_bytes", "batch_size"),
    )
    path = tmp_path / name
    write_config(path, report)
    assert run("train", "--config", path, "--preset", "original2012", "--print-config", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    loader, origins = document["loader"], document["origins"]["loader"]
    expected = {"num_threads": 3, "prefetch": 7, "verify": "first", "readahead_bytes": 64_000_000, "batch_size": 128}
    assert {field: loader[field] for field in expected} == expected
    assert {origins[field] for field in expected} == {f"config file {path}"}
    # What was neither swept nor told is the recipe's.
    assert (loader["order"], origins["order"]) == ("shuffled_once", "preset original2012")
    assert origins["decode"] == "default"
    assert run("train", "--config", path, "--print-config") == 0
    assert "config file" in capsys.readouterr().out
