"""One update: what it may be given."""

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
