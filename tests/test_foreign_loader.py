"""Loaders that are not ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from slow_model import SlowModel
from torch.utils.data import DataLoader, TensorDataset
from virtual_time import VirtualTime

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools.foreign_loader import ForeignLoader, ForeignProbe, as_batch, load_factory
from lmdali.tools.foreign_profile import profile_iterable
from lmdali.tools.profiler import ProfileConfig, command
from lmdali.tools.throughput_tables import print_report

CPU = torch.device("cpu")
QUICK = ProfileConfig(device="cpu", steps=10)
IMAGES, LABELS = torch.zeros(4, 3, 8, 8), torch.tensor([3, 1, 0, 2])


class DaliLike:
    """Ends, and goes on only after a reset."""

    def __init__(self) -> None:
        self.left, self.resets = 2, 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return [{"data": IMAGES, "label": LABELS[:, None]}]

    def reset(self) -> None:
        self.left, self.resets = 2, self.resets + 1


@pytest.mark.parametrize(
    "item",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS, "paths"],
        {"image": IMAGES, "label": LABELS},
        {"pixel_values": IMAGES.numpy(), "labels": LABELS.tolist()},
        [{"data": IMAGES, "label": LABELS[:, None]}],
        (IMAGES.numpy(), np.eye(4)[LABELS]),
    ],
)
def test_images_and_labels_are_found_in_every_usual_form(item: Any) -> None:
    batch = as_batch(item, CPU)
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.labels.dtype == torch.int64 and batch.labels.tolist() == [3, 1, 0, 2]
    assert batch.indices.tolist() == [-1] * 4


def test_images_alone_have_labels_of_zero() -> None:
    assert as_batch(IMAGES, CPU).labels.tolist() == [0] * 4
    assert as_batch((IMAGES,), CPU).labels.tolist() == [0] * 4


@pytest.mark.parametrize("item", ["text", {"sound": 1}, (), torch.tensor(3.0), object()])
def test_what_is_no_batch_is_refused_by_what_it_is(item: Any) -> None:
    with pytest.raises(InputError, match="the loader yields"):
        as_batch(item, CPU)


def test_a_generator_is_made_again_and_an_iterable_begun_again() -> None:
    made = []

    def generator() -> Iterator[Any]:
        made.append(1)
        yield from [(IMAGES, LABELS)] * 2

    loader = ForeignLoader(generator, CPU)
    for _ in range(5):
        loader.take()
    assert (len(made), loader.num_batches, loader.num_samples, len(loader.epoch_gaps_seconds)) == (3, None, None, 2)
    listed = ForeignLoader(lambda: [(IMAGES, LABELS)] * 2, CPU)
    for _ in range(5):
        listed.take()
    assert listed.num_batches == 2


def test_an_iterator_of_dali_is_reset() -> None:
    iterator = DaliLike()
    loader = ForeignLoader(lambda: iterator, CPU)
    for _ in range(5):
        loader.take()
    assert iterator.resets == 2


def test_a_loader_without_batches_is_refused() -> None:
    with pytest.raises(InputError, match="no batch"):
        ForeignLoader(list, CPU).take()


def test_a_torch_loader_says_how_much_it_may_have_ready() -> None:
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=2)
    found = ForeignLoader(lambda: loader, CPU)
    assert (found.kind, found.num_batches, found.num_samples, found.depth) == ("DataLoader", 2, 4, 0)
    assert ForeignProbe(found).warmup_steps > found.depth


@pytest.mark.parametrize(
    ("name", "match"), [("x", "module:function"), ("no_such:f", "no_such"), ("json:no", "no function")]
)
def test_a_factory_that_is_not_there_is_refused(name: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_factory(name)


# The profile.


def test_what_needs_our_shards_is_null_and_never_zero() -> None:
    loader = DataLoader(TensorDataset(torch.zeros(64, 3, 8, 8), torch.zeros(64)), batch_size=4)
    report = profile_iterable(lambda: loader, "mine:make", QUICK, model=SlowModel(num_classes=1000), quiet=True)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    for name in ("storage", "read", "decode", "augment", "device_copy", "memory_copy", "suggestion"):
        assert document[name] is None
    assert document["megabytes_per_second"] == {"storage": None, "read": None, "loader": None}
    assert document["shares"]["loader"] is None
    stages = document["loader"]["stage_seconds_per_image"]
    assert stages["wait"] > 0 and stages["copy"] is None
    assert document["setting"]["encoding"] is None and document["setting"]["batch_size"] == 4
    assert document["loader"]["images_per_second"] > 0 and document["together"]["images_per_second"] > 0


def waiting(sleep: Callable[[], object]) -> Iterable[Any]:
    while True:
        sleep()
        yield IMAGES, LABELS


@pytest.mark.parametrize(("loader", "model", "word"), [(0.06, 0.0, "INPUT-BOUND"), (0.0, 0.1, "COMPUTE-BOUND")])
def test_a_verdict_needs_no_view_inside(
    loader: float, model: float, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    time = VirtualTime(monkeypatch)
    report = profile_iterable(
        lambda: waiting(lambda: time.sleep(loader)),
        "mine:make",
        QUICK,
        model=SlowModel(model, num_classes=1000),
        quiet=True,
    )
    assert report.verdict.word == word
    print_report(report)
    text = capsys.readouterr().out
    assert "not ours" in text and "LMDB read" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100


def test_images_that_the_network_does_not_take_are_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match="--no-model"):
        profile_iterable(lambda: waiting(lambda: None), "mine:make", QUICK, quiet=True)


def test_the_command_takes_a_function_of_a_file_that_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_own_loader.py").write_text(
        "import torch\ndef make():\n    return [(torch.zeros(2, 3, 4, 4), torch.zeros(2))] * 8\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "--loader", "their_own_loader:make", "--no-model", "--steps", "10", "--json"]
    result = CliRunner().invoke(command, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["setting"]["backend"] == "list"
    assert CliRunner().invoke(command, ["run"]).exit_code == 2
    assert CliRunner().invoke(command, ["run", str(tmp_path), "--loader", "a:b"]).exit_code == 2


@pytest.mark.parametrize("labels", [["a"] * 4, torch.zeros(3), torch.zeros(0)])
def test_labels_that_are_none_are_refused_in_one_line(labels: Any) -> None:
    with pytest.raises(InputError, match="4 images and labels that are not"):
        as_batch((IMAGES, labels), CPU)


def test_a_factory_that_returns_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="gave NoneType"):
        ForeignLoader(lambda: None, CPU)  # type: ignore[arg-type, return-value]


def test_an_epoch_begins_once() -> None:
    # Each iterator of a torch DataLoader starts its workers: to make one only to look at it doubles what is timed.
    class Counted:
        begun = 0

        def __iter__(self) -> Iterator[Any]:
            self.begun += 1
            return iter([(IMAGES, LABELS)] * 2)

    loader = Counted()
    found = ForeignLoader(lambda: loader, CPU)
    for _ in range(5):
        found.take()
    assert loader.begun == 3
    assert len(found.epoch_gaps_seconds) == 2


@pytest.mark.parametrize(
    ("images", "cure"),
    [
        (torch.zeros(2, 3, 224, 100), "--no-model"),
        (torch.zeros(2, 3, 224, 224, dtype=torch.float64), "make them float32"),
        (torch.zeros(2, 3, 224, 224, dtype=torch.float16), "--dtype float16"),
    ],
)
def test_images_that_the_network_would_stumble_over_are_refused_with_a_cure(images: torch.Tensor, cure: str) -> None:
    with pytest.raises(ConfigError, match=cure):
        profile_iterable(lambda: [(images, torch.zeros(2))], "mine:make", QUICK, quiet=True)


def test_what_needs_a_look_inside_is_refused_and_not_left_out(tmp_path: Path) -> None:
    for config in (ProfileConfig(cold=True), ProfileConfig(what_if=("cpus=4",))):
        with pytest.raises(ConfigError, match="give a DATASET"):
            profile_iterable(lambda: [(IMAGES, LABELS)], "mine:make", config)
    result = CliRunner().invoke(command, ["run", "--loader", "mine:make", "--try"])
    assert result.exit_code == 2 and "give a DATASET" in result.output


def test_ranges_that_nobody_could_make_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdali.tools.profile_config.find_nvtx", lambda: None)
    config = ProfileConfig(device="cpu", steps=10, nvtx=True)
    report = profile_iterable(lambda: [(IMAGES, LABELS)] * 3, "mine:make", config, model=None, quiet=True)
    assert any("no NVTX ranges" in caution for caution in report.cautions)
