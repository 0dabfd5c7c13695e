"""Compiled decoding of JPEG sources: libjpeg-turbo's pixels, or nothing; and never a byte outside its memory."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline.decode import decode_source
from lmdali.pipeline.image_header import read_header
from lmdali.pipeline.jpeg_header import read_jpeg_header
from lmdali.tools import source_jpeg, source_jpeg_kernel
from lmdali.tools.source_jpeg import SourceJpegDecoder, source_jpeg_decoder
from tests.guarded_memory import guarded


def picture(seed: int, height: int, width: int, kind: str = "photo") -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    if kind == "noise":
        return random.integers(0, 256, (height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width, :1][:2] / 60
    waves = 128 + 100 * np.sin(random.uniform(1, 9, 3) * x + random.uniform(1, 9, 3) * y)
    return np.clip(waves + random.normal(0, 5, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], quality: int = 90, sampling: str = "444", *, optimized: bool = False) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, int(optimized)]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")]
    ok, data = cv2.imencode(".jpg", pixels, options)
    assert ok
    return data.tobytes()


def reference(data: bytes) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    return pixels


@pytest.fixture(scope="module")
def decode() -> SourceJpegDecoder:
    decoder = source_jpeg_decoder()
    assert decoder is not None
    return decoder


FULL_SIDES = [(1, 1), (7, 9), (8, 8), (9, 128), (64, 129), (375, 500), (3, 4096)]
HALVED_SIDES = [(16, 16), (17, 33), (255, 31), (64, 129), (31, 256), (375, 500), (500, 375), (16, 4096)]


@pytest.mark.parametrize(
    ("sampling", "height", "width"),
    [("444", *sides) for sides in FULL_SIDES] + [("420", *sides) for sides in HALVED_SIDES],
)
@pytest.mark.parametrize("optimized", [False, True])
def test_pixels_equal_libjpeg_turbos(
    decode: SourceJpegDecoder, sampling: str, height: int, width: int, optimized: bool
) -> None:
    for quality in (10, 75, 100):
        for kind in ("photo", "noise"):
            data = encoded(picture(quality, height, width, kind), quality, sampling, optimized=optimized)
            made = decode(data, read_header(data))
            assert made is not None and np.array_equal(made, reference(data)), (quality, kind)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["444", "420"]), st.integers(16, 150), st.integers(16, 300),
    st.integers(1, 100), st.booleans(), st.sampled_from(["photo", "noise"]),
)  # fmt: skip
def test_any_picture(
    seed: int, sampling: str, height: int, width: int, quality: int, optimized: bool, kind: str
) -> None:
    decode = source_jpeg_decoder()
    assert decode is not None
    data = encoded(picture(seed, height, width, kind), quality, sampling, optimized=optimized)
    made = decode(data, read_header(data))
    assert made is not None and np.array_equal(made, reference(data))


def test_pictures_one_after_the_other_leave_nothing_behind(decode: SourceJpegDecoder) -> None:
    files = [
        encoded(picture(n, 40 + 31 * n, 300 - 29 * n, "noise"), 60 + n, ("444", "420")[n % 2], optimized=n % 3 == 0)
        for n in range(9)
    ]
    buffer = np.empty(1 << 20, np.uint8)
    for data in files + files[::-1]:
        made = decode(data, read_header(data), buffer)
        assert made is not None and np.array_equal(made, reference(data)) and made.base is buffer


@pytest.mark.parametrize("sampling", ["444", "420"])
def test_a_file_larger_than_its_memory_gets_more(decode: SourceJpegDecoder, sampling: str) -> None:
    data = encoded(picture(1, 1100, 1100, "noise"), 100, sampling)
    assert len(data) > 1 << 18 and 1100 * 1100 * 3 // 2 > 8 << 17
    made = decode(data, read_header(data), np.empty(100, np.uint8))  # and the buffer is too small
    assert made is not None and np.array_equal(made, reference(data))


PHOTO, HALVED = encoded(picture(3, 90, 150)), encoded(picture(3, 90, 150), 90, "420")
LEFT_TO_LIBJPEG = {
    "4:2:2": encoded(picture(3, 90, 150), 90, "422"),
    "4:2:0, narrow": encoded(picture(3, 90, 15), 90, "420"),
    "4:2:0, low": encoded(picture(3, 15, 90), 90, "420"),
    "4:2:0, cut": HALVED[: len(HALVED) // 2],
    "gray": simplejpeg.encode_jpeg(picture(3, 90, 150)[..., :1].copy(), 90, "GRAY"),
    "progressive": cv2.imencode(".jpg", picture(3, 90, 150), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
    "too wide": encoded(picture(3, 2, 4097)),
    "no end": PHOTO[:-2],
    "cut": PHOTO[: len(PHOTO) // 2],
    "more before the end": PHOTO[:-2] + b"abc\xff\xd9",
    "header cut": PHOTO[:300],
}


@pytest.mark.parametrize("kind", LEFT_TO_LIBJPEG)
def test_what_it_is_not_made_for_is_left_to_libjpeg_turbo(decode: SourceJpegDecoder, kind: str) -> None:
    header = read_header(PHOTO if "header" in kind else LEFT_TO_LIBJPEG[kind])
    assert decode(LEFT_TO_LIBJPEG[kind], header) is None


def test_a_frame_that_says_otherwise_is_refused(decode: SourceJpegDecoder) -> None:
    header = read_header(encoded(picture(3, 80, 150)))
    assert decode(PHOTO, header) is None


def test_garbage_after_the_picture_is_no_damage(decode: SourceJpegDecoder) -> None:
    made = decode(PHOTO + b"\xff\xd8more", read_header(PHOTO))
    assert made is not None and np.array_equal(made, reference(PHOTO))


@pytest.mark.parametrize("whole", [PHOTO, HALVED])
def test_damage_gives_what_libjpeg_turbo_gives_or_is_left_to_it(decode: SourceJpegDecoder, whole: bytes) -> None:
    random, outcomes = np.random.default_rng(0), [0, 0]
    start = read_header(whole).body_offset
    for trial in range(1500):
        broken = bytearray(whole)
        for place in random.integers(start, len(whole), random.integers(1, 5)):
            broken[place] = random.choice([0, 255, int(random.integers(0, 256))])
        data = bytes(broken[: random.integers(start, len(broken))] if trial % 4 == 0 else broken)
        made = decode(data, read_header(whole))
        outcomes[made is not None] += 1
        if made is not None:
            assert np.array_equal(made, reference(data))  # which complains of what it finds wrong
    assert min(outcomes) > 20, outcomes


def test_nothing_is_read_or_written_outside_whatever_the_bytes_are() -> None:
    random = np.random.default_rng(1)
    header = read_jpeg_header(PHOTO, len(PHOTO))
    assert not isinstance(header, str)
    scratch = source_jpeg_kernel.Scratch()
    # Each piece of memory ends with a page that nobody may read, and has its size exactly.
    used = {
        "coefficients": 3 * 2 * 64 * 16,
        "words": 3 * 8 * 2 * 16,
        "bits": len(PHOTO) + source_jpeg_kernel.SPARE_BYTES,
    }
    for name, count in used.items():
        memory: Any = getattr(scratch, name)
        memory[:] = 0
        setattr(scratch, name, guarded(memory[:count].view(np.uint8)).view(memory.dtype))
    out = guarded(np.zeros((90, 150, 3), np.uint8))
    for trial in range(2000):
        data = bytearray(PHOTO)
        if trial % 2:
            data[header.num_bytes :] = random.bytes(int(random.integers(0, len(PHOTO) - header.num_bytes)))
        for place in random.integers(header.num_bytes, max(len(data), header.num_bytes + 1), random.integers(0, 9)):
            data[min(place, len(data) - 1)] = random.choice([0, 1, 255])
        source_jpeg_kernel.decode_picture(bytes(data), header, scratch, out)
    assert source_jpeg_kernel.decode_picture(PHOTO, header, scratch, out) and np.array_equal(out, reference(PHOTO))


def test_the_decode_policy_is_the_same_with_it(decode: SourceJpegDecoder) -> None:
    for data in (PHOTO, HALVED, LEFT_TO_LIBJPEG["4:2:2"], LEFT_TO_LIBJPEG["gray"], LEFT_TO_LIBJPEG["progressive"]):
        plain, compiled = decode_source(data, name="a.png"), decode_source(data, name="a.png", jpeg=decode)
        assert np.array_equal(plain.pixels, compiled.pixels)
        assert (plain.oddities, plain.width, plain.height) == (compiled.oddities, compiled.width, compiled.height)


def test_it_is_left_where_a_byte_is_not_libjpeg_turbos(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = source_jpeg_kernel.decode_picture

    def one_off(data: bytes, header: Any, scratch: Any, out: NDArray[np.uint8]) -> bool:
        made = whole(data, header, scratch, out)
        out[-1, -1, 2] ^= 1
        return made

    monkeypatch.setattr(source_jpeg, "_kernel_like_libjpeg", source_jpeg._kernel_like_libjpeg.__wrapped__)
    assert source_jpeg_decoder() is not None
    monkeypatch.setattr(source_jpeg_kernel, "decode_picture", one_off)
    assert source_jpeg_decoder() is None


def test_it_is_left_where_numba_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_jpeg, "_kernel_like_libjpeg", source_jpeg._kernel_like_libjpeg.__wrapped__)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delattr(import_module("lmdali.tools"), "source_jpeg_kernel")
    for name in ("tools.source_jpeg_kernel", "pipeline.crop_kernel"):
        monkeypatch.delitem(sys.modules, f"lmdali.{name}")
    assert source_jpeg_decoder() is None
