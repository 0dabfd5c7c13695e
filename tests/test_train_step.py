"""One update: what it may be given, and what it says of its batch."""

from __future__ import annotations

import pytest
import torch

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.train_config import TrainConfig
from lmdali.model.train_step import TrainStep
from lmdali.pipeline.batch import Batch


@pytest.mark.parametrize("channels_last", [True, False])
def test_in_bfloat16_images_may_have_been_rounded_before(channels_last: bool) -> None:
    """The loader of a bfloat16 training delivers bfloat16: the same losses, and the same weights, to the bit."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 224, 224, generator=generator) * 70
    losses, weights = [], []
    for dtype in (torch.float32, torch.bfloat16):
        model = AlexNet(AlexNetConfig(width=1 / 32, num_classes=5, init="lecun"), seed=1).train()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        step = TrainStep(
            model,
            PaperSGD(parameter_groups(model, TrainConfig()), 0.001),
            device=torch.device("cpu"),
            precision=torch.bfloat16,
            channels_last=channels_last,
        )
        torch.manual_seed(3)
        batch = Batch(images.to(dtype), torch.tensor([0, 3, 1, 4]), torch.arange(4))
        losses.append([float(step(batch)[0]) for _ in range(2)])
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]
    assert torch.equal(*weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_a_steps_figures_are_those_of_the_network_before_it(smoothing: float) -> None:
    images = torch.randn(6, 3, 224, 224, generator=torch.Generator().manual_seed(2)) * 70
    labels = torch.tensor([0, 3, 8, 4, 7, 1])
    model = AlexNet(AlexNetConfig(width=1 / 32, num_classes=9, init="lecun", dropout=0.0), seed=1).train()
    with torch.no_grad():
        log_p = model(images).log_softmax(1)
    of_labels = log_p.gather(1, labels[:, None])
    places = (log_p > of_labels).sum(1)
    expected = [
        (-(1 - smoothing) * of_labels.mean() - smoothing * log_p.mean()).item(),
        (places >= 1).float().mean().item(),
        (places >= 5).float().mean().item(),
    ]
    assert expected[1] > expected[2] > 0
    optimizer = PaperSGD(parameter_groups(model, TrainConfig()), 0.001)
    step = TrainStep(model, optimizer, device=torch.device("cpu"), channels_last=False, label_smoothing=smoothing)
    assert step(Batch(images, labels, torch.arange(6))).tolist() == pytest.approx(expected, rel=1e-5)
    # Gradients of the step before are no part of the next one's.
    gradient = torch.autograd.grad(
        torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=smoothing), model.fc8.weight
    )[0]
    step(Batch(images, labels, torch.arange(6)))
    torch.testing.assert_close(model.fc8.weight.grad, gradient)
