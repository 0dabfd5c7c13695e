from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_files import write_features

from lmdali.model.code_network import CodeConfig, CodeNetwork, encode_features, train_code_network
from lmdali.model.features_file import Features
from lmdali.model.hamming import pack_codes, search_hamming
from lmdali.pipeline.errors import ConfigError, InputError, LmdaliError


def clusters(count: int = 640) -> tuple[np.ndarray, np.ndarray]:
    """Points of eight Gaussian clusters in 64 dimensions, and which of them each is of."""
    random = np.random.default_rng(0)
    centres, member = 3 * random.normal(size=(8, 64)), random.integers(0, 8, count)
    return (centres[member] + random.normal(size=(count, 64))).astype(np.float32), member


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return write_features(tmp_path_factory.mktemp("codes") / "f", clusters()[0])


def test_sixteen_bits_keep_eight_clusters_apart(features: Features) -> None:
    network, loss = train_code_network(features, CodeConfig(bits=16, epochs=8))
    bits = encode_features(network, features)
    words, member = pack_codes(bits), clusters()[1]
    own = np.arange(len(member))
    found = search_hamming(words, words, 11).without(own, 10)
    assert (member[found.indices] == member[:, None]).mean() > 0.95
    assert bits.mean(axis=0).min() > 0.1 and bits.mean(axis=0).max() < 0.9
    assert 0 < loss < 0.5


def test_a_seed_decides_everything_and_no_other_generator_moves(features: Features) -> None:
    config = CodeConfig(bits=8, epochs=1, seed=3)
    before = torch.get_rng_state()
    first, loss = train_code_network(features, config)
    assert torch.equal(torch.get_rng_state(), before)
    second, again = train_code_network(features, config)
    assert loss == again
    for one, two in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    other, _ = train_code_network(features, CodeConfig(bits=8, epochs=1, seed=4))
    assert not torch.equal(first.encoder[0].weight, other.encoder[0].weight)


@pytest.mark.parametrize(
    ("bits", "widths"), [(28, [64, 1024, 256, 28]), (64, [64, 1024, 256, 64]), (256, [64, 1024, 256])]
)
def test_the_network_narrows_to_the_code_and_is_mirrored(bits: int, widths: list[int]) -> None:
    network = CodeNetwork(64, bits)
    for layers, wanted in ((network.encoder, widths), (network.decoder, widths[::-1])):
        linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
        assert [linear[0].in_features, *(layer.out_features for layer in linear)] == wanted


def test_the_decoder_sees_bits_and_the_encoder_gets_a_gradient() -> None:
    network = CodeNetwork(6, 4).eval()
    seen: list[torch.Tensor] = []
    network.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    reconstruction, target = network(rows)
    assert torch.equal(seen[0], seen[0].round())
    assert torch.equal(seen[0].bool(), network.bits(rows))
    (reconstruction - target).square().mean().backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in network.encoder.parameters())


def test_rounding_is_ignored_on_the_way_back() -> None:
    network = CodeNetwork(3, 1).eval()
    network.encoder, network.decoder = torch.nn.Identity(), torch.nn.Identity()
    network.norm = torch.nn.Identity()
    rows = torch.tensor([[0.1, -0.2, 0.4]], requires_grad=True)
    network(rows)[0].sum().backward()
    probability = torch.sigmoid(4 * rows.detach())
    assert torch.allclose(rows.grad, 4 * probability * (1 - probability))


def test_features_are_centred_and_have_unit_mean_square(features: Features) -> None:
    network, _ = train_code_network(features, CodeConfig(bits=4, epochs=1))
    _, target = network(torch.from_numpy(clusters()[0]))
    assert torch.allclose(target.mean(dim=0), torch.zeros(64), atol=1e-4)
    assert float(target.square().mean()) == pytest.approx(1.0, rel=1e-4)


def test_there_must_be_something_to_learn(tmp_path: Path) -> None:
    for name, rows, part in (("one", np.ones((1, 3)), "1 record"), ("alike", np.full((9, 3), 0.1), "all records are")):
        with pytest.raises(InputError, match=part):
            train_code_network(write_features(tmp_path / name, rows), CodeConfig())


def test_a_loss_that_is_not_finite_ends_it(features: Features) -> None:
    with pytest.raises(LmdaliError, match=r"epoch 1: the auto-encoder's loss is (inf|nan) at learning rate 1e\+30"):
        train_code_network(features, CodeConfig(bits=8, epochs=3, batch_size=640, lr=1e30))


@pytest.mark.parametrize("fields", [{"bits": 0}, {"bits": 5000}, {"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}])
def test_impossible_settings_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        CodeConfig(**fields)  # type: ignore[arg-type]
