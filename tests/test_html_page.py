from __future__ import annotations

from base64 import b64decode
from pathlib import Path

import pytest
from page_parts import parse_page

from lmdali.pipeline.errors import InputError
from lmdali.tools.html_page import (
    KeyFigure,
    Section,
    bullets,
    callout,
    details,
    figure,
    heading,
    key_figures,
    page,
    pairs,
    paragraph,
    picture,
    table,
)

HOSTILE = "</style><script src='http://x'>alert(1)</script> & \udcff \"quoted\""


def test_a_page_has_its_title_sections_and_links_and_every_id_once() -> None:
    sections = [Section(title=title, body=paragraph(title)) for title in ("A b", "a B", "Å", "ä", "c")]
    parts = parse_page(page("The title", sections, subtitle="below", footer="made by hand"))
    assert parts.ids == ["a-b", "a-b-2", "section", "section-2", "c"]
    assert parts.links == [f"#{anchor}" for anchor in parts.ids]
    assert parts.headings == ["The title", "A b", "a B", "Å", "ä", "c"]
    assert "below" in parts.text and "made by hand" in parts.text


def test_a_short_page_has_no_list_of_links() -> None:
    assert parse_page(page("x", [Section(title="a", body="")] * 4)).links == []


def test_text_from_anywhere_stays_text() -> None:
    body = "".join(
        [
            paragraph(HOSTILE),
            heading(HOSTILE),
            callout(HOSTILE, [HOSTILE], tone="bad"),
            key_figures([KeyFigure(label=HOSTILE, value=HOSTILE, note=HOSTILE)]),
            bullets([HOSTILE]),
            pairs([(HOSTILE, HOSTILE)]),
            table([HOSTILE, HOSTILE], [[HOSTILE, None]], caption=HOSTILE),
            details(HOSTILE, figure("", HOSTILE)),
        ]
    )
    document = page(HOSTILE, [Section(title=HOSTILE, body=body)], subtitle=HOSTILE, footer=HOSTILE)
    document.encode()  # nothing in it that is no text
    parts = parse_page(document)  # refuses scripts and anything from outside
    assert parts.text.count("alert(1)") == 21  # 16 in the body, title twice, section, subtitle, footer
    assert "\\xff" in parts.text


def test_a_policy_forbids_what_the_page_does_not_have() -> None:
    assert "default-src 'none'" in page("x", [])


def test_numbers_are_aligned_right_and_texts_left() -> None:
    html = table(["a", "b", "c"], [["x", "y", 1.5]], text_columns=2)
    assert "<td>x</td><td>y</td>" in html and '<td class="number">1.5</td>' in html


def test_a_picture_is_within_the_page(tmp_path: Path) -> None:
    path = tmp_path / "kernels.PNG"
    path.write_bytes(b"\x89PNG")
    parts = parse_page(page("x", [Section(title="a", body=picture(path, 'a "picture"'))]))
    assert [b64decode(source.split(",")[1]) for source in parts.pictures] == [b"\x89PNG"]
    with pytest.raises(InputError, match=r"\.png"):
        picture(tmp_path / "x.svg", "")
    with pytest.raises(InputError, match="No such file"):
        picture(tmp_path / "x.png", "")
