"""Two towers against the one-device network, and every crossing between them counted."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_alexnet_config import CONFIGS
from torch import Tensor, nn

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.layer_plan import parameter_shapes
from lmdali.model.towers import TowerAlexNet, merge_state, split_state, tower_devices
from lmdali.pipeline.errors import ConfigError, InputError, MachineError

CPU, META = torch.device("cpu"), torch.device("meta")
RELATIVES: dict[str, dict[str, Any]] = {
    "as printed": {},
    "original2012": {"lrn_place": "before_first_relu", "map_norm": True, "lrn_alpha": 1e-4},
    "no normalisation": {"lrn_place": "none"},
    "separate pooling": {"pooling": "separate"},
    "six": {"sixth_layer": True},
    "without conv2": {"drop": ("conv2",)},
    "without conv3": {"drop": ("conv3",)},
    "without conv5, with conv6": {"drop": ("conv5",), "sixth_layer": True},
}
by_relative = pytest.mark.parametrize("name", RELATIVES)


def small(**fields: Any) -> AlexNetConfig:
    return AlexNetConfig(**{"width": 1 / 16, "num_classes": 5, "init": "lecun", **fields})


def images(batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 3, 224, 224, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 70


def gradients(net: AlexNet | TowerAlexNet, x: Tensor) -> dict[str, Tensor]:
    net(x).square().sum().backward()
    found = {name: p.grad for name, p in net.named_parameters()}
    assert all(grad is not None for grad in found.values())
    return found  # type: ignore[return-value]


@by_relative
def test_towers_begin_with_the_weights_of_the_one_device_network(name: str) -> None:
    config = small(**RELATIVES[name])
    single, towers = AlexNet(config, seed=3), TowerAlexNet(config, (CPU, CPU), seed=3)
    merged = merge_state(towers.state_dict(), config)
    assert list(merged) == list(single.state_dict())
    assert all(torch.equal(merged[key], value) for key, value in single.state_dict().items())


@by_relative
def test_towers_are_the_same_function_with_the_same_gradient(name: str) -> None:
    config = small(dropout=0.5, **RELATIVES[name])
    single = AlexNet(config, seed=3).double().eval()
    towers = TowerAlexNet(config, (CPU, CPU), seed=3).double().eval()
    with torch.no_grad():
        assert (towers(images()) - single(images())).abs().max() < 1e-12
    want, got = gradients(single, images()), merge_state(gradients(towers, images()), config)
    assert list(got) == list(want)
    for key, grad in want.items():
        assert (got[key] - grad).abs().max() <= 1e-12 * grad.abs().max()


@pytest.mark.parametrize("rule", ["paper", "inverted", "scale_only"])
def test_training_drops_the_same_units(rule: str) -> None:
    config = small(dropout_rule=rule, dropout=0.3)
    single = AlexNet(config, seed=3).double().train()
    towers = TowerAlexNet(config, (CPU, CPU), seed=3).double().train()
    torch.manual_seed(11)
    want = gradients(single, images())
    after = torch.get_rng_state()
    torch.manual_seed(11)
    got = merge_state(gradients(towers, images()), config)
    assert torch.equal(torch.get_rng_state(), after)
    for key, grad in want.items():
        assert (got[key] - grad).abs().max() <= 1e-12 * grad.abs().max()


def test_wiring_is_exact_with_small_integers() -> None:
    # Without normalisation every sum is of integers below 2**24, so any other wiring would show as another integer.
    config = small(lrn_place="none", dropout=0.0)
    single, towers = AlexNet(config), TowerAlexNet(config, (CPU, CPU))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in single.parameters():
            # Mostly zeros, so that sums stay small; the chance of a one keeps each fan-in at a few.
            ones = torch.rand(weight.shape, generator=generator) < 6 / max(weight[0].numel(), 6)
            weight.copy_(ones * torch.randint(-1, 3, weight.shape, generator=generator))
    towers.load_state_dict(split_state(single.state_dict(), config))
    x = torch.randint(-2, 3, (2, 3, 224, 224), generator=generator).float()
    units, logits = single.hidden(x), single(x)
    assert units.abs().max() < 2**24 and len(units.unique()) > 10
    assert torch.equal(towers.hidden(x), units)
    assert torch.equal(towers(x), logits)


class Crossings:
    """Stands in for `transfer` where the second device has no memory: values are lost, places are not."""

    def __init__(self, missing: int | None = None) -> None:
        self.elements: list[int] = []
        self.missing = missing

    def __call__(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.elements.append(tensor.numel() // len(tensor))
        if self.missing == len(self.elements) - 1:
            return tensor
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)


def require_own_device(layer: nn.Module, inputs: tuple[Tensor]) -> None:
    """torch 2.13 convolves CPU maps with weights that have no memory, and says nothing."""
    if layer.get_parameter("weight").device != inputs[0].device:
        raise RuntimeError("a layer on meta was given maps on the CPU, or the other way round")


def cross(monkeypatch: pytest.MonkeyPatch, crossings: Crossings, *, training: bool = False, **fields: Any) -> list[int]:
    net = TowerAlexNet(AlexNetConfig(num_classes=4, **fields), (CPU, META)).train(training)
    monkeypatch.setattr(net, "transfer", crossings)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(require_own_device)
    with torch.no_grad():
        logits = net(torch.zeros(1, 3, 224, 224))
    assert (logits.device, logits.shape) == (CPU, (1, 4))
    return crossings.elements


def test_what_crosses_at_full_width_is_known_to_the_element(monkeypatch: pytest.MonkeyPatch) -> None:
    # Per image: the image itself, conv3's other half of pool2 for each, fc6's of pool5, fc7's of fc6, and fc8's of fc7.
    crossed = cross(monkeypatch, Crossings())
    assert crossed == [150_528, 21_632, 21_632, 4_608, 4_608, 2_048, 2_048, 2_048]
    assert sum(crossed[1:]) == 58_624


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"sixth_layer": True}, [9408, 1352, 1352, 288, 288, 288, 288, 128, 128, 128]),
        ({"drop": ("conv3",)}, [9408, 288, 288, 128, 128, 128]),
        # Each mask crosses before the layer that it is for.
        ({"training": True}, [9408, 1352, 1352, 128, 288, 288, 128, 128, 128, 128]),
    ],
)
def test_what_crosses_in_the_relatives(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], want: list[int]
) -> None:
    crossed = cross(monkeypatch, Crossings(), width=1 / 16, **fields)
    assert crossed[0] == 150_528
    assert crossed[1:] == want[1:]


@pytest.mark.parametrize("missing", range(10))
def test_each_missing_copy_is_noticed(monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        cross(monkeypatch, Crossings(missing), training=True, width=1 / 16)


def test_both_halves_are_queued_before_either_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    net = TowerAlexNet(small(), (CPU, CPU)).eval()
    events: list[str] = []
    monkeypatch.setattr(net, "transfer", lambda tensor, device: events.append("transfer") or tensor)
    for name in ("conv3", "fc6", "fc7"):
        for tower in "ab":
            net.get_submodule(f"{name}.{tower}").register_forward_pre_hook(
                lambda _module, _inputs, where=f"{name}.{tower}": events.append(where)
            )
    net(images(1, torch.float32))
    assert " ".join(events[1:-1]) == " ".join(
        f"transfer transfer {name}.a {name}.b" for name in ("conv3", "fc6", "fc7")
    )


@given(CONFIGS.filter(lambda config: not config.half_net and not config.lrn_across_towers), st.randoms())
@settings(deadline=None, max_examples=30)
def test_dividing_loses_nothing(config: AlexNetConfig, random: Any) -> None:
    config = dataclasses.replace(config, towers=2, width=1 / 48, num_classes=3)
    generator = torch.Generator().manual_seed(random.randrange(1000))
    # Not all need be there: velocities of frozen layers are not.
    state = {
        name: torch.randn(shape, generator=generator)
        for name, shape in parameter_shapes(config).items()
        if random.random() < 0.8
    }
    before = {name: tensor.clone() for name, tensor in state.items()}
    towers = split_state(state, config)
    merged = merge_state(dict(reversed(towers.items())), config)
    assert list(merged) == list(state)
    assert all(torch.equal(merged[name], tensor) for name, tensor in state.items())
    for tensor in (*towers.values(), *merged.values()):
        tensor.add_(1.0)  # everything is a copy
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    again = split_state(before, config)
    assert all(torch.equal(again[name] + 1.0, tensor) for name, tensor in towers.items())


def test_a_state_fits_the_modules_in_both_directions() -> None:
    config = small(sixth_layer=True)
    single, towers = AlexNet(config, seed=1), TowerAlexNet(config, (CPU, CPU), seed=2)
    towers.load_state_dict(split_state(single.state_dict(), config), strict=True)
    assert torch.equal(towers.get_parameter("conv4.b.weight"), single.conv4.weight[12:])
    assert torch.equal(towers.get_parameter("fc8.a.weight"), single.fc8.weight)
    other = AlexNet(config, seed=3)
    other.load_state_dict(merge_state(towers.state_dict(), config), strict=True)
    assert torch.equal(other.fc7.weight, single.fc7.weight)


def test_both_layouts_have_as_many_parameters() -> None:
    config = AlexNetConfig()
    meta = {name: torch.empty(shape, device=META) for name, shape in parameter_shapes(config).items()}
    assert sum(half.numel() for half in split_state(meta, config).values()) == 60_965_224


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"conv9.weight": (2,)}, "conv9.weight of shape .2,. cannot be divided .* no such parameter"),
        ({"conv1.bias": (7,)}, r"conv1.bias of shape \(7,\) cannot .* the network has \(6,\)"),
    ],
)
def test_a_state_of_another_network_is_not_divided(state: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_state({name: torch.zeros(shape) for name, shape in state.items()}, small())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"conv1.a.bias": (3,)}, "conv1.bias of shape .6,. cannot be put together from conv1.a.bias and conv1.b.bias"),
        ({"conv1.a.bias": (3,), "conv1.b.bias": (4,)}, "found .3,., .4,."),
        ({"fc8.b.bias": (5,)}, "fc8.b.bias: not parameters of the two towers"),
        ({"conv6.a.bias": (8,)}, "conv6.a.bias: not parameters"),
    ],
)
def test_halves_that_make_no_whole_are_refused(state: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        merge_state({name: torch.zeros(shape) for name, shape in state.items()}, small())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"half_net": True}, "one tower: train it on one device"),
        ({"towers": 1}, "found towers 1: use 2, or one device"),
        ({"towers": 4}, "found towers 4"),
        ({"lrn_across_towers": True}, "leave lrn_across_towers off"),
    ],
)
def test_networks_that_are_not_two_towers_are_refused(fields: dict[str, Any], message: str) -> None:
    config = small(**fields)
    for attempt in (
        lambda: TowerAlexNet(config, (CPU, CPU)),
        lambda: split_state({}, config),
        lambda: merge_state({}, config),
    ):
        with pytest.raises(ConfigError, match=message):
            attempt()


def test_devices_are_read_from_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert tower_devices("cpu,cpu") == (CPU, CPU)
    assert tower_devices("cuda:0, cuda:1") == (torch.device("cuda", 0), torch.device("cuda", 1))
    assert tower_devices("cuda:1,cuda:0") == (torch.device("cuda", 1), torch.device("cuda", 0))
    assert tower_devices("cuda,cuda:0") == (torch.device("cuda", 0), torch.device("cuda", 0))


@pytest.mark.parametrize("text", ["", "cpu", "cpu,cpu,cpu", "cpu,cuda:0", "meta,meta", "gpu0,gpu1", "cuda:-1,cuda:0"])
def test_other_texts_are_no_pair_of_devices(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="two devices of a kind"):
        tower_devices(text)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (
            1,
            r"cuda:0,cuda:1 was asked for, this machine shows 1 GPUs to torch \(cuda:0 GTX 580\): use cuda:0,cuda:0 or",
        ),
        (0, "this machine shows 0 GPUs to torch: use cpu,cpu or one device"),
    ],
)
def test_gpus_that_are_not_there_are_a_fault_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, count: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GTX 580")
    with pytest.raises(MachineError, match=message) as caught:
        tower_devices("cuda:0,cuda:1")
    assert len(str(caught.value).splitlines()) == 1
