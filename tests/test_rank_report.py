"""Ranks beside each other: the arithmetic of who is slow, and why."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from profile_document import profile_report, rate

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader_config import LoaderConfig
from lmdali.tools.measurement import Rate
from lmdali.tools.profile_config import ProfileConfig
from lmdali.tools.profile_page import profile_page
from lmdali.tools.rank_profile import agreed_plan
from lmdali.tools.rank_report import RankRates, judged_by_ranks, rank_report
from lmdali.tools.throughput_tables import print_report


def ranks(own: list[float], *, waits: list[float], job: float, model: float = 1000.0) -> list[RankRates]:
    """Ranks whose steps alone reach `own` images/s, of which `waits` seconds per image are input."""
    return [
        RankRates(
            rank=number,
            host="node",
            device="cpu",
            loader=rate(2000),
            model=rate(model),
            alone=rate(pace, {"wait": wait, "plan": 0.0, "decode": 9.0}),
            together=rate(job),
        )
        for number, (pace, wait) in enumerate(zip(own, waits, strict=True))
    ]


def test_a_rank_that_waits_for_its_input_is_the_straggler() -> None:
    found = rank_report(ranks([800, 820, 400, 810], waits=[1e-4, 1e-4, 1.4e-3, 1e-4], job=390))
    assert (found.straggler, found.cause, found.slowest) == (2, "input", 2)
    assert found.slowest_share == pytest.approx(400 / 810)
    assert found.images_per_second == 4 * 390
    assert found.au == pytest.approx(0.39)
    assert [each.au for each in found.ranks] == pytest.approx([0.39] * 4)
    assert found.averaging_share == pytest.approx(1 - 390 / 400)


def test_a_rank_whose_device_is_slow_is_one_by_its_compute() -> None:
    found = rank_report(ranks([800, 400], waits=[1e-4, 1e-4], job=400))
    assert (found.straggler, found.cause) == (1, "compute")
    assert found.ranks[1].compute_seconds == pytest.approx(1 / 400 - 1e-4)
    assert found.averaging_share == 0


def test_ranks_that_differ_by_less_than_noise_have_a_slowest_and_no_straggler() -> None:
    found = rank_report(ranks([800, 760], waits=[1e-4, 1e-4], job=700))
    assert (found.slowest, found.straggler) == (1, None)
    few = [replace(each, alone=replace(each.own, steps=5)) for each in ranks([800, 300], waits=[0, 0], job=300)]
    assert rank_report(few).straggler is None


def test_a_rank_that_is_slow_in_some_rounds_only_is_no_straggler() -> None:
    steady, shaken = ranks([800, 500], waits=[1e-4, 1e-4], job=500)
    windows = (500.0, 1000.0, 500.0, 1000.0, 500.0)
    assert shaken.alone is not None
    shaken = replace(shaken, alone=replace(shaken.alone, per_window=windows))
    steady = replace(steady, alone=replace(steady.own, per_window=(800.0,) * 5))
    assert rank_report([steady, shaken]).straggler is None


def test_without_a_model_loaders_are_beside_each_other() -> None:
    loaders = [RankRates(rank=n, host="node", device="cpu", loader=rate(pace)) for n, pace in enumerate((900, 300))]
    found = rank_report(loaders)
    assert (found.straggler, found.cause, found.au, found.averaging_share) == (1, "input", None, None)
    assert found.images_per_second == 1200


def test_the_verdict_names_the_rank_and_the_page_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    report = profile_report()
    job = rank_report(ranks([800, 400], waits=[1e-4, 1.4e-3], job=390))
    verdict = judged_by_ranks(report.verdict, job)
    assert verdict.word == "STRAGGLER rank 1"
    assert "rank 1 (on node, cpu) alone reaches 50% of the other ranks' pace, by its input" in verdict.reason
    assert judged_by_ranks(report.verdict, None) is report.verdict
    fair = rank_report(ranks([800, 800], waits=[0, 0], job=700))
    assert judged_by_ranks(report.verdict, fair) is report.verdict
    whole = replace(report, verdict=verdict, ranks=job)
    document = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    assert document["verdict"]["word"] == "STRAGGLER rank 1"
    assert document["ranks"]["ranks"][1]["au"] == pytest.approx(0.39)
    page = profile_page([("run", document)])
    for words in ("STRAGGLER rank 1", "Ranks", "rank 1 is the slowest: 50% of the others", "by its input"):
        assert words in page.replace("&#x27;", "'"), words
    print_report(whole)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    text = "\n".join(lines)
    for words in ("2 ranks", "in the job", "STRAGGLER rank 1", "AU 39%"):
        assert words in text, words


# What the ranks agree on.


def test_all_ranks_make_the_steps_of_the_slowest() -> None:
    config = ProfileConfig(seconds=5.0)
    assert agreed_plan(config, [0.01, 0.1]).steps == 5 * 10
    assert agreed_plan(config, [0.01, 30.0]).steps == 5 * 2
    assert agreed_plan(ProfileConfig(steps=17), [0.01, 0.1]).steps == 17


def test_ranks_share_the_cpus_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdali.pipeline.cpu_budget.usable_cpus", lambda process=0: 16)
    assert ProfileConfig().usable_threads == LoaderConfig(dataset="x").threads == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert ProfileConfig(parallel="ddp").usable_threads == LoaderConfig(dataset="x").threads == 4
    assert ProfileConfig(num_threads=3).usable_threads == LoaderConfig(dataset="x", num_threads=3).threads == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert LoaderConfig(dataset="x").threads == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "many")
    with pytest.raises(ConfigError, match="LOCAL_WORLD_SIZE is 'many', expected a number"):
        _ = LoaderConfig(dataset="x").threads


def test_rates_keep_what_a_step_waited_for() -> None:
    assert isinstance(rate(1), Rate)
    (one, _) = ranks([500, 500], waits=[1e-3, 1e-3], job=400)
    assert (one.input_seconds, one.compute_seconds) == (pytest.approx(1e-3), pytest.approx(1e-3))
