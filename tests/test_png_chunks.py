"""Animated PNGs: OpenCV must never see their animation, and nobody may notice.

`LMDALI_APNGS` is the number of mutated files that are decoded.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from lmdali.pipeline.decode import decode_source
from lmdali.pipeline.png_chunks import SIGNATURE, chunks, without_animation
from lmdali.pipeline.rejection import Rejection, SourceRejected

MUTATED = int(os.environ.get("LMDALI_APNGS", "4000"))
ANIMATION = {b"acTL", b"fcTL", b"fdAT"}


def picture(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:40, 0:56]
    colours = np.stack([x * 4, y * 6, (x + y) * 2], axis=2).astype(np.uint8)
    return Image.fromarray(colours).convert("RGB").quantize(40).convert(mode)


def animated(mode: str = "RGB", **options: object) -> bytes:
    first = picture(mode)
    frames = [ImageOps.flip(first), ImageOps.mirror(first)]
    out = io.BytesIO()
    first.save(out, "PNG", save_all=True, append_images=frames, duration=50, **options)
    return out.getvalue()


def by_opencv() -> bytes:
    """An animation that OpenCV wrote itself."""
    animation = cv2.Animation()
    pixels = np.asarray(picture())[..., ::-1].copy()
    animation.frames, animation.durations = [pixels, pixels[::-1].copy(), pixels[:, ::-1].copy()], [50, 50, 50]
    is_written, data = cv2.imencodeanimation(".png", animation)
    assert is_written
    return bytes(data)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def names(data: bytes) -> list[bytes]:
    return [each.name for each in chunks(data)]


def test_chunks_are_walked_by_their_lengths() -> None:
    data = SIGNATURE + chunk(b"abCD", b"12345") + chunk(b"IEND", b"")
    assert list(chunks(data)) == [(b"abCD", 8, 25), (b"IEND", 25, 37)]
    assert list(chunks(data[:-1])) == list(chunks(data)), "the last one is cut off"
    assert list(chunks(data + b"1234567")) == list(chunks(data))


def test_a_png_without_animation_is_not_even_copied() -> None:
    out = io.BytesIO()
    picture().save(out, "PNG")
    for data in (out.getvalue(), out.getvalue() + b"junk behind the end", out.getvalue()[:-5], SIGNATURE):
        assert without_animation(data) is data


@pytest.mark.parametrize("data", [animated(), animated("P"), by_opencv(), animated(default_image=True)])
def test_nothing_but_the_animation_goes(data: bytes) -> None:
    still = without_animation(data)
    assert set(names(data)) >= ANIMATION
    assert names(still) == [name for name in names(data) if name not in ANIMATION]
    assert without_animation(still) is still


@pytest.mark.parametrize("data", [animated(), animated("P"), animated("L"), by_opencv()])
def test_the_pixels_are_those_of_pillow_and_of_opencv_with_the_animation(data: bytes) -> None:
    decoded = decode_source(data)
    assert "animated" in decoded.oddities and decoded.format == "png"
    assert np.array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.array_equal(decoded.pixels, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))


def test_a_default_image_beside_the_animation_is_what_is_stored_as_pillow_opens_it() -> None:
    data = animated(default_image=True)
    assert names(data).index(b"IDAT") < names(data).index(b"fcTL"), "the first frame is no frame of the animation"
    opened = Image.open(io.BytesIO(data))
    assert opened.n_frames == 3
    assert np.array_equal(decode_source(data).pixels, np.asarray(opened.convert("RGB")))
    assert np.array_equal(decode_source(data).pixels, np.asarray(picture()))


def test_colour_under_the_alpha_of_a_first_frame_is_kept() -> None:
    see_through = picture("RGBA")
    see_through.putalpha(100)
    out = io.BytesIO()
    see_through.save(out, "PNG", save_all=True, append_images=[ImageOps.flip(see_through)], duration=50, blend=1)
    decoded = decode_source(out.getvalue())
    assert {"animated", "alpha"} <= set(decoded.oddities)
    assert np.array_equal(decoded.pixels, np.asarray(picture()))


def test_animation_chunks_are_left_out_wherever_they_are_and_however_long_they_say_they_are() -> None:
    out = io.BytesIO()
    picture().save(out, "PNG")
    still = out.getvalue()
    head, rest = still[:33], still[33:]
    for added in (chunk(b"fcTL", b""), chunk(b"acTL", b"\xff" * 8), chunk(b"fcTL", b"\xff" * 40), chunk(b"fdAT", b"1")):
        for data in (head + added + rest, still + added, head + chunk(b"a1!!", b"") + added + rest):
            assert added not in without_animation(data)
        assert np.array_equal(decode_source(head + added + rest).pixels, np.asarray(picture()))
    endless = struct.pack(">I", 0xFFFF_FFFF) + b"fdAT"
    assert without_animation(head + endless + rest) == head
    with pytest.raises(SourceRejected) as caught:
        decode_source(head + endless + rest)
    assert caught.value.reason == Rejection.TRUNCATED


def mutate(data: bytes, dice: np.random.Generator) -> bytes:
    """Chunks taken out, doubled, moved, renamed, resized, their bytes changed; mostly with checksums that are right."""
    bodies = [(each.name, data[each.first + 8 : each.stop - 4]) for each in chunks(data)]
    for _ in range(dice.integers(1, 5)):
        at, other = dice.integers(len(bodies), size=2)
        name, body = bodies[at]
        changed = bytearray(body)
        kind = dice.integers(8)
        if kind == 0:
            bodies.insert(other, bodies.pop(at))
        elif kind == 1 and len(bodies) > 3:
            bodies.pop(at)
        elif kind == 2:
            bodies.insert(other, bodies[at])
        elif kind == 3:
            bodies[at] = bodies[other][0], body
        elif kind == 4:
            bodies[at] = name, body[: dice.integers(len(body) + 1)]
        elif changed:
            place = dice.integers(len(changed))
            value = bytes(dice.choice(np.array([0, 1, 2, 127, 128, 255]), size=dice.integers(1, 5)).astype(np.uint8))
            changed[place : place + len(value)] = value
            bodies[at] = name, bytes(changed)
    mutated = bytearray(SIGNATURE + b"".join(chunk(name, body) for name, body in bodies))
    if dice.random() < 0.2:
        mutated[dice.integers(8, len(mutated))] ^= 1 << dice.integers(8)
    return bytes(mutated)


FUZZ = """
import sys
import numpy as np
from lmdali.pipeline.decode import DecodePolicy, decode_source, native_messages_silenced
from lmdali.pipeline.rejection import SourceRejected
from test_png_chunks import animated, by_opencv, mutate

dice = np.random.default_rng(44)
wholes = [animated(), animated("P"), animated("L"), animated("RGBA", blend=1, disposal=2), animated(default_image=True),
          by_opencv()]
stored = 0
with native_messages_silenced():
    for number in range(int(sys.argv[1])):
        try:
            decoded = decode_source(mutate(wholes[number % len(wholes)], dice), DecodePolicy(max_pixels=1_000_000))
        except SourceRejected as rejected:
            assert rejected.detail
        else:
            assert decoded.pixels.shape == (decoded.height, decoded.width, 3)
            stored += 1
print(stored)
"""


def test_no_mutated_animation_ends_the_process() -> None:
    """In a process of its own, so that a crash fails this test and no other."""
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(MUTATED)],
        capture_output=True,
        text=True,
        timeout=250 + MUTATED / 100,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    stored = int(done.stdout)
    print(f"{MUTATED} mutated animations, {stored} stored, the others rejected by name, crashes 0")
    assert MUTATED / 10 < stored < MUTATED
