"""A model that is as slow as it is told to be."""

from __future__ import annotations

from time import sleep

from torch import Tensor, nn


class SlowModel(nn.Module):
    """A model whose forward pass takes a known time and no CPU."""

    def __init__(self, seconds: float = 0.0, num_classes: int = 2) -> None:
        super().__init__()
        self.seconds = seconds
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        sleep(self.seconds)
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits
