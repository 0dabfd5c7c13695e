"""The identity of a network that features, codes and probabilities are of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.checkpoint import Checkpoint
from lmdali.tools.checkpoint_network import CheckpointNetwork


def network(**changed: Any) -> CheckpointNetwork:
    fields = {
        "model": {"fc8.bias": torch.zeros(2)},
        "model_config": {"lrn_k": 2.0},
        "loader_config": {"augment": {"mean_window": "aligned"}, "batch_size": 8},
        "manifest_digest": "a",
        "progress": {"step": 1},
    }
    stored = cast(Checkpoint, SimpleNamespace(**fields | changed))
    with torch.device("meta"):
        model = AlexNet(AlexNetConfig(width=1 / 32, num_classes=2))
    return CheckpointNetwork(Path("x"), stored, model, torch.device("cpu"), None)


def test_its_digest_is_of_all_that_activations_depend_on_and_of_nothing_else() -> None:
    others = (
        network(model={"fc8.bias": torch.ones(2)}),
        network(model_config={"lrn_k": 1.0}),
        network(loader_config={"augment": {"mean_window": "center"}, "batch_size": 8}),
        network(manifest_digest="b"),  # whose mean is subtracted
    )
    assert len({network().digest, *(other.digest for other in others)}) == 5
    assert network(progress={"step": 2}).digest == network().digest
    longer = {"augment": {"mean_window": "aligned"}, "batch_size": 16}
    assert network(loader_config=longer).digest == network().digest
