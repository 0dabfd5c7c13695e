"""The processes that train one network together: how they find each other, and what they tell each other.

Every rank has the whole network and its part of each global batch. Gradients are averaged while they are computed
(`DistributedDataParallel`), so all ranks make the same update and their weights stay equal without being sent. Besides
that there is one small sum per step, of the figures and of what a rank wants all others to do.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lmdali.model.torchrun import TorchrunPlace
from lmdali.pipeline.errors import LmdaliError, MachineError
from lmdali.pipeline.rank_agreement import process_group_gather, require_agreement

RANK_TIMEOUT_SECONDS = 600.0
"""How long a rank waits for the others, unless somebody says otherwise."""

T = TypeVar("T")
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOST = ("gloo", "nccl", "pair closure", "tcpstore", "connection")
"""Words of the errors that a broken process group raises: gloo's are plain RuntimeErrors."""


@dataclass(frozen=True)
class Notice:
    """What a rank wants all ranks to do after the same step.

    Attributes:
        stopped_by: number of the signal that it received, or None.
        save_is_due: a checkpoint is due by the clock, which differs between ranks; rank 0's counts.
    """

    stopped_by: int | None = None
    save_is_due: bool = False


@dataclass(frozen=True)
class StepOutcome:
    """A step's means over the global batch, the same on every rank, and what any rank wants (of others only)."""

    loss: float
    top1_error: float
    top5_error: float
    notice: Notice


class SharedFigures:
    """A step's figures, on their way to all ranks and to the host.

    Args:
        sums: over ranks: the three figures, and, with several ranks, a wish to save and one for each signal.
        world_size: how many ranks they are of.
        work: the sum, under way; None for one rank.
        stream: of a GPU; on it the copy waits for the other ranks while the next step does not.
    """

    def __init__(
        self, sums: Tensor, world_size: int, work: distributed.Work | None, stream: torch.cuda.Stream | None
    ) -> None:
        self._sums, self._world_size, self._work = sums, world_size, work
        self._copied: torch.cuda.Event | None = None
        if stream is not None:
            with torch.cuda.stream(stream):
                if work is not None:
                    work.wait()  # this stream does, not this process
                # Read later without such a copy, they would be waited for behind the step that comes next.
                self._sums = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
                self._sums.copy_(sums, non_blocking=True)
                # Waited for asleep: a wait spins by default, on a processor that the loader could decode with.
                self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                self._copied.record()
            self._source = sums  # its memory must not be used again before that

    def wait(self) -> StepOutcome:
        """Wait for the device, and for the other ranks."""
        if self._copied is not None:
            self._copied.synchronize()
        elif self._work is not None:
            self._work.wait()
        loss, top1, top5, *wishes = self._sums.tolist()
        notice = Notice()
        if wishes:
            received = [number for number, count in zip(_STOP_SIGNALS, wishes[1:], strict=True) if count]
            notice = Notice(max(received, default=None), wishes[0] > 0)
        return StepOutcome(loss / self._world_size, top1 / self._world_size, top5 / self._world_size, notice)


class Ranks:
    """All processes of a job, as one of them sees them; without others, each method does its work in this one alone.

    Every method but the properties is called by all ranks, in the same order.

    Args:
        rank: this process, 0 to world_size - 1.
        world_size: their number. With more than one there must be a process group, see `process_group`.
        device: where this rank's tensors are.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self._stream: torch.cuda.Stream | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what the job leaves behind."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What each rank gave, by rank; any value that can be pickled."""
        if self.world_size == 1:
            return [value]
        ask = process_group_gather(self.world_size, self.device)
        assert ask is not None, "several ranks have a process group"
        return [cast(T, one["value"]) for one in ask({"value": value})]

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Compare with the other ranks what must be equal on all of them; see `require_agreement`.

        Raises:
            ConfigError: on every rank, if any differs: names each rank's value.
        """
        if self.world_size > 1:
            require_agreement(self.rank, facts, self.gather)

    def on_first(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 alone; every rank gets its result, once it is done.

        Raises:
            LmdaliError: on every rank, if the action raised it.
        """
        if self.world_size == 1:
            return action()
        result: T | None = None
        error: LmdaliError | None = None
        if self.is_first:
            try:
                result = action()
            except LmdaliError as caught:
                error = caught
        # Not a broadcast: its bytes would have to be on the right device, which `gather` takes care of.
        result, error = self.gather((result, error))[0]
        if error is not None:
            raise error
        return cast(T, result)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of a tensor of equal shape and dtype, on the same device as given."""
        if self.world_size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(tensor.device)

    def share(self, figures: Tensor, notice: Notice) -> SharedFigures:
        """Send a step's figures on their way to all ranks; nothing is waited for.

        Args:
            figures: `(3,)` loss, top-1 and top-5 error, means over this rank's equal part of the global batch.
            notice: what this rank wants; of no use without others.
        """
        on_gpu = figures.device.type == "cuda"
        if self.world_size == 1:
            # The step's own stream: its next run may write where these figures are.
            stream = torch.cuda.current_stream(figures.device) if on_gpu else None
            return SharedFigures(figures, 1, None, stream)
        wishes = torch.zeros(1 + len(_STOP_SIGNALS), dtype=torch.float64, device=figures.device)
        if notice.save_is_due and self.is_first:
            wishes[0] = 1
        if notice.stopped_by in _STOP_SIGNALS:
            wishes[1 + _STOP_SIGNALS.index(notice.stopped_by)] = 1
        sums = torch.cat([figures.double(), wishes])
        if on_gpu and self._stream is None:
            self._stream = torch.cuda.Stream(figures.device)  # type: ignore[no-untyped-call]
        return SharedFigures(sums, self.world_size, distributed.all_reduce(sums, async_op=True), self._stream)

    def agreed_signal(self, received: int | None) -> int | None:
        """The signal that any rank received, SIGTERM before SIGINT, or None."""
        return max((number for number in self.gather(received) if number is not None), default=None)

    def averaging(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are averaged over all ranks; its weights become those of rank 0."""
        if self.world_size == 1:
            return network
        on_gpu = self.device.type == "cuda"
        averaging = DistributedDataParallel(
            network,
            device_ids=[self.device.index] if on_gpu else None,
            gradient_as_bucket_view=True,
            static_graph=True,
        )
        if not on_gpu:
            # torch looks at a hook's annotations, and does not take ones that are text: a lambda has none.
            averaging.register_comm_hook(None, lambda state, bucket: _average_one_by_one(bucket))
        return averaging


def _average_one_by_one(bucket: Any) -> torch.futures.Future[Tensor]:
    """Average each parameter's gradient by itself, so that a sum's order does not depend on what shares its bucket.

    gloo adds up three and more ranks in an order that follows an element's place, and buckets are other ones in a
    session's first step than later: a resumed run would not be the undisturbed one to the bit.
    """
    bucket.buffer().div_(distributed.get_world_size())
    sums = [distributed.all_reduce(gradient, async_op=True).get_future() for gradient in bucket.gradients()]
    return torch.futures.collect_all(sums).then(lambda done: (done.wait(), bucket.buffer())[1])


@contextmanager
def process_group(
    place: TorchrunPlace, device: torch.device, *, timeout_seconds: float = RANK_TIMEOUT_SECONDS
) -> Iterator[Ranks]:
    """Meet the other ranks where torchrun's environment says: by NCCL on a GPU, by gloo on a CPU.

    Inside of another one, or of one that the caller made, the ranks have met, and do not part at this one's end.

    Args:
        place: of this process.
        device: where it trains; on a machine with several GPUs each process must have its own.
        timeout_seconds: how long a rank waits for the others before it gives the job up.

    Raises:
        MachineError: another rank ended, or could not be reached in time.
    """
    if place.world_size == 1:
        yield Ranks(device=device)
        return
    if distributed.is_initialized():
        yield Ranks(place.rank, place.world_size, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    sound = False
    try:
        distributed.init_process_group(
            backend,
            timeout=timedelta(seconds=timeout_seconds),
            device_id=device if device.type == "cuda" else None,
        )
        yield Ranks(place.rank, place.world_size, device)
        sound = True
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise MachineError(
            f"rank {place.rank} of {place.world_size} lost the others, which ended or did not answer for "
            f"{timeout_seconds:g} s ({_first_line(error)}): see what they said before, then continue with --resume"
        ) from error
    finally:
        # NCCL waits for all ranks here. After an error there may be none, and this process is about to end anyway.
        if distributed.is_initialized() and (sound or backend == "gloo"):
            distributed.destroy_process_group()


def _is_loss(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in _LOST)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
