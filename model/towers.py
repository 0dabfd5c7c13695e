"""The network as the paper ran it (section 3.5): each tower on a device of its own, in one process."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.dropout import Dropout
from lmdali.model.initialisation import initial_parameters
from lmdali.model.layer_plan import feature_steps, layer_plans, parameter_shapes, weightless_steps
from lmdali.pipeline.errors import ConfigError, InputError, MachineError

_HEAD = "fc8"
"""The layer that is whole, on the first device, as in the original."""


class TowerAlexNet(nn.Module):
    """The two halves of `AlexNet` on two devices; they are the same function, from the same seed.

    The first device has the first half of each layer's outputs, and fc8. Activations cross before the layers that read
    both towers: conv3, conv6, fc6 and fc7 in both directions, fc8 to the first device. Everything else, backward
    included, is independent work of the two devices. Both transfers of a crossing are queued before the work that
    follows on either side, so that neither waits behind the other device's next layer.

    Dropout masks are drawn for whole layers on the first device and the second's half is sent over, one byte per unit:
    the masks are those of the one-device network with the same generator state, and one generator needs saving.

    Parameters are called `<layer>.a.weight` and `<layer>.b.weight`; `split_state` and `merge_state` translate. Move
    nothing with `.to(device)`; `.to(memory_format=...)` and `.double()` are fine.

    Args:
        config: see `AlexNetConfig`.
        devices: of the first and the second tower; they may be the same.
        seed: the initial weights are a function of `config` and `seed` alone, and those of `AlexNet`.

    Raises:
        ConfigError: the configuration does not have two towers that could be told apart.
    """

    relu: nn.ReLU

    def __init__(self, config: AlexNetConfig, devices: tuple[torch.device, torch.device], *, seed: int = 0) -> None:
        super().__init__()
        _require_two_towers(config)
        self.config, self.devices = config, devices
        plans = layer_plans(config)
        for name, plan in plans.items():
            if name == _HEAD:
                with devices[0]:
                    self.add_module(name, nn.ModuleDict({"a": plan.build()}))
            else:
                halves = {}
                for tower, device in zip("ab", devices, strict=True):
                    with device:
                        halves[tower] = plan.tower().build()
                self.add_module(name, nn.ModuleDict(halves))
        for name, step in weightless_steps(config, groups=1).items():
            self.add_module(name, step)
        self.dropout = Dropout(config.dropout, config.dropout_rule)
        self._steps = feature_steps(config)
        self._meeting = {name for name, plan in plans.items() if plan.groups == 1 and name != "conv1"}
        self._units = {name: plan.outputs for name, plan in plans.items() if not plan.kernel}
        self.reset_parameters(seed)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)` on the first device of `(B, 3, 224, 224)` images there."""
        logits: Tensor = self.get_submodule(f"{_HEAD}.a")(self.hidden(images))
        return logits

    def hidden(self, images: Tensor) -> Tensor:
        """Activations of fc7 `(B, 4096 * width)` on the first device, as `AlexNet.hidden` has them."""
        halves = (images, self.transfer(images, self.devices[1]))
        for name in self._steps:
            halves = self._step(name, halves)
        halves = (torch.flatten(halves[0], 1), torch.flatten(halves[1], 1))
        for name in ("fc6", "fc7"):
            masks = self._masks(len(images), self._units[name])
            halves = self._step("relu", self._step(name, halves))
            halves = (self.dropout.masked(halves[0], masks[0]), self.dropout.masked(halves[1], masks[1]))
        return torch.cat([halves[0], self.transfer(halves[1], self.devices[0])], 1)

    def transfer(self, tensor: Tensor, device: torch.device) -> Tensor:
        """`tensor` on `device`: the only way from one tower to the other, for images, activations and masks."""
        # A copy to the CPU that does not block would be read before it is there.
        return tensor.to(device, non_blocking=device.type == "cuda")

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw fresh weights according to `config.init`: the whole layer's, then divided."""
        shapes = {name: plan.weight_shape for name, plan in layer_plans(self.config).items()}
        for name, value in initial_parameters(self.config.init, shapes, seed):
            for half_name, half in split_state({name: value}, self.config).items():
                self.get_parameter(half_name).copy_(half)

    def _step(self, name: str, halves: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if name in self._meeting:
            first, second = halves
            from_second, from_first = self.transfer(second, self.devices[0]), self.transfer(first, self.devices[1])
            halves = (torch.cat([first, from_second], 1), torch.cat([from_first, second], 1))
        step = self.get_submodule(name)
        if isinstance(step, nn.ModuleDict):
            return step["a"](halves[0]), step["b"](halves[1])
        return step(halves[0]), step(halves[1])

    def _masks(self, batch: int, units: int) -> tuple[Tensor | None, Tensor | None]:
        mask = self.dropout.draw(torch.Size((batch, units)), self.devices[0])
        if mask is None:
            return None, None
        return mask[:, : units // 2], self.transfer(mask[:, units // 2 :], self.devices[1])


def split_state(single: Mapping[str, Tensor], config: AlexNetConfig) -> dict[str, Tensor]:
    """Tensors of the one-device network as those of `TowerAlexNet`, each half a copy of its own.

    Args:
        single: weights, biases or anything else of their shapes (velocities), by parameter name; not all need be there.
        config: of the network.

    Raises:
        ConfigError: the network cannot be two towers.
        InputError: a name or shape is not the network's.
    """
    _require_two_towers(config)
    shapes = parameter_shapes(config)
    halves: dict[str, Tensor] = {}
    for name, tensor in single.items():
        if tuple(tensor.shape) != shapes.get(name):
            raise InputError(
                f"{name} of shape {tuple(tensor.shape)} cannot be divided into towers, the network has "
                f"{shapes.get(name, 'no such parameter')}: use the configuration that it was made with"
            )
        layer, _, kind = name.partition(".")
        if layer == _HEAD:
            halves[f"{layer}.a.{kind}"] = tensor.detach().clone()
        else:
            first, second = tensor.detach().chunk(2)
            halves[f"{layer}.a.{kind}"], halves[f"{layer}.b.{kind}"] = first.clone(), second.clone()
    return halves


def merge_state(towers: Mapping[str, Tensor], config: AlexNetConfig) -> dict[str, Tensor]:
    """Inverse of `split_state`: copies on the CPU in the one-device layout and order.

    Raises:
        ConfigError: the network cannot be two towers.
        InputError: a name or shape is not the network's, or a tower's half is missing.
    """
    _require_two_towers(config)
    left, single = dict(towers), {}
    for name, shape in parameter_shapes(config).items():
        layer, _, kind = name.partition(".")
        wanted = [f"{layer}.{tower}.{kind}" for tower in ("a" if layer == _HEAD else "ab")]
        found = [left.pop(half) for half in wanted if half in left]
        if not found:
            continue
        # .cpu() alone would hand out the module's own memory where that is the CPU's.
        whole = torch.cat([half.detach().cpu() for half in found])
        if len(found) < len(wanted) or tuple(whole.shape) != shape:
            raise InputError(
                f"{name} of shape {shape} cannot be put together from {' and '.join(wanted)}: "
                f"found {', '.join(str(tuple(half.shape)) for half in found)}"
            )
        single[name] = whole
    if left:
        raise InputError(f"{', '.join(left)}: not parameters of the two towers of this network")
    return single


def _require_two_towers(config: AlexNetConfig) -> None:
    if config.half_net:
        raise ConfigError("the half network is one tower: train it on one device")
    if config.towers != 2:
        raise ConfigError(f"two devices are for two towers, found towers {config.towers}: use 2, or one device")
    if config.lrn_across_towers:
        raise ConfigError("a normalisation across towers needs both on one device: leave lrn_across_towers off")


def tower_devices(text: str) -> tuple[torch.device, torch.device]:
    """The devices of two towers: `cuda:0,cuda:1`, `cuda:0,cuda:0`, or `cpu,cpu`.

    Raises:
        ConfigError: the text is no such pair.
        MachineError: the machine has fewer GPUs than that.
    """
    try:
        found = [torch.device(part.strip()) for part in text.split(",")]
    except RuntimeError:
        found = []
    kinds = {device.type for device in found}
    if len(found) != 2 or kinds not in ({"cpu"}, {"cuda"}):
        raise ConfigError(f"two towers need two devices of a kind, such as cuda:0,cuda:1 or cpu,cpu, found {text!r}")
    if kinds == {"cpu"}:
        return torch.device("cpu"), torch.device("cpu")
    first, second = (device.index or 0 for device in found)
    count = torch.cuda.device_count()
    if max(first, second) >= count:
        names = ", ".join(f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(count))
        raise MachineError(
            f"{text} was asked for, this machine shows {count} GPUs to torch{f' ({names})' if names else ''}: "
            f"use {'cuda:0,cuda:0' if count else 'cpu,cpu'} or one device"
        )
    return torch.device("cuda", first), torch.device("cuda", second)
