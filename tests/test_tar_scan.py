"""Reading tar headers: every kind of archive that exists, and every kind that should not."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fake_ilsvrc as fake
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdali.pipeline.errors import InputError, StorageError
from lmdali.tools.source_entries import Ignored
from lmdali.tools.tar_scan import TarMember, TarWindow, latest_members, open_tar, walk_tar


def window(data: bytes, where: str = "here") -> TarWindow:
    return TarWindow(lambda offset, size: data[offset : offset + size], 0, len(data), where)


def walked(data: bytes) -> tuple[dict[str, bytes], Ignored]:
    """Contents by name, in order, and what was ignored."""
    ignored = Ignored()
    members = list(walk_tar(window(data), ignored))
    return {name: data[offset : offset + size] for name, offset, size in members}, ignored


def refusal(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        list(walk_tar(window(data), Ignored()))
    message = str(caught.value)
    assert "\n" not in message and message.startswith("here: ")
    return message


def with_entries(*infos: tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(b"d" * info.size) if info.size else None)
    return out.getvalue()


def info(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    for field, value in fields.items():
        setattr(made, field, value)
    return made


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize("format", FORMATS)
def test_files_are_found_with_their_place(format: int) -> None:
    members = {"a.jpg": b"1", "folder/b.jpg": b"22" * 400, "empty": b"", "c" * 99: b"x" * 512}
    found, ignored = walked(fake.tar_bytes(members.items(), format))
    assert found == members and list(found) == list(members) and not ignored.counts


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_strange_names_are_kept_and_harm_nobody(format: int) -> None:
    names = [
        "x" * 300 + ".jpg",
        "d/" * 400 + "deep.jpg",
        "\N{GRINNING FACE}/\u00e9.jpg",
        "undecodable\udcff.jpg",
        "../../etc/passwd",
        "/absolute.jpg",
        "new\nline\x1b[31m.jpg",
    ]
    found, _ = walked(fake.tar_bytes(((name, name[:9].encode("utf-8", "surrogateescape")) for name in names), format))
    assert list(found) == names
    assert all(content == name[:9].encode("utf-8", "surrogateescape") for name, content in found.items())


def test_names_are_tidied() -> None:
    found, _ = walked(fake.tar_bytes([("./a.jpg", b"1"), ("b//c.jpg", b"2"), ("d/./e.jpg", b"3")]))
    assert list(found) == ["a.jpg", "b/c.jpg", "d/e.jpg"]


def test_what_is_no_plain_file_is_counted(tmp_path: Path) -> None:
    data = with_entries(
        info("folder", type=tarfile.DIRTYPE),
        info("a.jpg", 3),
        info("link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        info("hard.jpg", type=tarfile.LNKTYPE, linkname="a.jpg"),
        info("pipe", type=tarfile.FIFOTYPE),
        info("disk", type=tarfile.BLKTYPE),
        info("odd", 5, type=b"V"),
        info("._a.jpg", 3),
        info("__MACOSX/a.jpg", 3),
        info("x/Thumbs.db", 3),
        info(".hidden/a.jpg", 3),
    )
    found, ignored = walked(data)
    assert found == {"a.jpg": b"ddd"}
    assert ignored.counts == {"not_a_file": 5, "hidden": 4}
    assert ignored.examples["not_a_file"] == ["link.jpg", "hard.jpg", "pipe", "disk", "odd"]


@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_are_counted_whatever_their_format(tmp_path: Path, version: str) -> None:
    with (tmp_path / "holes.jpg").open("wb") as file:
        file.write(b"begin")
        file.truncate(1_000_000)
    (tmp_path / "z.jpg").write_bytes(b"after")
    options = ["--format=gnu"] if version == "gnu" else ["--format=pax", f"--sparse-version={version}"]
    command = ["tar", "-cSf", "x.tar", *options, "holes.jpg", "z.jpg"]
    if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("the tar here does not write sparse files: NOT tested")
    found, ignored = walked((tmp_path / "x.tar").read_bytes())
    assert found == {"z.jpg": b"after"} and ignored.counts == {"sparse_member": 1}


def test_of_members_of_one_name_the_last_counts() -> None:
    ignored = Ignored()
    data = fake.tar_bytes([("a", b"1"), ("b", b"2"), ("./a", b"33"), ("a", b"444")])
    assert [(name, size) for name, _, size in latest_members(walk_tar(window(data), ignored), ignored)] == [
        ("a", 3),
        ("b", 1),
    ]
    assert ignored.counts == {"replaced_member": 2}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sizes_above_eight_gib_are_understood(tmp_path: Path, format: int) -> None:
    size = 9 * 2**30 + 1
    with (tmp_path / "big.tar").open("wb") as file:
        file.write(info("huge.bin", size).tobuf(format))
        start = file.tell()
        file.seek(-(-size // 512) * 512, os.SEEK_CUR)
        after = fake.tar_bytes([("small.jpg", b"x")])
        file.write(after)
    with open_tar(str(tmp_path / "big.tar")) as opened:
        members = list(walk_tar(opened, Ignored()))
        assert members[0] == TarMember("huge.bin", start, size)
        assert members[1].name == "small.jpg" and opened.content(members[1]) == b"x"


# Archives that are not whole.

WHOLE = fake.tar_bytes([("a.jpg", b"1" * 700), ("b.jpg", b"2" * 100)])
END = 512 + 1024 + 512 + 512


def test_an_archive_cut_anywhere_before_its_end_is_refused_with_the_place() -> None:
    for cut in range(1, END + 511, 37):
        message = refusal(WHOLE[:cut])
        if cut > 512 and cut % 512:
            assert f"byte {cut}" in message or "header at byte" in message
        assert "md5sum" in message
    for cut in (END, END + 100):
        assert "there is no end-of-archive mark" in refusal(WHOLE[:cut])
    assert f"truncated at byte {1100}: 'a.jpg' of 700 bytes begins at byte 512" in refusal(WHOLE[:1100])
    assert len(walked(WHOLE[: END + 512])[0]) == 2, "one block of zeros is an end"


def test_something_after_the_end_is_refused_with_the_place() -> None:
    assert f"there is more at byte {len(WHOLE)}" in refusal(WHOLE + WHOLE)
    assert f"there is more at byte {len(WHOLE) + 3}" in refusal(WHOLE + b"\x00\x00\x00x")
    late = WHOLE + b"\x00" * 3_000_000 + b"x"
    assert f"there is more at byte {len(late) - 1}" in refusal(late)
    assert len(walked(WHOLE + b"\x00" * 3_000_001)[0]) == 2


def test_a_damaged_header_in_the_middle_is_no_end() -> None:
    damaged = bytearray(WHOLE)
    damaged[1536 + 10] ^= 1
    assert "no sound tar header at byte 1536" in refusal(bytes(damaged))
    damaged[1536:2048] = os.urandom(512)
    assert "no sound tar header at byte 1536" in refusal(bytes(damaged))


def test_archives_have_a_limit_of_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdali.tools.tar_scan.MAX_MEMBERS", 1)
    assert "more than 1 members" in refusal(WHOLE)


def test_an_archive_in_an_archive_is_a_window_on_it(tmp_path: Path) -> None:
    (tmp_path / "outer.tar").write_bytes(fake.tar_bytes([("x", b"y"), ("inner.tar", WHOLE), ("z", b"z" * 5000)]))
    with open_tar(str(tmp_path / "outer.tar")) as outer:
        inner = list(walk_tar(outer, Ignored()))[1]
    with open_tar(str(tmp_path / "outer.tar"), inner.offset, inner.num_bytes, inner.name) as opened:
        members = list(walk_tar(opened, Ignored()))
        assert [(member.name, opened.content(member)[:1]) for member in members] == [("a.jpg", b"1"), ("b.jpg", b"2")]
        assert "outer.tar', in 'inner.tar'" in opened.where
    cut = open_tar(str(tmp_path / "outer.tar"), inner.offset, inner.num_bytes - len(WHOLE) + 2000, inner.name)
    with cut as opened, pytest.raises(InputError, match=r"in 'inner\.tar': truncated at byte 2000"):
        list(walk_tar(opened, Ignored()))


def test_an_empty_archive_and_no_archive() -> None:
    assert walked(b"\x00" * 10240)[0] == {}
    for data in (b"", b"x", b"<html>" * 200, b"\x00" * 100):
        assert "is it a tar file?" in refusal(data) or "end-of-archive" in refusal(data)


@pytest.mark.parametrize(
    ("magic", "program"),
    [(b"\x1f\x8b", "gunzip"), (b"BZh9", "bunzip2"), (b"\xfd7zXZ\x00", "unxz"), (b"\x28\xb5\x2f\xfd", "unzstd")],
)
def test_compressed_archives_are_refused_with_the_program_to_run(tmp_path: Path, magic: bytes, program: str) -> None:
    (tmp_path / "x.tar").write_bytes(magic + b"\x00" * 2000)
    with (
        pytest.raises(InputError, match=rf"read from an archive in any order.*run {program} "),
        open_tar(str(tmp_path / "x.tar")),
    ):
        pass


@pytest.mark.timeout(60)
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    for name, message in (("pipe.tar", "no regular file"), ("gone.tar", "cannot be opened"), (".", "no regular file")):
        with pytest.raises(InputError, match=message), open_tar(str(tmp_path / name)):
            pass


def test_a_disk_that_fails_is_not_the_archives_fault() -> None:
    def failing(offset: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(
        StorageError, match=r"here: cannot be read at byte 0: Input/output error: the disk or the way to it fails"
    ):
        list(walk_tar(TarWindow(failing, 0, 1024, "here"), Ignored()))


# Archives made to harm.


def checked(header: bytearray) -> bytes:
    """A header with the checksum that belongs to it."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\x00 " % sum(header)
    return bytes(header)


def header(name: bytes = b"a", size: bytes = b"00000000000\x00", type: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157] = name, size, type
    block[257:265] = b"ustar\x0000"
    return checked(block)


def base256(value: int) -> bytes:
    return (b"\x80" if value >= 0 else b"\xff") + value.to_bytes(11, "big", signed=True)


def pax(records: bytes, type: bytes = b"x") -> bytes:
    return header(b"pax", b"%011o\x00" % len(records), type) + records + b"\x00" * (-len(records) % 512)


HARMFUL: list[tuple[Callable[[], bytes], str]] = [
    (lambda: header(size=base256(-512)), "leads backwards"),
    (lambda: header(size=base256(-(2**80))), "backwards"),
    (lambda: header() + header(b"b", base256(-1024)) + header(b"c"), "backwards"),
    (lambda: header(size=base256(2**80)), "truncated at byte"),
    (lambda: header(type=b"L", size=base256(2**40)), "an extended header of 1099511627776 bytes"),
    (lambda: header(type=b"L", size=base256(-1)), "no sound tar header"),
    (lambda: header(type=b"x", size=base256(2**40)), "an extended header of"),
    (lambda: header(type=b"S", size=base256(-512)), "backwards"),
    (lambda: pax(b"9" * 500_000) + header(), "digits in a row"),
    (lambda: pax(b"16 size=-1000000\n") + header(), "backwards"),
    (lambda: pax(b"0 a=b\n") + header(), "no sound tar header"),
    (lambda: pax(b"22 GNU.sparse.map=a,b\n") + header(), "no sound tar header"),
    (lambda: header(type=b"L") * 5000, "no sound tar header"),
    (lambda: pax(b"", b"g") * 5000, "no sound tar header"),
    (lambda: header(type=b"L", size=b"00000010000\x00") + b"n" * 4096 + header(), "a sound name"),
    (
        lambda: header(type=b"L", size=b"00000020000\x00") + b"n" * 8192 + header(),
        "a name of 8192 characters at byte 0",
    ),
    (
        lambda: b"".join(
            pax(b"".join(b"13 k%06d=v\n" % n for n in range(part, part + 900)), b"g") + header() for part in (0, 900)
        ),
        "more than 1000 global header fields",
    ),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("make", "message"), HARMFUL, ids=[message for _, message in HARMFUL])
def test_hostile_headers_are_refused_at_once(make: Callable[[], bytes], message: str) -> None:
    data = make()
    tracemalloc.start()
    try:
        found, _ = walked(data + b"\x00" * 1024)
    except InputError as error:
        # Newer versions of tarfile find some of these themselves.
        assert message in str(error) or "no sound tar header" in str(error), error
        assert len(str(error)) < 400
    else:
        assert message == "a sound name" and list(found) == ["n" * 4096]
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20_000_000


def survives(data: bytes) -> None:
    """Anything may be refused; what is found lies within the archive."""
    reads = 0

    def read_at(offset: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 10_000 and size <= 1 << 20
        return data[offset : offset + size]

    try:
        for member in walk_tar(TarWindow(read_at, 0, len(data), "here"), Ignored()):
            assert 0 <= member.offset <= member.offset + member.num_bytes <= len(data)
    except InputError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=4000))
@settings(max_examples=100)
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    survives(data)


SEEDS = [
    fake.tar_bytes([("a.jpg", b"1"), ("b" * 150, b"2" * 600), ("\u00e9", b"")], format=format)
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
] + [
    with_entries(info("d", type=tarfile.DIRTYPE), info("l", type=tarfile.SYMTYPE, linkname="x"), info("f", 9)),
    pax(b"19 GNU.sparse.map=0\n" + b"22 GNU.sparse.major=1\n" + b"22 GNU.sparse.minor=0\n") + header() + b"\x00" * 1024,
    header(type=b"S") + header(b"z") + b"\x00" * 1024,
]


@given(st.data())
@settings(max_examples=400)
def test_archives_with_changed_bytes_are_refused_or_read(data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(SEEDS)))
    blocks = range(0, len(changed) - 511, 512)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from(blocks)) + data.draw(
            st.sampled_from([0, 124, 125, 135, 156, 257, 345, 386, 482]) | st.integers(0, 511)
        )
        new = data.draw(st.binary(min_size=1, max_size=12))
        changed[place : place + len(new)] = new[: len(changed) - place]
    for block in blocks:  # mostly with sound checksums, or nothing behind them would ever be reached
        if bytes(changed[block : block + 512]).strip(b"\x00") and data.draw(st.integers(0, 9)):
            changed[block : block + 512] = checked(changed[block : block + 512])
    survives(bytes(changed[: data.draw(st.integers(0, len(changed)))] if data.draw(st.booleans()) else changed))


def test_walking_takes_no_memory_for_members(tmp_path: Path) -> None:
    with (tmp_path / "many.tar").open("wb") as file:
        for number in range(20_000):
            file.write(header(b"folder/%08d.jpg" % number))
        file.write(b"\x00" * 1024)
    tracemalloc.start()
    try:
        with open_tar(str(tmp_path / "many.tar")) as opened:
            assert sum(1 for _ in walk_tar(opened, Ignored())) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300_000
