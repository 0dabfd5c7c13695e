"""What a page of `lmdali.tools.html_page` is made of, read with the standard library's parser."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "img", "br", "hr", "link", "input"}
_SVG_CLOSED = {"rect", "line", "path", "circle", "polyline", "polygon"}
_LOADS = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}


@dataclass
class PageParts:
    """Ids, links, pictures, headings and all text, in the order of the page."""

    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    text: str = ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts, self._open = PageParts(), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form"), tag
        values = {name: value or "" for name, value in attrs}
        assert not [name for name in values if name.startswith("on")], values
        for name in _LOADS & values.keys():
            inside = values[name].startswith("#") or (tag == "img" and values[name].startswith("data:image/"))
            assert inside, f"{tag} {name}={values[name][:60]}"
        if "id" in values:
            self.parts.ids.append(values["id"])
        if tag == "a":
            self.parts.links.append(values["href"])
        if tag == "img":
            assert values["alt"], "a picture needs a description"
            self.parts.pictures.append(values["src"])
        if tag == "svg":
            assert values["aria-label"], "a plot needs a description"
            self.parts.plots.append(values["aria-label"])
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _SVG_CLOSED, f"<{tag}/> closes nothing in HTML"
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            assert "url(" not in data and "@import" not in data
            return
        if self._open and self._open[-1] in ("h1", "h2"):
            self.parts.headings.append(data)
        self.parts.text += data


def parse_page(document: str) -> PageParts:
    """Read a page; fails where it would load or run anything, has an id twice or a tag that is not closed."""
    reader = _Reader()
    reader.feed(document)
    reader.close()
    assert reader._open == [], f"not closed: {reader._open}"
    assert len(set(reader.parts.ids)) == len(reader.parts.ids), reader.parts.ids
    assert {link[1:] for link in reader.parts.links} <= set(reader.parts.ids)
    return reader.parts
