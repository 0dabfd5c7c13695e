"""Commands that are given the address of a dataset: they do what they do with a directory, or say what to do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from remote_server import RemoteServer, serving

from lmdali.model.presets import PRESETS
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.shard_cache import CACHE_DIR_VARIABLE
from lmdali.tools.cli import cli
from lmdali.tools.dataset_argument import DatasetArgument
from lmdali.tools.train_job import TrainJob, train_dataset


@pytest.fixture
def server(small_jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteServer]:
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "cache"))
    with serving(small_jpeg_dataset) as running:
        yield running


def lmdali(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def document(*arguments: object) -> dict[str, Any]:
    outcome = lmdali(*arguments, "--json")
    assert outcome.exit_code == 0, outcome.output
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


@pytest.mark.parametrize(
    "command",
    [
        ("info",),
        ("pca",),
        ("order", "--augment", "pixels", "--crop-size", 32, "--batch-size", 8),
        ("order", "--augment", "pixels", "--crop-size", 32, "--batch-size", 8, "--digest"),
        ("audit", "--quiet"),
    ],
    ids=lambda command: command[0],
)
def test_an_address_is_as_good_as_a_directory(
    command: tuple[object, ...], server: RemoteServer, small_jpeg_dataset: Path
) -> None:
    def plain(dataset: object) -> str:
        return json.dumps(document(command[0], dataset, *command[1:])).replace(str(dataset), "DATASET")

    assert plain(server.address) == plain(small_jpeg_dataset)
    assert not server.shards_asked(), "small files say it all"


@pytest.mark.parametrize(
    "command",
    [
        ("info",),
        ("pca",),
        ("order", "--crop-size", 32, "--batch-size", 8),
        ("audit", "--quiet"),
        ("preview", "--crop-size", 32, "--out"),
    ],
    ids=lambda command: command[0],
)
def test_what_is_fetched_goes_where_it_is_told(
    command: tuple[object, ...], server: RemoteServer, tmp_path: Path
) -> None:
    out = [tmp_path / "sheet.png"] if command[-1] == "--out" else []
    document(command[0], server.address, *command[1:], *out, "--cache-dir", tmp_path / "told")
    assert [*(tmp_path / "told").rglob("manifest.json")]
    assert not (tmp_path / "cache").exists()


def test_all_commands_that_take_an_address_are_told_the_cache() -> None:
    commands = dict(every_command(cli, ()))
    taking = {
        name
        for name, command in commands.items()
        for parameter in command.params
        if isinstance(parameter.type, DatasetArgument) and parameter.type._local_because is None
    }
    assert {"train", "search", "codes search", "figure predictions", "profile au", "order"} <= taking
    for name in sorted(taking):
        assert "cache_dir" in {parameter.name for parameter in commands[name].params}, name


def every_command(found: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(found, click.Group):
        yield " ".join(words), found
        return
    context = click.Context(found)
    for word in found.list_commands(context):
        command = found.get_command(context, word)
        assert command is not None
        yield from every_command(command, (*words, word))


def test_features_name_the_address_and_searches_find_it(
    server: RemoteServer, small_jpeg_dataset: Path, tmp_path: Path
) -> None:
    options = ("-j", 1, "--quiet")
    remote = document(
        "features", server.address, "pixels", tmp_path / "remote", *options, "--cache-dir", tmp_path / "c"
    )
    local = document("features", small_jpeg_dataset, "pixels", tmp_path / "local", *options)
    assert remote["digest"] == local["digest"]
    assert remote["dataset"] == server.address
    found = document("search", tmp_path / "remote", 3, "-k", 2, "--cache-dir", tmp_path / "c")
    assert found["queries"][0]["neighbours"][0]["key"] is not None
    out = ("--out", tmp_path / "near.png", "--cache-dir", tmp_path / "c", "--cache-bytes", 10**9)
    document("figure", "neighbours", tmp_path / "remote", 3, "-k", 2, "--quiet", *out)
    assert not (tmp_path / "cache").exists(), "all of it is where it was told"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("verify",), "verify reads every byte of its files"),
        (("repair",), "repair writes into it"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_needs_a_directory_says_how_to_get_one(command: tuple[str, ...], why: str) -> None:
    outcome = lmdali(*command, "https://me:word@host/train")
    assert outcome.exit_code == 2
    assert f"https://host/train: {why}: bring it here with `lmdali stage https://host/train DIR`" in " ".join(
        outcome.output.split()
    )
    assert "word" not in outcome.output


def test_statistics_that_are_not_there_cannot_be_computed_from_an_address(server: RemoteServer) -> None:
    outcome = lmdali("pca", server.address, "--recompute")
    assert isinstance(outcome.exception, InputError)
    assert f"lmdali stage {server.address} DIR" in str(outcome.exception)


@pytest.fixture(scope="module")
def photo_sets(
    tmp_path_factory: pytest.TempPathFactory, make_photo_folder: Callable[..., Path], make_dataset: Callable[..., Path]
) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for name, per_class, seed in (("train", 8, 3), ("val", 3, 4)):
        folder = make_photo_folder(root / f"{name}_source", per_class=per_class, sides=(60, 120), seed=seed)
        make_dataset(folder, root / name, shard_sources=4)
    return root


def test_a_training_from_addresses_resumes_with_a_cold_cache_to_the_same_weights(
    photo_sets: Path, tmp_path: Path
) -> None:
    """Its checkpoints hold the manifest's digest: another dataset at the same address is refused."""
    preset = PRESETS["small"].changed(
        model={"width": 1 / 32},
        train={"epochs": 2, "schedule": "constant", "checkpoint_steps": 1},
        augment={"crop_size": 227},
        batch_size=8,
    )
    served = tmp_path / "served"
    shutil.copytree(photo_sets, served)
    with serving(served) as server:
        remote = TrainJob(
            train=f"{server.address}/train",
            val=f"{server.address}/val",
            run_dir=tmp_path / "remote",
            preset=preset,
            order="block",
            block_shards=1,
            num_threads=1,
            cache_dir=tmp_path / "cache",
        )
        local = dataclasses.replace(
            remote, train=photo_sets / "train", val=photo_sets / "val", run_dir=tmp_path / "local"
        )
        whole = train_dataset(local)
        assert train_dataset(remote).result.weights_sha256 == whole.result.weights_sha256
        for path in sorted((tmp_path / "remote" / "checkpoints").glob("step-*.pt"))[1:]:
            path.unlink()  # as if it had been killed in its second epoch
        resumed = train_dataset(dataclasses.replace(remote, resume=True, cache_dir=tmp_path / "cold"))
        assert resumed.result.weights_sha256 == whole.result.weights_sha256
        assert json.loads((tmp_path / "remote" / "run.json").read_text())["train"] == f"{server.address}/train"
        shutil.rmtree(served / "train")
        shutil.copytree(photo_sets / "val", served / "train")
        with pytest.raises(InputError, match="another"):
            train_dataset(dataclasses.replace(remote, resume=True))
