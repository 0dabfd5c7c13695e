"""Binary codes by an auto-encoder on features: the paper proposes it (section 6.1), Krizhevsky & Hinton (2011) did it
on pixels.

An MLP narrows to logistic code units whose outputs are rounded to 0 or 1 on the way forward, and the rounding is
ignored on the way back. There is no pre-training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmdali.model.features_file import Features
from lmdali.pipeline.errors import ConfigError, InputError, LmdaliError

_HIDDEN = (1024, 256)
_STEEPNESS = 4.0
_ENCODE_RECORDS, _MOMENT_RECORDS = 4096, 512
MAX_BITS = 1024


@dataclass(frozen=True, kw_only=True)
class CodeConfig:
    """What the auto-encoder is and how it is trained.

    Attributes:
        bits: length of a code; 28 suits a table of all codes, 64 one machine word, 256 a closer look.
        epochs: passes over the features.
        batch_size: records per step.
        lr: of Adam.
        seed: of weights and order.
    """

    bits: int = 64
    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise ConfigError(f"bits must be 1 to {MAX_BITS}, found {self.bits}")
        if self.epochs < 1 or self.batch_size < 2 or not self.lr > 0:
            raise ConfigError(
                "epochs must be at least 1, batch_size at least 2 and lr above 0, found "
                f"{self.epochs}, {self.batch_size} and {self.lr:g}"
            )

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)


class CodeNetwork(nn.Module):
    """Features to bits and back: D - 1024 - 256 - bits and its mirror image, ReLU between, logistic at the code.

    A hidden layer that is no wider than the code is left out. Features are centred and scaled to unit mean square. The
    inputs of the code units are normalised over each batch, so that no unit can come to say the same of all records:
    without that, on fc7 of 1,100 photographs, there were constant bits at every length; with it their means are within
    0.25 and 0.74.

    Args:
        dims: D.
        bits: length of a code.
        seed: of the initial weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dims: int, bits: int, *, seed: int = 0) -> None:
        super().__init__()
        widths = [dims, *(width for width in _HIDDEN if width > bits), bits]
        self.encoder, self.decoder = _layers(widths), _layers(widths[::-1])
        self.norm = nn.BatchNorm1d(bits, affine=False)
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("scale", torch.ones(()))
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                std = math.sqrt(2.0 / layer.in_features)  # He et al., 2015: ReLUs halve the energy
                with torch.no_grad():
                    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
                    layer.bias.zero_()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and target, both `(B, D)`, of `(B, D)` features: centred and scaled."""
        target = (features - self.mean) * self.scale
        # The logistic function of inputs within one deviation must be near 0 or 1, where rounding costs little.
        probability = torch.sigmoid(_STEEPNESS * self.norm(self.encoder(target)))
        rounded = probability + (probability.round() - probability).detach()
        return self.decoder(rounded), target

    @torch.no_grad()
    def bits(self, features: Tensor) -> Tensor:
        """`(B, bits)` bool codes of `(B, D)` features, in evaluation mode."""
        inputs: Tensor = self.norm(self.encoder((features - self.mean) * self.scale))
        return inputs > 0


def _layers(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        # Not initialised by torch, whose own generator is no business of ours; see `__init__`.
        linear: nn.Module = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train_code_network(
    features: Features,
    config: CodeConfig,
    device: torch.device | str = "cpu",
    *,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[CodeNetwork, float]:
    """Train an auto-encoder: mean squared error, Adam.

    Args:
        features: what to encode; read in batches from mapped files, never all at once.
        config: see `CodeConfig`.
        device: where to train.
        on_progress: told the number of finished epochs.

    Returns:
        The network in evaluation mode, and the mean squared error of its last epoch, 1 being that of no code at all.

    Raises:
        InputError: fewer than two records, all of them are alike, or a feature is not finite.
        LmdaliError: the loss is not finite.
    """
    count = len(features)
    if count < 2:
        raise InputError(f"{features.directory}: {count} record is not enough to learn a code from: give more")
    network = CodeNetwork(features.plan.dims, config.bits, seed=config.seed)
    mean, mean_square = _moments(features)
    if not mean_square > 0:
        raise InputError(
            f"{features.directory}: all records are alike, there is nothing to learn a code from: give others"
        )
    network.mean.copy_(torch.from_numpy(mean))
    network.scale.fill_(mean_square**-0.5)
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    generator = torch.Generator().manual_seed(config.seed)
    loss_mean = 0.0
    for epoch in range(config.epochs):
        losses = []
        order = torch.randperm(count, generator=generator).numpy()
        for start in range(0, count, config.batch_size):
            indices = order[start : start + config.batch_size]
            if len(indices) < 2:  # one record has no variance to be normalised by
                continue
            rows = torch.from_numpy(features.rows(indices)).to(device)
            reconstruction, target = network(rows)
            loss = (reconstruction - target).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        loss_mean = float(torch.stack(losses).mean())
        if not math.isfinite(loss_mean):
            raise LmdaliError(
                f"epoch {epoch}: the auto-encoder's loss is {loss_mean} at learning rate {config.lr:g}: lower --lr"
            )
        on_progress(epoch + 1)
    return network.eval(), loss_mean


def encode_features(
    network: CodeNetwork, features: Features, *, on_progress: Callable[[int], None] = lambda done: None
) -> NDArray[np.bool_]:
    """`(N, bits)` bool codes of all records, in order.

    Raises:
        InputError: a feature is not finite.
    """
    device = network.mean.device
    codes = np.empty((len(features), network.norm.num_features), np.bool_)
    done = 0
    for rows in features.finite_blocks(_ENCODE_RECORDS):
        codes[done : done + len(rows)] = network.bits(torch.from_numpy(rows).to(device)).cpu().numpy()
        done += len(rows)
        on_progress(done)
    return codes


def _moments(features: Features) -> tuple[NDArray[np.float32], float]:
    """Mean `(D,)`, and the mean square of what is left without it."""
    sums, squares = np.zeros(features.plan.dims), 0.0
    for rows in features.finite_blocks(_MOMENT_RECORDS):
        sums += rows.sum(axis=0, dtype=np.float64)
        squares += float(np.square(rows.astype(np.float64)).sum())
    mean = sums / len(features)
    mean_square = squares / (len(features) * len(mean)) - float(np.square(mean).mean())
    # What is left of equal numbers is rounding.
    return mean.astype(np.float32), mean_square if mean_square > 1e-12 * squares / (len(features) * len(mean)) else 0.0
