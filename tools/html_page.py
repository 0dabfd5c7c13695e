"""One self-contained HTML page: a skeleton, a style for screen (light and dark) and paper, and the parts to fill it.

Nothing is fetched and nothing runs: plots are inline SVG (`svg_chart`), pictures are data URIs, and a content security
policy forbids the rest. Every function escapes the text it is given; `body` arguments are HTML from these functions.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.system_error import system_says
from lmdali.pipeline.tables import printable
from lmdali.tools.page_style import PAGE_STYLE

Tone = Literal["good", "warn", "bad", "plain"]

_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_TABLE_OF_CONTENTS_FROM = 5  # sections


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        body: HTML, made by the functions of this file and of `svg_chart`.
    """

    title: str
    body: str


@dataclass(frozen=True, kw_only=True)
class KeyFigure:
    """One number to see first.

    Attributes:
        label: what it is.
        value: with its unit.
        note: smaller, below it.
    """

    label: str
    value: str
    note: str = ""


def page(title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = "") -> str:
    """The whole document.

    Args:
        title: heading, and name of the browser's tab.
        sections: in their order; five and more get a list of links above them.
        subtitle: a line below the heading.
        footer: a line at the end: what wrote this.
    """
    anchors = _anchors([section.title for section in sections])
    parts = [
        f'<section id="{anchor}">\n<h2>{text(section.title)}</h2>\n{section.body}\n</section>'
        for anchor, section in zip(anchors, sections, strict=True)
    ]
    links = "".join(
        f'<li><a href="#{anchor}">{text(section.title)}</a></li>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    contents = f"<nav><ul>{links}</ul></nav>" if len(sections) >= _TABLE_OF_CONTENTS_FROM else ""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{text(title)}</title>\n<style>{PAGE_STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{text(title)}</h1>",
            f'<p class="subtitle">{text(subtitle)}</p>' if subtitle else "",
            f"{contents}\n</header>\n<main>",
            *parts,
            "</main>",
            f"<footer>{text(footer)}</footer>" if footer else "",
            "</body>\n</html>\n",
        ]
    )


def text(value: object) -> str:
    """Anything as escaped text; bytes that are no text, of file names, are shown as backslash escapes."""
    return escape(printable(str(value)))


def paragraph(value: object) -> str:
    """A paragraph."""
    return f"<p>{text(value)}</p>"


def heading(value: object) -> str:
    """A heading within a section."""
    return f"<h3>{text(value)}</h3>"


def callout(word: object, lines: Iterable[object], *, tone: Tone = "plain") -> str:
    """A box that says the outcome: one word, large, and the lines that explain it."""
    inside = "".join(paragraph(line) for line in lines)
    return f'<div class="callout {tone}"><p class="word">{text(word)}</p>{inside}</div>'


def key_figures(figures: Iterable[KeyFigure]) -> str:
    """Numbers in a row, for the first look."""
    cards = [
        f"<div><dt>{text(item.label)}</dt><dd>{text(item.value)}"
        + (f"<small>{text(item.note)}</small>" if item.note else "")
        + "</dd></div>"
        for item in figures
    ]
    return f'<dl class="figures">{"".join(cards)}</dl>'


def bullets(items: Iterable[object]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"


def pairs(items: Iterable[tuple[object, object]]) -> str:
    """Names and values in two columns."""
    rows = "".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in items)
    return f'<div class="scroll"><table class="pairs"><tbody>{rows}</tbody></table></div>'


def table(
    columns: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str = "", text_columns: int = 1
) -> str:
    """A table.

    Args:
        columns: headings.
        rows: of as many cells each; None is an empty cell.
        caption: above the table.
        text_columns: the first so many are aligned left, the others, numbers, right.
    """

    def cells(row: Sequence[object], tag: str) -> str:
        opened = [f"<{tag}>" if place < text_columns else f'<{tag} class="number">' for place in range(len(row))]
        shown = ["" if cell is None else text(cell) for cell in row]
        return "".join(f"{start}{cell}</{tag}>" for start, cell in zip(opened, shown, strict=True))

    head = f"<thead><tr>{cells(columns, 'th')}</tr></thead>"
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    above = f"<caption>{text(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{above}{head}<tbody>{body}</tbody></table></div>'


def figure(body: str, caption: object = "") -> str:
    """A plot (SVG of `svg_chart`) or a picture (`picture`), with a line below it."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f"<figure>{body}{below}</figure>"


def picture(path: Path, description: str) -> str:
    """A picture file, its bytes within the page.

    Args:
        path: .png, .jpg or .webp.
        description: for those who cannot see it.

    Raises:
        InputError: of another format, or not to be read.
    """
    if path.suffix.lower() not in _MEDIA_TYPES:
        raise InputError(f"{path}: a page takes pictures that end in {', '.join(_MEDIA_TYPES)}")
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({system_says(error)})") from error
    return embedded_picture(payload, path.suffix.lower(), description)


def embedded_picture(payload: bytes, suffix: str, description: str) -> str:
    """A picture whose file's bytes are at hand.

    Args:
        payload: content of the file.
        suffix: .png, .jpg, .jpeg or .webp.
        description: for those who cannot see it.
    """
    source = f"data:{_MEDIA_TYPES[suffix]};base64,{b64encode(payload).decode()}"
    return f'<img src="{source}" alt="{text(description)}">'


def details(summary: object, body: str) -> str:
    """Something to be opened by a click; on paper it is as it was left."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def _anchors(titles: Sequence[str]) -> list[str]:
    """An id for each title, each once."""
    anchors: list[str] = []
    for title in titles:
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        anchor, number = stem, 2
        while anchor in anchors:
            anchor, number = f"{stem}-{number}", number + 1
        anchors.append(anchor)
    return anchors
