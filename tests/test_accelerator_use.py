from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError
from lmdali.tools.accelerator_command import AuConfig, measure_au, print_au
from lmdali.tools.accelerator_use import (
    RESNET50,
    AuReport,
    Clock,
    Epoch,
    Workload,
    calibrate,
    check_rules,
    emulate_epoch,
)
from lmdali.tools.profiler import command

STEP = Workload(batch_size=10, compute_seconds=0.5)


class FakeTime:
    """A clock that only moves when it is told to; a sleep takes `late` more than it was asked for."""

    def __init__(self, late: float = 0.0) -> None:
        self.now, self.late = 0.0, late
        self.clock = Clock(now=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late

    def loader(self, *waits: float) -> Iterator[Any]:
        for wait in waits:
            self.now += wait
            yield SimpleNamespace(labels=range(10))


def test_the_first_wait_counts_for_the_rate_and_not_for_the_au() -> None:
    time = FakeTime()
    epoch = emulate_epoch(time.loader(8.0, 0.0, 0.5, 0.0), STEP, clock=time.clock)
    # Four steps of half a second, and half a second of waiting behind the first.
    assert epoch == Epoch(4, 40, 2.0, 8.0, 2.5)
    assert epoch.au == 0.8
    assert epoch.images_per_second == 40 / 10.5


def test_hidden_input_is_a_hundred_percent_and_an_epoch_can_be_cut() -> None:
    time = FakeTime()
    epoch = emulate_epoch(time.loader(1.0, *[0.0] * 9), STEP, clock=time.clock, max_steps=3)
    assert (epoch.au, epoch.steps) == (1.0, 3)


@pytest.mark.parametrize(("late", "expected"), [(0.0, 1.0), (0.5, 0.5)])
def test_a_loader_that_does_nothing_shows_how_late_the_machine_wakes(late: float, expected: float) -> None:
    time = FakeTime(late)
    assert calibrate(STEP, clock=time.clock) == pytest.approx(expected)


def report(au: float, calibration: float) -> AuReport:
    epochs = (Epoch(10, 100, 5.0, 1.0, 5.0 / au),)
    return AuReport(workload=STEP, epochs=epochs, calibration_au=calibration, rules=(), mean_record_bytes=1e6)


@pytest.mark.parametrize(
    ("au", "calibration", "outcome"),
    [(0.95, 0.999, "PASS"), (0.85, 0.999, "FAIL"), (0.95, 0.98, "INVALID"), (0.85, 0.98, "INVALID")],
)
def test_a_run_that_is_not_calibrated_is_invalid_whatever_it_measured(
    au: float, calibration: float, outcome: str
) -> None:
    found = report(au, calibration)
    assert found.outcome == outcome
    assert found.to_json()["comparable_with_mlperf"] == (outcome != "INVALID")
    if outcome == "INVALID":
        assert "98.00%" in found.reason


def test_megabytes_are_of_a_million_bytes() -> None:
    found = report(1.0, 1.0).to_json()
    assert found["megabytes_per_second"] == pytest.approx(100 / 6)


def test_the_presets_are_those_of_mlperf() -> None:
    assert RESNET50["h100"].images_per_second == pytest.approx(1786, abs=1)
    assert RESNET50["a100"].images_per_second == pytest.approx(920, abs=1)
    assert all(preset.threshold == 0.9 for preset in RESNET50.values())


def test_each_rule_is_checked_by_itself() -> None:
    good: dict[str, Any] = {
        "dataset_bytes": 5000,
        "memory_bytes": 1000,
        "epochs": [Epoch(500, 200_000, 112.0, 1.0, 112.0)] * 5,
        "whole_epochs": True,
        "seed_given": False,
        "mean_record_bytes": 114_660.0,
        "workload": RESNET50["h100"],
    }
    assert [rule.met for rule in check_rules(**good)] == [True] * 7
    bad: list[dict[str, Any]] = [
        {"dataset_bytes": 4999},
        {"epochs": [Epoch(499, 200_000, 112.0, 1.0, 112.0)] * 5},
        {"epochs": [Epoch(500, 200_000, 112.0, 1.0, 112.0)] * 4},
        {"whole_epochs": False},
        {"seed_given": True},
        {"workload": replace(RESNET50["h100"], batch_size=64)},
        {"mean_record_bytes": 26_000.0},
    ]
    for place, change in enumerate(bad):
        found = [rule.met for rule in check_rules(**good | change)]
        assert found == [number != place for number in range(7)], change
    assert not check_rules(**good | {"memory_bytes": None})[0].met


def test_our_own_loader_is_measured_on_a_clock_that_stands_still(small_jpeg_dataset: Path) -> None:
    time = FakeTime()
    config = AuConfig(batch_size=8, epochs=2, num_threads=1)
    found = measure_au(small_jpeg_dataset, config, augment=AugmentConfig(crop_size=40), clock=time.clock, quiet=True)
    assert (found.au, found.outcome) == (pytest.approx(1.0), "PASS")
    assert [epoch.steps for epoch in found.epochs] == [4, 4]
    assert {rule.name for rule in found.rules if rule.met} == {"whole epochs", "order"}
    cut = measure_au(
        small_jpeg_dataset,
        replace(config, steps=3, seed=3),
        augment=AugmentConfig(crop_size=40),
        clock=time.clock,
        quiet=True,
    )
    assert [epoch.steps for epoch in cut.epochs] == [3, 3]
    assert not any(rule.met for rule in cut.rules if rule.name in ("whole epochs", "order"))


def test_tables_fit_into_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    found = replace(report(0.5, 0.5), rules=check_rules(
        dataset_bytes=1, memory_bytes=None, epochs=report(0.5, 0.5).epochs, whole_epochs=False, seed_given=True,
        mean_record_bytes=1e6, workload=STEP,
    ))  # fmt: skip
    print_au(Path("data/train" * 20), found)
    shown = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 100
    for word in ("INVALID", "NOT KEPT", "50.00%", "memory not known", "MB/s"):
        assert word in shown


def test_the_command_gives_one_json_document(jpeg_dataset: Path) -> None:
    arguments = ["au", str(jpeg_dataset), "-b", "20", "--compute-seconds", "0.01", "--epochs", "1", "-j", "1", "--json"]
    result = CliRunner().invoke(command, [*arguments, "--quiet"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["outcome"] in ("PASS", "FAIL", "INVALID")
    assert document["workload"]["batch_size"] == 20
    assert document["epochs"][0]["samples"] == 60
    assert 0 < document["au"] <= 1


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"accelerator": "b200"}, {"compute_seconds": 0.0}, {"epochs": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AuConfig(**wrong)  # type: ignore[arg-type]
