"""Colour conversion of 32 pixels at a time, in vectors: two thirds of the time of a loop over pixels.

The numbers are those of libjpeg (jdcolor.c): the factors of JFIF times 65536, rounded. Of those too large for 16 bits,
the whole part is added as it is.
"""

from __future__ import annotations

from typing import Any, Final

from lmdali.pipeline.errors import MissingExtraError
from lmdali.pipeline.vectors import (
    BYTE,
    INT,
    LONG,
    SHORT,
    addresses,
    constant,
    high_products,
    interleaved,
    load,
    pair_sums,
    saturated,
    store,
    unsigned,
)
from lmdali.pipeline.word_access import typed_intrinsic

try:
    from numba.core import types
except ImportError as error:
    raise MissingExtraError("numba", "train", "the CPU loader's compiled JPEG decoder") from error

PIXELS: Final = 32
"""Pixels of one vector."""

RED_CR, BLUE_CB, GREEN_CB, GREEN_CR = 91881, 116130, -22554, -46802
"""round(65536 * c) of JFIF's 1.402, 1.772, -0.344136 and -0.714136."""

# What is left of them without their whole part: 1, 2 and -1.
_RED_CR, _BLUE_CB, _GREEN_CR = RED_CR - (1 << 16), BLUE_CB - (2 << 16), GREEN_CR + (1 << 16)


@typed_intrinsic
def convert_pixels(
    typing_context: Any, luma: Any, y_at: Any, chroma: Any, cb_at: Any, cr_at: Any, rows: Any, to: Any, distance: Any
) -> Any:
    """32 samples of Y, Cb and Cr, uint8 from these places on, to R, G and B at `rows[to]`, `distance` apart.

    The caller answers for the ranges.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lumas, chromas, target = addresses(context, builder, signature, arguments, (0, 2, 5))
        y_at, cb_at, cr_at, to, distance = (arguments[at] for at in (1, 3, 4, 6, 7))
        nothing = constant(BYTE, [0] * PIXELS)
        samples = [
            interleaved(builder, load(builder, builder.gep(memory, [at]), BYTE, PIXELS), nothing, 8)
            for memory, at in ((lumas, y_at), (chromas, cb_at), (chromas, cr_at))
        ]
        halves = [_colours(builder, *(_shorts(builder, sample[half]) for sample in samples)) for half in range(2)]
        for number, (low, high) in enumerate(zip(*halves, strict=True)):
            place = builder.add(to, builder.mul(distance, LONG(number)))
            store(builder, unsigned(builder, low, high), builder.gep(target, [place]))
        return context.get_dummy_value()

    place = types.uint64
    return types.void(luma, place, chroma, place, place, rows, place, place), generate


def _shorts(builder: Any, samples: Any) -> Any:
    return builder.bitcast(samples, constant(SHORT, [0] * 16).type)


def _colours(builder: Any, luma: Any, cb: Any, cr: Any) -> list[Any]:
    """R, G and B, not yet clipped, of 16 int16 each."""
    centre, one = constant(SHORT, [128] * 16), constant(SHORT, [1] * 16)
    cb, cr = builder.sub(cb, centre), builder.sub(cr, centre)
    twice_cb, twice_cr = builder.add(cb, cb), builder.add(cr, cr)

    def fraction(twice: Any, factor: int) -> Any:
        # Half of a number cut off to halves, and rounded: the same as the number itself rounded.
        halves = high_products(builder, twice, constant(SHORT, [factor] * 16))
        return builder.ashr(builder.add(halves, one), one)

    sums = [
        pair_sums(builder, pairs, constant(SHORT, [GREEN_CB, _GREEN_CR] * 8)) for pairs in interleaved(builder, cb, cr)
    ]
    rounded = [builder.ashr(builder.add(half, constant(INT, [1 << 15] * 8)), constant(INT, [16] * 8)) for half in sums]
    red = builder.add(builder.add(luma, cr), fraction(twice_cr, _RED_CR))
    green = builder.add(builder.sub(luma, cr), saturated(builder, *rounded))
    blue = builder.add(builder.add(luma, twice_cb), fraction(twice_cb, _BLUE_CB))
    return [red, green, blue]
