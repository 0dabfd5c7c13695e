from __future__ import annotations

from page_parts import parse_page

from lmdali.tools.html_page import Section, page
from lmdali.tools.stage_parts import stage_parts

CALLS = {"count": 1200, "p50": 0.001, "p90": 0.002, "p99": 0.0345}
INSIDE = {
    "stages": {"decode": CALLS},
    "threads": {"worker <0>": {"decode": CALLS}},
    "queue": {"mean_ready": 2.5, "mean_started": 4.0, "empty_share": 0.25},
}


def text_of(html: str) -> str:
    return parse_page(page("x", [Section(title="inside", body=html)])).text


def test_stages_have_their_share_of_thread_time_and_waiting_has_none() -> None:
    html = stage_parts({"read": 1e-4, "decode": 3e-4, "copy": None, "wait": 5e-4}, None)
    text = text_of(html)
    for word in ("0.300", "75%", "25%", "not timed", "0.500"):
        assert word in text, word
    assert "100%" not in text and "Single calls" not in text


def test_where_nothing_was_timed_nothing_is_drawn() -> None:
    assert "svg" not in stage_parts({"read": None}, None)


def test_single_calls_are_told_by_thread_and_the_queue_in_words() -> None:
    text = text_of(stage_parts({"decode": 1e-3}, INSIDE))
    assert text.count("1,200") == 2 and text.count("34.500") == 2
    assert "worker <0>" in text
    assert "2.5 ready on average, of 4.0 begun; 25% of the times it had none" in text
    assert "ready on average" not in text_of(stage_parts({"decode": 1e-3}, INSIDE | {"queue": None}))


def test_waits_for_pythons_lock_are_told_where_they_were_sampled() -> None:
    lock = {"idle": CALLS | {"p50": 0.00004}, "loading": CALLS}
    text = text_of(stage_parts({"decode": 1e-3}, INSIDE, None, lock))
    assert "Python's lock: 1.00 ms" in text and "2.00 ms one time in ten; 0.04 ms with nothing running" in text
    assert "Python's lock" not in text_of(stage_parts({"decode": 1e-3}, INSIDE))
