"""The convolutional part of the network on a GPU in few passes over memory: the same function as its steps in turn.

A convolution, what follows it up to the pooling, and the pooling are one kernel each; conv1 sees blocks of 4x4 pixels;
and the towers are separate tensors from conv1 on, because two convolutions are faster than one of two groups. On an
H100, per image in a training step with bfloat16: normalisation 51 microseconds before and 4 after, conv1 11 and 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.layer_plan import LayerPlan, feature_steps, layer_plans
from lmdali.pipeline.gpu_kernels import takes_kernels

_BLOCK_PIXELS = 4
"""Stride of conv1, and side of its blocks; three of them hold its 11 pixels."""


def suits(model: nn.Module, images: Tensor) -> bool:
    """Whether `features` may stand in: on a GPU with Triton, channels last, and no gradient of the images wanted."""
    if images.requires_grad or not takes_kernels(images):
        return False
    return model.get_parameter("conv1.weight").is_contiguous(memory_format=torch.channels_last)


def features(model: nn.Module, config: AlexNetConfig, images: Tensor) -> Tensor:
    """What `AlexNet.features` returns, computed from the same parameters, with gradients for them.

    Args:
        model: has the parameters and the modules that `feature_steps` names.
        config: of the network.
        images: `(B, 3, S, S)` on a GPU, any floating dtype and layout.

    Returns:
        `(B, C, 6, 6)` in the autocast dtype, or that of the images.
    """
    autocast = torch.is_autocast_enabled(images.device.type)
    dtype = torch.get_autocast_dtype(images.device.type) if autocast else images.dtype
    walk = _Walk(model, config, dtype, len(images))
    steps = list(feature_steps(config))[1:]  # what is past the edge, `blocked_images` takes for zeros
    towers = [images]  # one tensor each, or one with the towers one behind the other
    while steps:
        step = steps.pop(0)
        if step in walk.plans:
            rectify = steps[:1] == ["relu"]
            del steps[: int(rectify)]
            normalise = steps[:1] == ["norm"]
            del steps[: int(normalise)]
            towers = walk.layer(step, towers, rectify=rectify, normalise=normalise)
        elif step == "pool":
            towers = [walk.pool(maps) for maps in towers]
        else:
            towers = [model.get_submodule(step)(maps) for maps in towers]
    towers = walk.apart(towers)
    return torch.cat(towers, 1) if len(towers) > 1 else towers[0]


class _Walk:
    """One network's layers, for towers that are separate tensors."""

    def __init__(self, model: nn.Module, config: AlexNetConfig, dtype: torch.dtype, batch: int) -> None:
        from lmdali.model.activation_kernel import Activation, NormConstants  # Triton is there by now
        from lmdali.model.pool_kernel import MaxPool, blocked_images

        self.plans = layer_plans(config)
        self._model, self._config, self._dtype = model, config, dtype
        self._batch = batch
        self._activate: Callable[..., Tensor] = Activation.apply
        self._max_pool: Callable[[Tensor], Tensor] = MaxPool.apply
        self._blocked = blocked_images
        self._norm = NormConstants(config.lrn_size, config.lrn_alpha, config.lrn_beta, config.lrn_k)

    def layer(self, name: str, towers: list[Tensor], *, rectify: bool, normalise: bool) -> list[Tensor]:
        """Convolution, bias, and the steps behind it; one tensor per tower, or one where sums cross the seam."""
        plan, config = self.plans[name], self._config
        weight = self._model.get_parameter(f"{name}.weight")
        bias = self._model.get_parameter(f"{name}.bias")
        norm = self._norm if normalise else None
        whole = normalise and config.lrn_across_towers
        if name == "conv1":
            maps = self._first(towers[0], weight, plan)
            return [self._activate(maps, bias, norm, rectify, 1 if whole else config.groups)]
        maps_of = self._convolve(self.apart(towers), weight, plan)
        if whole or len(maps_of) == 1:
            joined = torch.cat(maps_of, 1) if len(maps_of) > 1 else maps_of[0]
            return [self._activate(joined, bias, norm, rectify, 1)]
        return [
            self._activate(maps, part, norm, rectify, 1)
            for maps, part in zip(maps_of, bias.chunk(len(maps_of)), strict=True)
        ]

    def apart(self, towers: list[Tensor]) -> list[Tensor]:
        """Towers that lie one behind the other as a tensor each; until now they shared every pass."""
        if len(towers) == 1 and len(towers[0]) > self._batch:
            return list(towers[0].chunk(len(towers[0]) // self._batch))
        return towers

    def pool(self, maps: Tensor) -> Tensor:
        """The network's pooling."""
        if self._config.pooling == "separate":
            pooled: Tensor = self._model.get_submodule("pool")(maps)
            return pooled
        return self._max_pool(maps)

    def _first(self, images: Tensor, weight: Tensor, plan: LayerPlan) -> Tensor:
        outputs = (images.shape[-1] - 2 * _BLOCK_PIXELS) // _BLOCK_PIXELS + 1
        blocks = self._blocked(images, outputs + 2, self._dtype)
        spread = functional.pad(weight, (0, 1, 0, 1)).reshape(plan.outputs, 3, 3, 4, 3, 4).permute(0, 3, 5, 1, 2, 4)
        dense = spread.reshape(plan.outputs, 48, 3, 3).contiguous(memory_format=torch.channels_last)
        return functional.conv2d(blocks, dense)

    def _convolve(self, towers: list[Tensor], weight: Tensor, plan: LayerPlan) -> list[Tensor]:
        groups = self._config.groups
        if plan.groups == 1:
            joined = torch.cat(towers, 1) if len(towers) > 1 else towers[0]
            inputs = [joined] * groups
        elif len(towers) == 1 and groups > 1:
            inputs = [part.contiguous(memory_format=torch.channels_last) for part in towers[0].chunk(groups, 1)]
        else:
            inputs = towers
        return [
            functional.conv2d(maps, part, padding=plan.padding)
            for maps, part in zip(inputs, weight.chunk(groups), strict=True)
        ]
