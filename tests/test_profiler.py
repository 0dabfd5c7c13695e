from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from profile_document import profile_report
from slow_model import SlowModel

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.errors import ConfigError, InputError, StorageError
from lmdali.pipeline.timing import STAGES
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.measurement import Rate
from lmdali.tools.prediction import Costs, Resources
from lmdali.tools.profiler import ProfileConfig, command, profile_dataset
from lmdali.tools.sources import open_source
from lmdali.tools.step_probes import GRAPH_STEPS, ModelProbe
from lmdali.tools.suggestion import Situation
from lmdali.tools.throughput_tables import print_report
from lmdali.tools.verdict import Evidence, dominant_stage, judge
from lmdali.tools.what_if import answer

AUGMENT = AugmentConfig(crop_size=24)
QUICK = ProfileConfig(batch_size=8, num_threads=2, steps=10, device="cpu")
WORKERS_ONLY = dict.fromkeys(STAGES, None) | {"read": 1e-4, "decode": 6e-4, "augment": 2e-4, "wait": 1e-3}


@pytest.fixture(scope="module", params=["jpeg", "raw"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("profile"), request.param, 64)


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("profile"), "jpeg", 64)


def make_dataset(root: Path, encoding: str, count: int) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / "source" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (32, 32))
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    config = ConvertConfig(encoding=encoding, size=32)
    convert(open_source(root / "source"), root / "set", config, workers=1, quiet=True)
    return root / "set"


def rate(per_second: float, cpu_seconds: float = 0.0, stages: dict[str, float | None] | None = None) -> Rate:
    return Rate(
        images_per_second=per_second,
        low=per_second,
        high=per_second,
        per_window=(per_second,) * 5,
        steps=10,
        step_seconds=8 / per_second,
        cpu_seconds_per_image=cpu_seconds,
        stage_seconds_per_image=stages or {},
    )


def evidence(loader: float, model: float, together: float, *, cpu_seconds: float = 0.0) -> Evidence:
    return Evidence(
        loader=rate(loader, cpu_seconds, WORKERS_ONLY),
        model=rate(model, 2 / model if cpu_seconds else 0.0),
        together=rate(together),
        steps_per_epoch=100,
        num_threads=2,
        num_cpus=2,
        on_gpu=not cpu_seconds,
        backend="cpu",
        encoding="jpeg",
    )


# The verdict, from known numbers.


@pytest.mark.parametrize(
    ("loader", "model", "together", "bound", "stall"),
    [
        (500, 1000, 500, "INPUT-BOUND", 0.5),
        (5000, 1000, 1000, "COMPUTE-BOUND", 0.0),
        (1100, 1000, 980, "BALANCED", 0.02),
        (5000, 1000, 800, "INPUT-BOUND", 0.2),  # fast alone, and yet the steps wait
        (5000, 1000, 1100, "COMPUTE-BOUND", 0.0),  # noise below zero is no stall
    ],
)
def test_on_a_gpu_the_stall_decides(loader: float, model: float, together: float, bound: str, stall: float) -> None:
    verdict = judge(evidence(loader, model, together))
    assert verdict.bound == bound
    assert verdict.data_stall == pytest.approx(stall)
    assert not verdict.shared_cores


@pytest.mark.parametrize(
    ("loader", "model", "bound"), [(4000, 400, "COMPUTE-BOUND"), (400, 4000, "INPUT-BOUND"), (900, 1000, "BALANCED")]
)
def test_on_shared_cores_the_larger_half_decides(loader: float, model: float, bound: str) -> None:
    # Both keep the two CPUs busy, so together a step costs the sum: a stall is there even if nobody waits.
    together = 1 / (1 / loader + 1 / model)
    verdict = judge(evidence(loader, model, together, cpu_seconds=2 / loader))
    assert verdict.shared_cores
    assert verdict.bound == bound
    assert verdict.data_stall == pytest.approx(1 - together / model)
    assert "share 2 CPUs" in verdict.reason


def test_a_loader_that_sleeps_shares_no_cores() -> None:
    verdict = judge(replace(evidence(800, 1000, 800, cpu_seconds=1e-6), on_gpu=False))
    assert not verdict.shared_cores
    assert verdict.bound == "INPUT-BOUND"


def test_too_few_batches_or_steps_give_no_verdict() -> None:
    good = evidence(500, 1000, 500)
    few_batches = judge(replace(good, steps_per_epoch=3))
    assert few_batches.bound == "INVALID" and "3 batches" in few_batches.reason and few_batches.data_stall is None
    assert good.model is not None
    few_steps = judge(replace(good, model=replace(good.model, steps=5)))
    assert few_steps.bound == "INVALID" and "5 steps of the model" in few_steps.reason


def test_rounds_that_contradict_each_other_give_no_verdict() -> None:
    shaken = evidence(500, 1000, 500)
    assert shaken.together is not None
    shaken = replace(
        shaken,
        loader=replace(shaken.loader, per_window=(500, 3000, 500, 3000, 500)),
        together=replace(shaken.together, per_window=(500, 1000, 500, 1000, 500)),
    )
    verdict = judge(shaken)
    assert verdict.bound == "INVALID"
    assert "2 of 5 rounds" in verdict.reason


def test_a_machine_that_slows_down_halfway_changes_no_verdict() -> None:
    steady = evidence(500, 1000, 500)
    assert steady.model is not None and steady.together is not None
    slowed = replace(
        steady,
        loader=replace(steady.loader, per_window=(500, 500, 250, 200, 200)),
        model=replace(steady.model, per_window=(1000, 1000, 500, 400, 400)),
        together=replace(steady.together, per_window=(500, 500, 250, 200, 200)),
    )
    assert judge(slowed).bound == "INPUT-BOUND"
    assert judge(slowed).data_stall == pytest.approx(0.5)


def test_steps_that_are_faster_with_a_loader_than_without_give_no_verdict() -> None:
    verdict = judge(evidence(300, 100, 400))
    assert verdict.bound == "INVALID"
    assert "25%" in verdict.reason


def test_where_loader_and_model_are_far_apart_noise_costs_the_stall_and_not_the_verdict() -> None:
    verdict = judge(evidence(5000, 100, 400))
    assert (verdict.bound, verdict.data_stall) == ("COMPUTE-BOUND", None)


def test_a_fast_loader_beside_a_model_on_the_same_cpu_is_not_blamed_for_the_cores_it_takes() -> None:
    # A busy machine: the model got 0.8 of 2 CPUs, so the sum of CPU times alone would not show that they are shared.
    found = evidence(3000, 100, 80)
    assert found.model is not None
    busy = replace(found, on_gpu=False, model=replace(found.model, cpu_seconds_per_image=0.008))
    assert judge(busy).bound == "COMPUTE-BOUND"
    assert judge(busy).shared_cores
    assert judge(found).bound == "INPUT-BOUND"  # on a GPU there are no cores to share


def test_without_a_model_there_is_a_stage_and_no_verdict() -> None:
    verdict = judge(replace(evidence(500, 1, 1), model=None, together=None))
    assert (verdict.bound, verdict.stage, verdict.data_stall) == (None, "decode", None)


@pytest.mark.parametrize(
    ("stages", "stage"),
    [
        ({"read": 9e-4, "decode": 1e-4, "augment": 1e-4}, "read"),
        ({"read": 1e-4, "decode": 1e-4, "augment": 9e-4, "copy": 1e-5}, "augment"),
        ({"verify": 9e-4, "decode": 1e-4, "augment": 1e-4}, "verify"),
        ({"read": 1e-4, "decode": 1e-4, "collate": 9e-4}, "collate"),
        ({"read": 1e-4, "decode": 3e-4, "copy": 9e-4}, "copy"),  # one thread's 0.9 ms against two threads' 0.4 ms
        ({"read": 5e-4, "decode": 9e-4, "copy": 6e-4}, "decode"),
        ({}, None),
    ],
)
def test_the_dominant_stage_is_the_one_on_the_busiest_threads(stages: dict[str, float], stage: str | None) -> None:
    found = evidence(1000, 1, 1)
    everything = dict.fromkeys(STAGES, None) | stages
    assert dominant_stage(replace(found, loader=rate(1000, 0.0, everything))) == stage


def test_copies_that_hold_a_run_back_have_a_word_of_their_own() -> None:
    inside = dict.fromkeys(STAGES, None) | {"decode": 3e-4, "copy": 9e-4}
    verdict = judge(replace(evidence(1000, 2000, 1000), loader=rate(1000, 0.0, inside)))
    assert (verdict.bound, verdict.stage, verdict.word) == ("COPY-BOUND", "copy", "COPY-BOUND")
    assert judge(evidence(500, 1000, 500)).word == "INPUT-BOUND (decode)"
    assert judge(evidence(5000, 1000, 1000)).word == "COMPUTE-BOUND"


@pytest.mark.parametrize(
    ("stage", "changes", "named", "not_named"),
    [
        ("decode", {"num_cpus": 8}, "-j 8", "more CPUs"),
        ("decode", {}, "more CPUs", "-j"),  # there is a thread for each of them already
        ("read", {"encoding": "raw"}, "store JPEG", "-j"),
        ("read", {}, "--order block", "store JPEG"),
        ("augment", {"dtype": "float32"}, "dtype uint8", "-j"),
        ("augment", {"dtype": "uint8"}, "more CPUs", "dtype"),
        ("copy", {"dtype": "float32"}, "is uint8 already", "use dtype"),  # our loader sends nothing else
        ("copy", {"dtype": "float32", "encoding": None}, "use dtype uint8", "already"),
        ("copy", {"dtype": "uint8", "encoding": None}, "is uint8 already", "use dtype"),
        ("verify", {"verify": "always"}, "--verify first", "never"),
        ("verify", {"verify": "first"}, "--verify never", "--verify first"),
    ],
)
def test_advice_names_nothing_that_is_so_already(
    stage: str, changes: dict[str, Any], named: str, not_named: str
) -> None:
    inside = dict.fromkeys(STAGES, None) | {stage: 1.8e-3}
    found = replace(evidence(1000, 2000, 1000), loader=rate(1000, 0.0, inside), **changes)
    advice = judge(found).advice
    assert named in advice and not_named not in advice


def test_dali_names_no_stage_that_it_does_not_time() -> None:
    inside = {"read": 1e-4, "decode": None, "augment": None, "copy": 9e-4}
    found = replace(evidence(1000, 2000, 1000), backend="dali", loader=rate(1000, 0.0, inside))
    assert dominant_stage(found) is None
    assert judge(found).bound == "INPUT-BOUND"
    assert dominant_stage(replace(found, loader=rate(1000, 0.0, inside | {"read": 1.9e-3}))) == "read"


# The profile of a real dataset.


def test_a_report_holds_every_rate_and_null_for_what_was_not_measured(dataset: Path) -> None:
    # Windows of more steps than are in flight when they begin: so something is read, decoded and cut in each.
    config = replace(QUICK, steps=50)
    report = profile_dataset(dataset, config, model=SlowModel(0.001), augment=AUGMENT, quiet=True)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    raw = report.setting.encoding == "raw"
    assert (document["decode"] is None) == raw
    assert (document["memory_copy"] is None) == (not raw)
    assert document["device_copy"] is None  # a CPU copies to no device, and that is no rate of zero
    ceilings = ("storage_sequential", "storage", "read_sequential", "read", "augment_one_thread", "augment")
    for name in (*ceilings, "loader", "model", "together", "optimizer"):
        assert document[name]["images_per_second"] > 0
        assert document[name]["steps"] == 50
        assert document[name]["low"] <= document[name]["images_per_second"] <= document[name]["high"]
    stages = document["loader"]["stage_seconds_per_image"]
    assert stages["copy"] is None  # there is no device to copy to
    assert min(stages["read"], stages["augment"], stages["wait"]) > 0
    assert document["setting"]["steps_per_epoch"] == 8
    assert document["time_to_first_batch_seconds"] > 0
    assert document["epoch_gap_seconds"] > 0
    assert document["machine"]["gpu"] is None
    assert document["inside"]["stages"]["wait"]["p50"] <= document["inside"]["stages"]["wait"]["p99"]
    assert document["inside"]["queue"]["mean_started"] == 8
    assert document["lock"]["idle"]["p50"] <= document["lock"]["idle"]["p99"]
    assert document["lock"]["loading"]["count"] > 0
    expected = document["read"]["images_per_second"] * report.setting.mean_record_bytes / 1e6
    assert document["megabytes_per_second"]["read"] == pytest.approx(expected)
    step = document["together"]["images_per_second"]
    assert document["shares_of_step"]["augment"] == pytest.approx(step / document["augment"]["images_per_second"])
    assert document["shares"]["read"] == pytest.approx(
        document["read"]["images_per_second"] / document["storage"]["images_per_second"]
    )


def test_a_loader_in_storage_order_has_ceilings_in_that_order_only(jpeg: Path) -> None:
    report = profile_dataset(jpeg, replace(QUICK, order="sequential"), model=None, augment=AUGMENT, quiet=True)
    assert (report.storage, report.read) == (None, None)
    assert report.read_sequential is not None and report.decode is not None
    rates = (report.read_sequential, report.decode, report.augment)
    lowest = min(rate.images_per_second for rate in rates if rate is not None)
    assert report.shares()["loader"] == pytest.approx(report.loader.images_per_second / lowest)


def test_half_precision_and_uint8_are_profiled_too(jpeg: Path) -> None:
    for dtype, augment in (
        ("bfloat16", AUGMENT),
        ("uint8", AugmentConfig(crop_size=24, normalize="none", lighting="none")),
    ):
        report = profile_dataset(
            jpeg,
            replace(QUICK, dtype=dtype),
            model=SlowModel(0.0),
            augment=augment,
            quiet=True,  # type: ignore[arg-type]
        )
        assert report.setting.dtype == dtype
        assert report.together is not None


def test_an_epoch_of_a_few_batches_is_measured_and_judged_invalid(jpeg: Path) -> None:
    report = profile_dataset(jpeg, replace(QUICK, batch_size=30), model=SlowModel(0.0), augment=AUGMENT, quiet=True)
    assert report.verdict.bound == "INVALID"
    assert report.loader.images_per_second > 0
    with pytest.raises(ConfigError, match="fewer than one global batch"):
        profile_dataset(jpeg, replace(QUICK, batch_size=65), model=None, augment=AUGMENT, quiet=True)


def test_the_models_weights_and_the_callers_random_numbers_stay(jpeg: Path) -> None:
    model = SlowModel(0.0)
    before = model.head.weight.detach().clone()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    profile_dataset(jpeg, QUICK, model=model, augment=AUGMENT, quiet=True)
    assert torch.equal(torch.rand(3), expected)
    assert torch.allclose(model.head.weight, before, atol=1e-2)


def test_tables_fit_into_a_hundred_columns(jpeg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = profile_dataset(jpeg, QUICK, model=SlowModel(0.0), augment=AUGMENT, quiet=True)
    machine = report.machine | {"cpu": "Some Processor", "load_average": 0.0}
    # On a busy machine a step with data for free may take longer than one that waits for it: then none is told.
    verdict, setting = replace(report.verdict, data_stall=0.25), replace(report.setting, dataset="imagenet/train")
    print_report(replace(report, machine=machine, setting=setting, verdict=verdict))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    text = "\n".join(lines)
    for word in (
        "LMDB read",
        "storage, in order",
        "libjpeg-turbo, 2 threads",
        "augment, 2 threads",
        "loader",
        "of next",
        "of step",
        "optimiser",
        "not timed",
        "data stall",
        "advice",
    ):
        assert word in text, word


def test_predictions_and_what_was_tried_stand_side_by_side_in_a_hundred_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = "decoding on CPU threads: faster; 25,123 images/s on CPU threads, 24,123 images/s on the GPU, measured now"
    report = profile_report(dataset="/a/long/path" * 12, backend_reason=reason)
    costs = Costs(worker={"decode": 1e-3}, consumer={}, loader_cpu=1e-3, model=1e-3, on_gpu=True)
    now = Resources(num_cpus=2, num_threads=2, batch_size=320, prefetch=3)
    situation = Situation(
        bound=None,
        costs=costs,
        resources=now,
        measured=800.0,
        encoding="jpeg",
        backend="cpu",
        verify="first",
        decoded_cache_bytes=0,
        decoded_bytes=0,
        memory_bytes=None,
    )
    foreign = replace(situation, backend="dali")
    questions = "cpus=16,gpus=8,disk=12345.5MB/s", "gpus=4"
    answers = [answer(question, each, 25_000.0) for question in questions for each in (situation, foreign)]
    assert report.suggestion is not None
    tried = replace(report.suggestion, measured_images_per_second=1020.0)
    print_report(replace(report, suggestion=tried, what_if=tuple(answers)))
    text = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    words = " ".join(text.replace("│", " ").split())
    stall = report.verdict.data_stall
    assert stall is not None  # a step of 32 images at 800 images/s
    assert f"{stall:.0%}: of the 40.0 ms of a step, {40 * stall:.1f} ms are input" in words
    assert "-j 16: predicted 990 images/s, now 800" in words and "measured 1,020" in words
    assert "predicted 6,400 images/s, limited by the model, COMPUTE-BOUND (now 800); not measured" in words
    assert "predicted 1,600 images/s, limited by the CPUs, INPUT-BOUND (decode) (now 800)" in words
    assert "not known: this loader's stages are not timed (now 800)" in words


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="auto, cpu, dali"):
        ProfileConfig(backend="synthetic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="steps"):
        ProfileConfig(steps=2)


# The command.


def test_pictures_too_small_for_the_crop_are_refused_in_one_line(jpeg: Path) -> None:
    arguments = ["run", str(jpeg), "-b", "8", "-j", "1", "--steps", "10", "--no-model", "--json", "--dtype", "uint8"]
    result = CliRunner().invoke(command, arguments)
    # Pictures of 32 pixels hold no crop of 224: one clear line.
    assert isinstance(result.exception, ConfigError)
    assert "224" in str(result.exception)


def test_the_command_runs_alexnet_on_pictures_of_full_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "source" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (256, 256))
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    convert(open_source(tmp_path / "source"), tmp_path / "set", ConvertConfig(), workers=1, quiet=True)
    arguments = ["run", str(tmp_path / "set"), "-b", "2", "--steps", "10", "--width", "0.05", "--json"]
    arguments += ["--augment", "resized", "--min-area", "0.5"]
    result = CliRunner().invoke(command, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["setting"]["model"] == "AlexNet"
    assert document["setting"]["augment"].startswith("windows of 0.5 to 1 of the area")
    assert document["verdict"]["bound"] in ("INPUT-BOUND", "COMPUTE-BOUND", "BALANCED", "INVALID")


def test_a_directory_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        profile_dataset(tmp_path, QUICK)


def test_several_views_of_an_image_are_no_training_step(jpeg: Path) -> None:
    with pytest.raises(ConfigError, match=r"an AlexNet takes crops of 224, found crop_size 160: .* --no-model"):
        profile_dataset(jpeg, QUICK, augment=AugmentConfig(crop_size=160), quiet=True)
    with pytest.raises(ConfigError, match="take one view of an image, found 10"):
        profile_dataset(jpeg, QUICK, augment=AugmentConfig.ten_crop())


@pytest.mark.parametrize("seconds", ["inf", "nan", "0"])
def test_a_measurement_has_an_end(jpeg: Path, seconds: str) -> None:
    result = CliRunner().invoke(command, ["run", str(jpeg), "--seconds", seconds])
    assert isinstance(result.exception, ConfigError) and "seconds must be" in str(result.exception)


@pytest.mark.parametrize(
    "arguments", [["run", "--no-model", "--trace"], ["sweep", "--html"], ["sweep", "--write"]], ids=" ".join
)
def test_a_file_that_cannot_be_written_is_found_out_before_anything_is_measured(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmdali.tools.profiler.profile_dataset", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setattr("lmdali.tools.profile_sweep.sweep_datasets", lambda *_, **__: pytest.fail("it was measured"))
    result = CliRunner().invoke(command, [*arguments, str(tmp_path), str(tmp_path)])
    assert isinstance(result.exception, StorageError) and "is a directory" in str(result.exception)


def test_slow_steps_on_a_cpu_are_not_warmed_up_for_a_graph_that_there_is_none_of() -> None:
    batch = Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    on_gpu = Batch(SimpleNamespace(device=torch.device("cuda")), batch.labels, batch.indices)  # type: ignore[arg-type]
    steps = [ModelProbe(lambda batch: None, each).warmup_steps for each in (batch, on_gpu)]
    assert steps == [2, GRAPH_STEPS]
