"""Evaluation with a lookup table for a network, so that every number can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from memory_loader import MemoryLoader
from torch import Tensor, nn

from lmdali.model.evaluator import EvalResult, evaluate, network_input
from lmdali.model.parallel import Ranks
from lmdali.pipeline.batch import Batch, Loader
from lmdali.pipeline.errors import InputError, IntegrityError

CPU = torch.device("cpu")


class Table(nn.Module):
    """Logits by the sample number and view that a marked picture carries in its first two pixels."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits  # (N, V, C)

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return self.logits[images[:, 0, 0, 0].long(), images[:, 0, 0, 1].long()]


class MarkedLoader(MemoryLoader):
    """Delivers pictures that say which sample and view they are."""

    def _images(self, indices: Tensor) -> Tensor:
        images = torch.zeros(len(indices), self.num_views, 3, 2, 2)
        images[..., 0, 0] = indices[:, None, None]
        images[..., 0, 1] = torch.arange(self.num_views)[None, :, None]
        return images.flatten(0, 1)


def test_the_test_loader_fulfils_the_contract() -> None:
    assert isinstance(MemoryLoader(), Loader)


def test_errors_and_loss_by_hand() -> None:
    logits = torch.zeros(4, 1, 8)
    logits[0, 0, 0] = logits[1, 0, 1] = math.log(9)  # two right: p = 9/16
    logits[2, 0, 5] = math.log(9)  # wrong, label 2 ties with six others for the places behind: 4/7 of top 5
    result = evaluate(Table(logits), MarkedLoader(4, num_classes=8, batch_size=3, shuffle=False), CPU)
    # Sample 3 has eight equal scores.
    assert result.top1_error == pytest.approx((0 + 0 + 1 + 7 / 8) / 4)
    assert result.top5_error == pytest.approx((0 + 0 + 3 / 7 + 3 / 8) / 4)
    assert result.loss == pytest.approx((2 * math.log(16 / 9) + math.log(16) + math.log(8)) / 4)
    assert (result.num_samples, result.num_views) == (4, 1)


def test_ten_views_average_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 10, 3) * 4
    loader = MarkedLoader(5, num_classes=3, batch_size=2, shuffle=False, num_views=10)
    result = evaluate(Table(logits), loader, CPU, keep_probabilities=True)
    want = torch.stack([torch.stack([view.softmax(0) for view in sample]).mean(0) for sample in logits])
    assert result.probabilities is not None
    torch.testing.assert_close(result.probabilities, want)
    labels = torch.arange(5) % 3
    assert result.loss == pytest.approx(-want[range(5), labels].log().mean().item(), rel=1e-5)
    assert result.top1_error == pytest.approx((want.argmax(1) != labels).float().mean().item())
    assert result.num_views == 10


def test_probabilities_are_in_sample_order_whatever_the_delivery() -> None:
    logits = torch.randn(6, 1, 3)
    loader = MarkedLoader(6, num_classes=3, batch_size=2, shuffle=True)
    result = evaluate(Table(logits), loader, CPU, keep_probabilities=True)
    assert result.probabilities is not None
    torch.testing.assert_close(result.probabilities, logits[:, 0].softmax(1))


def test_batch_size_does_not_change_the_result() -> None:
    logits = torch.randn(7, 1, 4)
    results = [evaluate(Table(logits), MarkedLoader(7, batch_size=b, shuffle=False), CPU) for b in (1, 3, 7)]
    assert results[0].top1_error == results[1].top1_error == results[2].top1_error
    assert results[0].loss == pytest.approx(results[2].loss, rel=1e-6)


def test_it_starts_at_the_beginning_whatever_was_iterated_before() -> None:
    epochs: list[int] = []
    loader = MarkedLoader(6, batch_size=2, shuffle=False, before_batch=lambda epoch, position: epochs.append(epoch))
    next(iter(loader))
    assert evaluate(Table(torch.zeros(6, 1, 4)), loader, CPU).num_samples == 6
    assert evaluate(Table(torch.zeros(6, 1, 4)), loader, CPU).num_samples == 6
    assert epochs == [0] * 7


def test_a_rank_may_have_no_sample_and_gets_those_of_all() -> None:
    probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5]])

    class WithAnother(Ranks):
        """The second rank of two, the first of which had both samples."""

        def gather(self, value: Any) -> list[Any]:
            return [2, value]

        def sum(self, tensor: Tensor) -> Tensor:
            first = {(2, 2): probabilities, (2,): torch.tensor([1, 1]), (3,): torch.tensor([1.5, 1.0, 0.0])}
            assert not tensor.any()
            return first[tuple(tensor.shape)].to(tensor.dtype)

    class Nothing(MarkedLoader):
        def __iter__(self) -> Iterator[Batch]:
            return iter(())

    loader = Nothing(2, num_classes=2, batch_size=1, shuffle=False)
    result = evaluate(Table(torch.zeros(2, 1, 2)), loader, CPU, keep_probabilities=True, ranks=WithAnother(1, 2))
    assert (result.loss, result.top1_error, result.num_samples) == (0.75, 0.5, 2)
    assert result.probabilities is not None and torch.equal(result.probabilities, probabilities)


@pytest.mark.parametrize("was_training", [True, False])
def test_the_mode_of_the_model_is_restored(was_training: bool) -> None:
    table = Table(torch.zeros(4, 1, 4)).train(was_training)
    evaluate(table, MarkedLoader(4, batch_size=2, shuffle=False), CPU)
    assert table.training is was_training


class Repeating(MarkedLoader):
    """Delivers sample 1 in place of sample 2."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        for images, labels in super().__iter__():
            indices = images[:, 0, 0, 0].long()
            indices[indices == 2] = 1
            yield Batch(images, labels, indices)


def test_a_sample_delivered_twice_is_refused() -> None:
    with pytest.raises(
        IntegrityError, match=r"each of 4 samples once: 1 were not delivered, 1 more than once, such as sample 1"
    ):
        evaluate(Table(torch.zeros(4, 1, 4)), Repeating(4, batch_size=2, shuffle=False), CPU)


class Padded(MarkedLoader):
    """Delivers every sample, and the first ones again, as samplers do that give all ranks equally many."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        batches = list(super().__iter__())
        yield from [*batches, batches[0]]


def test_samples_that_only_fill_up_are_refused() -> None:
    with pytest.raises(IntegrityError, match=r"0 were not delivered, 2 more than once, such as sample 0"):
        evaluate(Table(torch.zeros(4, 1, 4)), Padded(4, batch_size=2, shuffle=False), CPU)


def test_a_sample_left_out_is_refused() -> None:
    with pytest.raises(IntegrityError, match=r"1 were not delivered, 0 more than once$"):
        evaluate(Table(torch.zeros(5, 1, 4)), MarkedLoader(5, batch_size=2, shuffle=True), CPU)  # drops the last


def test_labels_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(InputError, match="label 3, the model has 3 classes"):
        evaluate(Table(torch.zeros(4, 1, 3)), MarkedLoader(4, num_classes=4, shuffle=False), CPU)


@pytest.mark.parametrize("channels_last", [True, False])
def test_network_input_takes_both_layouts_and_bytes(channels_last: bool) -> None:
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    for given in (images, images.movedim(1, -1).contiguous()):
        out = network_input(given, CPU, channels_last=channels_last)
        assert out.dtype is torch.float32
        assert torch.equal(out, images.float())
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert out.is_contiguous(memory_format=layout)


def test_json_leaves_the_probabilities_out() -> None:
    result = EvalResult(
        top1_error=0.5, top5_error=0.1, loss=1.0, num_samples=2, num_views=1, probabilities=torch.zeros(2, 3)
    )
    assert result.to_json() == {"top1_error": 0.5, "top5_error": 0.1, "loss": 1.0, "num_samples": 2, "num_views": 1}
