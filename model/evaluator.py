"""Evaluation: each sample exactly once, one view or ten, probabilities averaged over views."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmdali.model.metrics import average_log_probabilities, top_k_error
from lmdali.model.parallel import Ranks
from lmdali.pipeline.batch import Batch, Loader
from lmdali.pipeline.errors import InputError, IntegrityError


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Errors over a whole dataset.

    Attributes:
        top1_error: 0..1, ties shared (see `metrics.top_k_error`).
        top5_error: 0..1.
        loss: mean of -log p(label), p averaged over the views; nats.
        num_samples: samples counted.
        num_views: views per sample, 1 or 10.
        probabilities: `(N, C)` float32 on the CPU, row i for the i-th sample by number, of all ranks, where asked for.
        labels: `(N,)` int64 on the CPU, of the same samples.
    """

    top1_error: float
    top5_error: float
    loss: float
    num_samples: int
    num_views: int
    probabilities: Tensor | None = field(default=None, repr=False, compare=False)
    labels: Tensor | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The numbers, without what there is for each sample."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if not isinstance(value, Tensor | None)}


def network_input(images: Tensor, device: torch.device, *, channels_last: bool) -> Tensor:
    """A batch as the network takes it: `(B, 3, H, W)` floating point on `device`.

    Args:
        images: `(B, 3, H, W)` or `(B, H, W, 3)`, any dtype; uint8 becomes float32.
        device: where the network is.
        channels_last: the memory format that the network's weights have.
    """
    if images.shape[1] != 3 and images.shape[-1] == 3:
        images = images.movedim(-1, 1)
    images = images.to(device, non_blocking=True)
    if not images.is_floating_point():
        images = images.float()
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    device: torch.device | str = "cpu",
    *,
    channels_last: bool = True,
    precision: torch.dtype = torch.float32,
    keep_probabilities: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
    ranks: Ranks | None = None,
) -> EvalResult:
    """Run `model` over one epoch of `loader` in evaluation mode; the model's mode is restored.

    Args:
        model: maps `(B, 3, S, S)` images to `(B, C)` logits.
        loader: delivers every sample, with 1 view or 10; with several ranks, this one's part of them.
        device: where the model is.
        channels_last: memory format of the input; the answer does not depend on it.
        precision: float32, or bfloat16 for autocast; softmax and averages are float32 in any case.
        keep_probabilities: return the averaged probabilities and the label of every sample, to each rank.
        on_progress: told the number of samples done on this rank, after each batch.
        ranks: that share the dataset; each gets the result of all of it.

    Raises:
        IntegrityError: a sample was delivered twice or not at all, all ranks together.
        InputError: a label that the model does not have.
    """
    ranks = Ranks(device=device) if ranks is None else ranks
    device = torch.device(device)
    tally = _Tally(loader, device, keep_probabilities=keep_probabilities)
    was_training = model.training
    model.eval()
    try:
        loader.set_epoch(0)
        for batch in loader:
            if not len(batch.labels):  # the last global batch has fewer samples than there are ranks
                continue
            images = network_input(batch.images, device, channels_last=channels_last)
            with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
                logits = model(images)
            tally.add(batch, average_log_probabilities(logits, loader.num_views))
            on_progress(tally.done)
    finally:
        model.train(was_training)
    return tally.result(ranks)


class _Tally:
    """What one rank has found out so far, and in the end what all of them have."""

    def __init__(self, loader: Loader, device: torch.device, *, keep_probabilities: bool) -> None:
        self.done = 0
        self._loader, self._device, self._keeps = loader, device, keep_probabilities
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, top-1, top-5
        self._seen = torch.zeros(loader.num_records, dtype=torch.int64)
        self._probabilities: Tensor | None = None
        self._labels = torch.zeros_like(self._seen)

    def add(self, batch: Batch, log_p: Tensor) -> None:
        """Take a batch's averaged log probabilities, `(B, C)` float32 on the device."""
        labels = batch.labels.to(self._device)
        _require_labels(labels, log_p.shape[1])
        loss = -log_p.gather(1, labels[:, None])[:, 0]
        figures = (loss, top_k_error(log_p, labels, 1), top_k_error(log_p, labels, 5))
        self._sums += torch.stack([figure.double().sum() for figure in figures])
        self._seen.index_add_(0, batch.indices, torch.ones_like(batch.indices))
        if self._keeps:
            if self._probabilities is None:
                self._probabilities = torch.zeros(self._loader.num_records, log_p.shape[1])
            self._probabilities[batch.indices] = log_p.exp().cpu()
            self._labels[batch.indices] = labels.cpu()
        self.done += len(labels)

    def result(self, ranks: Ranks) -> EvalResult:
        """The means over all samples of all ranks, once each of them was there once."""
        seen = ranks.sum(self._seen)
        _require_once(seen, self._loader.num_samples)
        kept: tuple[Tensor | None, Tensor | None] = (None, None)
        if self._keeps:
            probabilities, labels = _of_all_ranks(self._probabilities, self._labels, ranks)
            listed = seen == 1
            # Those of all records as they are: a copy of ImageNet's takes 5 GB.
            kept = (probabilities, labels) if bool(listed.all()) else (probabilities[listed], labels[listed])
        loss, top1, top5 = (ranks.sum(self._sums) / self._loader.num_samples).tolist()
        return EvalResult(
            top1_error=top1,
            top5_error=top5,
            loss=loss,
            num_samples=self._loader.num_samples,
            num_views=self._loader.num_views,
            probabilities=kept[0],
            labels=kept[1],
        )


def _of_all_ranks(kept: Tensor | None, known: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Each sample has zeros on all ranks but one, so sums are exact; a rank may have had no sample at all."""
    num_classes = max(ranks.gather(0 if kept is None else kept.shape[1]))
    kept = torch.zeros(len(known), num_classes) if kept is None else kept
    return ranks.sum(kept), ranks.sum(known)


def _require_labels(labels: Tensor, num_classes: int) -> None:
    highest = int(labels.max())
    if highest >= num_classes:
        raise InputError(
            f"the dataset has label {highest}, the model has {num_classes} classes: use a dataset of the same classes"
        )


def _require_once(seen: Tensor, num_samples: int) -> None:
    """Of all records, which need not all be samples, as many were delivered as there are samples, and none twice."""
    again = torch.nonzero(seen > 1)[:, 0]
    missing = num_samples - int((seen > 0).sum())
    if len(again) or missing:
        such_as = f", such as sample {again[0]}" if len(again) else ""
        raise IntegrityError(
            f"evaluation needs each of {num_samples} samples once: {missing} were not delivered, {len(again)} more "
            f"than once{such_as}"
        )
