"""Loaders of other people: any iterable of batches, as something that can be profiled."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from lmdali.pipeline.batch import Batch
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools.step_probes import WARMUP_STEPS, Step

IMAGE_KEYS = ("image", "images", "pixel_values", "data", "img", "x", "jpg")
"""Names that images have in batches that are dictionaries."""

LABEL_KEYS = ("label", "labels", "target", "targets", "cls", "y")
"""Names that labels have there."""

_UNKNOWN_DEPTH = 8  # batches that a loader of an unknown kind may have ready
_EXPECTED = "expected (images, labels), images alone, or a dictionary of them"


def load_factory(name: str) -> Callable[[], Iterable[Any]]:
    """The function that `module:function` names, looked for in the current directory too.

    Raises:
        ConfigError: not such a name, or there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"--loader is {name!r}, expected module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"--loader {name}: {error}: run it where the module is, or set PYTHONPATH") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"--loader {name}: {module_name} has no function {function_name}")
    made: Callable[[], Iterable[Any]] = function
    return made


def as_batch(item: Any, device: torch.device) -> Batch:
    """Images and labels out of what a loader yields, on the device.

    Args:
        item: (images, labels, ...), images alone, a dictionary, or a list that begins with one (DALI).
        device: of the result.

    Returns:
        Images as they come and (B,) int64 labels, zeros where there are none; the records' numbers are not known: -1.

    Raises:
        InputError: nothing in it looks like a batch of images.
    """
    images, labels = _parts(item)
    try:
        pictures = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"the loader yields {type(item).__name__}: {_EXPECTED}") from None
    if pictures.ndim == 0 or len(pictures) == 0:
        raise InputError(f"the loader yields images of shape {tuple(pictures.shape)}: {_EXPECTED}")
    count = len(pictures)
    try:
        numbers = torch.zeros(count, dtype=torch.int64) if labels is None else torch.as_tensor(labels)
        if numbers.numel() != count:  # one-hot rows
            numbers = numbers.reshape(count, -1).argmax(dim=1)
    except (TypeError, ValueError, IndexError, RuntimeError):
        raise InputError(
            f"the loader yields {count} images and labels that are not one number or one row for each: make them that, "
            "or yield images alone"
        ) from None
    moved = pictures.to(device, non_blocking=True), numbers.reshape(-1).long().to(device, non_blocking=True)
    return Batch(*moved, torch.full((count,), -1))


def _parts(item: Any) -> tuple[Any, Any]:
    if isinstance(item, list) and item and isinstance(item[0], Mapping):
        item = item[0]
    if isinstance(item, Mapping):
        images = next((item[key] for key in IMAGE_KEYS if key in item), None)
        if images is None:
            raise InputError(f"the loader yields the keys {', '.join(map(str, item))}: one of {', '.join(IMAGE_KEYS)}")
        return images, next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(item, tuple) or (isinstance(item, Sequence) and item and not isinstance(item[0], int | float)):
        return (item[0], item[1] if len(item) > 1 else None) if item else (None, None)
    return item, None


class ForeignLoader:
    """Batches without an end. An iterator that ends is made again; DALI's are reset.

    Args:
        make: returns an iterable of batches; called again when that was an iterator and is used up.
        device: of the batches.

    Attributes:
        kind: class of the iterable.
        num_batches: of an epoch; None where it does not say.
        num_samples: of its dataset; None where it does not say.
        num_workers: that it says it has; None where it does not.
        depth: batches that may be ready before they are asked for.
        epoch_gaps_seconds: waits for the first batch of an epoch that followed another.
    """

    def __init__(self, make: Callable[[], Iterable[Any]], device: torch.device) -> None:
        self._make, self._device = make, device
        made: Any = make()
        if not isinstance(made, Iterable) and not hasattr(made, "__getitem__"):
            raise InputError(f"--loader gave {type(made).__name__}: expected something to iterate over")
        self._iterable: Iterable[Any] = made
        self._iterator: Iterator[Any] | None = None
        self.kind = type(self._iterable).__name__
        self.num_batches = _length(self._iterable)
        self.num_samples = _length(getattr(self._iterable, "dataset", None))
        workers = getattr(self._iterable, "num_workers", None)
        self.num_workers = workers if isinstance(workers, int) else None
        ahead = getattr(self._iterable, "prefetch_factor", None)
        self.depth = workers * (ahead or 1) if isinstance(workers, int) else _UNKNOWN_DEPTH
        self.epoch_gaps_seconds: list[float] = []
        self._seconds = {"copy": 0.0, "wait": 0.0}

    def take(self) -> Batch:
        """The next batch.

        Raises:
            InputError: it has none, not even from the start, or it is no batch of images.
        """
        start = perf_counter()
        item = self._next(start)
        waited = perf_counter()
        self._seconds["wait"] += waited - start
        batch = as_batch(item, self._device)
        if self._device.type != "cpu":  # on a CPU nothing is moved
            self._seconds["copy"] += perf_counter() - waited
        return batch

    def stage_seconds(self) -> dict[str, float]:
        """What can be seen from outside: waiting for a batch, and moving it to the device."""
        return dict(self._seconds)

    def _next(self, start: float) -> Any:
        if self._iterator is not None:
            try:
                return next(self._iterator)
            except StopIteration:
                self._begin_again()
        first = self._iterator is None
        self._iterator = iter(self._iterable)
        try:
            item = next(self._iterator)
        except StopIteration:
            raise InputError(f"the loader ({self.kind}) has no batch: look at what its factory returns") from None
        if not first:
            self.epoch_gaps_seconds.append(perf_counter() - start)
        return item

    def _begin_again(self) -> None:
        reset = getattr(self._iterable, "reset", None)
        if callable(reset):
            reset()
        elif self._iterator is self._iterable:  # an iterator or a generator: used up
            self._iterable = self._make()


def _length(thing: Any) -> int | None:
    try:
        return len(thing)
    except TypeError:  # no length, or an iterable that only pretends to have one
        return None


class ForeignProbe:
    """A `ForeignLoader`, alone or with a training step on each batch.

    Args:
        loader: goes on where the last window left it; its workers are not stopped between windows.
        step: done with each batch.
    """

    def __init__(self, loader: ForeignLoader, step: Step | None = None) -> None:
        self._loader, self._step = loader, step
        # Its workers filled their queues while others were measured: that much comes for free.
        self.warmup_steps = max(loader.depth + 1, WARMUP_STEPS)

    def run(self) -> Iterator[int]:
        """Each step is one batch."""
        while True:
            batch = self._loader.take()
            if self._step is not None:
                self._step(batch)
            yield len(batch.labels)

    def stage_seconds(self) -> dict[str, float]:
        """The loader's."""
        return self._loader.stage_seconds()
