from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import BROWSER, NO_BROWSER, measure_page, print_page, show_page
from click.testing import CliRunner
from page_parts import parse_page
from profile_document import profile_report

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools.profile_documents import rate_rows
from lmdali.tools.profile_page import profile_page
from lmdali.tools.profiler import command

in_browser = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)


def document(**options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(profile_report(**options).to_json()))
    return found


def test_megabytes_are_told_of_rates_that_move_records() -> None:
    found = document()
    moved = {row[0]: row[3] for row in rate_rows(found, lambda path: path) if row[3]}
    assert moved == {"read": "3,750", "loader": "50"}
    found["setting"]["mean_record_bytes"] = None  # of a loader that is not ours
    assert not any(row[3] for row in rate_rows(found))


@pytest.fixture(params=["one", "three"])
def page(request: pytest.FixtureRequest) -> str:
    if request.param == "one":
        return profile_page([("run", document())])
    return profile_page(
        [("ours", document()), ("a much longer name of a loader", document(loader=900)), ("x", document())]
    )


def test_the_page_is_whole_and_says_the_outcome_first(page: str) -> None:
    parts = parse_page(page)
    assert len(parts.plots) in (4, 13)
    text = re.sub(r"\s+", " ", parts.text)
    for word in (
        "INPUT-BOUND (decode)",
        "Steps wait for decoding & more.",
        "What to do: Use more CPUs (-j).",
        "Try -j 16: 990 images/s predicted, 800 now, not tried.",
        "150,000",
        "0.900",  # decode, ms
        "photos/<train>",
        "cpus=16: limited by the model",
        "raw: not known",
        "what_if.0.question",
        "Some Processor",
        "the dataset fits into memory",
        "not timed",
        "verdict.data_stall",
    ):
        assert word in text, word
    order = ["INPUT-BOUND", "What to do", "LMDB read", "ms/image", "batch_size"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)


def test_one_profile_has_its_sections_in_order() -> None:
    assert parse_page(profile_page([("run", document())])).headings == [
        "Profile of photos/<train>",
        "Verdict",
        "Rates, each alone and then together",
        "Inside the loader",
        "Over time",
        "What if",
        "Setting",
        "Machine",
        "Cautions",
        "All numbers",
    ]


def test_several_profiles_are_side_by_side_first() -> None:
    parts = parse_page(profile_page([("ours", document()), ("torch", document(loader=900.0))]))
    assert parts.headings == ["2 profiles", "Side by side", "ours", "torch"]
    assert "900" in parts.text.split("Verdict")[0]


def test_what_was_not_measured_is_left_out_and_not_drawn_as_zero() -> None:
    missing = ("model", "together", "decode", "decode_one_thread", "read", "suggestion", "optimizer", "what_if")
    bare = document() | dict.fromkeys((*missing, "epoch_gap_seconds"))
    bare["verdict"] |= {"bound": None, "data_stall": None, "stage": None}
    bare["loader"]["stage_seconds_per_image"] = {"read": None}
    bare["setting"] |= {"mean_record_bytes": None, "num_samples": None, "encoding": None, "num_threads": None}
    parts = parse_page(profile_page([("bare", bare)]))
    assert "No verdict without a model" in parts.text
    assert "model on a cached batch" not in parts.text and "epoch gap" not in parts.text


def test_other_words_and_rates_of_later_versions_are_shown_too() -> None:
    later = document()
    later["storage"] = {"cold": later["read"]}
    later["verdict"] |= {"bound": "STRAGGLER rank 1"}
    parts = parse_page(profile_page([("later", later)]))
    assert "storage: cold" in parts.text and "STRAGGLER rank 1" in parts.text


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document()))
    out = tmp_path / "pages" / "a.html"
    result = CliRunner().invoke(command, ["report", str(tmp_path / "a.json"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(out)
    assert out.read_text() == profile_page([("a", document())])
    (tmp_path / "b.json").write_text("{}")
    refused = CliRunner().invoke(command, ["report", str(tmp_path / "b.json"), "--out", str(out)])
    assert isinstance(refused.exception, InputError)
    with pytest.raises(ConfigError, match="at least one"):
        profile_page([])


@in_browser
def test_a_browser_shows_everything_at_every_width(page: str, tmp_path: Path) -> None:
    for found in measure_page(page, tmp_path):
        assert found["scroll"] <= found["width"], f"wider than the window: {found}"
        assert found["clipped"] == []
        assert len(found["plots"]) in (4, 13) and min(found["plots"]) > 60
        assert found["height"] > 1500


@in_browser
def test_a_browser_follows_light_and_dark_and_has_no_complaints(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(profile_page([("run", document())]))
    corners = {}
    for dark in (False, True):
        shown = show_page(path, tmp_path, dark=dark)
        corners[dark] = np.median(shown[:8, :8].reshape(-1, 3), axis=0)
        assert len(np.unique(shown.astype(np.int32) @ (65536, 256, 1))) > 100
    assert corners[False] == pytest.approx((255, 255, 255), abs=2)
    assert corners[True] == pytest.approx((21, 24, 29), abs=2)


@in_browser
def test_a_browser_prints_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(profile_page([("run", document())]))
    paper = print_page(path, tmp_path)
    assert paper.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 8
