"""One update: forward, backward, the paper's rule; and what the batch showed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmdali.model.evaluator import network_input
from lmdali.model.graphed_step import GraphedStep
from lmdali.model.metrics import top_k_error
from lmdali.model.optim import PaperSGD
from lmdali.pipeline.batch import Batch


class TrainStep:
    """Everything that happens on the device between two batches.

    Args:
        model: in training mode, on `device`.
        optimizer: with the rates that its groups have when it is called.
        device: where the model is.
        precision: float32, or bfloat16 for autocast.
        channels_last: memory format of the weights and of the input.
        label_smoothing: 0 to below 1.
        cuda_graph: capture the step and replay it; on a GPU only.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: PaperSGD,
        *,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        channels_last: bool = True,
        label_smoothing: float = 0.0,
        cuda_graph: bool = False,
    ) -> None:
        self._model, self._optimizer, self._device = model, optimizer, device
        self._precision, self._channels_last, self._label_smoothing = precision, channels_last, label_smoothing
        self._graphed = GraphedStep(self._update, optimizer.constants) if cuda_graph and device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Tensor:
        """Train on one batch.

        Returns:
            `(3,)` float32 on the device, not waited for: loss (with smoothing, nats), top-1 and top-5 error (0..1), all
            of them means over the batch, before the update and under dropout.
        """
        images = network_input(batch.images, self._device, channels_last=self._channels_last)
        labels = batch.labels.to(self._device, non_blocking=True)
        if self._graphed is None:
            return self._update(images, labels)
        self._optimizer.load_rates()
        return self._graphed(images, labels)

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        # A graph may not reuse casts of weights from the step before, and without one each weight is cast once anyway.
        with torch.autocast(
            self._device.type, self._precision, enabled=self._precision is not torch.float32, cache_enabled=False
        ):
            logits = self._model(images)
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        scores = logits.detach()
        return torch.stack(
            [loss.detach(), top_k_error(scores, labels, 1).mean(), top_k_error(scores, labels, 5).mean()]
        )
