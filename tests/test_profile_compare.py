from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from profile_document import profile_report

from lmdali.pipeline.errors import ConfigError, InputError, ThresholdError
from lmdali.tools.profile_compare import Limit, compare_profiles
from lmdali.tools.profile_documents import number_at, rates
from lmdali.tools.profiler import command

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def profile(name: str, changes: dict[str, Any] | None = None, **options: Any) -> Path:
        document = json.loads(json.dumps(profile_report(**options).to_json()))
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            place = document
            for key in parents:
                place = place[key]
            place[last] = value
        (tmp_path / name).write_text(json.dumps(document))
        return tmp_path / name

    return profile


def limits(*expressions: str) -> list[Limit]:
    return [Limit.parse(expression) for expression in expressions]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("loader.images_per_second < 0.95x", ("loader.images_per_second", "<", 0.95, True)),
        (" verdict.data_stall>.1 ", ("verdict.data_stall", ">", 0.1, False)),
        ("a.b_2 < 1e3 X", ("a.b_2", "<", 1000.0, True)),
    ],
)
def test_limits_are_read(expression: str, expected: tuple[Any, ...]) -> None:
    found = Limit.parse(expression)
    assert (found.path, found.operator, found.bound, found.relative) == expected


@pytest.mark.parametrize("expression", ["", "loader", "a < b", "a <= 1", "a < 5%", "0.95x < a", "a < 1 or b < 2"])
def test_other_limits_are_refused_with_an_example(expression: str) -> None:
    with pytest.raises(ConfigError, match=r"loader\.images_per_second < 0\.95x"):
        Limit.parse(expression)


def test_every_rate_is_compared_with_its_noise(write: Write) -> None:
    found = compare_profiles(write("a.json"), write("b.json", loader=1000.0))
    assert list(found.rates) == ["read", "decode_one_thread", "decode", "loader", "optimizer", "model", "together"]
    a, b, quotient = found.rates["loader"]
    assert (a, b) == (2000, 1000) and quotient is not None
    assert quotient.value == 0.5 and quotient.contains(0.5) and not quotient.contains(0.55)
    same = found.rates["model"][2]
    assert same is not None and same.contains(1.0) and same.low is not None and same.low > 0.9


def test_limits_are_met_or_not_and_noise_is_told(write: Write) -> None:
    slower = write("b.json", loader=1920.0, step=600.0)
    found = compare_profiles(
        write("a.json"),
        slower,
        limits(
            "loader.images_per_second < 0.97x",  # 0.96 times: too slow, but five windows cannot tell
            "together.images_per_second < 0.97x",
            "together.images_per_second < 500",
            "together.step_seconds > 1.2x",
            "verdict.data_stall > 0.5",
        ),
    )
    assert [one.met for one in found.limits] == [False, False, True, False, True]
    assert [one.within_noise for one in found.limits] == [True, False, False, False, None]
    times = found.limits[3].found
    assert times.value == pytest.approx(800 / 600)
    assert times.low is not None and times.high is not None and times.low < times.value < times.high


def test_a_limit_on_nothing_is_an_error_and_no_pass(write: Write) -> None:
    a = write("a.json")
    for expression, error, match in (
        ("loader.image_per_second < 1", ConfigError, "images_per_second"),
        ("memory_copy.images_per_second < 1", InputError, "not measured"),
        ("loader < 1", ConfigError, "number below it"),
        ("verdict.shared_cores < 1", ConfigError, "no number but bool"),
        ("setting.decoded_cache_bytes > 2x", InputError, "no multiple"),
    ):
        with pytest.raises(error, match=match):
            compare_profiles(a, a, limits(expression))


def test_other_machines_and_datasets_are_refused_until_asked_for(write: Write) -> None:
    a = write("a.json")
    b = write("b.json", {"machine.num_cpus": 64}, dataset_digest="e" * 64, dataset="elsewhere")
    with pytest.raises(InputError, match=r"machines and datasets.*num_cpus 16 and 64; dataset_digest") as refused:
        compare_profiles(a, b)
    assert "elsewhere" not in str(refused.value)  # a dataset may be moved
    found = compare_profiles(a, b, allow_different=True)
    assert found.differences["machine"] == {"num_cpus": (16, 64)}
    assert any("different machines and datasets" in note for note in found.notes)


def test_other_settings_and_packages_are_told_and_not_refused(write: Write) -> None:
    b = write("b.json", {"machine.packages.numpy": "3.0"}, batch_size=64)
    found = compare_profiles(write("a.json"), b)
    assert found.differences["setting"] == {"batch_size": (32, 64)}
    assert found.differences["packages"] == {"numpy": ("2.4.6", "3.0")}


def test_an_invalid_profile_and_cautions_are_told(write: Write) -> None:
    b = write("b.json", {"verdict.bound": "INVALID", "verdict.reason": "too few steps"})
    found = compare_profiles(write("a.json"), b)
    assert found.notes == ("A and B: the dataset fits into memory", "B: INVALID: too few steps")


def test_rates_that_later_versions_add_are_compared_too(write: Write) -> None:
    rate = json.loads(json.dumps(profile_report().to_json()))["read"]
    more = {"storage": {"cold": rate, "warm": rate}}
    assert list(rates(more)) == ["storage.cold", "storage.warm"]
    assert number_at(more, "storage.warm.images_per_second", "x") == 150_000


def test_other_files_are_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"top1": 1}')
    with pytest.raises(InputError, match="profile run DATASET --json > FILE`"):
        compare_profiles(write("a.json"), tmp_path / "x.json")
    with pytest.raises(InputError, match="schema version 99"):
        compare_profiles(write("a.json"), write("b.json", {"schema_version": 99}))


def test_the_command_prints_tables_and_ends_with_the_code_of_a_threshold(write: Write) -> None:
    files = [str(write("a.json")), str(write("b.json", {"machine.cpu": "Some Processor"}, loader=1000.0))]
    bad = ["--fail-if", "loader.images_per_second < 0.95x", "--fail-if", "together.images_per_second < 0.95x"]
    result = CliRunner().invoke(command, ["compare", *files, *bad])
    assert isinstance(result.exception, ThresholdError) and result.exception.exit_code == 9
    assert "1 of 2 limits broken by B: loader.images_per_second" in str(result.exception)
    for word in ("-50.0%", "BROKEN", "kept", "2,000", "LMDB read"):
        assert word in result.output
    assert max(len(line.rstrip()) for line in result.output.splitlines()) <= 100
    long = write(f"{'long-' * 30}.json")
    wide = CliRunner().invoke(command, ["compare", str(long), str(long)]).output
    assert max(len(line.rstrip()) for line in wide.splitlines()) <= 100
    assert CliRunner().invoke(command, ["compare", *files]).exit_code == 0


def test_beyond_noise_lets_noise_pass(write: Write) -> None:
    files = [str(write("a.json")), str(write("b.json", loader=1920.0))]
    limit = ["--fail-if", "loader.images_per_second < 0.97x"]
    strict = CliRunner().invoke(command, ["compare", *files, *limit])
    assert isinstance(strict.exception, ThresholdError) and "within noise" in str(strict.exception)
    assert CliRunner().invoke(command, ["compare", *files, *limit, "--beyond-noise"]).exit_code == 0


def test_the_command_gives_one_json_document(write: Write) -> None:
    files = [str(write("a.json")), str(write("b.json", loader=1000.0))]
    result = CliRunner().invoke(command, ["compare", *files, "--json", "--fail-if", "loader.images_per_second < 0.9x"])
    document = json.loads(result.stdout)
    assert document["met"] is False and document["limits"][0]["within_noise"] is False
    assert document["rates"]["loader"]["quotient"]["value"] == 0.5
    assert isinstance(result.exception, ThresholdError)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("loader.images_per_second", float("nan")),
        ("machine.load_average", float("inf")),
        ("loader.images_per_second", None),
        ("loader.per_window", [0.0] * 5),
        ("loader.per_window", ["fast"]),
        ("loader", "fast"),
        ("verdict", None),
        ("verdict", "COMPUTE-BOUND"),
        ("suggestion", {"option": "-j 16"}),
        ("what_if", ["cpus=4"]),
        ("lock", {"idle": {}}),
    ],
)
def test_a_profile_that_tells_no_numbers_is_refused_and_keeps_no_limit(write: Write, path: str, value: Any) -> None:
    damaged = write("b.json", {path: value})
    with pytest.raises(InputError, match=r"b\.json: .*measure again"):
        compare_profiles(write("a.json"), damaged, limits("loader.images_per_second < 0.95x"))
