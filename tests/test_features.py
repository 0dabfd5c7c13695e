"""`lmdali features` and `lmdali search` on a dataset and a network made here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from command_line import run
from feature_files import write_features
from PIL import Image
from untrained_run import make_run

from lmdali.model.features_file import Features
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.files import seal, write_json
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.tools.checkpoint_network import open_network
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_run import convert
from lmdali.tools.features import FeaturesConfig, compute_features
from lmdali.tools.record_pictures import read_records
from lmdali.tools.search import command as search_command
from lmdali.tools.sources import open_source

CONFIG = FeaturesConfig(precision="float32", batch_size=16, device="cpu", num_threads=1, quiet=True)


@pytest.fixture(scope="module")
def network_run(tmp_path_factory: pytest.TempPathFactory, raw_dataset: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("features") / "run", raw_dataset)


@pytest.fixture(scope="module")
def features(network_run: Path, raw_dataset: Path) -> Features:
    return compute_features(raw_dataset, str(network_run), network_run.parent / "f", CONFIG)


def test_a_signal_is_told_what_is_kept_and_how_it_goes_on(
    raw_dataset: Path,
    network_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("lmdali.tools.features.extract_features", interrupted)
    assert run("features", raw_dataset, network_run, tmp_path / "out", "--device", "cpu") == 130
    assert f"kept in {tmp_path / 'out'}: the same command with --resume goes on" in capsys.readouterr().err


def test_features_are_fc7_after_relu_halved_of_the_central_crop(
    features: Features, network_run: Path, raw_dataset: Path
) -> None:
    network = open_network(network_run, device="cpu")
    config = LoaderConfig(
        dataset=raw_dataset, batch_size=16, augment=network.augment(), order="sequential", basis=network.basis
    )
    model = network.model
    with create_loader(config, rank=0, world_size=1) as loader, torch.no_grad():
        for batch in loader:
            fc6 = 0.5 * torch.relu(model.fc6(torch.flatten(model.features(batch.images), 1)))
            wanted = 0.5 * torch.relu(model.fc7(fc6))
            found = torch.from_numpy(features.rows(batch.indices.numpy()))
            assert torch.allclose(found, wanted, atol=1e-5)
    assert (features.plan.num_records, features.plan.dims, features.plan.precision) == (60, 128, "float32")
    assert features.plan.source_digest == network.digest
    assert any(block.max() > 0 for block in features.blocks())


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    features: Features, network_run: Path, raw_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmdali.model.features_file._SHARD_RECORDS", 16)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    base = ["-b", 16, "--device", "cpu", "-j", 1, "--quiet"]
    assert run("features", raw_dataset, network_run, whole, *base) == 0
    shutil.copytree(whole, cut)
    (cut / ".staging").mkdir()
    document = json.loads((cut / "features.json").read_text())
    (cut / "features.json").unlink()
    assert run("features", raw_dataset, network_run, cut, *base) == 3
    assert run("features", raw_dataset, network_run, tmp_path / "other", *base) == 0
    write_json(cut / ".staging" / "plan.json", seal(document["plan"]))
    for name in ("00001.npy", "00003.npy"):
        (cut / "shards" / name).unlink()
    assert run("features", raw_dataset, network_run, cut, *base, "--resume") == 0
    for path in whole.rglob("*.*"):
        assert (cut / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert run("features", raw_dataset, network_run, cut, "-b", 8, "--device", "cpu", "-j", 1, "--resume") == 3
    assert run("features", raw_dataset, network_run, cut, *base, "--overwrite") == 0


def test_pixels_are_averages_of_blocks(raw_dataset: Path, tmp_path: Path) -> None:
    features = compute_features(raw_dataset, "pixels", tmp_path / "f", CONFIG)
    pixels = read_records(raw_dataset, [7]).pixels[0].astype(np.float64)
    wanted = pixels.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3)).transpose(2, 0, 1).reshape(-1)
    assert np.allclose(features.rows(np.array([7]))[0], wanted, atol=1e-3)
    assert features.plan.source_digest == "pixels-32"


def search(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    assert run("search", *arguments, "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_record_finds_its_nearest_and_not_itself(features: Features, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.concatenate(list(features.blocks())).astype(np.float64)
    document = search(capsys, features.directory, 5, 59, "-k", 3)
    for entry, record in zip(document["queries"], (5, 59), strict=True):
        distances = np.sqrt(((rows - rows[record]) ** 2).sum(axis=1))
        wanted = [index for index in np.argsort(distances, kind="stable") if index != record][:3]
        assert [near["record"] for near in entry["neighbours"]] == wanted
        assert [near["distance"] for near in entry["neighbours"]] == distances[wanted].tolist()
        assert all(near["key"].startswith(f"{near['record']:08d}_{near['class']}") for near in entry["neighbours"])


def test_a_picture_file_finds_its_own_record(
    features: Features, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = search(capsys, features.directory, photo_folder / "fig" / "005.png", "--device", "cpu", "-k", 2)
    first, second = document["queries"][0]["neighbours"]
    assert first["key"].endswith("_fig/005.png")
    assert first["distance"] < 1e-3 < second["distance"]


@pytest.mark.parametrize("k", [58, 59, 60, 70])
@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_records_and_pictures_together_each_get_all_neighbours_that_there_are(
    k: int, index: str, features: Features, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if index == "faiss":
        pytest.importorskip("faiss", reason="faiss is the extra 'faiss': pip install '.[dev]'")
    picture = photo_folder / "fig" / "005.png"
    asked = (5, picture, "-k", k, "--index", index, "--device", "cpu")
    record, other = (
        [near["record"] for near in entry["neighbours"]]
        for entry in search(capsys, features.directory, *asked)["queries"]
    )
    assert (len(record), len(other)) == (min(k, 59), min(k, 60))
    assert len(set(record)) == len(record) and 5 not in record and min(record) >= 0
    assert len(set(other)) == len(other) and min(other) >= 0


def test_a_picture_file_is_turned_and_resized_as_the_dataset_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "source" / "photos"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 9, 3), np.uint8)
        picture = Image.fromarray(cv2.resize(pixels, (150, 100), interpolation=cv2.INTER_CUBIC))
        picture.save(folder / f"{number}.jpg", quality=95, exif=exif)
    config = ConvertConfig(size=64, encoding="raw", orientation="apply", filter="bicubic")
    convert(open_source(tmp_path / "source"), tmp_path / "set", config, workers=1, quiet=True)
    compute_features(tmp_path / "set", "pixels", tmp_path / "f", FeaturesConfig(precision="float32", quiet=True))
    document = search(capsys, tmp_path / "f", folder / "1.jpg", "-k", 1, "--device", "cpu")
    (nearest,) = document["queries"][0]["neighbours"]
    assert nearest["key"].endswith("photos/1.jpg") and nearest["distance"] == 0.0


def test_records_of_another_file_are_queries(
    features: Features,
    network_run: Path,
    jpeg_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compute_features(jpeg_dataset, str(network_run), tmp_path / "q", CONFIG)
    document = search(capsys, features.directory, 8, "--queries", tmp_path / "q", "-k", 1)
    assert document["queries"][0]["neighbours"][0]["record"] == 8  # the same picture, there as JPEG


def test_a_moved_dataset_costs_the_names_only(
    features: Features, raw_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(raw_dataset, moved)
    plan = {**features.plan.to_json(), "dataset": str(tmp_path / "nowhere")}
    write_features(tmp_path / "g", np.concatenate(list(features.blocks())), **plan)
    near = search(capsys, tmp_path / "g", 5, "-k", 1)["queries"][0]["neighbours"][0]
    named = search(capsys, tmp_path / "g", 5, "-k", 1, "--dataset", moved)["queries"][0]["neighbours"][0]
    assert (near["key"], near["class"]) == (None, None)
    assert named["record"] == near["record"] and named["class"] in ("apple", "fig", "quince")


def test_people_get_tables(features: Features, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", features.directory, 5) == 0
    assert "distance" in capsys.readouterr().out


def test_bad_input_is_one_line(
    features: Features,
    network_run: Path,
    raw_dataset: Path,
    jpeg_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = make_run(tmp_path / "other", raw_dataset, seed=1)
    compute_features(raw_dataset, str(other), tmp_path / "foreign", CONFIG)
    (tmp_path / "text.jpg").write_text("no picture")
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), np.full((40, 60, 3), 90, np.uint8))
    monkeypatch.setitem(sys.modules, "faiss", None)
    found = features.directory
    for code, part, *arguments in (
        (2, "no query", found),
        (2, "there is no record 60, the last one is 59", found, 60),
        (3, "cannot be read", found, tmp_path / "none.jpg"),
        (3, "not_an_image", found, tmp_path / "text.jpg"),
        (3, "both must come from one checkpoint", found, 1, "--queries", tmp_path / "foreign"),
        (3, "a checkpoint of another model", found, picture, "--checkpoint", other, "--device", "cpu"),
        (3, "made of dataset", found, 1, "--dataset", jpeg_dataset),
        (3, "no features.json here", tmp_path, 1),
        (8, "pip install 'lmdali[faiss]'", found, 1, "--index", "faiss"),
    ):
        assert run("search", *arguments) == code
        captured = capsys.readouterr()
        assert part in captured.err and captured.out == "" and captured.err.count("\n") == 1
    with pytest.raises(InputError, match="finished feature file"):
        compute_features(raw_dataset, str(network_run), found, CONFIG)


def test_the_options_of_search_are_frozen() -> None:
    options = {name for parameter in search_command.params for name in parameter.opts}
    assert options == {
        "features", "query", "-k", "--count", "--index", "--queries", "--checkpoint", "--device", "--basis",
        "--dataset", "--cache-dir", "--json",
    }  # fmt: skip
