"""Which devices a network runs on."""

from __future__ import annotations

import torch

from lmdali.model.torchrun import Parallel, TorchrunPlace
from lmdali.model.towers import tower_devices
from lmdali.pipeline.errors import ConfigError, MachineError


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: the name is none of these.
        MachineError: the GPU that was asked for is not there.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda:N, found {name!r}")
    if device.type == "cpu":
        return device
    index, found = device.index or 0, torch.cuda.device_count()
    if index >= found:
        raise MachineError(
            f"{name} was asked for, this machine shows {found} GPUs to torch: use --device cpu or auto, or see what "
            "`lmdali doctor` says of it"
        )
    return torch.device("cuda", index)


def pick_devices(parallel: Parallel, device: str, devices: str, place: TorchrunPlace) -> tuple[torch.device, ...]:
    """The devices of this process: two for the towers, else one.

    Args:
        parallel: how devices share the work.
        device: see `pick_device`; of a rank `cuda` and `auto` mean the GPU with its local rank's number.
        devices: of the two towers, or of each rank of a machine by local rank: `cuda:0,cuda:1`; or empty.
        place: of this process.

    Raises:
        ConfigError: devices that do not go with this way to share the work.
        MachineError: one of them is not there.
    """
    names = [name.strip() for name in devices.split(",")] if devices else []
    if names and device != "auto":
        raise ConfigError(f"found --device {device} and --devices {devices}: give one of the two")
    if parallel == "towers":
        return tower_devices(devices or _both_towers(device))
    if parallel == "ddp":
        names = names or [_rank_device(device, place)] * place.local_world_size
        if place.local_rank >= len(names):
            raise ConfigError(f"{place.local_world_size} ranks of this machine need a device each, found {devices}")
        return (pick_device(names[place.local_rank]),)
    if names:
        raise ConfigError(f"--devices {devices} is for --parallel towers and ddp: name one device with --device")
    return (pick_device(device),)


def _rank_device(device: str, place: TorchrunPlace) -> str:
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return f"cuda:{place.local_rank}"
    if device not in ("auto", "cpu"):
        raise ConfigError(f"--device {device} would be that of every rank: name one for each with --devices, or none")
    return "cpu"


def _both_towers(device: str) -> str:
    """The two devices that `device` stands for."""
    gpus = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not gpus):
        return "cpu,cpu"
    if device not in ("auto", "cuda"):
        return f"{device},{device}"
    return "cuda:0,cuda:0" if gpus == 1 else "cuda:0,cuda:1"
