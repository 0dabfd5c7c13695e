"""The batch, and the errors with their exit codes."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_convert
from torch.utils.data._utils.pin_memory import pin_memory

from lmdali.pipeline import errors
from lmdali.pipeline.batch import Batch, Loader
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.rejection import Rejection, SourceRejected


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.zeros(2, 3, 4, 4), torch.tensor([1, 0]), torch.tensor([17, 4]))


def test_a_batch_unpacks_to_images_and_labels(batch: Batch) -> None:
    images, labels = batch
    assert len(batch) == 2
    assert images is batch.images is batch[0]
    assert labels is batch.labels is batch[1]
    assert batch.indices.tolist() == [17, 4]


def test_a_batch_survives_pickle_and_copy_with_its_indices(batch: Batch) -> None:
    for other in (pickle.loads(pickle.dumps(batch)), copy.copy(batch), copy.deepcopy(batch)):
        assert isinstance(other, Batch)
        assert other.indices.tolist() == [17, 4]
        assert other.labels.tolist() == [1, 0]


def test_a_batch_that_is_moved_keeps_its_indices(batch: Batch) -> None:
    for moved in (batch.to("meta"), batch.to(torch.device("meta"), non_blocking=True)):
        assert isinstance(moved, Batch)
        assert moved.images.device.type == moved.labels.device.type == "meta"
        assert moved.images.shape == (2, 3, 4, 4)
        assert moved.indices is batch.indices


def test_a_batch_whose_items_are_walked_comes_out_as_a_plain_tuple(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine without a GPU has none. Some versions of torch say the device.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor.clone())
    for rebuilt in (pin_memory(batch), type(batch)(list(batch)), type(batch)(item for item in batch)):
        assert type(rebuilt) is tuple
        images, labels = rebuilt
        assert images.shape == (2, 3, 4, 4) and labels.tolist() == [1, 0]
    images, labels = default_convert(batch)  # what a DataLoader without a batch size does
    assert images is batch.images and labels is batch.labels


def test_torch_takes_a_batch_for_one_leaf_which_can_be_moved(batch: Batch) -> None:
    assert tree_leaves(batch) == [batch]
    assert tree_map(lambda leaf: leaf.to("meta"), {"batch": batch})["batch"].labels.device.type == "meta"


def test_the_loader_keeps_the_protocol() -> None:
    for name, member in vars(Loader).items():
        if name.startswith("_") and name not in ("__iter__", "__len__", "__enter__", "__exit__"):
            continue
        ours = getattr(DatasetLoader, name)
        if not isinstance(member, property):
            wanted = list(inspect.signature(member).parameters)
            assert list(inspect.signature(ours).parameters)[: len(wanted)] == wanted


EXIT_CODES = {
    "LmdaliError": 1,
    "ConfigError": 2,
    "InputError": 3,
    "StorageError": 4,
    "IntegrityError": 5,
    "ManifestError": 5,
    "ShardError": 5,
    "RecordError": 5,
    "LockedError": 6,
    "RemoteError": 7,
    "MachineError": 8,
    "MissingExtraError": 8,
    "ThresholdError": 9,
}


def test_every_error_has_its_documented_exit_code_and_place_in_the_tree() -> None:
    classes = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name: kind.exit_code for name, kind in classes.items()} == EXIT_CODES
    drawn = [line for line in (errors.__doc__ or "").splitlines() if "Error" in line]
    for line in drawn:
        name, code = line.split("──")[-1].split()[:2]
        assert classes[name].exit_code == int(code)
    assert len(drawn) == len(classes)
    assert all(issubclass(kind, errors.LmdaliError) for kind in classes.values())
    for name in ("ManifestError", "ShardError", "RecordError"):
        assert issubclass(classes[name], errors.IntegrityError)


@pytest.mark.parametrize(
    "error",
    [
        errors.ShardError("x: 3 bytes"),
        errors.MissingExtraError("numba", "train", "the loader"),
        SourceRejected(Rejection.TRUNCATED, "cut"),
    ],
)
def test_errors_cross_process_borders(error: errors.LmdaliError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert str(other) == str(error)


def test_a_missing_package_names_the_line_that_installs_it() -> None:
    assert "pip install 'lmdali[train]'" in str(errors.MissingExtraError("numba", "train", "the loader"))
