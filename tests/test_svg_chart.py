from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.errors import ConfigError
from lmdali.tools.svg_chart import WIDTH, Bar, Line, bar_chart, line_chart

POSITIVE = st.floats(1e-3, 1e7)


def numbers(root: ET.Element, tag: str, name: str) -> list[float]:
    return [float(element.attrib[name]) for element in root.iter(tag)]


def test_bars_are_as_long_as_their_values_and_whiskers_are_around_them() -> None:
    bars = [
        Bar(label="a", value=100, text="100 images/s", low=90, high=110),
        Bar(label="b & c", value=25, text="25", series=2),
    ]
    root = ET.fromstring(bar_chart(bars, unit="images/s", description="two bars"))
    first, second = numbers(root, "rect", "width")
    assert first == pytest.approx(4 * second, abs=0.3)
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    assert {"a", "b & c", "100 images/s", "25", "images/s"} <= set(texts)
    (whisker,) = root.iter("path")
    left, right = map(float, re.findall(r"M([\d.]+) [\d.]+v8", whisker.attrib["d"]))
    start = numbers(root, "rect", "x")[0]
    assert left - start == pytest.approx(0.9 * first, abs=0.3) and right - start == pytest.approx(1.1 * first, abs=0.3)


def test_bars_that_are_nearly_alike_look_nearly_alike() -> None:
    bars = [Bar(label="a", value=2000, low=1900, high=2100), Bar(label="b", value=1800)]
    first, second = numbers(ET.fromstring(bar_chart(bars, unit="images/s", description="d")), "rect", "width")
    assert second == pytest.approx(0.9 * first, rel=0.01)


def test_bars_far_apart_are_on_a_logarithmic_scale_that_says_so() -> None:
    html = bar_chart([Bar(label="a", value=150_000), Bar(label="b", value=60)], unit="images/s", description="d")
    assert "images/s, logarithmic scale" in html
    widths = numbers(ET.fromstring(html), "rect", "width")
    assert 0 < widths[1] < widths[0]
    assert "logarithmic" not in bar_chart([Bar(label="a", value=0)], unit="x", description="d")


@given(st.lists(POSITIVE, min_size=1, max_size=8))
def test_bars_stay_inside(values: list[float]) -> None:
    bars = [Bar(label="x" * 10, value=value, text=f"{value:.0f}", low=value / 2, high=2 * value) for value in values]
    root = ET.fromstring(bar_chart(bars, unit="x", description="d"))
    ends = [x + w for x, w in zip(numbers(root, "rect", "x"), numbers(root, "rect", "width"), strict=True)]
    assert min(numbers(root, "rect", "x")) >= 0 and max(ends) <= WIDTH
    order = sorted(range(len(values)), key=values.__getitem__)
    widths = numbers(root, "rect", "width")
    assert [widths[place] for place in order] == sorted(widths)


def test_higher_values_are_higher_up_and_later_ones_further_right() -> None:
    line = Line(name="loss", points=[(0, 1.0), (1, 3.0), (2, 2.0)], band=[(0, 0.5, 1.5), (2, 1.0, 3.5)])
    root = ET.fromstring(line_chart([line], x_label="epoch", y_label="loss", description="a curve"))
    xs, ys = numbers(root, "circle", "cx"), numbers(root, "circle", "cy")
    assert xs == sorted(xs) and ys[1] < ys[2] < ys[0]
    assert len(list(root.iter("polygon"))) == 1
    assert root.attrib["aria-label"] == "a curve"


def test_several_lines_have_a_legend_and_one_has_none() -> None:
    two = [Line(name=name, points=[(0, 1), (1, 2)]) for name in ("train", "val <b>")]
    html = line_chart(two, x_label="x", y_label="y", description="d")
    assert ">train<" in html and ">val &lt;b&gt;<" in html
    assert ">train<" not in line_chart(two[:1], x_label="x", y_label="y", description="d")


def test_a_logarithmic_line_chart_leaves_out_what_has_no_logarithm() -> None:
    line = Line(name="rate", points=[(0, 0.0), (1, 0.01), (2, 0.001)])
    root = ET.fromstring(line_chart([line], x_label="x", y_label="y", description="d", logarithmic=True))
    assert len(list(root.iter("circle"))) == 2
    with pytest.raises(ConfigError, match="at least one point"):
        line_chart([Line(name="n", points=[(0, 0.0)])], x_label="x", y_label="y", description="d", logarithmic=True)
    with pytest.raises(ConfigError, match="at least one bar"):
        bar_chart([], unit="x", description="d")


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=20),
    st.sampled_from([1e-3, 1.0]),
    st.booleans(),
)
def test_points_stay_inside(points: list[tuple[float, float]], scale: float, from_zero: bool) -> None:
    line = Line(name="n", points=sorted((x * scale, y * scale) for x, y in points))
    root = ET.fromstring(line_chart([line], x_label="x", y_label="y", description="d", from_zero=from_zero))
    for x, y in zip(numbers(root, "circle", "cx"), numbers(root, "circle", "cy"), strict=True):
        assert 0 <= x <= WIDTH and 0 <= y <= 300


def test_labels_are_text_and_as_long_as_there_is_room_for() -> None:
    names = ["caf\udce9 <b>", "日本語" * 20, "W" * 30, "an ordinary name", "x" * 36]
    root = ET.fromstring(bar_chart([Bar(label=name, value=1) for name in names], unit="x", description="d\udce9"))
    labels = [element for element in root.iter("text") if element.attrib.get("text-anchor") == "end"]
    texts = ["".join(label.itertext()) for label in labels]
    assert texts[0] == r"caf\xe9 <b>" and texts[3:] == names[3:]
    assert texts[1].startswith("日本語日本語") and texts[1].endswith("…") and texts[2].endswith("W…")
    assert 13 * len(texts[1]) <= float(labels[1].attrib["x"]) and 9 * len(texts[2]) <= float(labels[2].attrib["x"])


def test_whole_numbers_below_have_no_ticks_between_them() -> None:
    line = Line(name="n", points=[(1, 0.2), (2, 0.3)])
    texts = re.findall(r">([^<>]+)</text>", line_chart([line], x_label="epoch", y_label="y", description="d"))
    assert {"1", "2"} <= set(texts) and not {"1.2", "1.5"} & set(texts)
    texts = re.findall(
        r">([^<>]+)</text>",
        line_chart([replace(line, points=[(1, 0), (1.5, 1)])], x_label="x", y_label="y", description="d"),
    )
    assert "1.1" in texts
