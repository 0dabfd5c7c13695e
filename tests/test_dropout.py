"""Dropout against the three rules it knows."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lmdali.model.alexnet_config import DROPOUT_RULES
from lmdali.model.dropout import Dropout
from lmdali.model.optim import PaperSGD
from lmdali.pipeline.errors import ConfigError


def test_the_paper_keeps_half_of_the_units_unscaled_while_training() -> None:
    torch.manual_seed(0)
    units = torch.full((100, 1000), 3.0)
    out = Dropout(0.5).train()(units)
    assert set(out.unique().tolist()) == {0.0, 3.0}
    kept = (out != 0).float().mean().item()
    assert abs(kept - 0.5) < 4 * 0.5 / 100_000**0.5


def test_the_paper_scales_all_units_in_evaluation() -> None:
    units = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(Dropout(0.5).eval()(units), units * 0.5)
    assert torch.equal(Dropout(0.25).eval()(units), units * 0.75)


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_inverted_is_torchs_own(rate: float) -> None:
    units = torch.full((100, 1000), 3.0)
    layer = Dropout(rate, "inverted")
    torch.manual_seed(0)
    out = layer.train()(units)
    want = 3.0 / (1.0 - rate)
    assert out.unique().tolist() == pytest.approx([0.0, want])
    assert abs((out != 0).float().mean().item() - (1 - rate)) < 4 * (rate * (1 - rate) / 100_000) ** 0.5
    assert functional.dropout(units, rate).unique().tolist() == pytest.approx([0.0, want])
    assert torch.equal(layer.eval()(units), units)


def test_scale_only_scales_always_and_draws_nothing() -> None:
    units = torch.arange(6.0).reshape(2, 3)
    layer, before = Dropout(0.25, "scale_only"), torch.get_rng_state()
    assert torch.equal(layer.train()(units), units * 0.75)
    assert torch.equal(layer.eval()(units), units * 0.75)
    assert torch.equal(torch.get_rng_state(), before)


def trained(rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """30 steps of two layers with dropout between them: the second one's weights, and outputs in evaluation."""
    generator = torch.Generator().manual_seed(1)
    first, second = torch.nn.Linear(12, 16), torch.nn.Linear(16, 4)
    other = rule == "inverted"
    with torch.no_grad():
        for parameter in (*first.parameters(), *second.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        if other:
            second.weight *= 0.5
    own_rates = {"lr": 0.01 / 4, "weight_decay": 4 * 0.1} if other else {}
    groups = [{"params": [first.weight, first.bias, second.bias]}, {"params": [second.weight], **own_rates}]
    optimizer = PaperSGD(groups, 0.01, weight_decay=0.1)
    network = torch.nn.Sequential(first, torch.nn.ReLU(), Dropout(0.5, rule), second)
    torch.manual_seed(2)
    for _ in range(30):
        images, labels = torch.randn(8, 12, generator=generator), torch.arange(8) % 4
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return second.weight.detach(), network.eval()(torch.randn(8, 12, generator=generator)).detach()


def test_inverted_is_the_papers_at_half_the_weights_a_quarter_of_the_rate_and_four_times_the_decay() -> None:
    (weights, outputs), (half, same) = trained("paper"), trained("inverted")
    assert torch.equal(half * 2, weights)  # powers of two: to the bit
    assert torch.equal(outputs, same)


@pytest.mark.parametrize("rule", DROPOUT_RULES)
def test_rate_zero_changes_nothing(rule: str) -> None:
    units = torch.randn(4, 5)
    assert torch.equal(Dropout(0.0, rule).train()(units), units)
    assert torch.equal(Dropout(0.0, rule).eval()(units), units)


@pytest.mark.parametrize("rule", ["paper", "inverted"])
def test_gradient_passes_through_kept_units_only(rule: str) -> None:
    torch.manual_seed(1)
    units = torch.ones(1000, requires_grad=True)
    out = Dropout(0.5, rule).train()(units)
    out.sum().backward()
    assert units.grad is not None
    assert torch.equal(units.grad, out.detach())


@pytest.mark.parametrize("rule", DROPOUT_RULES)
def test_a_mask_may_be_applied_in_parts(rule: str) -> None:
    units, layer = torch.randn(8, 10), Dropout(0.3, rule).train()
    torch.manual_seed(2)
    want = layer(units)
    torch.manual_seed(2)
    mask = layer.draw(units.shape, units.device)
    parts = [layer.masked(units[:, half], None if mask is None else mask[:, half]) for half in (slice(5), slice(5, 10))]
    assert torch.equal(torch.cat(parts, 1), want)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError):
        Dropout(1.0)
    with pytest.raises(ConfigError, match="paper, inverted, scale_only"):
        Dropout(0.5, "none")
