"""Each kind of file is what its name says (Pillow is the judge) and keeps the picture's colours."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from lmdali.tools.filekinds import BROKEN, EVERYDAY, ODD, FileKind, Pixels

# name: (Pillow's format, mode); JPEG and PNG by content, whatever the suffix says
EXPECTED = {
    "JPEG": ("JPEG", "RGB"),
    "gray JPEG": ("JPEG", "L"),
    "PNG": ("PNG", "RGB"),
    "WebP": ("WEBP", "RGB"),
    "BMP": ("BMP", "RGB"),
    "CMYK JPEG": ("JPEG", "CMYK"),
    "EXIF-rotated JPEG": ("JPEG", "RGB"),
    "progressive JPEG": ("JPEG", "RGB"),
    "16-bit PNG": ("PNG", "RGB"),
    "palette PNG": ("PNG", "P"),
    "PNG with alpha": ("PNG", "RGBA"),
    "PNG named .jpg": ("PNG", "RGB"),
    "WebP named .jpg": ("WEBP", "RGB"),
    "JPEG named .png": ("JPEG", "RGB"),
}
KINDS = [*dict.fromkeys(kind for kind, _ in EVERYDAY), *ODD]


def smooth_picture() -> Pixels:
    """A colourful gradient, 60 wide and 44 high, that every lossy coder keeps well."""
    x, y = np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 44))
    return np.stack([30 + 200 * x, 220 - 180 * y, 60 + 120 * x * y], axis=-1).astype(np.uint8)


def encode(kind: FileKind, seed: int = 0) -> bytes:
    return kind.encode(smooth_picture(), np.random.default_rng(seed))


def named(name: str) -> FileKind:
    return next(kind for kind in (*KINDS, *BROKEN) if kind.name == name)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name + kind.suffix)
def test_a_file_is_what_its_name_says(kind: FileKind) -> None:
    with Image.open(io.BytesIO(encode(kind))) as picture:
        assert (picture.format, picture.mode) == EXPECTED[kind.name]
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    assert upright.size == (60, 44)
    wanted = smooth_picture()
    if kind.name == "gray JPEG":
        wanted = cv2.cvtColor(cv2.cvtColor(wanted, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    limit = 12 if kind.name == "palette PNG" else 4
    assert np.abs(np.asarray(upright, np.float32) - wanted).mean() < limit


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name + kind.suffix)
def test_opencv_reads_it_as_pillow_does(kind: FileKind) -> None:
    data = encode(kind)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    with Image.open(io.BytesIO(data)) as picture:
        rgb = np.asarray(picture.convert("RGB"), np.float32)
    assert np.abs(bgr[..., ::-1] - rgb).mean() < 2


def test_shares_of_everyday_kinds_add_up_to_one() -> None:
    assert sum(share for _, share in EVERYDAY) == pytest.approx(1)


@pytest.mark.parametrize("kind", [kind for kind, _ in EVERYDAY], ids=lambda kind: kind.name + kind.suffix)
def test_everyday_suffixes_tell_the_truth(kind: FileKind) -> None:
    with Image.open(io.BytesIO(encode(kind))) as picture:
        assert Image.registered_extensions()[kind.suffix.lower()] == picture.format


def test_names_with_a_wrong_suffix_have_one() -> None:
    assert named("PNG named .jpg").suffix == named("WebP named .jpg").suffix == ".jpg"
    assert named("JPEG named .png").suffix == ".png"


def test_jpegs_come_with_different_qualities_and_chroma() -> None:
    layouts, tables = set(), set()
    for seed in range(30):
        with Image.open(io.BytesIO(encode(named("JPEG"), seed))) as picture:
            layouts.add(tuple(picture.layer[0][1:3]))
            tables.add(tuple(picture.quantization[0]))
    assert {(1, 1), (2, 2)} <= layouts
    assert len(tables) > 10


def test_the_16_bit_png_has_the_picture_in_its_high_bytes_and_something_in_the_low() -> None:
    deep = cv2.imdecode(np.frombuffer(encode(named("16-bit PNG")), np.uint8), cv2.IMREAD_UNCHANGED)
    assert deep.dtype == np.uint16
    np.testing.assert_array_equal((deep >> 8)[..., ::-1], smooth_picture())
    assert len(np.unique(deep & 255)) == 256


def test_the_alpha_png_keeps_its_colours_and_fades_at_the_corners() -> None:
    with Image.open(io.BytesIO(encode(named("PNG with alpha")))) as picture:
        rgba = np.asarray(picture)
    np.testing.assert_array_equal(rgba[..., :3], smooth_picture())
    assert rgba[22, 30, 3] == 255
    assert rgba[0, 0, 3] == rgba[-1, -1, 3] == 0


def test_orientation_tags_are_those_of_turned_cameras() -> None:
    tags = set()
    for seed in range(20):
        with Image.open(io.BytesIO(encode(named("EXIF-rotated JPEG"), seed))) as picture:
            tag = picture.getexif()[0x0112]
            assert picture.size == ((60, 44) if tag == 3 else (44, 60))
            assert np.abs(np.asarray(ImageOps.exif_transpose(picture), np.float32) - smooth_picture()).mean() < 4
            tags.add(tag)
    assert tags == {3, 6, 8}


def test_the_progressive_jpeg_is_progressive_and_the_palette_has_252_colours() -> None:
    with Image.open(io.BytesIO(encode(named("progressive JPEG")))) as picture:
        assert picture.info["progressive"] == 1
    with Image.open(io.BytesIO(encode(named("palette PNG")))) as picture:
        assert len(picture.getpalette() or []) == 3 * 252


def test_broken_files_do_not_load() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (80, 100, 3), np.uint8)
    truncated = named("truncated JPEG").encode(noise, np.random.default_rng(0))
    with Image.open(io.BytesIO(truncated)) as picture, pytest.raises(OSError, match="truncated"):
        picture.load()
    assert cv2.imdecode(np.frombuffer(encode(named("text named .jpg")), np.uint8), cv2.IMREAD_COLOR) is None
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(encode(named("text named .jpg"))))
