"""The printed update rule: hand-computed steps, and where it parts from torch's SGD."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.train_config import TrainConfig
from lmdali.pipeline.errors import ConfigError

GRADIENTS = (1.0, -2.0, 0.5)
RATES = (0.01, 0.01, 0.001)


def three_steps(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> list[float]:
    path = []
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        path.append(weight.item())
    return path


def one_weight() -> torch.Tensor:
    return torch.ones((), dtype=torch.float64, requires_grad=True)


def test_three_steps_equal_the_hand_computed_ones() -> None:
    weight = one_weight()
    optimizer = PaperSGD([weight], momentum=0.9, weight_decay=5e-4)
    path = three_steps(optimizer, weight)
    assert path == pytest.approx([0.989995, 1.000985550025, 1.010376544554725], abs=1e-14)
    assert optimizer.state[weight]["velocity"].item() == pytest.approx(0.009390994529725, abs=1e-14)


def test_torch_sgd_parts_from_it_at_the_cut() -> None:
    weight = one_weight()
    path = three_steps(torch.optim.SGD([weight], lr=0.01, momentum=0.9, weight_decay=5e-4), weight)
    assert path[:2] == pytest.approx([0.989995, 1.000985550025], abs=1e-14)
    assert path[2] == pytest.approx(1.001474199034475, abs=1e-14)


def test_it_equals_torch_sgd_at_a_constant_rate() -> None:
    torch.manual_seed(0)
    start = torch.randn(7, 5, dtype=torch.float64)
    gradients = torch.randn(60, 7, 5, dtype=torch.float64)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    first = PaperSGD([ours], 0.01, momentum=0.9, weight_decay=5e-4)
    second = torch.optim.SGD([theirs], lr=0.01, momentum=0.9, weight_decay=5e-4)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_after_a_cut_the_old_velocity_coasts_on_ten_times_as_far_as_in_torch() -> None:
    travelled = []
    for kind in (PaperSGD, torch.optim.SGD):
        weight = one_weight()
        optimizer = kind([weight], lr=0.01, momentum=0.9, weight_decay=0.0)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        before = weight.item()
        optimizer.param_groups[0]["lr"] = 0.001
        weight.grad = torch.zeros_like(weight)
        for _ in range(400):
            optimizer.step()
        travelled.append(before - weight.item())
    assert travelled == pytest.approx([9 * 0.01, 9 * 0.001], rel=1e-9)


def test_a_frozen_group_keeps_weights_and_velocity() -> None:
    weight, other = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = PaperSGD([{"params": [weight]}, {"params": [other]}], 0.1)
    weight.grad, other.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    kept, velocity = weight.detach().clone(), optimizer.state[weight]["velocity"].clone()
    optimizer.param_groups[0]["frozen"] = True
    optimizer.step()
    assert torch.equal(weight, kept)
    assert torch.equal(optimizer.state[weight]["velocity"], velocity)
    assert not torch.equal(other, kept)


def test_state_survives_a_round_trip_and_continues_bit_equal() -> None:
    def run(interrupted: bool) -> torch.Tensor:
        weight = torch.linspace(-1, 1, 9).requires_grad_()
        optimizer = PaperSGD([weight], 0.05)
        for step in range(6):
            if interrupted and step == 3:
                buffer = io.BytesIO()
                torch.save(optimizer.state_dict(), buffer)
                optimizer = PaperSGD([weight], 0.9)
                optimizer.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
            weight.grad = torch.sin(weight.detach() * (step + 1))
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(interrupted=True), run(interrupted=False))


def test_weights_decay_and_biases_do_not() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 5))
    weights, biases = parameter_groups(net, TrainConfig(weight_decay=5e-4))
    assert [p.ndim for p in weights["params"]] == [4, 2]
    assert [p.ndim for p in biases["params"]] == [1, 1]
    assert (weights["weight_decay"], biases["weight_decay"]) == (5e-4, 0.0)
    assert parameter_groups(net, TrainConfig(weight_decay=5e-4, bias_decay=True))[1]["weight_decay"] == 5e-4


def test_a_closure_is_evaluated_with_gradients() -> None:
    weight = torch.ones(1, requires_grad=True)
    optimizer = PaperSGD([weight], 0.5, momentum=0.0, weight_decay=0.0)

    def closure() -> float:
        loss = (weight * 3).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    assert weight.item() == pytest.approx(1 - 0.5 * 3)


@pytest.mark.parametrize("fields", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}])
def test_impossible_settings_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PaperSGD([torch.ones(1, requires_grad=True)], **fields)
