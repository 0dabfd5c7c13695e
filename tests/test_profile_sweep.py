from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import run
from virtual_time import VirtualTime

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.jpeg_decoder import JpegDecoder
from lmdali.tools import profile_sweep
from lmdali.tools.measurement import WindowPlan
from lmdali.tools.profile_sweep import SweepConfig, plan_windows, sweep_command, sweep_datasets

AUGMENT = AugmentConfig(crop_size=24)


@pytest.fixture
def by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of so many steps: however busy the machine is, nothing takes too long for a budget.

    Five in each, more than are in flight when it begins: so something is read, whatever the threads had done before.
    """
    monkeypatch.setattr(profile_sweep, "plan_windows", lambda *_: WindowPlan(steps=25, windows=5))


def test_every_combination_is_measured_and_reported(
    small_jpeg_dataset: Path, small_raw_dataset: Path, by_steps: None
) -> None:
    config = SweepConfig(num_threads=(2,), prefetch=(1, 2), batch_size=(4,), device="cpu", verify="always")
    datasets = [small_jpeg_dataset, small_raw_dataset]
    report = sweep_datasets(datasets, config, augment=AUGMENT, quiet=True)
    assert [(each.encoding, each.num_threads, each.prefetch) for each in report.settings] == [
        (encoding, 2, prefetch) for encoding in ("jpeg", "raw") for prefetch in (1, 2)
    ]
    for each in report.settings:
        assert each.rate.steps == 25 and len(each.rate.per_window) == 5
        assert each.rate.images_per_second > 0 and each.rate.cpu_seconds_per_image > 0
        stages = each.rate.stage_seconds_per_image
        assert stages["read"] and stages["verify"] and bool(stages["decode"]) == (each.encoding == "jpeg")
        assert each.resident_bytes is not None and each.backend == "cpu"
    assert report.best in report.settings and report.best in report.candidates
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert len(document["settings"]) == 4 and document["shared"]["verify"] == "always"
    assert report.to_config()["loader"].keys() == {"num_threads", "prefetch", "batch_size", "verify"}


def test_a_slowed_stage_that_threads_share_makes_the_setting_with_more_of_them_best(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, decode = VirtualTime(monkeypatch), JpegDecoder.decode

    def asleep(self: JpegDecoder, *arguments: Any) -> Any:
        time.sleep(0.05)
        return decode(self, *arguments)

    monkeypatch.setattr(JpegDecoder, "decode", asleep)
    monkeypatch.setattr(profile_sweep, "plan_windows", lambda *_: WindowPlan(steps=20, windows=5))
    config = SweepConfig(num_threads=(1, 2), prefetch=(3,), batch_size=(4,), device="cpu")
    report = sweep_datasets([small_jpeg_dataset], config, augment=AUGMENT, quiet=True)
    one, two = report.settings
    assert report.best is two and not report.is_within_noise(one)
    assert two.rate.images_per_second == pytest.approx(2 * one.rate.images_per_second, rel=0.01)


def test_windows_keep_to_the_budget_and_settings_that_do_not_fit_are_refused() -> None:
    plan = plan_windows(60, 10, 3.0)
    assert plan.windows == 5
    assert plan.windows * (3.0 + 10 * plan.seconds / plan.windows) == pytest.approx(57)
    long = plan_windows(600, 10, 3.0)
    assert long.windows == 9
    assert long.windows * (3.0 + 10 * long.seconds / long.windows) == pytest.approx(597)
    with pytest.raises(ConfigError, match="100 settings need about 130 s"):
        plan_windows(60, 100, 5.0)
    assert plan_windows(156, 100, 5.0).windows == 5


def test_without_options_threads_double_up_to_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_sweep, "usable_cpus", lambda: 6)
    found = [(each.num_threads, each.prefetch) for each in SweepConfig().loaders()]
    assert found == [(threads, prefetch) for threads in (1, 2, 4, 6) for prefetch in (1, 3)]
    monkeypatch.setattr(profile_sweep, "usable_cpus", lambda: 16)
    found = [(each.num_threads, each.prefetch) for each in SweepConfig().loaders() if each.num_threads > 4]
    assert found == [(8, 1), (8, 3), (16, 1), (16, 3), (16, 7)], "what a loader has by default is among them"
    assert SweepConfig().told() == ()
    assert SweepConfig(prefetch=(3,), order="block").told() == ("prefetch", "order")


def test_what_cannot_be_swept_is_refused(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    for wrong in ({"seconds": 0.0}, {"target": -1.0}, {"prefetch": (0,)}, {"num_threads": (2, 0)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SweepConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nothing to be compared with"):
        sweep_datasets([small_jpeg_dataset], SweepConfig(num_threads=(1,), prefetch=(1,)), augment=AUGMENT)
    with pytest.raises(InputError):
        sweep_datasets([tmp_path])


def test_options_are_the_fields_of_the_config_with_their_defaults() -> None:
    unset = click.Option(["--nothing"]).default  # what click has where no default was given
    defaults = {parameter.name: parameter.default for parameter in sweep_command.params}
    options = {name: None if default is unset else default for name, default in defaults.items()}
    for field in fields(SweepConfig):
        assert options[field.name] == field.default, field.name
    own = {"datasets", "write", "html", "as_json", "quiet", "augment", "crop_size", "min_area", "max_aspect"}
    assert set(options) - {field.name for field in fields(SweepConfig)} == own


def test_the_command_writes_what_it_found_and_a_target_out_of_reach_ends_with_9(
    jpeg_dataset: Path, by_steps: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html, config = tmp_path / "pages" / "sweep.html", tmp_path / "settings" / "best.toml"
    arguments = ["profile", "sweep", jpeg_dataset, "-b", "4", "-j", "1,2,1", "--prefetch", "2", "--dtype", "uint8"]
    arguments += ["--device", "cpu", "--quiet"]
    assert run(*arguments, "--html", html, "--write", config, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    windows = ["--augment", "resized", "--min-area", "0.5", "--crop-size", "160"]
    assert run(*arguments, *windows, "--json") == 0
    resized = json.loads(capsys.readouterr().out)["shared"]["augment"]
    assert document["shared"]["augment"] == "random crops of 224, normalize none, lighting none"
    assert resized == "windows of 0.5 to 1 of the area, aspect to 1.33, made 160, normalize none, lighting none"
    assert [each["num_threads"] for each in document["settings"]] == [1, 2]
    assert "Sweep of 2 loaders" in html.read_text()
    assert run("train", "--config", config, "--print-config", "--json") == 0
    recipe = json.loads(capsys.readouterr().out)
    best = document["settings"][document["best"]]
    assert recipe["loader"]["num_threads"] == best["num_threads"]
    assert recipe["origins"]["loader"]["num_threads"] == f"config file {config}"
    config.unlink()
    assert run(*arguments, "--write", config, "--target", "1e9") == 9
    captured = capsys.readouterr()
    assert "none reaches 1,000,000,000" in captured.err and not config.exists()
    assert max(len(line.rstrip()) for line in captured.out.splitlines()) <= 100
    assert run("profile", "sweep", jpeg_dataset, "-j", "two") == 2
