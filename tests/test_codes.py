"""`lmdali codes` on a dataset and a network made here: train, encode, search, compare."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from command_line import run
from untrained_run import make_run

from lmdali.model.codes_file import load_codes
from lmdali.pipeline.table_reader import read_integers
from lmdali.tools.codes import command
from lmdali.tools.codes_compare import compare_codes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, raw_dataset: Path) -> Path:
    """A folder with features of a network (`f`) and of pixels (`p`), encoders (`fe`, `pe`) and codes (`fc`, `pc`)."""
    root = tmp_path_factory.mktemp("codes")
    network = make_run(root / "run", raw_dataset)
    for name, source in (("f", network), ("p", "pixels")):
        assert run("features", raw_dataset, source, root / name, "--device", "cpu", "-j", 1, "--quiet") == 0
        arguments = (root / name, root / f"{name}e", "--bits", 16, "--epochs", 4, "--device", "cpu", "--quiet")
        assert run("codes", "train", *arguments) == 0
        arguments = (root / name, root / f"{name}e", root / f"{name}c", "--device", "cpu", "--quiet")
        assert run("codes", "encode", *arguments) == 0
    return root


def search(capsys: pytest.CaptureFixture[str], *arguments: Any) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run("codes", "search", *arguments, "--json") == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["queries"]
    return found


def test_a_record_finds_the_nearest_codes_and_not_itself(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = load_codes(made / "fc").words
    assert words.shape == (1, 60)
    bits = words.T >> np.arange(16, dtype=np.uint64) & 1
    for entry, record in zip(search(capsys, made / "fc", 7, 59, "-k", 5), (7, 59), strict=True):
        apart = (bits != bits[record]).sum(axis=1)
        wanted = [index for index in np.argsort(apart, kind="stable") if index != record][:5]
        assert [near["record"] for near in entry["neighbours"]] == wanted
        assert [near["distance"] for near in entry["neighbours"]] == apart[wanted].tolist()
        assert all(near["class"] in near["key"] for near in entry["neighbours"])


@pytest.mark.parametrize("codes", ["fc", "pc"])
def test_a_picture_finds_its_own_record(
    made: Path, photo_folder: Path, codes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, record = search(capsys, made / codes, photo_folder / "fig" / "005.png", 5, "--device", "cpu", "-k", 60)
    assert (len(entry["neighbours"]), len(record["neighbours"])) == (60, 59)
    own = [near for near in entry["neighbours"] if near["key"].endswith("_fig/005.png")]
    assert own[0]["distance"] == 0 == entry["neighbours"][0]["distance"]


def test_records_of_other_codes_are_queries(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside,) = search(capsys, made / "fc", 7, "-k", 3)
    (same,) = search(capsys, made / "fc", 7, "-k", 3, "--queries", made / "fc")
    assert same == inside


def test_codes_are_compared_with_the_exact_search(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is the extra 'report'")
    out = tmp_path / "plot.png"
    arguments = (made / "f", made / "pc", made / "fc", "-k", 3, "--num-queries", 20, "--out", out, "--json")
    assert run("codes", "compare", *arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "plot.json").read_text()) == document
    assert cv2.imread(str(out)).shape[1] > 900
    exact, features, pixels = document["searches"]
    assert (exact["bits"], exact["precision"]) == (None, 1.0)
    assert (features["source"], pixels["source"]) == ("features", "pixels")
    assert all(0 <= entry[field] <= 1 for entry in (features, pixels) for field in ("precision", "label_precision"))
    assert run("codes", "compare", made / "f", made / "fc") == 0
    assert "precision@10" in capsys.readouterr().out


def test_a_file_compared_with_itself_is_perfect(made: Path) -> None:
    (exact,) = compare_codes(made / "f", [], k=3, num_queries=7).searches
    assert exact.precision == 1.0


def test_each_class_has_its_own_precision(made: Path, raw_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All 60 records are queries: the mean over classes, weighted by their records, is that of all."""
    pytest.importorskip("faiss", reason="faiss is the extra 'faiss'")
    arguments = (made / "f", made / "fc", made / "pc", "-k", 4, "--num-queries", 1000, "--faiss")
    capsys.readouterr()
    assert run("codes", "compare", *arguments, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in document["searches"]] == [
        "exact search of features", "faiss search of features", "16-bit codes of features", "16-bit codes of pixels",
    ]  # fmt: skip
    exact, faiss, *_ = document["searches"]
    assert faiss["precision"] == 1.0 and faiss["class_precision"] == exact["class_precision"]
    counts = np.bincount(read_integers(raw_dataset / "records.parquet", "label"))
    for entry in document["searches"]:
        parts = [value or 0.0 for value in entry["class_precision"]]
        assert np.average(parts, weights=counts) == pytest.approx(entry["label_precision"])
    assert run("codes", "compare", *arguments, "--by-class") == 0
    told = capsys.readouterr().out
    names = [name for name, count in zip(document["class_names"], counts, strict=False) if count]
    assert all(name in told for name in names) and "of each class" in told


def test_training_says_what_became_of_the_bits(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    base = ("codes", "train", made / "f", tmp_path / "e", "--bits", 8, "--epochs", 2, "--device", "cpu")
    assert run(*base, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["constant_bits"] == 0
    assert 0 < document["bit_mean_min"] <= document["bit_mean_max"] < 1
    assert run(*base, "--overwrite", "--quiet") == 0
    assert "constant ones: 0" in capsys.readouterr().out


def test_bad_input_is_one_line(
    made: Path,
    small_raw_dataset: Path,
    raw_dataset: Path,
    jpeg_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run("features", small_raw_dataset, "pixels", tmp_path / "s", "-j", 1, "--quiet") == 0
    other = make_run(tmp_path / "run", raw_dataset, seed=5)
    bad = shutil.copytree(made / "f", tmp_path / "bad")
    shard = np.load(bad / "shards" / "00000.npy", mmap_mode="r+")
    shard[7, 3] = np.nan
    shard.flush()
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), np.full((40, 60, 3), 90, np.uint8))
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    capsys.readouterr()
    for code, part, *arguments in (
        (3, "no features.json here", "train", tmp_path, tmp_path / "e"),
        (2, "bits must be 1 to 1024", "train", made / "f", tmp_path / "e", "--bits", 2000),
        (3, "record 7: its features are not finite", "train", bad, tmp_path / "e"),
        (3, "record 7: its features are not finite", "encode", bad, made / "fe", tmp_path / "c"),
        (3, "query 7: its features are not finite", "compare", bad, made / "fc"),
        (3, "add --overwrite", "train", made / "f", made / "fe"),
        (3, "use an encoder of the same model", "encode", made / "p", made / "fe", tmp_path / "c"),
        (3, "add --overwrite", "encode", made / "f", made / "fe", made / "fc"),
        (2, "no query", "search", made / "fc"),
        (2, "there is no record 60", "search", made / "fc", 60),
        (3, "both must come from one encoder", "search", made / "fc", 1, "--queries", made / "pc"),
        (3, "made of dataset", "search", made / "fc", 1, "--dataset", jpeg_dataset),
        (3, "a checkpoint of another model", "search", made / "fc", picture, "--checkpoint", other),
        (3, "not the encoder that made", "search", made / "pc", picture, "--encoder", made / "fe"),
        (3, "no codes.json here", "compare", made / "f", tmp_path),
        (2, "has 59 others: give a smaller -k", "compare", made / "f", made / "fc", "-k", 60),
        (3, "both must be of one dataset", "compare", tmp_path / "s", made / "fc"),
        (8, "pip install 'lmdali[report]'", "compare", made / "f", made / "fc", "--out", tmp_path / "p.png"),
    ):
        assert run("codes", *arguments) == code, arguments
        captured = capsys.readouterr()
        assert part in captured.err and captured.out == "" and captured.err.count("\n") == 1


def test_the_options_of_codes_are_frozen() -> None:
    options = {
        name: {flag for parameter in one.params for flag in parameter.opts} for name, one in command.commands.items()
    }
    run_options = {"--device", "--overwrite", "--json", "--quiet"}
    assert options == {
        "train": {"features", "encoder", "--bits", "--epochs", "-b", "--batch-size", "--lr", "--seed", *run_options},
        "encode": {"features", "encoder", "out", *run_options},
        "search": {"codes", "query", "-k", "--count", "--queries", "--checkpoint", "--device", "--basis", "--dataset",
                   "--cache-dir", "--encoder", "--json"},
        "compare": {"features", "codes", "-k", "--num-queries", "--faiss", "--by-class", "--dataset", "--cache-dir",
                    "--out", "--json"},
    }  # fmt: skip
