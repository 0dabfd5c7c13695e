from __future__ import annotations

from pathlib import Path

import pytest

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools.parquet_files import find_parquet_files, looks_like_parquet


def plant(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PAR1")
    return folder


def found(path: Path, split: str | None = None) -> list[str]:
    return [file.name for file in find_parquet_files(path, split)]


def hub(count: int, split: str) -> list[str]:
    return [f"data/{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def test_a_folder_with_several_splits_asks_which(tmp_path: Path) -> None:
    plant(tmp_path, *hub(3, "train"), *hub(1, "validation"), "data/.hidden.parquet", "data/notes.txt", "README.md")
    assert looks_like_parquet(tmp_path)
    with pytest.raises(InputError, match="has the splits 'train', 'validation': choose one with --split"):
        find_parquet_files(tmp_path)
    assert found(tmp_path, "train") == [Path(name).name for name in hub(3, "train")]
    assert found(tmp_path, "all") == [Path(name).name for name in (*hub(3, "train"), *hub(1, "validation"))]
    assert found(tmp_path / "data", "validation") == ["validation-00000-of-00001.parquet"]
    with pytest.raises(InputError, match="has no split 'test'; it has 'train', 'validation'"):
        find_parquet_files(tmp_path, "test")


@pytest.mark.parametrize(
    "names",
    [
        ["0000.parquet", "0001.parquet"],
        ["train-0.parquet", "train-1.parquet"],
        ["train.parquet"],
        ["train-00000-of-00002-0a1b2c.parquet", "train-00001-of-00002-ffee00.parquet"],
    ],
)
def test_one_split_needs_no_choice(tmp_path: Path, names: list[str]) -> None:
    assert found(plant(tmp_path, *names)) == names


def test_a_download_that_ended_early_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, *hub(4, "train"))
    (tmp_path / "data/train-00002-of-00004.parquet").unlink()
    with pytest.raises(InputError, match=r"3 files of the split 'train', their names count 4 \(number 2 is not there"):
        find_parquet_files(tmp_path)
    assert found(tmp_path / "data/train-00001-of-00004.parquet") == ["train-00001-of-00004.parquet"]


def test_two_versions_of_a_split_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, *hub(2, "train"), *hub(3, "train"))
    with pytest.raises(InputError, match="5 files of the split 'train', their names count 3: keep those of one"):
        find_parquet_files(tmp_path)


def test_what_is_no_parquet_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "list.txt").write_text("PAR 1\n")
    (tmp_path / "renamed").write_bytes(b"PAR1....")
    assert not looks_like_parquet(tmp_path)
    assert not looks_like_parquet(tmp_path / "list.txt")
    assert not looks_like_parquet(tmp_path / "nowhere")
    assert looks_like_parquet(tmp_path / "renamed")
    with pytest.raises(InputError, match=r"no \.parquet file in the folder"):
        find_parquet_files(tmp_path)
    with pytest.raises(ConfigError, match="--split chooses among the files of a folder"):
        find_parquet_files(tmp_path / "renamed", "train")
