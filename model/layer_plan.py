"""From a configuration to layers: what follows what, and the shape of every weight. Both networks are built from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.layers import ResponseNorm
from lmdali.model.map_norm import MapNorm

IMAGE_SIZE_PIXELS = 224
"""Side of the input; Caffe's 227 gives the same shapes, see `weightless_steps`."""


@dataclass(frozen=True)
class LayerPlan:
    """One layer with weights, both towers together.

    Attributes:
        inputs: channels, or units of a full layer.
        outputs: likewise.
        groups: towers that do not see each other's inputs; 1 where they meet.
        kernel: side of the window; 0 for a full layer.
        stride: between windows.
        padding: zeros on each side.
        side: of the maps that come out, before pooling; 1 for a full layer.
    """

    inputs: int
    outputs: int
    groups: int = 1
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    side: int = 1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Outputs, inputs that one output sees, and the window: `(O, I, k, k)` or `(O, I)`."""
        window = (self.kernel, self.kernel) if self.kernel else ()
        return (self.outputs, self.inputs // self.groups, *window)

    @property
    def num_parameters(self) -> int:
        """Weights and biases."""
        return math.prod(self.weight_shape) + self.outputs

    def build(self) -> nn.Conv2d | nn.Linear:
        """The layer as a module, on torch's default device."""
        if not self.kernel:
            return nn.Linear(self.inputs, self.outputs)
        return nn.Conv2d(
            self.inputs, self.outputs, self.kernel, stride=self.stride, padding=self.padding, groups=self.groups
        )

    def tower(self) -> LayerPlan:
        """The half of it that one of two towers has: half the outputs, and every input that one of those sees."""
        return LayerPlan(self.weight_shape[1], self.outputs // 2, 1, self.kernel, self.stride, self.padding, self.side)


def feature_steps(config: AlexNetConfig) -> tuple[str, ...]:
    """Everything between the image and fc6 in order: layers by name, and the names of `weightless_steps`."""
    has_lrn = config.lrn_place != "none"
    first = ("norm", "pool", "relu") if config.lrn_place == "before_first_relu" else ("relu", "norm", "pool")
    second = ("relu", "norm", *(("map_norm",) if config.map_norm else ()), "pool")
    # The original pools layer 5 before its ReLU. A maximum and a ReLU commute, so that is no difference.
    stages = [("conv1", first), ("conv2", second), ("conv3", ("relu",)), ("conv4", ("relu",))]
    stages.append(("conv5", ("relu", "pool")))
    if config.sixth_layer:
        stages.append(("conv6", ("relu",)))
    steps = ["edge"]
    for layer, after in stages:
        if layer in config.drop:
            steps += ["pool"] * ("pool" in after)
        else:
            steps += [layer, *(step for step in after if has_lrn or "norm" not in step)]
    return tuple(steps)


def weightless_steps(config: AlexNetConfig, *, groups: int) -> dict[str, nn.Module]:
    """The steps without weights that `feature_steps` may name, for maps of `groups` towers.

    `edge` pads conv1's input by three pixels at the right and the bottom only: the original code rounds the number of
    windows up, so 55 windows start at 0, 4, ... 216 and the last ones reach past the edge of 224 pixels. Symmetric
    padding would shift every window. In 227 pixels the windows are the same ones and never reach the padding.
    """
    separate = config.pooling == "separate"
    steps: dict[str, nn.Module] = {
        "edge": nn.ZeroPad2d((0, 3, 0, 3)),
        "relu": nn.ReLU(inplace=True),
        "pool": nn.MaxPool2d(2, stride=2, ceil_mode=True) if separate else nn.MaxPool2d(3, stride=2),
    }
    if config.lrn_place != "none":
        size, alpha, beta, k = config.lrn_size, config.lrn_alpha, config.lrn_beta, config.lrn_k
        span = 1 if config.lrn_across_towers else groups
        steps["norm"] = ResponseNorm(span, size=size, alpha=alpha, beta=beta, k=k)
        if config.map_norm:
            steps["map_norm"] = MapNorm()
    return steps


def layer_plans(config: AlexNetConfig, *, image_size: int = IMAGE_SIZE_PIXELS) -> dict[str, LayerPlan]:
    """All layers with weights, by name, from conv1 to fc8, for images of a side in pixels."""
    widths, plans = config.widths(), {}
    separate = config.pooling == "separate"
    geometry = {  # kernel, stride, padding, grouped
        "conv1": (11, 4, 0, False),
        "conv2": (5, 1, 1 if separate else 2, True),
        "conv3": (3, 1, 1, False),
        "conv4": (3, 1, 1, True),
        "conv5": (3, 1, 0 if separate else 1, True),
        "conv6": (3, 1, 1, False),
    }
    channels, side = 3, image_size + 3  # behind `edge`
    for step in feature_steps(config):
        if step == "pool":
            side = -(-side // 2) if separate else (side - 3) // 2 + 1
        elif step in geometry:
            kernel, stride, padding, grouped = geometry[step]
            side = (side + 2 * padding - kernel) // stride + 1
            groups = config.groups if grouped else 1
            plans[step] = LayerPlan(channels, widths[step], groups, kernel, stride, padding, side)
            channels = widths[step]
    units = channels * side * side
    for name, outputs in (("fc6", widths["fc6"]), ("fc7", widths["fc7"]), ("fc8", config.num_classes)):
        plans[name] = LayerPlan(units, outputs)
        units = outputs
    return plans


def parameter_shapes(config: AlexNetConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the one-device network, by name, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, plan in layer_plans(config).items():
        shapes[f"{name}.weight"] = plan.weight_shape
        shapes[f"{name}.bias"] = (plan.outputs,)
    return shapes
