"""`lmdali order` says what the loader does, without reading a shard."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run

from lmdali.pipeline.augment import AugmentConfig, draw_params
from lmdali.pipeline.block_order import ORDERS
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.errors import ConfigError, IntegrityError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.order_digest import combine, digest_text
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.tools.order_ledger import OrderConfig, OrderLedger

NUM_RECORDS = 37
CROP = AugmentConfig(crop="random", crop_size=32, normalize="none", lighting="none")
RUN = ("--augment", "pixels", "--crop-size", 32, "--batch-size", 8, "--seed", 6)


@pytest.fixture
def order(small_raw_dataset: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What `lmdali order --json` says."""

    def document(*args: object) -> dict[str, Any]:
        assert run("order", small_raw_dataset, *RUN, *args, "--json") == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        parsed: dict[str, Any] = json.loads(captured.out)
        return parsed

    return document


def make_loader(dataset: Path, rank: int = 0, world_size: int = 1, **fields: Any) -> DatasetLoader:
    config = LoaderConfig(
        dataset=dataset, seed=6, augment=CROP, backend="cpu", dtype="uint8", num_threads=1, **{"batch_size": 8} | fields
    )
    return create_loader(config, rank=rank, world_size=world_size)


@pytest.mark.parametrize(("name", "nodes"), [*((name, 1) for name in ORDERS), ("block", 2), ("block", 3)])
def test_the_ledger_is_what_the_loaders_of_all_ranks_deliver(
    name: str, nodes: int, small_raw_dataset: Path, order: Any
) -> None:
    asked = ("--epoch", 3, "--order", name, "--block-shards", 2, "--block-nodes", nodes, "--world-size", 2)
    rows, digest = order(*asked, "--limit", 1000)["rows"], order(*asked, "--digest")["digest"]["digest"]
    digests = []
    reader = ShardReader(small_raw_dataset, load_manifest(small_raw_dataset))
    for rank in (0, 1):
        with make_loader(small_raw_dataset, rank, 2, order=name, block_shards=2, block_nodes=nodes) as loader:
            loader.set_epoch(3)
            batches = list(loader)
            digests.append(loader.epoch_digest or 0)
        for step, batch in enumerate(batches, 1):
            mine = [row for row in rows if (row["rank"], row["step"]) == (rank, step)]
            assert [row["sample"] for row in mine] == batch.indices.tolist()
            assert [row["label"] for row in mine] == batch.labels.tolist()
            for row, image in zip(mine, batch.images.numpy(), strict=True):
                (view,) = row["views"]
                stored = reader.read(row["sample"], lambda record: bytes(record.data))
                pixels = np.frombuffer(stored[-48 * 48 * 3 :], np.uint8).reshape(48, 48, 3)
                patch = pixels[view["crop_y"] :, view["crop_x"] :][:32, :32]
                assert (image.transpose(1, 2, 0) == (patch[:, ::-1] if view["flip"] else patch)).all()
        assert len(batches) == max(row["step"] for row in rows)
    assert [row["position"] for row in rows] == list(range(NUM_RECORDS if name == "sequential" else 32))
    assert digest_text(combine(digests)) == digest


def test_rows_name_where_a_sample_is_stored_and_came_from(
    order: Any, small_raw_dataset: Path, small_source: Path
) -> None:
    manifest = load_manifest(small_raw_dataset)
    rows = order("--keep-last", "--limit", 1000)["rows"]
    assert len({row["source"] for row in rows}) == NUM_RECORDS
    for row in rows:
        assert (small_source / row["source"]).is_file()
        assert row["source"].split("/")[0] == row["class_name"] == manifest.class_names[row["label"]]
        (shard,) = (shard for shard in manifest.shards if shard.name == row["shard"])
        assert row["key"] == f"{shard.position(row['row']):08d}_{row['source']}"
        before = [info.num_records for info in manifest.shards[: manifest.shards.index(shard)]]
        assert row["sample"] == sum(before) + row["row"]


@pytest.mark.parametrize("name", ORDERS)
def test_the_digest_is_the_loaders(name: str, order: Any, small_raw_dataset: Path) -> None:
    counted = order("--epoch", 2, "--order", name, "--keep-last", "--digest")["digest"]
    assert counted["num_samples"] == NUM_RECORDS
    with make_loader(small_raw_dataset, order=name, drop_last=False) as loader:
        loader.set_epoch(2)
        assert sum(len(batch.labels) for batch in loader) == NUM_RECORDS
        assert digest_text(loader.epoch_digest or 0) == counted["digest"]


def test_ranks_and_the_part_before_a_resume_add_up(order: Any) -> None:
    def counted(*args: object) -> tuple[int, int]:
        found = order("--keep-last", "--digest", *args)["digest"]
        return found["num_samples"], int(found["digest"], 16)

    whole = counted()
    parts = [counted("--world-size", 3, "--rank", rank, "--start", 5) for rank in range(3)]
    assert sum(count for count, _ in parts) == counted("--start", 5)[0] == NUM_RECORDS - 5
    assert combine(digest for _, digest in parts) == counted("--start", 5)[1] != whole[1]
    assert order("--digest")["digest"]["num_samples"] == 32, "a training run leaves its last batch out"


def test_lighting_counts_as_the_run_had_it(small_raw_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def digest(*args: object) -> str:
        assert run("order", small_raw_dataset, "-b", 8, "--crop-size", 32, "--digest", "--json", *args) == 0
        return str(json.loads(capsys.readouterr().out)["digest"]["digest"])

    assert digest("--augment", "paper") != digest("--augment", "original2012"), "neighbours share a crop there"
    assert digest("--lighting-std", 0) == digest("--augment", "pixels")
    assert len({digest(), digest("--lighting-std", 0), digest("--lighting-std", 0.2)}) == 3


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_end_of_lighting_and_shared_crops_count_too(
    epoch: int, jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    augment = AugmentConfig(crop_size=32, crop_chunk=3, flip=False, lighting="roots", lighting_epochs=2)
    asked = ["--crop-size", 32, "--crop-chunk", 3, "--no-flip", "--lighting-epochs", 2, "-b", 4, "--seed", 5]
    assert run("order", jpeg_dataset, *asked, "--epoch", epoch, "--digest", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    config = LoaderConfig(dataset=jpeg_dataset, seed=5, augment=augment, batch_size=4, backend="cpu", num_threads=1)
    with create_loader(config) as loader:
        loader.set_epoch(epoch)
        assert sum(len(batch.labels) for batch in loader) == said["digest"]["num_samples"]
        assert digest_text(loader.epoch_digest or 0) == said["digest"]["digest"]
    assert said["augment"]["lighting_std"] == (0.1 if epoch < 2 else 0)


def test_one_step_is_shown_whole(order: Any) -> None:
    everything = order("--epoch", 1, "--world-size", 2, "--limit", 1000)["rows"]
    for step in (1, 2):
        assert order("--epoch", 1, "--world-size", 2, "--step", step)["rows"] == [
            row for row in everything if row["step"] == step
        ]
    rank = order("--epoch", 1, "--world-size", 2, "--step", 2, "--rank", 1)["rows"]
    assert rank == [row for row in everything if (row["step"], row["rank"]) == (2, 1)]
    assert len(rank) == 8
    assert order("--epoch", 1, "--world-size", 2, "--step", 2, "--limit", 3)["rows"] == everything[16:19]


def test_without_an_epoch_steps_are_counted_over_the_run_as_the_journal_does(order: Any) -> None:
    assert order("--step", 1)["rows"] == order("--epoch", 0, "--step", 1)["rows"]
    fifth = order("--step", 4 + 4 + 3)  # four steps an epoch
    assert fifth["epoch"] == 2
    assert fifth["rows"] == order("--epoch", 2, "--step", 3)["rows"]


def test_a_resumed_run_counts_its_steps_from_where_it_went_on(order: Any) -> None:
    rows = order("--epoch", 1, "--start", 11, "--step", 2)["rows"]
    assert [row["position"] for row in rows] == list(range(19, 27))
    everything = order("--epoch", 1, "--limit", 1000)["rows"]
    assert [row["sample"] for row in rows] == [row["sample"] for row in everything[19:27]]
    assert order("--start", 11)["num_steps"] == 3
    assert order("--start", NUM_RECORDS)["rows"] == []


def test_the_first_samples_are_listed_and_a_rank_may_have_none(order: Any) -> None:
    assert [row["position"] for row in order()["rows"]] == list(range(20))
    assert len(order("--limit", 3)["rows"]) == 3
    assert [row["position"] for row in order("--world-size", 2, "--rank", 1, "--limit", 9)["rows"]] == [
        *range(8, 16),
        24,
    ]
    last = order("--keep-last", "--start", 35, "--world-size", 3, "--rank", 2)
    assert (last["num_steps"], last["rows"]) == (1, [])


def test_draws_are_those_of_the_augmentation(small_raw_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("order", small_raw_dataset, "-b", 8, "--crop-size", 32, "--limit", 4, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    samples = np.array([row["sample"] for row in rows])
    paper = AugmentConfig(crop_size=32)
    params = draw_params(paper, seed=0, epoch=0, indices=samples, positions=samples, image_size=48)
    assert [row["views"][0]["alphas"] for row in rows] == params.alphas.tolist()
    assert run("order", small_raw_dataset, "-b", 8, "--crop-size", 32, "--augment", "ten", "--step", 1, "--json") == 0
    views = json.loads(capsys.readouterr().out)["rows"][0]["views"]
    assert [view["flip"] for view in views] == [False] * 5 + [True] * 5
    assert (views[4]["crop_y"], views[4]["crop_x"]) == (16, 16)


def test_quality_is_shown_beside_the_ideal_and_storage_order(
    order: Any, small_raw_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quality = order("--order", "block", "--block-shards", 1, "--quality")["quality"]
    assert quality["window"] == 8
    assert quality["sequential"]["displacement"] == 0 and quality["sequential"]["rank_correlation"] == 1
    assert quality["order"]["same_shard_pairs"] == quality["sequential"]["same_shard_pairs"] == 32 / 36
    assert quality["ideal"]["same_shard_pairs"] < 0.2
    assert order("--order", "sequential", "--quality")["quality"]["order"] == quality["sequential"]
    assert run("order", small_raw_dataset, *RUN, "--order", "block", "--quality", "--digest") == 0
    table = capsys.readouterr().out
    assert "full permutation" in table and "shards in 8 samples" in table and "32 of all ranks" in table


def test_the_table_has_a_line_for_each_view(small_raw_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("order", small_raw_dataset, *RUN, "--order", "block", "--world-size", 2, "--epoch", 1) == 0
    table = capsys.readouterr().out
    assert "epoch 1, seed 6, blocks of 8 shards, batch 8, 2 ranks" in table
    assert table.count(".jpg") + table.count(".png") == 20
    assert run("order", small_raw_dataset, *RUN, "--augment", "ten", "--limit", 1) == 0
    assert capsys.readouterr().out.count("0000") >= 10


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--epoch", 1, "--step", 5), "step 5 was asked for: epoch 1 has 4 steps from position 0 on"),
        (("--start", 38), "start is position 38 of an epoch of 37 samples"),
        (("--rank", 2, "--world-size", 2), "rank must be in 0..1"),
        (("--batch-size", 38), "37 samples are fewer than one global batch"),
        (("--crop-size", 49), "crop_size 49 is larger than the stored images (48 pixels)"),
        (("--crop-size", 49, "--digest"), "crop_size 49 is larger"),
        (("--digest", "--step", 1), "leave out --step and --limit"),
        (("--quality", "--limit", 1), "leave out --step and --limit"),
        (("--lighting-std", 10), "lighting_std must be in 0..10"),
        (("--step", 2**70), "epoch must be in 0..4294967295"),
        (("--order", "random"), "Invalid value for '--order'"),
    ],
)
def test_what_cannot_be_is_refused(
    args: tuple[object, ...], message: str, small_raw_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("order", small_raw_dataset, *RUN, *args) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_configs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="epoch must be in"):
        OrderConfig(epoch=-1)
    with pytest.raises(ConfigError, match="seed must be in"):
        OrderConfig(seed=2**64)


def test_something_else_is_refused_with_a_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("order", tmp_path) == 3
    assert "expected a dataset made by `lmdali convert`" in capsys.readouterr().err


def test_a_record_table_of_another_dataset_is_noticed(
    small_raw_dataset: Path, jpeg_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(small_raw_dataset / "manifest.json", copy)
    config = OrderConfig(batch_size=8, order="sequential", augment=CROP)
    assert OrderLedger(copy, config).digest()["num_samples"] == NUM_RECORDS, "only the list needs the table"
    assert run("order", copy, *RUN) == 5
    assert "records.parquet: cannot be read" in capsys.readouterr().err
    shutil.copy(jpeg_dataset / "records.parquet", copy)
    with pytest.raises(IntegrityError, match=r"records\.parquet: record \d+ is not that of manifest\.json"):
        OrderLedger(copy, config).rows()


def test_asking_for_an_order_does_not_import_torch(small_raw_dataset: Path) -> None:
    script = f"""
import sys
from lmdali.tools.cli import cli
cli(["order", {str(small_raw_dataset)!r}, "-b", "8", "--crop-size", "32", "--digest"], standalone_mode=False)
assert not {{"torch", "numba", "nvidia.dali"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
