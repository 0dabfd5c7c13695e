"""`lmdali figure` on datasets and networks made here."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch
from command_line import run
from untrained_run import make_run

from lmdali.model.checkpoint import load_checkpoint
from lmdali.model.evaluator import evaluate
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.tools.checkpoint_network import open_network
from lmdali.tools.figure_predictions import figure_predictions


@pytest.fixture(scope="module")
def network_run(tmp_path_factory: pytest.TempPathFactory, jpeg_dataset: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("figures") / "run", jpeg_dataset)


def test_predictions_are_those_of_the_evaluation(network_run: Path, jpeg_dataset: Path, tmp_path: Path) -> None:
    indices = (3, 0, 59, 3)
    document = figure_predictions(jpeg_dataset, network_run, tmp_path / "p.png", indices=indices, device="cpu")
    network = open_network(network_run, device="cpu")
    config = LoaderConfig(
        dataset=jpeg_dataset, batch_size=20, augment=network.augment(), order="sequential", basis=network.basis
    )
    with create_loader(config, rank=0, world_size=1) as loader:
        wanted = evaluate(network.model, loader, keep_probabilities=True).probabilities
        labels = {
            int(index): int(label) for batch in loader for index, label in zip(batch.indices, batch[1], strict=True)
        }
    assert wanted is not None
    assert [image["record"] for image in document["images"]] == list(indices)
    for image in document["images"]:
        values = wanted[image["record"]]
        assert [top["label"] for top in image["top"]] == values.argsort(descending=True, stable=True).tolist()
        found = torch.tensor([top["probability"] for top in image["top"]])
        assert torch.allclose(found, values[[top["label"] for top in image["top"]]], atol=1e-6)
        assert image["label"] == labels[image["record"]]
        assert image["top"][image["correct_place"] - 1]["label"] == image["label"]
        assert image["key"].startswith(f"{image['record']:08d}_") and f"{image['class']}/" in image["key"]
    assert json.loads((tmp_path / "p.json").read_text()) == document
    assert cv2.imread(str(tmp_path / "p.png")) is not None


def test_names_come_from_a_synset_file(network_run: Path, jpeg_dataset: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("apple Malus domestica, apple\nfig Ficus\npear Pyrus\nquince Cydonia\n")
    out = tmp_path / "p.png"
    assert run("figure", "predictions", jpeg_dataset, network_run, "--out", out, "--count", 2, "--names", names) == 0
    (first, second) = json.loads((tmp_path / "p.json").read_text())["images"]
    assert {top["name"] for top in first["top"]} == {"Malus domestica", "Ficus", "Pyrus", "Cydonia"}
    assert (first["record"], second["record"]) == (15, 45)


def test_bad_input_is_one_line(
    network_run: Path,
    jpeg_dataset: Path,
    small_jpeg_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("n01440764 tench\n")
    out = tmp_path / "p.png"
    for code, part, *arguments in (
        (3, "its 2 classes are not the 4", small_jpeg_dataset, network_run, "--out", out),
        (2, "there is no record 60", jpeg_dataset, network_run, "--out", out, "--indices", "1,60"),
        (2, "are no record numbers", jpeg_dataset, network_run, "--out", out, "--indices", "1,x"),
        (2, "a picture's name ends in", jpeg_dataset, network_run, "--out", tmp_path / "p.gif"),
        (3, "names.txt: 1 lines, none for 4", jpeg_dataset, network_run, "--out", out, "--names", names),
        (3, "no such checkpoint", jpeg_dataset, tmp_path, "--out", out),
        (3, "no manifest.json", tmp_path, network_run, "--out", out),
    ):
        assert run("figure", "predictions", *arguments) == code
        captured = capsys.readouterr()
        assert part in captured.err and captured.out == ""
    assert not out.exists() and not out.with_suffix(".json").exists()


@pytest.mark.parametrize("towers", [1, 2])
def test_kernels_are_drawn_by_tower_with_their_numbers(jpeg_dataset: Path, tmp_path: Path, towers: int) -> None:
    run_dir = make_run(tmp_path / "run", jpeg_dataset, width=1 / 8, towers=towers)
    assert run("figure", "kernels", run_dir, "--out", tmp_path / "made" / "k.png") == 0
    document = json.loads((tmp_path / "made" / "k.json").read_text())
    weights = load_checkpoint(run_dir / "checkpoints" / "best.pt").model["conv1.weight"].double()
    chroma = (weights - weights.mean(dim=1, keepdim=True)).square().chunk(towers)
    for tower, part, colour in zip(document["towers"], weights.chunk(towers), chroma, strict=True):
        assert tower["num_kernels"] == 12 // towers == len(tower["kernel_chroma_energies"])
        assert tower["chroma_energy"] == pytest.approx(float(colour.sum() / part.square().sum()))
    assert len(document["towers"]) == towers
    assert cv2.imread(str(tmp_path / "made" / "k.png")) is not None


def test_the_half_network_is_one_tower_in_its_picture(jpeg_dataset: Path, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", jpeg_dataset, half_net=True)
    assert run("figure", "kernels", run_dir, "--out", tmp_path / "k.png") == 0
    (tower,) = json.loads((tmp_path / "k.json").read_text())["towers"]
    assert tower["num_kernels"] == 2


def test_a_damaged_checkpoint_has_no_kernels(
    network_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (network_run / "checkpoints" / "best.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    assert run("figure", "kernels", tmp_path / "cut.pt", "--out", tmp_path / "k.png") == 5
    assert "not a readable checkpoint" in capsys.readouterr().err
