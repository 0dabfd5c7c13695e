"""`lmdali repair` gives back the very bytes that were there, or says why it cannot and leaves what is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import run
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kill_points import kill_script
from test_dataset_writer import fingerprints

from lmdali.pipeline.errors import InputError, LockedError, ManifestError
from lmdali.pipeline.files import file_sha256, write_json
from lmdali.pipeline.manifest import MANIFEST_FILE, RECORDS_FILE, Manifest, load_manifest
from lmdali.pipeline.output_lock import hold_whole
from lmdali.pipeline.record_codec import encode_jpeg
from lmdali.tools import conversion, shard_repair
from lmdali.tools.conversion import ShardJob
from lmdali.tools.dataset_check import verify_dataset
from lmdali.tools.shard_making import make_shard
from lmdali.tools.shard_repair import RepairReport, repair_dataset
from lmdali.tools.sources import Source, open_source

Opener = Callable[[Manifest], Source]


class OneProcess:
    """`ShardPool` without processes, which take a second to start."""

    def __init__(self, workers: int | None = None) -> None:
        pass

    def run(self, jobs: Iterator[ShardJob], progress: Callable[[int], None]) -> None:
        for job in jobs:
            make_shard(job)


@pytest.fixture
def dataset(small_jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shard_repair, "ShardPool", OneProcess)
    return Path(shutil.copytree(small_jpeg_dataset, tmp_path / "dataset"))


@pytest.fixture
def opener(small_source: Path) -> Opener:
    return lambda manifest: open_source(small_source, classes=manifest.class_names)


def flip(path: Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 16
    path.write_bytes(content)


def damage(path: Path, how: str, where: float) -> None:
    """Do one of the things that happen to files."""
    if how == "gone":
        path.unlink()
    elif how == "cut":
        os.truncate(path, int(where * path.stat().st_size))
    else:
        flip(path, where)


SHARD_FILES = [
    f"shards/{number:05d}/{name}" for number in range(5) for name in ("data.mdb", "offsets.npy", "shard.json")
]
SIDE_FILES = ["records.parquet", "rejects.parquet", "statistics.json", "mean.npy"]


@hypothesis_settings(max_examples=30)
@given(
    files=st.dictionaries(
        st.sampled_from([*SHARD_FILES, *SIDE_FILES]),
        st.tuples(st.sampled_from(["flip", "cut", "gone"]), st.floats(0, 0.999)),
        max_size=7,
    ),
    lost=st.sets(st.integers(0, 4), max_size=2),
)
def test_any_damage_is_repaired_to_the_same_bytes(
    tmp_path: Path,
    small_jpeg_dataset: Path,
    dataset: Path,
    opener: Opener,
    files: dict[str, tuple[str, float]],
    lost: set[int],
) -> None:
    expected = fingerprints(small_jpeg_dataset)
    for name, (how, where) in files.items():
        damage(dataset / name, how, where)
    for number in lost:
        shutil.rmtree(dataset / f"shards/{number:05d}")
    report = repair_dataset(dataset, opener, workers=1, quiet=True)
    assert fingerprints(dataset) == expected, report
    assert report.refused == []
    rebuilt = {name.split("/")[1] for name in files if name.endswith("data.mdb")} | {f"{n:05d}" for n in lost}
    assert report.rebuilt_shards == sorted(rebuilt)
    assert verify_dataset(dataset, decode=False, quiet=True).problems == []
    assert repair_dataset(dataset, None, quiet=True).restored_files == [], "a whole dataset needs no source"


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_the_command_line_repairs_with_worker_processes(
    tmp_path: Path,
    encoding: str,
    small_source: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = request.getfixturevalue(f"small_{encoding}_dataset")
    dataset = Path(shutil.copytree(whole, tmp_path / "dataset"))
    flip(dataset / "shards/00001/data.mdb", 0.5)
    (dataset / "shards/00003/shard.json").unlink()
    assert run("verify", dataset, "--quiet") == 5
    assert "`lmdali repair` makes damaged files again" in capsys.readouterr().err
    assert run("repair", dataset, "--source", small_source, "-j1", "--json", "--quiet") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rebuilt_shards"] == ["00001"]
    assert report["restored_files"] == ["shards/00003/shard.json"]
    assert fingerprints(dataset) == fingerprints(whole)
    assert run("verify", dataset, "--quiet") == 0
    assert run("repair", dataset) == 0
    assert "none" in capsys.readouterr().out


def test_a_list_file_is_a_source_like_any_other(
    tmp_path: Path, small_source: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_repair, "ShardPool", OneProcess)
    names = sorted(str(path.relative_to(small_source)) for path in small_source.rglob("*.*"))
    listed = small_source.parent / "list.txt"
    listed.write_text("".join(f"small/{name} {int(name.startswith('b'))}\n" for name in names))
    (tmp_path / "root").mkdir()
    (tmp_path / "root/small").symlink_to(small_source)
    listed = Path(shutil.move(listed, tmp_path / "root/list.txt"))
    dataset = make_dataset(listed, tmp_path / "dataset", shard_sources=8, size=48, orientation="apply", quality=80)
    expected = fingerprints(dataset)
    shutil.rmtree(dataset / "shards/00004")
    listed = Path(shutil.move(listed, tmp_path / "list.txt"))
    assert run("repair", dataset, "--source", listed, "--root", tmp_path / "root", "--quiet") == 0
    assert fingerprints(dataset) == expected


def test_what_follows_from_the_shards_needs_no_source_and_shards_do(
    dataset: Path, small_jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("shards/00000/offsets.npy", "shards/00001/shard.json", "statistics.json", "mean.npy"):
        (dataset / name).unlink()
    assert run("repair", dataset, "--quiet") == 0
    assert fingerprints(dataset) == fingerprints(small_jpeg_dataset)
    flip(dataset / "shards/00002/data.mdb", 0.7)
    (dataset / "rejects.parquet").unlink()
    capsys.readouterr()
    before = fingerprints(dataset)
    assert run("repair", dataset, "--quiet") == 3
    assert "2 damaged (shard 00002, rejects.parquet): only the source gives them again: add --source" in (
        capsys.readouterr().err
    )
    assert fingerprints(dataset) == before


def test_only_the_shards_asked_for_are_looked_at(dataset: Path, small_jpeg_dataset: Path, opener: Opener) -> None:
    flip(dataset / "shards/00000/data.mdb", 0.5)
    flip(dataset / "shards/00002/data.mdb", 0.5)
    damaged = fingerprints(dataset)["shards/00000/data.mdb"]
    assert repair_dataset(dataset, opener, shards=["00002"], quiet=True).rebuilt_shards == ["00002"]
    assert fingerprints(dataset) == fingerprints(small_jpeg_dataset) | {"shards/00000/data.mdb": damaged}
    with pytest.raises(InputError, match="has no shard '00009', only 00000 to 00004"):
        repair_dataset(dataset, opener, shards=["00009"], quiet=True)


@pytest.mark.parametrize("shards", ["", "1,", "1,,2"])
def test_an_empty_number_is_not_the_first_shard(dataset: Path, shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("repair", dataset, "--shards", shards) == 2
    assert "expected numbers such as 00003,00007" in capsys.readouterr().err


def test_a_source_file_that_changed_is_named_and_its_shard_stays(
    dataset: Path, small_source: Path, small_jpeg_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(small_source, tmp_path / "source"))
    cv2.imwrite(str(source / "a/000.jpg"), np.zeros((60, 60, 3), np.uint8))
    for number in range(5):
        flip(dataset / f"shards/{number:05d}/data.mdb", 0.5)
    before = fingerprints(dataset)
    assert run("repair", dataset, "--source", source, "--json", "--quiet") == 5
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert len(report["rebuilt_shards"]) == 4
    (refused,) = report["refused"]
    (lost,) = {f"{number:05d}" for number in range(5)} - set(report["rebuilt_shards"])
    assert refused.startswith(
        f"shard {lost}: made again it is not what it was: 1 source files changed since (a/000.jpg)"
    )
    assert "1 files stay damaged" in captured.err
    name = f"shards/{lost}/data.mdb"
    assert fingerprints(dataset) == fingerprints(small_jpeg_dataset) | {name: before[name]}


def test_without_a_table_sources_are_not_called_the_same_nor_sound_shards_damaged(
    dataset: Path, small_source: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(small_source, tmp_path / "source"))
    cv2.imwrite(str(source / "a/000.jpg"), np.zeros((60, 60, 3), np.uint8))
    (dataset / RECORDS_FILE).unlink()
    opener = lambda manifest: open_source(source, classes=manifest.class_names)  # noqa: E731
    (refused,) = repair_dataset(dataset, opener, quiet=True).refused
    assert refused.startswith(f"{RECORDS_FILE}: needs every shard made again as it was, and 1 of 5 are not, first 0000")
    assert "its sources changed since, or a decoder or encoder is another build" in refused
    assert f"{RECORDS_FILE}, which would tell, is damaged" in refused and "are the same" not in refused
    for number in range(5):
        flip(dataset / f"shards/{number:05d}/data.mdb", 0.5)
    report = repair_dataset(dataset, opener, quiet=True)
    assert len(report.rebuilt_shards) == 4
    assert [line.split(":")[0][:7] for line in report.refused] == ["shard 0", "records"]


def refusal(dataset: Path, opener: Opener) -> str:
    os.truncate(dataset / "shards/00001/data.mdb", 8192)
    before = fingerprints(dataset)
    report: RepairReport = repair_dataset(dataset, opener, quiet=True)
    assert fingerprints(dataset)["shards/00001/data.mdb"] == before["shards/00001/data.mdb"]
    return report.refused[0]


def test_an_encoder_that_works_otherwise_is_refused(
    dataset: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "encode_jpeg", lambda pixels, quality: encode_jpeg(pixels, quality - 1))
    assert "its sources are the same, so a decoder or encoder is another build than it was" in refusal(dataset, opener)
    manifest = load_manifest(dataset)
    replace(manifest, recipe=manifest.recipe | {"decoder": "opencv 3"}).save(dataset)
    assert "other decoders (decoder: 'opencv 3' then, 'opencv " in refusal(dataset, opener)


def test_a_recipe_that_cannot_be_repeated_is_refused(dataset: Path, opener: Opener) -> None:
    manifest = load_manifest(dataset)
    replace(manifest, recipe=manifest.recipe | {"sharpen": 3}).save(dataset)
    (dataset / "shards/00001/data.mdb").unlink()
    with pytest.raises(InputError, match=r"a way this version cannot repeat \(sharpen: 3 then, None now\)"):
        repair_dataset(dataset, opener, quiet=True)
    assert not (dataset / ".staging").exists()


def test_shards_of_a_dataset_older_than_the_hashes_are_made_again_and_its_table_is_not(
    dataset: Path, opener: Opener
) -> None:
    table = dataset / RECORDS_FILE
    pq.write_table(pq.read_table(table).drop_columns(["phash"]), table)
    manifest = load_manifest(dataset)
    recipe = {name: value for name, value in manifest.recipe.items() if name != "perceptual_hash"}
    tables = manifest.tables | {RECORDS_FILE: file_sha256(table)}
    replace(manifest, recipe=recipe, tables=tables).with_digest().save(dataset)
    before = fingerprints(dataset)
    (dataset / "shards/00001/data.mdb").unlink()
    report = repair_dataset(dataset, opener, quiet=True)
    assert (report.rebuilt_shards, report.refused) == (["00001"], [])
    after = fingerprints(dataset)
    assert {name for name in before if after[name] != before[name]} <= {"statistics.json"}, "it names the new digest"
    table.unlink()
    (refused,) = repair_dataset(dataset, opener, quiet=True).refused
    assert refused.startswith(f"{RECORDS_FILE}: made again it is not what it was") and not table.exists()


def test_another_source_is_refused(dataset: Path, photo_folder: Path, small_source: Path, tmp_path: Path) -> None:
    (dataset / "shards/00001/data.mdb").unlink()
    before = fingerprints(dataset)
    fewer = Path(shutil.copytree(small_source, tmp_path / "fewer"))
    (fewer / "a/000.jpg").unlink()
    with pytest.raises(InputError, match=r"from another source \(.*fingerprint .*num_sources: 40 then, 39 now\)"):
        repair_dataset(dataset, lambda manifest: open_source(fewer, classes=manifest.class_names), quiet=True)
    assert fingerprints(dataset) == before


def test_a_damaged_manifest_is_not_believed(dataset: Path, opener: Opener) -> None:
    document = json.loads((dataset / MANIFEST_FILE).read_text())
    write_json(dataset / MANIFEST_FILE, document | {"num_records": 1})
    with pytest.raises(ManifestError, match="restore it or convert again"):
        repair_dataset(dataset, opener, quiet=True)
    (dataset / MANIFEST_FILE).write_text(json.dumps(document, indent=4))
    assert repair_dataset(dataset, opener, quiet=True).restored_files == [MANIFEST_FILE], "only its white space"
    assert verify_dataset(dataset, quiet=True).problems == []


def test_a_dataset_under_repair_is_finished_and_held(
    dataset: Path, opener: Opener, small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(dataset / "shards/00001/data.mdb", 0.5)
    seen = []

    class Watching(OneProcess):
        def run(self, jobs: Iterator[ShardJob], progress: Callable[[int], None]) -> None:
            assert load_manifest(dataset).num_records == 37
            assert (dataset / "shards/00001/data.mdb").exists()
            with pytest.raises(LockedError, match=f"pid {os.getpid()} on "), hold_whole(dataset):
                raise AssertionError
            seen.append(True)
            super().run(jobs, progress)

    monkeypatch.setattr(shard_repair, "ShardPool", Watching)
    repair_dataset(dataset, opener, quiet=True)
    assert seen and fingerprints(dataset) == fingerprints(small_jpeg_dataset)
    with hold_whole(dataset), pytest.raises(LockedError):
        repair_dataset(dataset, opener, quiet=True)


def test_an_interrupted_repair_keeps_what_it_has_made(
    dataset: Path,
    opener: Opener,
    small_source: Path,
    small_jpeg_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: list[str] = []

    class Interrupted(OneProcess):
        def run(self, jobs: Iterator[ShardJob], progress: Callable[[int], None]) -> None:
            for job in jobs:
                if len(made) == 1:
                    raise KeyboardInterrupt
                make_shard(job)
                made.append(job.name)

    for name in ("00001", "00003"):
        flip(dataset / f"shards/{name}/data.mdb", 0.5)
    monkeypatch.setattr(shard_repair, "ShardPool", Interrupted)
    assert run("repair", dataset, "--source", small_source, "--quiet") == 130
    assert "the same command goes on from them" in capsys.readouterr().err
    made.clear()
    assert run("repair", dataset, "--source", small_source, "--quiet") == 0
    assert made == ["00003"]
    assert fingerprints(dataset) == fingerprints(small_jpeg_dataset)


KILLS = """
import shutil, sys
from pathlib import Path
from kill_points import kill_everywhere
from test_dataset_writer import fingerprints
import conftest, test_repair
from lmdali.tools import shard_repair
from lmdali.tools.sources import open_source

root = Path(sys.argv[1])
shard_repair.ShardPool = test_repair.OneProcess
source = conftest._make_photo_folder(root / "source", ("a", "b"), 3, sides=(20, 40))
whole = conftest._make_dataset(source, root / "whole", shard_sources=3, size=8)
expected = fingerprints(whole)
broken = shutil.copytree(whole, root / "broken")
test_repair.flip(broken / "shards/00000/data.mdb", 0.5)
shutil.rmtree(broken / "shards/00001")
for name in ("statistics.json", "records.parquet"):
    (broken / name).unlink()

def work(place):
    shard_repair.repair_dataset(place, lambda manifest: open_source(source), workers=1, quiet=True)

def check(place):
    assert fingerprints(place) == expected, place

print(kill_everywhere(root, lambda place: shutil.copytree(broken, place), work, check))
"""


def test_a_repair_killed_at_any_file_operation_is_finished_by_the_next(tmp_path: Path) -> None:
    kill_script(KILLS, tmp_path)
