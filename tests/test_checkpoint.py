"""Checkpoints: whole or refused, newest whole one found, nothing executed."""

from __future__ import annotations

import dataclasses
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.checkpoint import (
    Checkpoint,
    CheckpointDirectory,
    CheckpointVersionError,
    content_digest,
    load_checkpoint,
    require_same_run,
    save_checkpoint,
)
from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError, LmdaliError


def example(step: int = 7, **fields: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "model": {"conv1.weight": torch.full((2, 3), float(step)), "conv1.bias": torch.tensor([1.0, -0.0])},
        "velocities": {"conv1.weight": torch.ones(2, 3)},
        "schedule": {"cuts": 1},
        "progress": {"step": step, "best_top1_error": float("inf")},
        "train_loader": {"epoch": 3, "position": 16},
        "rng": ({"cpu": torch.get_rng_state()},),
        "model_config": {"width": 0.25, "num_classes": 10},
        "train_config": {"lr": 0.1},
        "loader_config": {"normalize": "mean_image"},
        "class_names": ("a", "b"),
        "manifest_digest": "abc",
        "lmdali_version": "0.1.0",
    }
    return Checkpoint(**(values | fields))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = example()
    save_checkpoint(tmp_path / "a.pt", saved)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert content_digest(dataclasses.asdict(loaded)) == content_digest(dataclasses.asdict(saved))
    assert loaded.class_names == ("a", "b")
    assert torch.equal(loaded.model["conv1.weight"], saved.model["conv1.weight"])
    assert loaded.progress["best_top1_error"] == float("inf")


def test_saving_leaves_one_file_and_replaces_the_old_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", example(1))
    save_checkpoint(tmp_path / "a.pt", example(2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert load_checkpoint(tmp_path / "a.pt").progress["step"] == 2


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, example())
    payload = path.read_bytes()
    path.write_bytes(payload[: int(len(payload) * kept)])
    with pytest.raises(LmdaliError, match=r"a\.pt"):
        load_checkpoint(path)


def test_no_flipped_bit_of_the_content_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    whole = example()
    save_checkpoint(path, whole)
    payload = bytearray(path.read_bytes())
    digest = content_digest(dataclasses.asdict(whole))
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        place, bit = rng.randrange(len(payload)), 1 << rng.randrange(8)
        payload[place] ^= bit
        path.write_bytes(payload)
        try:
            # Padding between the archive's members may change without consequence.
            assert content_digest(dataclasses.asdict(load_checkpoint(path))) == digest
        except LmdaliError:
            refused += 1
        payload[place] ^= bit
    assert refused > 100


def test_a_weight_changed_without_the_digest_is_an_integrity_error(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, example())
    document = torch.load(path, weights_only=True)
    document["content"]["model"]["conv1.weight"][0, 0] += 1
    torch.save(document, path)
    with pytest.raises(IntegrityError, match="digest"):
        load_checkpoint(path)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pt"
    torch.save({"format": "lmdali-checkpoint", "version": 1, "content": Malicious()}, path)
    with pytest.raises(InputError, match="refused") as caught:
        load_checkpoint(path)
    assert "weights_only" not in str(caught.value), "torch advises to read it all the same"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(LmdaliError):
        load_checkpoint(path)
    path.write_text('{"kind": "epoch"}')
    with pytest.raises(
        InputError,
        match=r"a\.pt: refused: not a checkpoint, .*; nothing of it was run: give a checkpoint of `lmdali train`$",
    ):
        load_checkpoint(path)  # nor is torch's advice repeated, to read it without protection
    assert capsys.readouterr().out == ""


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint: give a checkpoint file, or a run directory"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="not a checkpoint of lmdali"):
        load_checkpoint(tmp_path / "weights.pt")
    torch.save({"format": "lmdali-checkpoint", "version": 99}, tmp_path / "new.pt")
    with pytest.raises(InputError, match="format 99"):
        load_checkpoint(tmp_path / "new.pt")
    torch.save({"format": "lmdali-checkpoint", "version": 1, "content": {}}, tmp_path / "part.pt")
    with pytest.raises(IntegrityError, match="missing"):
        load_checkpoint(tmp_path / "part.pt")


def test_the_newest_few_are_kept_and_the_best(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path / "checkpoints", keep=2)
    for step in (10, 20, 30, 999_999_999, 1_000_000_000):
        directory.save(example(step), step=step, best=step == 20)
    assert [path.name for path in directory.paths()] == ["step-999999999.pt", "step-1000000000.pt"]
    assert load_checkpoint(tmp_path / "checkpoints" / "best.pt").progress["step"] == 20
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_best_is_copied_where_links_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    CheckpointDirectory(tmp_path).save(example(5), step=5, best=True)
    assert load_checkpoint(tmp_path / "best.pt").progress["step"] == 5


def test_what_a_killed_save_left_undone_is_done(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path, keep=2)
    for step in (1, 2):
        directory.save(example(step), step=step, best=step == 1)
    save_checkpoint(tmp_path / "step-000000003.pt", example(3))  # killed before best.pt, and before 1 was removed
    (tmp_path / ".step-000000004.pt.0a1b2c3d.tmp").write_bytes(b"cut off")
    directory.recover(tmp_path / "step-000000003.pt")
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "step-000000002.pt", "step-000000003.pt"}
    assert load_checkpoint(tmp_path / "best.pt").progress["step"] == 3
    directory.recover(None)
    assert load_checkpoint(tmp_path / "best.pt").progress["step"] == 3
    CheckpointDirectory(tmp_path / "none").recover(None)


def test_the_newest_whole_checkpoint_is_found_behind_damaged_ones(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path, keep=5)
    for step in (1, 2, 3):
        directory.save(example(step), step=step)
    directory.paths()[-1].write_bytes(b"")
    damaged = directory.paths()[-2]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    warnings: list[str] = []
    found = directory.latest(warnings.append)
    assert found is not None
    assert found[0].name == "step-000000001.pt"
    assert found[1].progress["step"] == 1
    assert len(warnings) == 2
    assert all("passed over" in line for line in warnings)


def test_a_newer_versions_checkpoint_is_not_passed_over(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    newer = directory.save(example(1), step=1).with_name("step-000000002.pt")
    torch.save({"format": "lmdali-checkpoint", "version": 99}, newer)
    with pytest.raises(CheckpointVersionError, match="format 99"):
        directory.latest(lambda said: None)
    assert newer.exists()


def test_the_best_one_is_gone_on_from_where_no_other_is_whole(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path, keep=2)
    for step in (1, 2, 3):
        directory.save(example(step), step=step, best=step == 1)
    for path in directory.paths():
        path.write_bytes(b"damaged")
    warnings: list[str] = []
    found = directory.latest(warnings.append)
    assert found is not None
    assert (found[0].name, found[1].progress["step"], len(warnings)) == ("best.pt", 1, 2)
    # The damaged ones are not the newest two any more, or this one would be removed for being too old.
    directory.save(example(2), step=2)
    assert [path.name for path in directory.paths()] == ["step-000000002.pt"]
    directory.paths()[0].unlink()
    (tmp_path / "best.pt").write_bytes(b"damaged")
    assert directory.latest(warnings.append) is None
    assert [path.name for path in directory.candidates()] == ["best.pt"]


def test_an_empty_or_missing_directory_has_no_latest(tmp_path: Path) -> None:
    assert CheckpointDirectory(tmp_path / "none").latest(pytest.fail) is None
    (tmp_path / ".step-000000001.pt.tmp").touch()
    assert CheckpointDirectory(tmp_path).latest(pytest.fail) is None


def test_at_least_one_is_kept() -> None:
    with pytest.raises(ConfigError):
        CheckpointDirectory(Path("x"), keep=0)


def test_another_run_is_refused_with_the_differing_fields() -> None:
    config = {"width": 0.25, "num_classes": 10}
    require_same_run(example(), model_config=config, class_names=("a", "b"), manifest_digest="abc")
    with pytest.raises(InputError) as caught:
        require_same_run(example(), model_config=config | {"width": 1.0}, class_names=("a", "c"), manifest_digest="xyz")
    text = str(caught.value)
    assert "width is 0.25 in the checkpoint and 1.0 here" in text
    assert "label 1 is 'b' in the checkpoint and 'c' here" in text
    assert "training set abc in the checkpoint and xyz here" in text
    with pytest.raises(InputError, match="2 in the checkpoint and 1 here"):
        require_same_run(example(), model_config=config, class_names=("a",), manifest_digest="abc")


def test_a_network_of_an_earlier_version_is_the_one_with_todays_defaults() -> None:
    arguments: dict[str, Any] = {"class_names": ("a", "b"), "manifest_digest": "abc"}
    now = AlexNetConfig(width=0.25, num_classes=10)
    require_same_run(example(), model_config=now.to_json(), **arguments)
    with pytest.raises(InputError, match="sixth_layer is False in the checkpoint and True here"):
        require_same_run(example(), model_config=dataclasses.replace(now, sixth_layer=True).to_json(), **arguments)
    with pytest.raises(ConfigError, match="seventh_layer"):
        require_same_run(example(model_config={"seventh_layer": True}), model_config=now.to_json(), **arguments)


def test_content_digest_tells_values_apart() -> None:
    values: list[Any] = [
        None, True, 1, 1.0, "1", [1], {"1": 1}, {1: 1}, [], {}, "", 0.0, -0.0, False,
        torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int32), torch.tensor([0.0, -0.0]), torch.zeros(0),
    ]  # fmt: skip
    assert len({content_digest(value) for value in values}) == len(values)
    assert content_digest(torch.ones(3, 2).T) == content_digest(torch.ones(2, 3))
    with pytest.raises(TypeError, match="set"):
        content_digest({1, 2})
