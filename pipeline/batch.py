"""The contract between a loader and whoever consumes it: `Batch` and the `Loader` protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, overload, runtime_checkable

if TYPE_CHECKING:
    import torch


class Batch(tuple):  # type: ignore[type-arg]  # two items and an attribute, see below
    """`(images, labels)` that also knows which samples it holds.

    It unpacks to two items, so `for images, labels in loader` is all that a training loop needs; `batch.indices` says
    which records of the dataset these are, without a flag that would change the tuple's length.

    Libraries that move batches themselves either call `to`, as Lightning and accelerate do, which keeps `indices`; or
    they walk the items and call the type with what they made of them (`torch.utils.data`'s pin_memory, accelerate's
    concatenate and gather): then a plain tuple `(images, labels)` comes out, whose records are not known. torch's
    pytree takes a batch for one leaf.

    Attributes:
        images: `(B * V, 3, S, S)` (or `(B * V, S, S, 3)` for layout NHWC) in the loader's dtype, RGB, 0..255 minus the
            mean where one was asked for, on the loader's device. V is 1, or 10 for ten-crop evaluation, where the
            views of one sample are adjacent.
        labels: `(B,)` int64, on the loader's device.
        indices: `(B,)` int64, on the CPU: record numbers as the manifest counts them.
    """

    indices: torch.Tensor

    @overload
    def __new__(cls, images: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> Self: ...

    @overload
    def __new__(cls, images: Iterable[Any]) -> tuple[Any, ...]: ...  # type: ignore[misc]

    def __new__(cls, images: Any, labels: Any = None, indices: Any = None) -> Any:
        if labels is None and indices is None:
            return tuple(images)
        self = super().__new__(cls, (images, labels))
        self.indices = indices
        return self

    def __getnewargs__(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (self[0], self[1], self.indices)

    @property
    def images(self) -> torch.Tensor:
        """The first item."""
        images: torch.Tensor = self[0]
        return images

    @property
    def labels(self) -> torch.Tensor:
        """The second item."""
        labels: torch.Tensor = self[1]
        return labels

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> Batch:
        """The batch on another device, for training code that places batches itself; `indices` stay on the CPU."""
        images, labels = (item.to(device, non_blocking=non_blocking) for item in self)
        return Batch(images, labels, self.indices)


@runtime_checkable
class Loader(Protocol):
    """What a trainer or evaluator may ask of a loader, whichever backend is behind it.

    One iteration is one epoch of this rank (or the rest of it, after `load_state_dict`). The loader advances its own
    epoch when an iteration is exhausted; `set_epoch` overrides that. `break`, exceptions and a second `close()` are
    all fine, and so is a second iteration, which ends the first: asked for more, that one says so.
    """

    @property
    def num_samples(self) -> int:
        """Records that an epoch delivers (all ranks together)."""
        ...

    @property
    def num_records(self) -> int:
        """Records in the dataset, whether they are delivered or not: `Batch.indices` are below it."""
        ...

    @property
    def num_views(self) -> int:
        """Views per sample: 1, or 10 for ten-crop evaluation."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names; the position is the label."""
        ...

    @property
    def manifest_digest(self) -> str:
        """Identity of the dataset, to be kept with everything computed from it."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration delivers, or that the current one is delivering."""
        ...

    @property
    def epoch_digest(self) -> int | None:
        """Digest of the samples and draws given in the epoch that is, or was last, delivered; None if not known."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int:
        """Batches that a whole epoch has on this rank: exact."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of `epoch`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is, as plain JSON-able values; what was prefetched beyond that does not count."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch the state's owner had received; any world size and batch size will do."""
        ...

    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent per stage since the loader was made, summed over threads; `wait` is the consumer's."""
        ...

    def close(self) -> None:
        """Stop threads and release shards; may be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
