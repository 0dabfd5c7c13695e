"""A loss that stays where it began, at the logarithm of the number of classes: told once, with what to do about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW_STEPS = 200
"""Steps whose mean is looked at: batches differ by more than the tolerance, their mean does not."""

PATIENCE_STEPS = 2000
PATIENCE_EPOCHS = 5
"""What a sound run may take to leave chance level, whichever comes first: ImageNet's loss often stays there for a
thousand steps, and a small set has few steps in an epoch."""

TOLERANCE = 0.01


class StuckLossWarning(UserWarning):
    """The network still guesses: its loss is that of equal probabilities for all classes."""


@dataclass
class StuckLoss:
    """Watches the training loss; a part of the run's state, so that a resumed run warns where the whole one does.

    Attributes:
        loss_sum: of the steps since the last look.
        steps: their number.
        warned: it was told, and is not told again.
    """

    loss_sum: float = 0.0
    steps: int = 0
    warned: bool = False

    def add(self, loss: float, *, num_classes: int, step: int, epoch: int) -> str | None:
        """Take a step's loss.

        Args:
            loss: mean over the batch, nats; label smoothing does not change where it gets stuck.
            num_classes: of the network.
            step: updates made.
            epoch: epochs finished.

        Returns:
            The warning, if now is the time for it.
        """
        self.loss_sum += loss
        self.steps += 1
        if self.warned or self.steps < WINDOW_STEPS:
            return None
        mean, self.loss_sum, self.steps = self.loss_sum / self.steps, 0.0, 0
        chance = math.log(num_classes)
        patient = step < PATIENCE_STEPS and epoch < PATIENCE_EPOCHS
        if patient or abs(mean - chance) > TOLERANCE * chance:
            return None
        self.warned = True
        return (
            f"the loss is stuck: its mean over steps {step - WINDOW_STEPS + 1} to {step} is {mean:.4f}, and guessing "
            f"among {num_classes} classes costs ln {num_classes} = {chance:.4f}. With standard deviation 0.01 and "
            "biases of 1 almost nothing of the image reaches the last layers: try --init original2012 or lecun, lower "
            "biases (--init caffe), a warm-up (--schedule cosine:EPOCHS), or another --lr"
        )
