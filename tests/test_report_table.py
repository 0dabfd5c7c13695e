from __future__ import annotations

import io
import sys

import pytest

from lmdali.tools.report_table import print_pairs, print_table


@pytest.mark.parametrize(
    "text", ["pip install '.[train]'", "class [bold]/cat[1].jpg", "a[/b]", ":smile:", "[red]x[/red]"]
)
def test_brackets_and_colons_are_shown_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(text, ("", text), [("name", text), (text, "value")])
    print_pairs("title", [("name", text)])
    assert capsys.readouterr().out.count(text) == 5


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", r"é caf\xe9 a\x1bb"), ("ascii", r"\xe9 caf\xe9 a\x1bb")])
def test_what_a_terminal_cannot_show_is_escaped(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stdout)
    print_table("é caf\udce9 a\x1bb", ("", "x"), [("two\nlines", "é caf\udce9 a\x1bb")])
    stdout.seek(0)
    text = stdout.read()
    assert text.count(shown) == 2
    assert "two" in text and "lines" in text and "two\\" not in text
