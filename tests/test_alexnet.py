"""The network against the paper's layer table, its padding rule and its initialisation."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmdali.model.alexnet import INITIALISATIONS, AlexNet, AlexNetConfig
from lmdali.model.layers import ResponseNorm
from lmdali.pipeline.errors import ConfigError

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


def meta_network(**fields: object) -> AlexNet:
    """A network without storage: shapes and counts at no cost."""
    with torch.device("meta"):
        return _without_draws(AlexNetConfig(**fields))  # type: ignore[arg-type]


def _without_draws(config: AlexNetConfig) -> AlexNet:
    class Shapes(AlexNet):
        def reset_parameters(self, seed: int) -> None:
            pass

    return Shapes(config)


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


@given(st.floats(0.001, 2.0), st.integers(1, 3))
def test_any_width_gives_equal_towers(width: float, towers: int) -> None:
    widths = AlexNetConfig(width=width, towers=towers).widths().values()
    assert all(channels > 0 and channels % towers == 0 for channels in widths)


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


@pytest.mark.parametrize(
    ("init", "std", "bias"),
    [
        ("paper", [0.01] * 8, [0, 1, 0, 1, 1, 1, 1, 0]),
        ("original2012", [0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01], [0, 1, 0, 1, 1, 1, 1, 0]),
        ("caffe", [0.01] * 5 + [0.005, 0.005, 0.01], [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]),
        ("lecun", [0.01, (1 / 300) ** 0.5, (1 / 576) ** 0.5, 0, 0, 0, 0, 0.01], [0] * 8),
    ],
)
def test_initial_weights_have_the_named_spread(init: str, std: list[float], bias: list[float]) -> None:
    net = AlexNet(AlexNetConfig(width=0.25, num_classes=1000, init=init), seed=3)
    for name, want_std, want_bias in zip(LAYERS, std, bias, strict=True):
        layer = net.get_submodule(name)
        if want_std:
            tolerance = 5 * want_std / (2 * layer.weight.numel()) ** 0.5
            assert layer.weight.std().item() == pytest.approx(want_std, abs=tolerance), name
            assert abs(layer.weight.mean().item()) < 5 * want_std / layer.weight.numel() ** 0.5
        assert (layer.bias == want_bias).all(), name


def test_a_seed_fixes_the_weights() -> None:
    config = AlexNetConfig(width=1 / 48, num_classes=3)
    first, again, other = AlexNet(config, seed=1), AlexNet(config, seed=1), AlexNet(config, seed=2)
    assert torch.equal(first.conv3.weight, again.conv3.weight)
    assert not torch.equal(first.conv3.weight, other.conv3.weight)


def test_gradient_reaches_every_parameter() -> None:
    net = AlexNet(AlexNetConfig(width=0.25, num_classes=5, init="lecun", dropout=0.0))
    net(torch.randn(4, 3, 224, 224) * 70).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_evaluation_scales_both_full_layers() -> None:
    net = AlexNet(AlexNetConfig(width=1 / 48, num_classes=3, init="lecun")).eval()
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


def test_configuration_survives_json() -> None:
    config = AlexNetConfig(num_classes=10, width=0.25, init="caffe", dropout=0.3)
    assert AlexNetConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "fields", [{"num_classes": 1}, {"init": "zeros"}, {"width": 0.0}, {"towers": 0}, {"width": -1.0}]
)
def test_impossible_configurations_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        AlexNetConfig(**fields)  # type: ignore[arg-type]


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ConfigError, match="depth"):
        AlexNetConfig.from_json({"depth": 5})


def test_modules_without_weights_are_the_named_ones() -> None:
    net = meta_network()
    assert isinstance(net.norm, ResponseNorm)
    assert isinstance(net.edge, nn.ZeroPad2d)
    assert set(INITIALISATIONS) == {"paper", "original2012", "caffe", "lecun"}
