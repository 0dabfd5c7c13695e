"""`records` of a loader: read, checked, delivered once each, resumed, counted in digests, evaluated, streamed."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lmdali.model.evaluator import evaluate
from lmdali.pipeline import AugmentConfig, DatasetLoader, LoaderConfig, create_loader
from lmdali.pipeline.block_order import OrderName, create_order
from lmdali.pipeline.errors import ConfigError, InputError, StorageError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.order_digest import digest_text
from lmdali.pipeline.record_list import RecordList
from lmdali.pipeline.sampler import RankSlice
from lmdali.pipeline.shard_windows import needed_bytes
from lmdali.tools.cli import cli

CHOSEN = (30, 2, 36, 11, 7, 0, 19, 23, 5)


SMALL = AugmentConfig(crop_size=32, normalize="none", lighting="none")


def loader_of(dataset: Path | str, **fields: Any) -> DatasetLoader:
    options = {"batch_size": 4, "records": CHOSEN, "augment": SMALL, "num_threads": 2, **fields}
    return create_loader(LoaderConfig(dataset=dataset, **options))


def delivered(loader: DatasetLoader) -> list[int]:
    return [number for batch in loader for number in batch.indices.tolist()]


# Lists.


def test_a_list_is_numbers_or_a_file_of_them(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"{number}\n" for number in CHOSEN))
    np.save(tmp_path / "numbers.npy", np.array(CHOSEN, np.int32))
    forms = [CHOSEN, list(CHOSEN), np.array(CHOSEN, np.uint16), tmp_path / "lines.txt", str(tmp_path / "numbers.npy")]
    lists = [RecordList.of(form, 37) for form in forms]
    for one in lists:
        assert one.numbers.tolist() == list(CHOSEN) and one.numbers.dtype == np.int64
        assert not one.numbers.flags.writeable
    assert len({one.digest for one in lists}) == 1
    others = [CHOSEN[::-1], CHOSEN[1:], (*CHOSEN, 1)]
    assert len({RecordList.of(form, 37).digest for form in [CHOSEN, *others]}) == 4


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([3, 37], r"records: entry 2 is 37, and the dataset has records 0\.\.36"),
        ([-1], "records: entry 1 is -1"),
        ([2**70], "found object"),
        (np.array([2**63 + 5], np.uint64), "records: entry 1 is 9223372036854775813"),
        ([3, 1, 3], "records: record 3 is listed 2 times"),
        ([], "expected a list of record numbers, found float64 of shape"),
        (np.zeros((2, 2), int), r"found int64 of shape \(2, 2\)"),
        ([0.5], "found float64"),
    ],
)
def test_what_is_no_list_of_this_dataset_is_refused(records: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RecordList.of(records, 37)


@pytest.mark.parametrize("text", ["1\ntwo\n", "1.5\n", "# all\n1\n", "99999999999999999999999\n"])
def test_lines_that_are_no_numbers_are_refused_by_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text(text)
    with pytest.raises(InputError, match=r"lines.txt: expected one record number a line"):
        RecordList.of(tmp_path / "lines.txt", 37)


@pytest.mark.parametrize("text", [b"4\r\n2\r\n", b"\xef\xbb\xbf4\r\n2", b"4\n\n2\n\n"])
def test_lines_may_be_those_of_another_system(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_bytes(text)
    assert RecordList.of(tmp_path / "lines.txt", 37).numbers.tolist() == [4, 2]


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none.txt: No such file"):
        RecordList.of(tmp_path / "none.txt", 37)
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "pickle.npy").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    np.save(tmp_path / "endless.npy", np.arange(9))
    payload = (tmp_path / "endless.npy").read_bytes()
    (tmp_path / "endless.npy").write_bytes(payload.replace(b"(9,), }" + b" " * 14, b"(999999999999999,), }"))
    for name in ("short.npy", "pickle.npy", "endless.npy"):
        with pytest.raises(InputError, match=f"{name}: expected one record number a line"):
            RecordList.of(tmp_path / name, 37)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match=r"empty.txt: expected a list of record numbers"):
        RecordList.of(tmp_path / "empty.txt", 37)


def test_a_config_keeps_numbers_as_python_has_them() -> None:
    config = LoaderConfig(dataset="x", records=np.array([4, 2]))
    assert config.records == (4, 2) and config == LoaderConfig(dataset="x", records=[4, 2])
    assert json.loads(json.dumps(config.records)) == [4, 2]
    assert LoaderConfig(dataset="x", records="list.txt").records == "list.txt"
    for wrong in (3, [0.5], [[1]], [[1], [1, 2]], ["1"], {"a": 1}):
        with pytest.raises(ConfigError, match="records must be a file or record numbers"):
            LoaderConfig(dataset="x", records=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        LoaderConfig(dataset="x", records=[0.5] * 10_000)  # type: ignore[list-item]
    assert len(str(caught.value)) < 200
    with pytest.raises(ConfigError, match="the block order goes through whole shards"):
        LoaderConfig(dataset="x", records=[1], order="block")


# Orders.


@given(
    st.lists(st.integers(0, 199), min_size=1, max_size=60, unique=True),
    st.sampled_from(["shuffled", "shuffled_once", "sequential"]),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_all_ranks_together_deliver_each_listed_record_once(
    numbers: list[int], name: OrderName, batch_size: int, world_size: int, epoch: int
) -> None:
    records = RecordList.of(numbers, 200)
    order = create_order(name, num_samples=len(numbers), seed=3, epoch=epoch, records=records)
    found: list[int] = []
    slices = [RankSlice(len(numbers), batch_size, rank, world_size, False) for rank in range(world_size)]
    for step in range(slices[0].num_steps()):
        for part in slices:
            found += order.at(part.positions(step)).tolist()
    assert sorted(found) == sorted(numbers)
    if name == "sequential":
        assert found == numbers


def test_epochs_have_orders_of_their_own() -> None:
    records = RecordList.of(range(50, 150), 200)
    orders = [
        create_order("shuffled", num_samples=100, seed=0, epoch=epoch, records=records).indices(0, 100).tolist()
        for epoch in range(3)
    ]
    assert all(sorted(order) == list(range(50, 150)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


# Loaders.


@pytest.mark.parametrize("backend", ["cpu", pytest.param("dali", marks=pytest.mark.dali)])
def test_a_listed_record_is_the_picture_that_it_is_among_all(small_jpeg_dataset: Path, backend: str) -> None:
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    with loader_of(small_jpeg_dataset, records=None, drop_last=False, backend=backend) as loader:
        all_of_them = {
            number: image
            for batch in loader
            for number, image in zip(batch.indices.tolist(), batch.images, strict=True)
        }
    with loader_of(small_jpeg_dataset, drop_last=False, backend=backend) as loader:
        assert (loader.num_samples, loader.num_records, len(loader)) == (9, 37, 3)
        seen = []
        for batch in loader:
            seen += batch.indices.tolist()
            for number, image in zip(batch.indices.tolist(), batch.images, strict=True):
                assert torch.equal(image, all_of_them[number])
    assert sorted(seen) == sorted(CHOSEN)


def test_without_a_shuffle_the_list_is_the_order(small_jpeg_dataset: Path) -> None:
    with loader_of(small_jpeg_dataset, order="sequential") as loader:
        assert delivered(loader) == list(CHOSEN) == delivered(loader)


def test_with_a_decoded_cache_the_pictures_stay(small_jpeg_dataset: Path) -> None:
    """It holds records by their numbers in the dataset, which are higher than there are listed ones."""
    options: dict[str, Any] = {"order": "sequential", "decoded_cache_bytes": 10_000_000}
    with loader_of(small_jpeg_dataset, **options) as loader:
        first, second = ([batch.images for batch in loader] for _ in range(2))
    with loader_of(small_jpeg_dataset, order="sequential") as loader:
        loader.set_epoch(1)
        again = [batch.images for batch in loader]
    assert all(map(torch.equal, second, again)) and not all(map(torch.equal, first, second))


@pytest.mark.parametrize("cut", range(4))
def test_an_epoch_goes_on_where_it_was_left(small_jpeg_dataset: Path, cut: int) -> None:
    with loader_of(small_jpeg_dataset, drop_last=False, batch_size=3) as loader:
        whole = delivered(loader)
        loader.set_epoch(0)
        list(islice(loader, cut))
        state = json.loads(json.dumps(loader.state_dict()))
    with loader_of(small_jpeg_dataset, drop_last=False, batch_size=2) as loader:
        loader.load_state_dict(state)
        if cut < 3:
            assert delivered(loader) == whole[3 * cut :]
        else:
            assert loader.epoch == 1 and sorted(delivered(loader)) == sorted(CHOSEN)


def test_the_state_of_another_list_is_refused(small_jpeg_dataset: Path) -> None:
    with loader_of(small_jpeg_dataset) as loader:
        state = loader.state_dict()
    for other in (None, CHOSEN[::-1], (*CHOSEN[:-1], 6)):
        with (
            loader_of(small_jpeg_dataset, records=other) as loader,
            pytest.raises(InputError, match=r"the loader state is of another run.*order 'shuffled:records:"),
        ):
            loader.load_state_dict(state)


def test_the_ledger_has_the_digest_and_the_samples_of_the_loader(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "fold.txt", CHOSEN, fmt="%d")
    asked = ["order", str(small_jpeg_dataset), "--records", str(tmp_path / "fold.txt"), "--json", "-b", "4"]
    asked += ["--crop-size", "32"]
    augment = AugmentConfig(crop_size=32)
    with loader_of(small_jpeg_dataset, augment=augment, records=tmp_path / "fold.txt") as loader:
        seen = delivered(loader)
        digest = loader.epoch_digest
    counted = json.loads(CliRunner().invoke(cli, [*asked, "--digest"]).stdout)
    assert digest is not None
    assert counted["digest"] == {"num_samples": 8, "digest": digest_text(digest)}
    assert counted["num_samples"] == 9
    listed = json.loads(CliRunner().invoke(cli, asked).stdout)
    assert [row["sample"] for row in listed["rows"]] == seen
    shown = CliRunner().invoke(cli, [word for word in asked if word != "--json"])
    assert "batch 4, 9 records of " in " ".join(shown.stdout.split())
    refused = CliRunner().invoke(cli, [*asked, "--quality"])
    assert isinstance(refused.exception, ConfigError) and "leave the list of records out" in str(refused.exception)


def test_an_evaluation_of_listed_records_counts_each_once(small_jpeg_dataset: Path) -> None:
    class Brightness(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    center = AugmentConfig(crop="center", crop_size=32, flip=False, normalize="none", lighting="none")
    options: dict[str, Any] = {"augment": center, "order": "sequential"}
    with loader_of(small_jpeg_dataset, **options, records=None) as loader:
        of_all = evaluate(Brightness(), loader, keep_probabilities=True)
    with loader_of(small_jpeg_dataset, **options) as loader:
        found = evaluate(Brightness(), loader, keep_probabilities=True)
    assert found.num_samples == 9
    assert of_all.probabilities is not None and of_all.labels is not None
    assert found.probabilities is not None and found.labels is not None
    numbers = sorted(CHOSEN)
    torch.testing.assert_close(found.probabilities, of_all.probabilities[numbers])
    assert found.labels.tolist() == of_all.labels[numbers].tolist()


# At an address.


def test_an_address_needs_room_for_the_shards_that_hold_the_listed_records(
    small_jpeg_dataset: Path, tmp_path: Path
) -> None:
    shards = load_manifest(small_jpeg_dataset).shards
    ends = np.cumsum([info.num_records for info in shards])
    last = list(range(int(ends[-2]), int(ends[-1])))
    order = create_order("shuffled", num_samples=len(last), seed=0, epoch=0, records=RecordList.of(last, 37))
    assert needed_bytes(order, shards, 8, 100) == shards[-1].file_bytes
    options: dict[str, Any] = {
        "records": last,
        "batch_size": 2,
        "drop_last": False,
        "cache_dir": tmp_path / "cache",
        "cache_bytes": max(info.file_bytes for info in shards),
    }
    with loader_of(f"file://{small_jpeg_dataset}", **options) as loader:
        assert sorted(delivered(loader)) == last
        assert loader.fetch_counts is not None
    assert len(list((tmp_path / "cache").rglob("data.mdb"))) == 1
    with pytest.raises(ConfigError, match=r"room for .*, or list records of fewer shards$"):
        loader_of(f"file://{small_jpeg_dataset}", **options | {"records": CHOSEN})


def test_a_list_in_ascending_order_goes_through_a_small_cache(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    """As storage order does without a list; it was refused unless there was room for all of its shards."""
    shards = load_manifest(small_jpeg_dataset).shards
    sizes = sorted(info.file_bytes for info in shards)
    assert len(shards) > 3 and sum(sizes[-3:]) < sum(sizes)
    every_second = list(range(0, 37, 2))
    options: dict[str, Any] = {
        "records": every_second,
        "order": "sequential",
        "batch_size": 1,
        "prefetch": 1,
        "cache_dir": tmp_path / "cache",
        "cache_bytes": sum(sizes[-3:]),
    }
    with loader_of(f"file://{small_jpeg_dataset}", **options) as loader:
        assert delivered(loader) == every_second == delivered(loader)
    with pytest.raises(ConfigError, match=r"list records of fewer shards or in ascending order$"):
        loader_of(f"file://{small_jpeg_dataset}", **options | {"records": every_second[::-1]})
    order = create_order("shuffled", num_samples=19, seed=0, epoch=0, records=RecordList.of(every_second, 37))
    assert needed_bytes(order, shards, 8, 1) == sum(sizes)
