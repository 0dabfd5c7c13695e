"""How far a measured step may be ahead of its device, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch

from lmdali.model.parallel import Ranks
from lmdali.pipeline.batch import Batch
from lmdali.tools.profiled_model import PacedStep, kept_generators


def test_a_step_begins_before_the_one_before_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Figures:
        def __init__(self, number: int) -> None:
            self._number = number

        def wait(self) -> None:
            seen.append(f"wait {self._number}")

    def step(batch: Batch) -> torch.Tensor:
        seen.append(f"begin {int(batch.labels[0])}")
        return batch.labels

    monkeypatch.setattr(Ranks, "share", lambda ranks, figures, notice: Figures(int(figures[0])))
    paced = PacedStep(step, torch.device("cpu"))
    for number in range(3):
        paced(Batch(torch.zeros(1), torch.tensor([number]), torch.arange(1)))
    assert seen == ["begin 0", "begin 1", "wait 0", "begin 2", "wait 1"]


def test_random_numbers_go_on_as_before_and_only_of_the_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.device] = []

    def state(device: torch.device) -> torch.Tensor:
        used.append(device)
        return torch.get_rng_state()

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: used.append(device))
    before = torch.get_rng_state()
    for name, devices in (("cpu", []), ("cuda:3", ["cuda:3", "cuda:3"])):
        used.clear()
        with kept_generators(torch.device(name)):
            torch.rand(3)
        assert used == [torch.device(device) for device in devices]
        assert torch.equal(torch.get_rng_state(), before)
