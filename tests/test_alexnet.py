"""The network against the paper's layer table, its padding rule, and each of its relatives written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.layers import ResponseNorm

LAYERS = {  # weight shape, output shape of one image, parameters
    "conv1": ((96, 3, 11, 11), (96, 55, 55), 34_944),
    "conv2": ((256, 48, 5, 5), (256, 27, 27), 307_456),
    "conv3": ((384, 256, 3, 3), (384, 13, 13), 885_120),
    "conv4": ((384, 192, 3, 3), (384, 13, 13), 663_936),
    "conv5": ((256, 192, 3, 3), (256, 13, 13), 442_624),
    "fc6": ((4096, 9216), (4096,), 37_752_832),
    "fc7": ((4096, 4096), (4096,), 16_781_312),
    "fc8": ((1000, 4096), (1000,), 4_097_000),
}


def meta_network(**fields: Any) -> AlexNet:
    """A network without storage: shapes and counts at no cost."""
    with torch.device("meta"):
        return AlexNet(AlexNetConfig(**fields))


def output_shapes(net: AlexNet, images: torch.Tensor) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in net.named_children():
        if name in LAYERS:
            layer.register_forward_hook(
                lambda _module, _inputs, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:]))
            )
    net(images)
    return shapes


def test_the_paper_net_has_sixty_million_parameters() -> None:
    net = meta_network()
    assert sum(p.numel() for p in net.parameters()) == 60_965_224


def test_every_layer_has_the_shape_of_the_table() -> None:
    net = meta_network()
    shapes = output_shapes(net, torch.empty(1, 3, 224, 224, device="meta"))
    for name, (weight, out, parameters) in LAYERS.items():
        layer = net.get_submodule(name)
        assert tuple(layer.weight.shape) == weight
        assert shapes[name] == out
        assert sum(p.numel() for p in layer.parameters()) == parameters


def test_pools_overlap_and_end_in_six_by_six() -> None:
    net = meta_network()
    assert (net.pool.kernel_size, net.pool.stride) == (3, 2)
    assert net.features(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 256, 6, 6)


def test_multiply_accumulates_of_one_image() -> None:
    macs = 0
    for weight, out, _ in LAYERS.values():
        macs += torch.Size(weight).numel() * (out[1] * out[2] if len(out) == 3 else 1)
    assert macs == 724_406_816


def test_a_quarter_width_net_has_quarter_widths() -> None:
    net = meta_network(width=0.25, num_classes=10)
    shapes = output_shapes(net, torch.empty(2, 3, 224, 224, device="meta"))
    assert [shapes[name][0] for name in LAYERS] == [24, 64, 96, 96, 64, 1024, 1024, 10]


def test_conv1_pads_three_zeros_right_and_below_only() -> None:
    net = AlexNet(AlexNetConfig(width=1 / 48, num_classes=2))
    # A window at (y, x) = 4 * (i, j) sums the pixels it covers; those beyond 224 count as zero.
    with torch.no_grad():
        net.conv1.weight.fill_(1.0)
        net.conv1.bias.zero_()
    sums = net.conv1(net.edge(torch.ones(1, 3, 224, 224)))[0, 0]
    assert sums.shape == (55, 55)
    assert sums[0, 0].item() == 3 * 11 * 11
    assert sums[54, 0].item() == sums[0, 54].item() == 3 * 11 * 8
    assert sums[54, 54].item() == 3 * 8 * 8


def test_towers_meet_at_conv3_and_the_full_layers_only() -> None:
    net = AlexNet(AlexNetConfig(width=0.25, num_classes=4)).eval()
    images = torch.randn(1, 3, 224, 224) * 50
    net.conv1(net.edge(images))
    first = net.pool(net.norm(net.relu(net.conv1(net.edge(images)))))
    altered = first.clone()
    altered[:, :12] += 1.0
    changed = (net.conv2(first) != net.conv2(altered)).flatten(2).any(dim=2)[0]
    assert changed[:32].any()
    assert not changed[32:].any()
    assert (net.conv1.groups, net.conv2.groups, net.conv3.groups, net.conv4.groups, net.conv5.groups) == (1, 2, 1, 2, 2)


def test_normalisation_sees_responses_after_relu() -> None:
    net = AlexNet(AlexNetConfig(width=1 / 48, num_classes=2, init="lecun"))
    seen: list[torch.Tensor] = []
    net.norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    net(torch.randn(2, 3, 224, 224) * 70)
    assert len(seen) == 2
    assert all((maps >= 0).all() and (maps == 0).any() for maps in seen)


def test_flattening_is_channel_major() -> None:
    net = AlexNet(AlexNetConfig(width=1 / 48, num_classes=2))
    with torch.no_grad():
        net.fc6.weight.zero_()
        net.fc6.weight[0, 36 * 3] = 1.0  # row 0, column 0 of channel 3
        net.fc6.bias.zero_()
    images = torch.randn(1, 3, 224, 224) * 70
    maps = net.features(images).contiguous(memory_format=torch.channels_last)
    assert torch.equal(net.fc6(torch.flatten(maps, 1))[0, 0], maps[0, 3, 0, 0])


def test_a_seed_fixes_the_weights() -> None:
    config = AlexNetConfig(width=1 / 48, num_classes=3)
    first, again, other = AlexNet(config, seed=1), AlexNet(config, seed=1), AlexNet(config, seed=2)
    assert torch.equal(first.conv3.weight, again.conv3.weight)
    assert not torch.equal(first.conv3.weight, other.conv3.weight)


def test_evaluation_scales_both_full_layers() -> None:
    net = with_biases(AlexNet(AlexNetConfig(width=1 / 48, num_classes=3, init="lecun"))).eval()
    images = torch.randn(2, 3, 224, 224) * 70
    fc6 = net.relu(net.fc6(net.features(images).flatten(1))) * 0.5
    fc7 = net.relu(net.fc7(fc6)) * 0.5
    torch.testing.assert_close(net.hidden(images), fc7)
    torch.testing.assert_close(net(images), net.fc8(fc7))


def test_memory_format_does_not_change_the_answer() -> None:
    net = AlexNet(AlexNetConfig(width=0.25, num_classes=3)).eval()
    images = torch.randn(2, 3, 224, 224) * 70
    want = net(images)
    got = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_modules_without_weights_are_the_named_ones() -> None:
    net = meta_network()
    assert isinstance(net.norm, ResponseNorm)
    assert isinstance(net.edge, nn.ZeroPad2d)
    assert not hasattr(meta_network(lrn_place="none", map_norm=True), "norm")
    assert not hasattr(meta_network(lrn_place="none", map_norm=True), "map_norm")


# Every field that changes the function, at a size that runs in milliseconds.
RELATIVES: dict[str, dict[str, Any]] = {
    "original2012": {"lrn_place": "before_first_relu", "map_norm": True, "lrn_alpha": 1e-4},
    "no normalisation": {"lrn_place": "none"},
    "separate pooling": {"pooling": "separate"},
    "half": {"half_net": True},
    "Caffe": {"lrn_across_towers": True, "lrn_k": 1.0, "lrn_alpha": 1e-4},
    "six": {"sixth_layer": True},
    "without conv2": {"drop": ("conv2",), "map_norm": True},
    "without conv3": {"drop": ("conv3",)},
    "without conv4": {"drop": ("conv4",)},
    "without conv5": {"drop": ("conv5",)},
    "everything": {"sixth_layer": True, "drop": ("conv2", "conv5"), "pooling": "separate", "map_norm": True},
}


def with_biases(net: AlexNet) -> AlexNet:
    """Biases that are not zero: with zeros, what is before a layer and behind its ReLU could change places."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.5, generator=torch.Generator().manual_seed(3))
    return net


def written_out(net: AlexNet, images: Tensor) -> Tensor:
    """The network in evaluation, in functions of torch and in the order of the papers and run files."""
    config, state = net.config, dict(net.named_parameters())
    towers = 1 if config.half_net else 2

    def convolution(name: str, x: Tensor, **how: int) -> Tensor:
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **how)

    def full(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def lrn(x: Tensor) -> Tensor:
        if config.lrn_place == "none":
            return x
        parts = x.chunk(1 if config.lrn_across_towers else towers, 1)
        return torch.cat([functional.local_response_norm(p, 5, config.lrn_alpha, 0.75, config.lrn_k) for p in parts], 1)

    def pool(x: Tensor) -> Tensor:
        if config.pooling == "separate":
            return functional.max_pool2d(x, 2, 2, ceil_mode=True)
        return functional.max_pool2d(x, 3, 2)

    tight = config.pooling == "separate"
    x = convolution("conv1", functional.pad(images, (0, 3, 0, 3)), stride=4)
    x = pool(lrn(x)).relu() if config.lrn_place == "before_first_relu" else pool(lrn(x.relu()))
    if "conv2" not in config.drop:
        x = lrn(convolution("conv2", x, padding=1 if tight else 2, groups=towers).relu())
        if config.map_norm and config.lrn_place != "none":
            x = x / (1 + 1e-3 * functional.avg_pool2d(x * x, 5, 1, 2)) ** 0.75
    x = pool(x)
    if "conv3" not in config.drop:
        x = convolution("conv3", x, padding=1).relu()
    if "conv4" not in config.drop:
        x = convolution("conv4", x, padding=1, groups=towers).relu()
    if "conv5" not in config.drop:
        x = convolution("conv5", x, padding=0 if tight else 1, groups=towers).relu()
    x = pool(x)
    if config.sixth_layer:
        x = convolution("conv6", x, padding=1).relu()
    x = full("fc6", x.flatten(1)).relu() * 0.5
    return full("fc8", full("fc7", x).relu() * 0.5)


@pytest.mark.parametrize("name", RELATIVES)
def test_each_relative_is_the_function_it_is_named_after(name: str) -> None:
    net = with_biases(AlexNet(AlexNetConfig(width=1 / 24, num_classes=5, init="lecun", **RELATIVES[name])))
    net.double().eval()
    images = torch.randn(2, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 70
    with torch.no_grad():
        torch.testing.assert_close(net(images), written_out(net, images), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["as printed", *RELATIVES])
def test_gradient_reaches_every_parameter(name: str) -> None:
    relative = RELATIVES.get(name, {})
    net = AlexNet(AlexNetConfig(width=1 / 8, num_classes=5, init="lecun", dropout=0.0, **relative))
    net(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2)) * 70).square().sum().backward()
    unreached = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not unreached


def test_the_separate_pooling_has_the_map_sizes_of_run_147() -> None:
    net = meta_network(pooling="separate")
    sides: list[int] = []
    net.pool.register_forward_hook(lambda _module, _inputs, out: sides.append(out.shape[2]))
    shapes = output_shapes(net, torch.empty(1, 3, 224, 224, device="meta"))
    assert [shapes[name][1] for name in ("conv1", "conv2", "conv3", "conv4", "conv5")] == [55, 26, 13, 13, 11]
    assert sides == [28, 13, 6]


def test_a_sixth_layer_that_is_the_identity_changes_nothing() -> None:
    fields: dict[str, Any] = {"width": 1 / 16, "num_classes": 5, "init": "lecun"}
    five = AlexNet(AlexNetConfig(**fields)).eval()
    six = AlexNet(AlexNetConfig(sixth_layer=True, **fields), seed=1).eval()
    with torch.no_grad():
        missing, unexpected = six.load_state_dict(five.state_dict(), strict=False)
        nn.init.dirac_(six.conv6.weight)  # a one in the centre of the window of its own map
        six.conv6.bias.zero_()
    assert (missing, unexpected) == (["conv6.weight", "conv6.bias"], [])
    images = torch.randn(2, 3, 224, 224) * 70
    # Behind a pooling of rectified maps nothing is negative, and a ReLU has nothing left to do.
    assert torch.equal(six(images), five(images))


def test_caffes_crop_of_227_pixels_meets_the_same_windows() -> None:
    net = AlexNet(AlexNetConfig(width=1 / 16, num_classes=5, init="lecun")).eval()
    images = torch.randn(2, 3, 224, 224) * 70
    bordered = functional.pad(images, (0, 3, 0, 3))
    torch.testing.assert_close(net(bordered), net(images))
    bordered[:, :, 226, 226] = 1e4  # the last pixel of the last window
    assert not torch.allclose(net(bordered), net(images))
    assert meta_network().features(torch.empty(1, 3, 227, 227, device="meta")).shape == (1, 256, 6, 6)


def test_dropout_follows_the_configured_rule() -> None:
    net = meta_network(dropout=0.25, dropout_rule="scale_only")
    assert (net.dropout.rate, net.dropout.rule) == (0.25, "scale_only")
