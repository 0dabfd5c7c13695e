from __future__ import annotations

import pytest

from lmdali.tools.report_table import print_pairs, print_table


@pytest.mark.parametrize(
    "text", ["pip install '.[train]'", "class [bold]/cat[1].jpg", "a[/b]", ":smile:", "[red]x[/red]"]
)
def test_brackets_and_colons_are_shown_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(text, ("", text), [("name", text), (text, "value")])
    print_pairs("title", [("name", text)])
    assert capsys.readouterr().out.count(text) == 5
