from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lmdali.pipeline import decode
from lmdali.pipeline.decode import DecodePolicy, decode_source, native_messages_silenced
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.rejection import Rejection, SourceRejected

Pixels = npt.NDArray[np.uint8]


def picture(height: int = 48, width: int = 64) -> Pixels:
    """Smooth in both directions, different in all three channels, no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 // width, y * 255 // height, (2 * x + y) * 255 // (2 * width + height))
    return np.stack(channels, axis=-1).astype(np.uint8)


def saved(image: Image.Image | Pixels, format: str, **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def largest_difference(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(np.int64) - b.astype(np.int64)).max())


def reason_of(data: bytes, policy: DecodePolicy | None = None) -> Rejection:
    with native_messages_silenced(), pytest.raises(SourceRejected) as caught:
        decode_source(data, policy)
    return caught.value.reason


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\x00")) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


# Known answers.


def test_two_pixels_of_known_colour_come_out_as_rgb() -> None:
    pixels = np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)
    for format in ("PNG", "BMP", "TIFF", "PPM"):
        decoded = decode_source(saved(pixels, format))
        assert decoded.pixels.tolist() == [[[255, 0, 0], [0, 0, 255]]]
        assert decoded.pixels.flags.c_contiguous and decoded.pixels.dtype == np.uint8


def test_sixteen_bit_samples_are_divided_by_257_and_rounded() -> None:
    values = np.array([[0, 127, 128, 129, 257, 32767, 32768, 65278, 65407, 65535]], dtype=np.uint16)
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    colour = np.stack([values, values[:, ::-1], values], axis=-1)
    for extension in (".png", ".tiff", ".pgm"):
        decoded = decode_source(cv2.imencode(extension, values)[1].tobytes())
        assert np.array_equal(decoded.pixels, np.repeat(expected[..., None], 3, axis=2)), extension
        assert "sixteen_bit" in decoded.oddities and "gray" in decoded.oddities
    for extension in (".png", ".tiff", ".ppm"):
        decoded = decode_source(cv2.imencode(extension, colour)[1].tobytes())
        assert np.array_equal(decoded.pixels[..., 2], expected), extension
        assert np.array_equal(decoded.pixels[..., 1], expected[:, ::-1]), extension


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P6\n2 1\n100\n" + bytes([0, 50, 100, 100, 50, 0]), [[0, 128, 255], [255, 128, 0]]),
        (b"P5 # a comment\n2 1 1023\n" + struct.pack(">HH", 0, 1023), [[0, 0, 0], [255, 255, 255]]),
        (b"P4\n2 1\n" + bytes([0b10000000]), [[0, 0, 0], [255, 255, 255]]),
    ],
)
def test_portable_anymaps_are_scaled_by_their_maximum(data: bytes, expected: list[list[int]]) -> None:
    assert decode_source(data).pixels[0].tolist() == expected


def test_alpha_is_dropped_and_the_hidden_colour_stays() -> None:
    rgba = np.array([[[200, 100, 50, 0], [10, 20, 30, 128], [1, 2, 3, 255]]], dtype=np.uint8)
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        decoded = decode_source(saved(Image.fromarray(rgba, "RGBA"), format, **options))
        assert decoded.pixels.tolist() == rgba[..., :3].tolist(), format
        assert "alpha" in decoded.oddities


def test_transparent_palette_entries_keep_their_colour() -> None:
    image = Image.fromarray(picture()).quantize(16)
    for format in ("PNG", "GIF"):
        decoded = decode_source(saved(image, format, transparency=3))
        assert np.array_equal(decoded.pixels, np.asarray(image.convert("RGB"))), format
        assert {"alpha", "palette", "not_jpeg"} <= set(decoded.oddities)


# JPEG.


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_jpeg_equals_opencv_bit_for_bit(subsampling: str) -> None:
    pixels = picture(67, 91)
    source = pixels[..., :1].copy() if subsampling == "Gray" else pixels
    colorspace = "GRAY" if subsampling == "Gray" else "RGB"
    data = simplejpeg.encode_jpeg(source, 85, colorspace, subsampling)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    decoded = decode_source(data)
    assert np.array_equal(decoded.pixels, expected)
    assert decoded.oddities == (("gray",) if subsampling == "Gray" else ())
    assert (decoded.width, decoded.height, decoded.format) == (91, 67, "jpeg")


def test_progressive_jpeg_equals_opencv_bit_for_bit() -> None:
    data = saved(picture(), "JPEG", quality=90, progressive=True)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decode_source(data).pixels, expected)


def test_cmyk_jpeg_is_the_rgb_it_was_made_from() -> None:
    pixels = picture()
    data = saved(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=98, subsampling=0)
    decoded = decode_source(data)
    assert largest_difference(decoded.pixels, pixels) <= 3
    assert largest_difference(decoded.pixels, by_pillow(data)) <= 1
    assert decoded.oddities == ("cmyk",)


def test_ycck_jpeg_is_the_rgb_it_was_made_from() -> None:
    # libjpeg turns YCCK into 255 - RGB and K, and Adobe's inks are inverted: so YCbCr of the negative, and no black.
    # Pillow inverts what it writes once more, and marks it as untransformed.
    ycc = np.asarray(Image.fromarray(255 - picture()).convert("YCbCr"))
    black = np.full((*ycc.shape[:2], 1), 255, np.uint8)
    planes = np.concatenate([255 - ycc, 255 - black], axis=-1)
    data = saved(Image.frombytes("CMYK", (64, 48), planes.tobytes()), "JPEG", quality=98, subsampling=0)
    position = data.index(b"Adobe\x00") + 11
    assert data[position] == 0
    ycck = data[:position] + b"\x02" + data[position + 1 :]
    assert simplejpeg.decode_jpeg_header(ycck)[2] == "YCCK"
    decoded = decode_source(ycck)
    assert largest_difference(decoded.pixels, picture()) <= 6
    assert largest_difference(decoded.pixels, by_pillow(ycck)) <= 1


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_rejected_as_truncated(progressive: bool) -> None:
    data = saved(picture(), "JPEG", quality=90, progressive=progressive)
    for cut in [*range(3, len(data), 37), len(data) - 2, len(data) - 1]:
        assert reason_of(data[:cut]) == Rejection.TRUNCATED, cut


def test_a_jpeg_cut_and_closed_again_is_not_filled_with_gray() -> None:
    data = saved(picture(96, 96), "JPEG", quality=90)
    body = data.index(b"\xff\xda")
    assert reason_of(data[: (body + len(data)) // 2] + b"\xff\xd9") == Rejection.TRUNCATED


def test_an_honestly_gray_corner_is_no_truncation() -> None:
    pixels = picture(96, 96)
    pixels[64:, 64:] = 128
    assert decode_source(saved(pixels, "JPEG", quality=90)).oddities == ()


def test_junk_after_the_end_is_accepted() -> None:
    data = saved(picture(), "JPEG")
    clean = decode_source(data)
    for tail in (b"junk", b"\x00" * 1000, data):
        assert np.array_equal(decode_source(data + tail).pixels, clean.pixels)


def test_harmless_damage_is_counted_and_decoded_as_opencv_does() -> None:
    data = saved(picture(), "JPEG")
    tables = data.index(b"\xff\xdb")
    damaged = data[:tables] + b"\x01" + data[tables:]
    with native_messages_silenced():
        decoded = decode_source(damaged)
    assert "damaged" in decoded.oddities
    assert np.array_equal(decoded.pixels, decode_source(data).pixels)


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xCB, 0xF7])
def test_lossless_and_hierarchical_jpeg_are_unsupported_by_name(marker: int) -> None:
    data = saved(picture(), "JPEG")
    position = data.index(b"\xff\xc0")
    assert reason_of(data[: position + 1] + bytes([marker]) + data[position + 2 :]) == Rejection.UNSUPPORTED


def test_twelve_bit_jpeg_is_unsupported_by_name() -> None:
    data = bytearray(saved(picture(), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    assert reason_of(bytes(data)) == Rejection.UNSUPPORTED


# Other formats, against Pillow.


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA"])
@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "WEBP", "TIFF"])
def test_every_mode_of_every_format_is_what_pillow_says(format: str, mode: str) -> None:
    image = Image.fromarray(picture()).quantize(40) if mode == "P" else Image.fromarray(picture()).convert(mode)
    if (format, mode) in {("BMP", "LA"), ("GIF", "LA"), ("GIF", "RGBA"), ("GIF", "RGB")}:
        image = image.convert("RGB").quantize(64)
    data = saved(image, format, **({"lossless": True} if format == "WEBP" else {}))
    decoded = decode_source(data)
    assert decoded.format == format.lower()
    assert np.array_equal(decoded.pixels, by_pillow(data))
    assert "not_jpeg" in decoded.oddities


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    first = Image.fromarray(picture()).quantize(64).convert("RGB")
    second = ImageOps.flip(first)
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    data = saved(first, format, save_all=True, append_images=[second], duration=100, **options)
    decoded = decode_source(data)
    assert "animated" in decoded.oddities
    assert np.array_equal(decoded.pixels, np.asarray(first))


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM"])
def test_other_formats_cut_short_are_rejected(format: str) -> None:
    image = Image.fromarray(picture()).quantize(64) if format == "GIF" else Image.fromarray(picture())
    data = saved(image, format)
    for cut in (len(data) // 3, len(data) // 2, len(data) - 40):
        assert reason_of(data[:cut]) in (Rejection.TRUNCATED, Rejection.CORRUPT), cut


def test_a_png_with_one_wrong_byte_in_its_pixels_is_corrupt() -> None:
    data = bytearray(saved(picture(), "PNG"))
    data[len(data) // 2] ^= 0x10
    assert reason_of(bytes(data)) == Rejection.CORRUPT


# Orientation.


def oriented(format: str, tag: int) -> bytes:
    exif = Image.Exif()
    exif[274] = tag
    options: dict[str, object] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
    return saved(picture(), format, exif=exif, **options)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_orientation_is_ignored_unless_asked_for(format: str, tag: int) -> None:
    data = oriented(format, tag)
    upright = decode_source(oriented(format, 1)).pixels
    ignored = decode_source(data)
    assert np.array_equal(ignored.pixels, upright)
    applied = decode_source(data, DecodePolicy(orientation="apply"))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.abs(applied.pixels.astype(int) - np.asarray(turned)).mean() < 0.5
    assert applied.pixels.flags.c_contiguous
    assert (applied.width, applied.height) == (ignored.width, ignored.height) == (64, 48)
    assert ("orientation_tag" in ignored.oddities) == (tag != 1)


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(tag: int) -> None:
    data = oriented("JPEG", tag)
    applied = decode_source(data, DecodePolicy(orientation="apply"))
    assert np.array_equal(applied.pixels, decode_source(data).pixels)
    assert applied.oddities == ()


@given(st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_corrupt_exif_is_never_an_error(body: bytes) -> None:
    data = saved(picture(8, 8), "JPEG")
    block = b"Exif\x00\x00II*\x00" + body
    with_exif = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    decoded = decode_source(with_exif)
    assert np.array_equal(decoded.pixels, decode_source(data).pixels)


# Rejections.


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Rejection.EMPTY),
        (b"hello, world", Rejection.NOT_AN_IMAGE),
        (b"<!DOCTYPE html><html>404</html>", Rejection.NOT_AN_IMAGE),
        (gzip.compress(b"x" * 100, mtime=0), Rejection.UNSUPPORTED),
        (b"\x00\x00\x00\x20ftypavif" + b"\x00" * 40, Rejection.UNSUPPORTED),
        (b"%PDF-1.7 ....", Rejection.UNSUPPORTED),
        (b"P3\n1 1\n255\n1 2 3\n", Rejection.UNSUPPORTED),
        (b"\xff\xd8", Rejection.TRUNCATED),
        (b"\xff\xd8\xff\xd9", Rejection.CORRUPT),
        (b"\x89PNG\r\n\x1a\n", Rejection.TRUNCATED),
        (b"GIF89a", Rejection.TRUNCATED),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", Rejection.CORRUPT),
        (b"RIFF\x04\x00\x00\x00WEBP", Rejection.CORRUPT),
        (b"RIFF\x40\x00\x00\x00WEBPVP8 ", Rejection.TRUNCATED),
        (b"II*\x00\xff\xff\xff\xff", Rejection.TRUNCATED),
    ],
)
def test_what_is_no_picture_is_rejected_by_name(data: bytes, reason: Rejection) -> None:
    assert reason_of(data) == reason


@pytest.mark.parametrize(("width", "height"), [(33_000, 33_000), (178_956_971, 1), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    assert reason_of(png_claiming(width, height)) == Rejection.TOO_MANY_PIXELS


def test_the_pixel_limit_is_inclusive_and_settable() -> None:
    data = saved(picture(10, 10), "PNG")
    assert decode_source(data, DecodePolicy(max_pixels=100)).pixels.shape == (10, 10, 3)
    assert reason_of(data, DecodePolicy(max_pixels=99)) == Rejection.TOO_MANY_PIXELS


def test_a_side_beyond_what_opencv_takes_is_a_rejection_and_no_exception() -> None:
    assert reason_of(png_claiming(2**20 + 1, 1)) == Rejection.TOO_MANY_PIXELS


def test_a_png_of_zero_width_is_corrupt() -> None:
    assert reason_of(png_claiming(0, 5)) == Rejection.CORRUPT


def test_a_build_without_gif_is_told_apart_from_a_bad_gif(monkeypatch: pytest.MonkeyPatch) -> None:
    good = saved(Image.fromarray(picture()).quantize(64), "GIF")
    code_size = good.index(b"\x2c\x00\x00\x00\x00") + 10
    assert reason_of(good[:code_size] + b"\x20" + good[code_size + 1 :]) == Rejection.CORRUPT
    monkeypatch.setattr(decode, "_imdecode", lambda data, flags: None)
    assert reason_of(good) == Rejection.UNSUPPORTED


def test_an_opencv_exception_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: object) -> None:
        raise cv2.error("too large")

    monkeypatch.setattr(cv2, "imdecode", raising)
    assert reason_of(saved(picture(), "PNG")) == Rejection.CORRUPT


@given(
    st.binary(max_size=300), st.sampled_from([b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF", b"BM", b"II*\x00"])
)
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_give_a_picture_or_a_named_rejection(body: bytes, magic: bytes) -> None:
    with native_messages_silenced():
        try:
            decoded = decode_source(magic + body, DecodePolicy(max_pixels=1_000_000))
        except SourceRejected as rejected:
            assert rejected.reason in Rejection and rejected.detail
        else:
            assert decoded.pixels.shape == (decoded.height, decoded.width, 3)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_mutated_picture_gives_a_picture_or_a_named_rejection(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["JPEG", "PNG", "BMP", "WEBP", "TIFF"]))
    mutated = bytearray(saved(picture(24, 24), format))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    with native_messages_silenced():
        try:
            decoded = decode_source(bytes(mutated), DecodePolicy(max_pixels=1_000_000))
        except SourceRejected as rejected:
            assert rejected.reason in Rejection and rejected.detail
        else:
            assert decoded.pixels.shape == (decoded.height, decoded.width, 3)


def test_a_rejection_survives_the_way_home_from_a_worker() -> None:
    rejected = pickle.loads(pickle.dumps(SourceRejected(Rejection.TRUNCATED, "half a file")))
    assert (rejected.reason, rejected.detail, str(rejected)) == (
        Rejection.TRUNCATED,
        "half a file",
        "truncated: half a file",
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b.png", False), ("b.PNG", False), ("n02105855_2933.JPEG", True), ("no extension", True), (None, False)],
)
def test_misnamed_compares_the_name_with_the_bytes(name: str | None, expected: bool) -> None:
    assert ("misnamed" in decode_source(saved(picture(), "PNG"), name=name).oddities) == expected


def test_a_policy_that_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="orientation"):
        DecodePolicy(orientation="sideways")  # type: ignore[arg-type]
    for max_pixels in (0, 2**30 + 1):
        with pytest.raises(ConfigError, match="max_pixels"):
            DecodePolicy(max_pixels=max_pixels)


def test_bad_files_print_nothing_when_silenced_and_stderr_works_afterwards() -> None:
    # In a process of its own: pytest captures descriptor 2 itself.
    program = (
        "import sys\n"
        "from lmdali.pipeline.decode import decode_source, native_messages_silenced\n"
        "from lmdali.pipeline.rejection import SourceRejected\n"
        "data = bytes.fromhex(sys.argv[1])\n"
        "def attempt():\n"
        "    try: decode_source(data)\n"
        "    except SourceRejected: pass\n"
        "if sys.argv[2] == 'loud': attempt()\n"
        "with native_messages_silenced(): attempt()\n"
        "print('after', file=sys.stderr)\n"
    )
    data = bytearray(saved(picture(), "PNG"))
    data[len(data) // 2] ^= 0x10
    said = {
        mode: subprocess.run(
            [sys.executable, "-c", program, data.hex(), mode], capture_output=True, text=True, check=True
        ).stderr
        for mode in ("loud", "quiet")
    }
    assert said["quiet"] == "after\n"
    assert "libpng" in said["loud"]


def test_silencing_restores_the_descriptor_after_an_exception() -> None:
    before = os.fstat(2)
    with pytest.raises(KeyError), native_messages_silenced():
        raise KeyError
    assert (os.fstat(2).st_dev, os.fstat(2).st_ino) == (before.st_dev, before.st_ino)


# Memory.


STARVED = """
import sys
from lmdali.pipeline.decode import decode_source, native_messages_silenced
from lmdali.tools.worker_limits import WorkerLimits
data = bytes.fromhex(sys.stdin.read())
WorkerLimits(memory_mb=int(sys.argv[1])).apply()
try:
    with native_messages_silenced():
        print(decode_source(data).pixels.shape)
except BaseException as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("JPEG", {"progressive": True}), ("TIFF", {}), ("GIF", {})]
)
def test_want_of_memory_is_told_apart_from_damage(format: str, options: dict[str, object]) -> None:
    image = Image.new("P" if format == "GIF" else "RGB", (2600, 2500))  # 19.5 MB of RGB
    data = saved(image, format, **options).hex()

    def outcome(memory_mb: int) -> str:
        command = [sys.executable, "-c", STARVED, str(memory_mb)]
        done = subprocess.run(command, input=data, capture_output=True, text=True, timeout=250)
        assert done.stdout, (done.returncode, done.stderr)
        return done.stdout.strip().removeprefix("_Array")

    assert outcome(110) == "(2500, 2600, 3)"
    assert outcome(45) in ("(2500, 2600, 3)", "MemoryError")
    assert outcome(10) == "MemoryError"
