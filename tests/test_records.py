from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.errors import RecordError
from lmdali.pipeline.records import (
    MAX_KEY_BYTES,
    MAX_POSITION,
    Record,
    key_prefix,
    pack_record,
    packed_crc,
    parse_record,
    record_crc,
    record_key,
)


def test_crc_is_castagnolis() -> None:
    # The check value of CRC-32C is 0xE3069283, over "123456789": here split into data and a label of eight bytes.
    label = int.from_bytes(b"23456789", "little")
    assert record_crc(b"1", label) == 0xE3069283
    assert record_crc(memoryview(b"1"), label) == 0xE3069283
    assert record_crc(bytes(24), 0) == 0x8A9136AA  # 32 zeros: RFC 3720, B.4
    assert record_crc(b"\xff" * 24, -1) == 0x62A8AB43  # 32 times 0xff: RFC 3720, B.4


def test_a_flipped_label_is_no_intact_record() -> None:
    value = pack_record(b"data", label=5, height=1, width=1)
    assert parse_record(value).is_intact
    assert packed_crc(value) == parse_record(value).crc32c
    assert not parse_record(value.replace(b"\x28\x05", b"\x28\x04")).is_intact
    assert not parse_record(value.replace(b"data", b"dat4")).is_intact
    assert not parse_record(b"\x22\x04data\x28\x05").is_intact, "a foreign Datum cannot tell"


def test_a_packed_record_is_the_datum_written_by_hand() -> None:
    expected = (
        b"\x08\x03"  # channels
        b"\x10\x80\x02"  # height 256
        b"\x18\x80\x02"  # width 256
        b"\x22\x09123456789"  # data
        b"\x28\x00"  # label, written although it is 0
        b"\x38\x01"  # encoded
        b"\xa5\x06\xa0\x23\x4f\xb9"  # field 100, fixed32: CRC-32C of the data and eight zero bytes
    )
    assert pack_record(b"123456789", label=0, height=256, width=256) == expected


def by_hand(value: bytes) -> dict[int, list[int | bytes]]:
    """Fields of a protobuf message, by a reading that shares nothing with the module."""
    found: dict[int, list[int | bytes]] = {}
    rest = list(value)

    def varint() -> int:
        groups = []
        while True:
            byte = rest.pop(0)
            groups.append(f"{byte & 127:07b}")
            if byte < 128:
                return int("".join(reversed(groups)), 2)

    while rest:
        tag = varint()
        field, wire = divmod(tag, 8)
        content: int | bytes
        if wire == 0:
            content = varint()
        else:
            size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
            content = bytes(rest.pop(0) for _ in range(size))
        found.setdefault(field, []).append(content)
    return found


@given(st.binary(max_size=300), st.integers(0, 2**31 - 1), st.integers(1, 4096))
def test_packed_records_parse_by_hand_and_by_us(data: bytes, label: int, side: int) -> None:
    value = pack_record(data, label=label, height=side, width=side)
    crc = record_crc(data, label)
    assert by_hand(value) == {
        1: [3],
        2: [side],
        3: [side],
        4: [data],
        5: [label],
        7: [1],
        100: [crc.to_bytes(4, "little")],
    }
    record = parse_record(value)
    assert record == Record(memoryview(data), label, crc, (3, side, side), True)
    assert record.data.obj is value, "the data must not be copied"


def test_a_negative_label_takes_ten_bytes_as_protobuf_has_it() -> None:
    value = pack_record(b"x", label=-1, height=1, width=1)
    assert b"\x28" + b"\xff" * 9 + b"\x01" in value
    assert parse_record(value).label == -1


def test_numbers_past_64_bits_lose_their_upper_bits_as_in_protobuf() -> None:
    assert parse_record(b"\x28" + b"\x85" + b"\x80" * 8 + b"\x7e").label == 5


def test_a_foreign_datum_without_our_fields_parses() -> None:
    record = parse_record(b"\x22\x03abc\x28\x07")
    assert (bytes(record.data), record.label, record.crc32c, record.shape, record.encoded) == (
        b"abc",
        7,
        None,
        (0, 0, 0),
        True,
    )
    assert parse_record(b"\x22\x03abc").label == -1
    assert not parse_record(b"\x22\x03abc\x38\x00").encoded


def test_unknown_fields_of_every_wire_type_are_skipped() -> None:
    unknown = (
        b"\xf8\x07\x05"  # field 127, varint
        b"\xf9\x07" + bytes(8) + b"\xfa\x07\x02hi\xfd\x07" + bytes(4) + b"\x35\x00\x00\x80\x3f"  # float_data
    )
    value = pack_record(b"data", label=3, height=2, width=2)
    assert parse_record(unknown + value + unknown) == parse_record(value)


def test_every_truncation_parses_or_is_a_record_error() -> None:
    value = pack_record(b"some image bytes", label=300, height=256, width=256)
    boundaries = {0, 2, 5, 8, 26, 29, 31}  # ends of fields: what is there is a message
    for length in range(len(value)):
        if length in boundaries:
            assert parse_record(value[:length]).crc32c is None
        else:
            with pytest.raises(RecordError, match="not a Caffe Datum"):
                parse_record(value[:length])


@pytest.mark.parametrize(
    "value", [b"\x0b", b"\x0c", b"\x0f\x00", b"\x22\xff\xff\xff\xff\x0f", b"\x28" + b"\xff" * 11, b"\xa5\x06\x00"]
)
def test_groups_overlong_numbers_and_lying_lengths_are_refused(value: bytes) -> None:
    with pytest.raises(RecordError):
        parse_record(value)


@given(st.binary(max_size=64))
def test_any_bytes_parse_or_are_a_record_error(value: bytes) -> None:
    try:
        record = parse_record(value)
    except RecordError:
        return
    assert -(2**63) <= record.label < 2**63
    assert len(record.data) <= len(value)


@given(st.data())
def test_a_damaged_record_parses_or_is_a_record_error(data: st.DataObject) -> None:
    value = bytearray(pack_record(b"some image bytes", label=300, height=256, width=256))
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    try:
        record = parse_record(bytes(value))
    except RecordError:
        return
    assert -(2**63) <= record.label < 2**63


# Keys.


def test_keys_are_the_position_and_the_path() -> None:
    assert record_key(7, "cat/a b.jpg") == b"00000007_cat/a b.jpg"
    assert record_key(MAX_POSITION, "x") == b"99999999_x"
    assert record_key(0, "\udcff.jpg") == b"00000000_\xff.jpg"


PATHS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.integers(0, MAX_POSITION), st.integers(0, MAX_POSITION), PATHS, PATHS)
def test_keys_sort_by_position_whatever_the_paths(a: int, b: int, first: str, second: str) -> None:
    one, other = record_key(a, first), record_key(b, second)
    assert a == b or (one < other) == (a < b)
    assert one.startswith(key_prefix(a))
    assert one >= key_prefix(a) > record_key(max(a - 1, 0), first) or a == 0


def test_a_long_path_is_cut_at_lmdbs_limit() -> None:
    key = record_key(1, "é" * 400)
    assert len(key) == MAX_KEY_BYTES
    assert key.startswith(b"00000001_\xc3\xa9")


@pytest.mark.parametrize("position", [-1, MAX_POSITION + 1])
def test_positions_past_eight_digits_are_refused(position: int) -> None:
    with pytest.raises(RecordError, match="split the source"):
        record_key(position, "x")
