"""`lmdali verify` finds every damaged byte and names the place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from threading import Barrier, get_ident
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run

from lmdali.pipeline.eigenbasis import load_moments, save_statistics
from lmdali.pipeline.errors import IntegrityError
from lmdali.pipeline.files import file_sha256, write_json
from lmdali.pipeline.manifest import MANIFEST_FILE, load_manifest
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.shard_walk import iterate_values
from lmdali.pipeline.table_reader import read_rows
from lmdali.tools import dataset_check
from lmdali.tools.dataset_check import verify_dataset


@pytest.fixture
def dataset(small_jpeg_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_jpeg_dataset, tmp_path / "dataset"))


def image_bytes(dataset: Path, index: int) -> bytes:
    return ShardReader(dataset, load_manifest(dataset)).read(index, lambda record: bytes(record.data))


def change(path: Path, before: bytes, after: bytes) -> None:
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))


def test_a_whole_dataset_has_no_problems(dataset: Path) -> None:
    report = verify_dataset(dataset, quiet=True)
    assert report.problems == []
    assert report.num_records == load_manifest(dataset).num_records


def test_one_flipped_bit_is_found_with_shard_and_key(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = image_bytes(dataset, 10)
    path = dataset / "shards" / "00001" / "data.mdb"
    middle = data[-40:-8]
    change(path, middle, bytes([middle[0] ^ 4]) + middle[1:])
    assert run("verify", dataset, "--json", "--quiet") == 5
    captured = capsys.readouterr()
    problems = json.loads(captured.out)["problems"]
    assert any("sha256 differs" in problem for problem in problems)
    assert any(problem.startswith("shard 00001, row ") and "CRC-32C" in problem for problem in problems)
    assert len(captured.err.strip().splitlines()) == 1


def test_every_single_bit_of_a_shard_counts(dataset: Path) -> None:
    path = dataset / "shards" / "00000" / "data.mdb"
    content = path.read_bytes()
    for position in range(5, len(content), len(content) // 12):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert verify_dataset(dataset, decode=False, quiet=True).problems, f"byte {position}"


@pytest.mark.parametrize("name", ["shards/00001/shard.json", "statistics.json", "mean.npy", "manifest.json"])
def test_every_single_byte_of_a_side_file_counts(dataset: Path, name: str) -> None:
    path = dataset / name
    content = path.read_bytes()
    for position in range(0, len(content), max(len(content) // 60, 1)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            problems = verify_dataset(dataset, decode=False, quiet=True).problems
        except IntegrityError as error:  # nothing can be checked against a manifest that is damaged
            assert name == "manifest.json"
            problems = [str(error)]
        assert problems and all(name.split("/")[-1] in problem for problem in problems), (position, problems)


def test_a_manifest_with_other_white_space_is_no_longer_what_was_written(dataset: Path) -> None:
    document = json.loads((dataset / MANIFEST_FILE).read_text())
    (dataset / MANIFEST_FILE).write_text(json.dumps(document))
    (problem,) = verify_dataset(dataset, quiet=True).problems
    assert problem.startswith("manifest.json: its content is right, but not written as we do")


def test_a_damaged_record_is_named_with_its_source(dataset: Path) -> None:
    rows = read_rows(dataset / "records.parquet")
    for index in (9, 30):
        data = image_bytes(dataset, index)
        path = dataset / "shards" / rows[index]["shard"] / "data.mdb"
        change(path, data[-40:-8], bytes(32))
    found = [p for p in verify_dataset(dataset, quiet=True).problems if "CRC-32C" in p]
    named = [f"row {rows[n]['row']}, key {rows[n]['key']}, source {rows[n]['source']}: CRC-32C" for n in (9, 30)]
    assert len(found) == 2 and all(name in problem for name, problem in zip(named, found, strict=True))
    (dataset / "records.parquet").unlink()
    problems = verify_dataset(dataset, quiet=True).problems
    assert "records.parquet: missing" in problems
    assert any(f"key {rows[9]['key']}: CRC-32C" in problem for problem in problems), "the key is known without a table"


def test_a_damaged_page_that_shows_too_many_records_is_a_problem_and_no_error(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_check, "_GROUP_RECORDS", 1)
    info = load_manifest(dataset).shards[-1]
    path = dataset / "shards" / info.name / "data.mdb"
    whole, most = path.read_bytes(), 0
    for page in range(2, len(whole) // 4096):
        for offset, bit in product(range(page * 4096 + 12, page * 4096 + 14), range(8)):  # where its table ends
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1 << bit]) + whole[offset + 1 :])
            rows = 0
            with suppress(IntegrityError):
                for rows, _ in enumerate(iterate_values(path.parent), 1):  # noqa: B007
                    pass
            if rows > info.num_records:
                most += 1
                problems = verify_dataset(dataset, decode=False, workers=1, quiet=True).problems
                assert any(f"shard {info.name}, row {info.num_records}, key " in problem for problem in problems)
    assert most > 0, "no flip showed more records than there are"


def with_table(dataset: Path, **columns: list[Any]) -> None:
    """Another `records.parquet`, believed by a new manifest."""
    path = dataset / "records.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, path)
    manifest = load_manifest(dataset)
    replace(manifest, tables=manifest.tables | {path.name: file_sha256(path)}).save(dataset)


@pytest.mark.parametrize("column", ["position", "shard", "row", "label", "stored_bytes", "crc32c"])
def test_a_table_that_says_something_else_than_the_shards_is_found(dataset: Path, column: str) -> None:
    values = pq.read_table(dataset / "records.parquet")[column].to_pylist()
    wrong = "00004" if column == "shard" else values[11] + 1
    with_table(dataset, **{column: [*values[:11], wrong, *values[12:]]})
    problems = [p for p in verify_dataset(dataset, decode=False, quiet=True).problems if "statistics" not in p]
    assert len(problems) == 1 and f"records.parquet says {column} {wrong}, stored is {values[11]}" in problems[0]


def test_a_table_of_too_few_rows_is_found(dataset: Path) -> None:
    path = dataset / "records.parquet"
    pq.write_table(pq.read_table(path).slice(0, 30), path)
    with_table(dataset)
    assert "records.parquet: 30 rows" in verify_dataset(dataset, quiet=True).problems


def test_class_counts_are_compared_with_the_labels_that_are_stored(dataset: Path) -> None:
    manifest = load_manifest(dataset)
    first, second = manifest.class_counts
    replace(manifest, class_counts=(first + 1, second - 1)).save(dataset)
    problems = verify_dataset(dataset, quiet=True).problems
    assert f"class 0: {first} records, the manifest says {first + 1}" in problems


def test_statistics_must_be_the_sum_of_those_of_the_shards(dataset: Path) -> None:
    moments, digest = load_moments(dataset)
    moments.products[0, 0] += 1
    save_statistics(dataset, moments, digest)
    assert verify_dataset(dataset, quiet=True).problems == [
        "statistics.json: its moments are not the sums of those in every shard.json"
    ]


def test_one_shard_keeps_all_threads_busy(
    tmp_path: Path, small_source: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(small_source, tmp_path / "one", size=16, shard_sources=40)
    together = Barrier(2)
    met = []

    def decode(data: memoryview, size: int) -> None:
        if len(met) < 2:
            met.append(get_ident())
            together.wait(timeout=250)  # breaks where one thread does everything

    monkeypatch.setattr(dataset_check, "decode_stored", decode)
    assert verify_dataset(dataset, workers=2, quiet=True).problems == []
    assert len(set(met)) == 2


def test_offsets_that_lead_to_other_records_are_named(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dataset / "shards" / "00001" / "offsets.npy"
    kept = np.load(path)
    for wrong in (kept[[0, 2, 1, *range(3, len(kept))]], kept[:-1], kept.astype(np.float64)):
        np.save(path, wrong)
        assert run("verify", dataset, "--json", "--quiet") == 5
        problems = json.loads(capsys.readouterr().out)["problems"]
        assert problems == ["shard 00001: offsets.npy does not say what data.mdb says: delete it, loaders do without"]
    path.unlink()
    assert run("verify", dataset, "--quiet") == 0


@pytest.mark.parametrize("length", [0, 100, 4096, 8192, -4096, -1])
def test_a_truncated_shard_is_named_without_being_mapped(dataset: Path, length: int) -> None:
    path = dataset / "shards" / "00002" / "data.mdb"
    path.write_bytes(path.read_bytes()[:length])
    problems = verify_dataset(dataset, quiet=True).problems
    assert len(problems) == 1
    assert problems[0].startswith("shard 00002: ")


def test_missing_and_swapped_shards_are_named(dataset: Path) -> None:
    shards = dataset / "shards"
    (shards / "00000").rename(shards / "aside")
    (shards / "00001").rename(shards / "00000")
    problems = verify_dataset(dataset, quiet=True).problems
    assert any(problem.startswith("shard 00001: ") for problem in problems)
    assert any(problem.startswith("shard 00000") for problem in problems)


def test_changed_tables_and_statistics_are_named(dataset: Path) -> None:
    (dataset / "rejects.parquet").write_bytes(b"no")
    (dataset / "records.parquet").unlink()
    (dataset / "mean.npy").write_bytes(b"no")
    problems = verify_dataset(dataset, quiet=True).problems
    assert [problem.split(":")[0].split("/")[-1] for problem in problems] == [
        "mean.npy", "records.parquet", "rejects.parquet",
    ]  # fmt: skip


def test_an_edited_manifest_is_not_trusted(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((dataset / MANIFEST_FILE).read_text())
    document["class_names"][0] = "another"
    write_json(dataset / MANIFEST_FILE, document)
    assert run("verify", dataset) == 5
    assert "was edited or damaged" in capsys.readouterr().err


# Parity of backends.


def parity(dataset: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[dict[str, Any]]]:
    code = run("verify", dataset, "--parity", "--json", *options)
    return code, json.loads(capsys.readouterr().out)["parity"]


@pytest.mark.dali
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_parity_shows_that_both_backends_make_the_same_pixels(
    encoding: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nvidia.dali", reason="no nvidia-dali wheel here")
    code, rows = parity(request.getfixturevalue(f"small_{encoding}_dataset"), capsys, "--batches", "1")
    assert code == 0
    forms = ["stored images", "crops and flips", "resized windows", "mean and lighting", "central mean"]
    assert [row["form"] for row in rows] == [*forms, "channel means"]
    assert all(row["passed"] and row["num_images"] == 32 and row["backend"] == "dali on cpu" for row in rows)
    assert [row["largest"] for row in rows[:2]] == [0, 0]
    assert rows[3]["mean"] < 1e-4
    assert all(row["bias"] <= 3 * row["mean"] for row in rows)


@pytest.mark.dali
def test_parity_is_a_table_for_people(
    small_raw_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvidia.dali", reason="no nvidia-dali wheel here")
    monkeypatch.chdir(small_raw_dataset.parent)  # the title is one line wherever the files are
    assert run("verify", small_raw_dataset.name, "--parity") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "gray levels" in lines[0]
    assert sum("dali on cpu" in line for line in lines) == 6


def test_parity_that_is_missed_is_exit_code_9(
    small_jpeg_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmdali.pipeline import parity as module

    found = {"num_images": 32, "largest": 3.5, "mean": 0.25, "bias": 0.0}
    monkeypatch.setattr(module, "_differences", lambda *_: found)
    code, rows = parity(small_jpeg_dataset, capsys)
    assert code == 9
    assert [row["passed"] for row in rows] == [False] * 6
    assert run("verify", small_jpeg_dataset, "--parity") == 9
    assert "stored images by dali on cpu differ by up to 3.5 gray levels, 0.25 on average" in capsys.readouterr().err


def test_parity_without_dali_names_the_line_that_installs_it(small_jpeg_dataset: Path) -> None:
    script = f"""
import sys
sys.modules["nvidia.dali"] = None
sys.argv = ["lmdali", "verify", {str(small_jpeg_dataset)!r}, "--parity"]
from lmdali.tools.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250)
    assert done.returncode == 8
    assert "pip install 'lmdali[dali-cuda13]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
