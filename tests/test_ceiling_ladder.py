from __future__ import annotations

from dataclasses import fields

import pytest
from profile_document import rate

from lmdali.tools.ceiling_ladder import NEXT_CEILING, shares_of_ceilings, shares_of_step
from lmdali.tools.cold_run import ColdRun
from lmdali.tools.profile_documents import RATE_WORDS
from lmdali.tools.throughput import ThroughputReport


def test_each_part_is_judged_by_the_next_thing_above_it() -> None:
    rates = {
        "storage_sequential": rate(1000),
        "storage": rate(500),
        "read": rate(400),
        "decode_one_thread": rate(30),
        "decode": rate(54),
        "augment": rate(80),
        "memory_copy": None,
        "loader": rate(27),
        "optimizer": rate(120),
        "model": rate(60),
        "together": rate(18),
    }
    assert shares_of_ceilings(rates, 2) == pytest.approx(
        {
            "storage_sequential": None,
            "storage": 0.5,
            "read": 0.8,
            "decode_one_thread": None,
            "decode": 54 / 60,  # two threads, each as fast as one alone, would be 1
            "augment": None,  # nobody measured one thread
            "loader": 0.5,  # of decoding, the slowest of its parts
            "optimizer": None,
            "model": None,
            "together": 18 / 27,  # the loader is below the model
        }
    )


def test_a_loader_that_reads_in_order_is_judged_by_what_is_read_in_order() -> None:
    rates = {"storage_sequential": rate(1000), "read_sequential": rate(900), "loader": rate(450)}
    cold = {f"cold.{path}": found for path, found in rates.items()} | {"cold.read_sequential": rate(90)}
    # Cold, LMDB alone waits for each page; a loader that asks for them ahead is no faster than storage, not than that.
    assert shares_of_ceilings({**rates, **cold}, 2) == pytest.approx(
        {
            "storage_sequential": None,
            "read_sequential": 0.9,
            "loader": 0.5,
            "cold.storage_sequential": None,
            "cold.read_sequential": 0.09,
            "cold.loader": 0.45,
        }
    )


def test_time_alone_is_told_as_a_share_of_the_step() -> None:
    assert shares_of_step({"read": rate(1000), "model": rate(50), "together": rate(40), "decode": None}) == (
        pytest.approx({"read": 0.04, "model": 0.8, "together": 1.0})
    )
    assert shares_of_step({"loader": rate(10)}) == {"loader": None}


def test_every_rate_of_a_report_has_a_name_and_every_ceiling_is_one_of_them() -> None:
    paths = {field.name for field in fields(ThroughputReport) if "Rate" in str(field.type)}
    paths |= {f"cold.{field.name}" for field in fields(ColdRun) if "Rate" in str(field.type)}
    assert set(RATE_WORDS) == paths
    assert {*NEXT_CEILING, *(name for names in NEXT_CEILING.values() for name in names)} <= paths
