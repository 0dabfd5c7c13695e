"""The entropy decoder of baseline JPEG, compiled: byte stuffing, and the coefficients of a block.

No byte is trusted: stuffing is undone into a buffer with room for a whole MCU of bits behind the data, each table
covers every index it can get, and coefficients end at 63.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lmdali.pipeline.crop_kernel import expanded, inlined
from lmdali.pipeline.huffman_tables import LOOKUP_BITS
from lmdali.pipeline.idct_vectors import LANES
from lmdali.pipeline.jpeg_header import NATURAL_ORDER
from lmdali.pipeline.word_access import big_endian_word, put_word, word

EOI: Final = 0xD9
"""Second byte of the marker that ends a file."""

SPARE_BYTES: Final = 6 * (27 + 63 * 26) // 8 + 32
"""Room behind the coded bytes. An MCU has 6 blocks of at most 27 + 63 * 26 bits; a refill reads 8 bytes more."""

_LONGEST_RUN_END: Final = np.uint64(100)  # runs that leave the block end at 64..79, ends of block at 128 or more
# What comes after the last place goes there, too: nothing is left to be written then, and an end of block writes 0.
_PLACES: Final = np.append(NATURAL_ORDER * LANES, np.full(256 - 64, NATURAL_ORDER[63] * LANES)).astype(np.uint16)
_U0, _U1, _U3, _U6, _U7, _U8, _U12, _U20 = (np.uint64(n) for n in (0, 1, 3, 6, 7, 8, 12, 20))
_U48, _U56, _U63 = (np.uint64(n) for n in (48, 56, 63))
_PEEK: Final = np.uint64(64 - LOOKUP_BITS)
_ONES, _HIGH_BITS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)


@expanded
def first_state(bits: Any) -> Any:
    """Where decoding begins: the bits read ahead, how many (the lowest six bits of that count), and the next byte."""
    return big_endian_word(bits, _U0), _U56, _U7


@expanded
def bits_left(state: Any, num_bytes: Any) -> Any:
    """How many coded bits nobody has asked for; negative where some were asked for that are not there."""
    return 8 * (np.int64(num_bytes) - np.int64(state[2])) + np.int64(state[1] & _U63)


@expanded
def is_beyond(state: Any, num_bytes: Any) -> Any:
    """Whether decoding has left the coded bytes, so far that it cannot go on for another MCU."""
    return state[2] > num_bytes + _U8


@expanded
def ends_well(place: Any) -> Any:
    """Whether a block ended where `decode_block` says in the way that blocks end."""
    return place == _U63 or place >= _LONGEST_RUN_END


@inlined
def undo_stuffing(data: Any, start: int, stop: int, bits: Any) -> tuple[Any, Any]:
    """Copy coded data up to the next marker without its stuffing: (number of bytes, the marker's second byte or 0)."""
    position, end, count = np.uint64(start), np.uint64(stop), _U0
    marker = 0
    while position < end:
        room = _U1
        if position + _U8 <= end:
            eight = word(data, position)
            if ((~eight - _ONES) & eight & _HIGH_BITS) == _U0:  # none of the eight is 0xFF
                put_word(bits, count, eight)
                position += _U8
                count += _U8
                continue
            room = _U8
        target = position + room
        while position < target and position < end:
            byte = data[position]
            if byte == np.uint8(255):
                position += _U1
                following = np.int64(data[position]) if position < end else 1
                if following != 0:
                    put_word(bits, count, _U0)
                    return count, following
            bits[count] = byte
            position += _U1
            count += _U1
    put_word(bits, count, _U0)
    return count, marker


@expanded
def _or_longer(entry: Any, long_codes: Any, at: Any, buffer: Any) -> Any:
    """The entry of the next bits, found among the longer codes if it is none of the short ones; 0 is no code."""
    return entry if entry != _U0 else np.uint64(long_codes[at + (buffer >> _U48)])


@expanded
def _value(buffer: Any, entry: Any) -> Any:
    """The signed number behind the code (T.81, F.2.2.1): negative ones begin with 0 and are one too small."""
    following = buffer << (entry >> _U6 & _U63)
    negative = ~following >> _U63
    signed = np.int64(following >> _U1 | negative << _U63) >> np.int64(entry >> _U12 & _U63)
    return signed + np.int64(negative)


@expanded
def _refilled(bits: Any, buffer: Any, ahead: Any, position: Any) -> Any:
    """56 or more bits counted, and all 64 of the buffer right."""
    buffer |= big_endian_word(bits, position) >> (ahead & _U63)
    return buffer, ahead | _U56, position + ((~ahead >> _U3) & _U7)


@inlined
def decode_block(
    bits: Any, state: Any, lookup: Any, long_codes: Any, table_at: Any, component: Any, dc: Any, out: Any, base: Any
) -> Any:
    """One block: the new state, and where it ended, 0 for a code that is none.

    What takes the time is that a symbol's place in the stream depends on the one before. So nothing else is between
    two looks at a table: the buffer is refilled for two symbols at once (64 bits are enough for 27 of a DC, 26 of an
    AC, and a look at the next), its count needs no mask, and values are stored whether the block goes on or not.

    Args:
        bits: uint8, of `undo_stuffing`.
        state: of `first_state`, or of the block before.
        lookup: of `HuffmanTables`, as the next two.
        long_codes: flat uint32.
        table_at: (2, 6) uint64.
        component: uint64, 0..2.
        dc: (3,) int64, DC of the blocks before.
        out: int16, a row of groups; the coefficients go where `base` says, LANES apart. What is there must be zero.
        base: uint64.
    """
    buffer, ahead, position = state
    entry = _or_longer(
        np.uint64(lookup[table_at[0, component] + (buffer >> _PEEK)]), long_codes, table_at[1, component], buffer
    )
    if entry == _U0:
        return (buffer, ahead, position), _U0
    dc[component] += _value(buffer, entry)
    out[base] = np.int16(dc[component])
    ac, ac_long = table_at[0, component + _U3], table_at[1, component + _U3]
    place = _U0
    while True:
        buffer <<= entry & _U63
        ahead -= entry
        entry = _or_longer(np.uint64(lookup[ac + (buffer >> _PEEK)]), long_codes, ac_long, buffer)
        if entry == _U0:
            return (buffer, ahead, position), _U0
        place += entry >> _U20
        out[base + np.uint64(_PLACES[place])] = np.int16(_value(buffer, entry))
        buffer <<= entry & _U63
        ahead -= entry
        if place >= _U63:
            return _refilled(bits, buffer, ahead, position), place
        # The next entry is fetched before the buffer is refilled: it does not wait for the memory behind it.
        entry = np.uint64(lookup[ac + (buffer >> _PEEK)])
        buffer, ahead, position = _refilled(bits, buffer, ahead, position)
        entry = _or_longer(entry, long_codes, ac_long, buffer)
        if entry == _U0:
            return (buffer, ahead, position), _U0
        place += entry >> _U20
        out[base + np.uint64(_PLACES[place])] = np.int16(_value(buffer, entry))
        if place >= _U63:
            return _refilled(bits, buffer << (entry & _U63), ahead - entry, position), place
