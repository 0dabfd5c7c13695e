from __future__ import annotations

import errno
import hashlib
import os
import pickle
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_files import open_files

from lmdali.pipeline.errors import ConfigError, InputError, StorageError
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.tools.class_list import read_class_names
from lmdali.tools.file_reader import FileReader
from lmdali.tools.source_entries import EntryTable, SourceEntry
from lmdali.tools.sources import Source, open_source, source_fingerprint


def plant(root: Path, *names: str) -> Path:
    """Files that hold their own name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


def listed(source: Source) -> list[tuple[str, int]]:
    return [(entry.path, entry.label) for entry in source.entries]


def reason_of(source: Source, path: str) -> Rejection:
    with pytest.raises(SourceRejected) as caught:
        source.read(SourceEntry(path, 0))
    return caught.value.reason


# Class folders.


def test_classes_are_the_sorted_folders_and_images_are_sorted_within(tmp_path: Path) -> None:
    plant(tmp_path, "dog/2.jpg", "dog/10.jpg", "cat/b.png", "Zebra/x.webp", "cat/a.JPEG")
    source = open_source(tmp_path)
    assert source.kind == "folder"
    assert source.class_names == ("Zebra", "cat", "dog")
    assert listed(source) == [
        ("Zebra/x.webp", 0),
        ("cat/a.JPEG", 1),
        ("cat/b.png", 1),
        ("dog/10.jpg", 2),
        ("dog/2.jpg", 2),
    ]
    assert source.class_counts == (1, 2, 2)
    assert source.read(source.entries[3]) == b"dog/10.jpg"


def test_folders_below_a_class_are_searched_in_the_order_torchvision_does(tmp_path: Path) -> None:
    plant(tmp_path, "c/a/1.jpg", "c/a-b/2.jpg", "c/z.jpg", "c/a/b/3.jpg")
    found = [path for path, _ in listed(open_source(tmp_path))]
    assert found == ["c/z.jpg", "c/a/1.jpg", "c/a-b/2.jpg", "c/a/b/3.jpg"]
    walked = [f"{folder}/{file}" for folder, _, files in sorted(os.walk(tmp_path / "c")) for file in sorted(files)]
    assert [str(tmp_path / path) for path in found] == walked


def test_what_is_no_image_is_counted_by_reason(tmp_path: Path) -> None:
    plant(
        tmp_path, "c/1.jpg", "c/.DS_Store", "c/._1.jpg", "c/Thumbs.db", "c/notes.txt", "c/2", "readme.md", ".git/x.jpg"
    )
    plant(tmp_path, "__MACOSX/c/1.jpg", ".ipynb_checkpoints/y.jpg")
    source = open_source(tmp_path)
    assert source.class_names == ("c",)
    assert source.ignored.counts == {"hidden": 6, "other_extension": 2, "outside_class_folders": 1}
    assert source.ignored.examples["outside_class_folders"] == ["readme.md"]
    assert source.ignored.summary() == "6 hidden, 2 other_extension (1 .txt, 1 none), 1 outside_class_folders"


def test_files_passed_over_are_told_by_their_extensions_the_most_first(tmp_path: Path) -> None:
    names = [f"c/{number}.HEIC" for number in range(3)] + ["c/a.avif", "c/b.avif", "c/x.1", "c/x.2", "c/x.3", "c/y.jpg"]
    source = open_source(plant(tmp_path, *names))
    assert source.ignored.summary() == "8 other_extension (3 .heic, 2 .avif, 1 .1, 1 .2, ...)"


def test_an_empty_class_keeps_its_number(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.jpg", "c/2.jpg")
    (tmp_path / "b").mkdir()
    source = open_source(tmp_path)
    assert source.class_names == ("a", "b", "c")
    assert source.class_counts == (1, 0, 1)
    assert source.empty_classes == ("b",)
    assert listed(source)[1] == ("c/2.jpg", 2)


@pytest.mark.parametrize(
    "name",
    [
        b"new\nline.jpg",
        b'quote".jpg',
        b"it's.jpg",
        b"\xff\xfe.jpg",
        "\N{GRINNING FACE}.jpg".encode(),
        b"x" * 251 + b".jpg",
        b"-rf.jpg",
        b"trailing .jpg",
        b"after.jpg ",
        b"two.dots.jpg",
        b"tab\t.jpg",
        b"back\\slash.jpg",
    ],
)
def test_any_file_name_works(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(b"class " + name[:20]) / os.fsdecode(name)
    path.parent.mkdir()
    path.write_bytes(name)
    source = pickle.loads(pickle.dumps(open_source(tmp_path)))
    assert len(source.entries) == 1
    assert os.fsencode(source.entries[0].path).endswith(b"/" + name)
    assert source.reader.read(source.entries[0]) == name
    assert len(source.fingerprint) == 64


def test_names_that_unicode_normalises_alike_are_two_images(tmp_path: Path) -> None:
    plant(tmp_path, "c/\u00e9.jpg", "c/e\u0301.jpg")
    source = open_source(tmp_path)
    assert len({source.read(entry) for entry in source.entries}) == 2


def test_links_to_folders_are_not_followed_and_loops_end(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", "c/1.jpg", "c/deep/2.jpg")
    plant(tmp_path / "elsewhere", "3.jpg")
    (root / "c/deep/up").symlink_to(root)
    (root / "c/away").symlink_to(tmp_path / "elsewhere")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    source = open_source(root)
    assert listed(source) == [("c/1.jpg", 0), ("c/deep/2.jpg", 0)]
    assert source.ignored.counts == {"symlinked_folder": 3}
    assert source.empty_classes == ("linked",)


def test_links_are_followed_on_request_and_loops_still_end(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", "c/1.jpg")
    outside = plant(tmp_path / "elsewhere", "3.jpg", "4.jpg")
    (root / "c/loop").symlink_to(root / "c")
    (root / "c/4.jpg").symlink_to(outside / "4.jpg")
    (root / "linked").symlink_to(outside)
    (root / "top").symlink_to(root)
    source = open_source(root, follow_links=True)
    assert listed(source) == [("c/1.jpg", 0), ("c/4.jpg", 0), ("linked/3.jpg", 1), ("linked/4.jpg", 1)]
    assert source.empty_classes == ("top",)
    assert source.read(source.entries[1]) == b"4.jpg"


def test_links_to_files_are_taken_inside_the_tree_and_counted_outside(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", "c/1.jpg")
    plant(tmp_path, "secret.jpg", "root2/x.jpg")
    (root / "c/2.jpg").symlink_to("1.jpg")
    (root / "c/3.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "c/4.jpg").symlink_to(tmp_path / "root2/x.jpg")
    source = open_source(root)
    assert [path for path, _ in listed(source)] == ["c/1.jpg", "c/2.jpg"]
    assert source.read(source.entries[1]) == b"c/1.jpg"
    assert source.ignored.counts == {"link_outside_source": 2}


def test_the_order_of_the_file_system_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, *(f"{c}/{sub}{n}.jpg" for c in "abc" for sub in ("", "s/", "t/") for n in range(5)))
    before = open_source(tmp_path)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    after = open_source(tmp_path)
    assert listed(after) == listed(before) and after.fingerprint == before.fingerprint


# What cannot be a source: one InputError that says what was found.


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "nowhere")


def test_an_address_is_no_source_and_its_password_is_not_shown() -> None:
    message = refusal(Path("https://ann:secret@host/train.tar"))
    assert "an address (https://)" in message and "secret" not in message


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "the folder is empty" in refusal(tmp_path)


def test_images_without_class_folders_are_refused_with_their_number(tmp_path: Path) -> None:
    plant(tmp_path, "1.jpg", "2.png", "notes.txt")
    assert "2 image files lie directly in it" in refusal(tmp_path)


def test_packed_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    plant(tmp_path, "shards-0000.tar.gz", "notes.txt")
    assert "archives such as 'shards-0000.tar.gz' are not read: decompress" in refusal(tmp_path)


def test_a_pattern_is_told_from_a_missing_folder(tmp_path: Path) -> None:
    assert "no such file or folder: patterns are not expanded, give the folder" in refusal(
        tmp_path / "{0000..0003}.tar"
    )
    assert refusal(tmp_path / "nothing").endswith("no such file or folder")


def test_a_source_that_cannot_be_looked_at_is_not_taken_for_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(StorageError, match=r"Permission denied: change its permissions"):
        open_source(tmp_path / "locked" / "pictures")


def test_class_folders_without_images_are_refused_with_what_was_ignored(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.txt", "b/2.npy")
    words = "2 class folders, but no image file in any of them (ignored: 2 other_extension (1 .npy, 1 .txt))"
    assert words in refusal(tmp_path)


def test_class_folders_of_links_alone_are_refused_with_the_option_that_follows_them(tmp_path: Path) -> None:
    """A subset of a larger dataset is often made of links."""
    plant(tmp_path / "all", "a/1.jpg", "b/2.jpg")
    (tmp_path / "subset").mkdir()
    (tmp_path / "subset/a").symlink_to(tmp_path / "all/a")
    words = "(ignored: 1 symlinked_folder): links are followed with --follow-links, and images are known by"
    assert words in refusal(tmp_path / "subset")
    with pytest.raises(ConfigError, match="follow_links belongs to sources of the kind folder"):
        open_source(plant(tmp_path, "list.txt") / "list.txt", "list", follow_links=True)


def test_an_unreadable_folder_is_refused_and_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulated, because root may read everything.
    plant(tmp_path, "a/1.jpg", "b/locked/2.jpg")
    scandir = os.scandir

    def refusing(path: str | Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    message = refusal(tmp_path)
    assert "locked" in message and "Permission denied" in message


def test_the_parent_of_train_and_val_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.jpg", "val/a/2.jpg")
    assert "splits and not classes" in refusal(tmp_path)
    assert len(open_source(tmp_path / "train").entries) == 1


def test_a_class_that_is_called_like_a_split_is_a_class(tmp_path: Path) -> None:
    plant(tmp_path, "train/1.jpg", "bus/2.jpg")
    assert open_source(tmp_path).class_names == ("bus", "train")


def test_a_pipe_and_a_wrong_format_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "neither a folder nor a regular file" in refusal(tmp_path / "pipe")
    assert "the format asked for is 'list'" in refusal(tmp_path, format="list")
    (tmp_path / "list.txt").write_text("a.jpg 0\n")
    assert "the format asked for is 'folder'" in refusal(tmp_path / "list.txt", format="folder")
    with pytest.raises(ConfigError, match="format"):
        open_source(tmp_path, "tarball")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="root"):
        open_source(tmp_path, root=tmp_path)
    with pytest.raises(ConfigError, match="--classes"):
        open_source(tmp_path, allow_missing_classes=True)


# Class lists.


def test_a_validation_set_takes_its_numbers_from_the_training_set(tmp_path: Path) -> None:
    plant(tmp_path / "train", "a/1.jpg", "b/1.jpg", "c/1.jpg")
    plant(tmp_path / "val", "c/9.jpg")
    names = read_class_names(tmp_path / "train")
    assert "no image of 2 classes of the class list ('a', 'b')" in refusal(tmp_path / "val", classes=names)
    val = open_source(tmp_path / "val", classes=names, allow_missing_classes=True)
    assert val.class_names == ("a", "b", "c")
    assert listed(val) == [("c/9.jpg", 2)]
    assert val.empty_classes == ("a", "b")


def test_a_class_that_training_did_not_have_is_an_error_that_names_it(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.jpg", "wolf\nhound/2.jpg")
    message = refusal(tmp_path, classes=("a", "b"))
    assert r"'wolf\nhound'" in message and "1 class folders are not in the class list of 2 names" in message


def test_class_lists_are_read_from_text_files(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xef\xbb\xbfzebra\r\nold english sheepdog\r\n\xff\r\n\r\n")
    assert read_class_names(path) == ("zebra", "old english sheepdog", "\udcff")
    for content, message in ((b"", "no class names"), (b"a\nb\na\n", "'a' is named twice")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_class_names(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_class_names(tmp_path / "nowhere.txt")
    path.write_bytes(b"\x00" * 10240)
    with pytest.raises(InputError, match="looks like webdataset, which has no class names"):
        read_class_names(path)


# List files.


def write_list(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    return path


def test_a_list_file_is_taken_in_its_own_order(tmp_path: Path) -> None:
    plant(tmp_path, "b.jpg", "sub/a file.jpg", "n.jpg")
    path = write_list(tmp_path, b"\xef\xbb\xbfb.jpg 2\r\nsub/a file.jpg 0\n\nn.jpg\t2\n")
    source = open_source(path)
    assert source.kind == "list"
    assert listed(source) == [("b.jpg", 2), ("sub/a file.jpg", 0), ("n.jpg", 2)]
    assert source.class_names == ("0", "1", "2") and source.class_counts == (1, 0, 2)
    assert source.read(source.entries[1]) == b"sub/a file.jpg"


def test_a_list_file_may_name_another_root_and_absolute_paths(tmp_path: Path) -> None:
    images = plant(tmp_path / "images", "x/1.jpg", "x/2.jpg")
    path = write_list(tmp_path, b"x/1.jpg 0\n" + os.fsencode(images / "x/2.jpg") + b" 1\n")
    source = open_source(path, root=images, classes=("cat", "dog"))
    assert listed(source) == [("x/1.jpg", 0), ("x/2.jpg", 1)]
    assert source.class_names == ("cat", "dog")
    assert source.read(source.entries[0]) == b"x/1.jpg"
    assert "not a folder" in refusal(path, root=tmp_path / "nowhere")


def test_a_list_whose_paths_start_elsewhere_is_refused_with_the_option_that_says_where(tmp_path: Path) -> None:
    # Every image was rejected as vanished, and the output was left half begun.
    plant(tmp_path, "x/1.jpg")
    path = write_list(tmp_path, b"1.jpg 0\n2.jpg 0\n")
    said = f"'1.jpg' is not in {str(tmp_path)!r}, nor is any other of 2 files from all over the list: .* or from --root"
    assert re.search(said, refusal(path))
    assert listed(open_source(path, root=tmp_path / "x")) == [("1.jpg", 0), ("2.jpg", 0)]  # one is there: 2 vanished


def test_a_list_of_which_a_part_is_gone_is_taken(tmp_path: Path) -> None:
    # A class that was deleted, at the list's beginning, makes rejects, which --max-bad allows or not.
    plant(tmp_path, *(f"x/{number}.jpg" for number in range(4)))
    lines = [f"gone/{number}.jpg 0" for number in range(60)] + [f"x/{number}.jpg 1" for number in range(4)]
    assert len(open_source(write_list(tmp_path, "\n".join(lines).encode())).entries) == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no lines"),
        (b"\n \n", "no lines"),
        (b"a.jpg 0\nb.jpg\n", "line 2: 'b.jpg' is not `path label`"),
        (b"a.jpg 0\n 3\n", "line 2"),
        (b"a.jpg zero\n", "line 1: 'a.jpg zero'"),
        (b"a.jpg 1.5\n", "line 1"),
        (b"a.jpg 1 \n", "line 1"),
        (b"a.jpg 0\nb.jpg -1\n", "line 2: label '-1' is negative"),
        (b"a.jpg 4000000000\n", "line 1: label '4000000000' is too large"),
        (b"a.jpg " + b"9" * 5000 + b"\n", "too large"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00 0", "a binary file"),
        (b"a.jpg 0\nb.jpg 1\n\n" + b"\n" * 5000 + b"\x00 0", "line 5004: a zero byte"),
        (b"x" * 100_000 + b"\n", "is not `path label`"),
        (b"a.jpg 0\nb.jpg 1\n./a.jpg 2\n", "lines 1 and 3: './a.jpg' is listed twice, with labels 0 and 2"),
        (b"a.jpg 0\n\na.jpg 0\n", "lines 1 and 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    found = refusal(write_list(tmp_path, content))
    assert message in found and len(found) < 400 + len(str(tmp_path))


def test_a_label_beyond_the_class_list_is_refused(tmp_path: Path) -> None:
    path = write_list(tmp_path, b"a.jpg 1\nb.jpg 2\n")
    assert "line 2: label '2' is too large; the class list has 2 names" in refusal(path, classes=("x", "y"))


# Reading.


@pytest.mark.timeout(60)
def test_what_is_no_regular_file_is_rejected_without_waiting(tmp_path: Path) -> None:
    plant(tmp_path, "c/1.jpg")
    os.mkfifo(tmp_path / "c/pipe.jpg")
    (tmp_path / "c/folder.jpg").mkdir()
    plant(tmp_path, "c/folder.jpg/in.jpg")
    (tmp_path / "c/dangling.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "c/itself.jpg").symlink_to("itself.jpg")
    with socket.socket(socket.AF_UNIX) as unix:
        here = Path.cwd()
        os.chdir(tmp_path)  # socket paths are limited to 108 bytes
        try:
            unix.bind("c/socket.jpg")
        finally:
            os.chdir(here)
    source = open_source(tmp_path)
    assert [path for path, _ in listed(source)] == [
        "c/1.jpg",
        "c/dangling.jpg",
        "c/itself.jpg",
        "c/pipe.jpg",
        "c/socket.jpg",
        "c/folder.jpg/in.jpg",
    ]
    assert reason_of(source, "c/pipe.jpg") == Rejection.NOT_A_FILE
    assert reason_of(source, "c/socket.jpg") == Rejection.NOT_A_FILE
    assert reason_of(source, "c/folder.jpg") == Rejection.NOT_A_FILE
    assert reason_of(source, "c/1.jpg/x.jpg") == Rejection.NOT_A_FILE
    assert reason_of(source, "c/dangling.jpg") == Rejection.DANGLING_LINK
    assert reason_of(source, "c/itself.jpg") == Rejection.READ_FAILED
    assert reason_of(source, "c/gone.jpg") == Rejection.VANISHED
    assert reason_of(source, "c/" + "x" * 300) == Rejection.READ_FAILED
    assert reason_of(source, "c/nul\x00.jpg") == Rejection.READ_FAILED


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, Rejection.PERMISSION_DENIED),
        (errno.EIO, Rejection.READ_FAILED),
        (errno.ESTALE, Rejection.READ_FAILED),
    ],
)
def test_a_system_error_is_a_named_rejection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: Rejection
) -> None:
    source = open_source(plant(tmp_path, "c/1.jpg"))

    def failing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", failing)
    assert reason_of(source, "c/1.jpg") == reason


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    source = open_source(plant(tmp_path, "c/1.jpg"))
    (tmp_path / "c/d").mkdir()
    for _ in range(20):
        source.read(source.entries[0])
        reason_of(source, "c/d")
        reason_of(source, "c/gone")
    assert not open_files(tmp_path)


def test_an_empty_file_is_read_and_a_huge_one_is_not(tmp_path: Path) -> None:
    plant(tmp_path, "c/1.jpg")
    (tmp_path / "c/0.jpg").write_bytes(b"")
    with (tmp_path / "c/huge.jpg").open("wb") as file:
        file.truncate(3_000_000_000)  # sparse
    source = open_source(tmp_path)
    assert source.read(source.entries[0]) == b""
    assert reason_of(source, "c/huge.jpg") == Rejection.TOO_MANY_BYTES
    with pytest.raises(SourceRejected, match="7 bytes are more than the limit of 6"):
        FileReader(str(tmp_path), max_bytes=6).read(SourceEntry("c/1.jpg", 0))


def test_a_source_is_only_read(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.jpg", "b/2.jpg")
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in [tmp_path, *tmp_path.rglob("*")])
    source = open_source(tmp_path)
    for entry in source.entries:
        source.read(entry)
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in [tmp_path, *tmp_path.rglob("*")]) == before


# Entries and fingerprint.


names = st.binary(min_size=1, max_size=12).filter(lambda name: b"\x00" not in name).map(os.fsdecode)
pairs = st.lists(st.tuples(names, st.integers(0, 2**31 - 1)), max_size=20)
places = st.tuples(st.integers(0, 9), st.integers(0, 2**40), st.integers(0, 2**31))
entry_lists = pairs.map(lambda found: [(*pair, -1, 0, 0) for pair in found]) | st.lists(
    st.tuples(names, st.integers(0, 2**31 - 1), places).map(lambda entry: (*entry[:2], *entry[2])), max_size=20
)


@given(entry_lists)
@settings(max_examples=80, deadline=None)
def test_a_table_of_entries_is_the_list_it_was_made_from(expected: list[tuple[str, int, int, int, int]]) -> None:
    table = EntryTable()
    for path, label, *place in expected:
        table.append(path, label, None if place[0] < 0 else (place[0], place[1], place[2]))
    table = pickle.loads(pickle.dumps(table))
    assert len(table) == len(expected)
    backwards = np.arange(len(expected), dtype=np.int64)[::-1]
    assert [tuple(entry) for entry in table.take(backwards)] == expected[::-1]
    assert [tuple(entry) for entry in table] == expected
    assert [tuple(table[i - len(expected)]) for i in range(len(expected))] == expected
    assert [tuple(entry) for entry in table[1:5]] == expected[1:5]
    assert table.labels().tolist() == [label for _, label, *_ in expected]
    for index in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            table[index]


@given(pairs, pairs)
@settings(max_examples=80, deadline=None)
def test_fingerprints_are_equal_exactly_when_the_entries_are(
    a: list[tuple[str, int]], b: list[tuple[str, int]]
) -> None:
    first, second = (source_fingerprint(("x",), [SourceEntry(*pair) for pair in pairs]) for pairs in (a, b))
    assert (first == second) == (a == b)


def test_fingerprints_see_class_names_and_where_one_name_ends() -> None:
    entries = [SourceEntry("a/1.jpg", 0)]
    prints = {
        source_fingerprint(names, entries) for names in (("a",), ("b",), ("a", "b"), ("ab",), ("a\n1:b",), ("b", "a"))
    }
    assert len(prints) == 6


def test_the_fingerprint_does_not_depend_on_where_the_source_lies(tmp_path: Path) -> None:
    names = ("c/1.jpg", "d/2.jpg")
    assert (
        open_source(plant(tmp_path / "here", *names)).fingerprint
        == open_source(plant(tmp_path / "there", *names)).fingerprint
    )
    content = b"lmdali source 1\n2\n1:c\n1:d\n7:c/1.jpg 0\n7:d/2.jpg 1\n"
    assert open_source(tmp_path / "here").fingerprint == hashlib.sha256(content).hexdigest()


def test_the_reader_is_small_however_many_entries_there_are(tmp_path: Path) -> None:
    source = open_source(plant(tmp_path, *(f"c/{n}.jpg" for n in range(300))))
    assert len(pickle.dumps(source.reader)) < 300 + len(str(tmp_path))
    assert pickle.loads(pickle.dumps(source.reader)).read(source.entries[7]) == source.entries[7].path.encode()
