"""Named recipes: network, training and augmentation that belong together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lmdali.model.alexnet import AlexNetConfig
from lmdali.model.train_config import TrainConfig
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.block_order import OrderName
from lmdali.pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One recipe.

    Attributes:
        model: the network; `num_classes` is replaced by the dataset's.
        train: how it is trained.
        augment: how training images are made.
        batch_size: samples per step.
        order: of the training samples, see `LoaderConfig`.
        drop_last: leave out an epoch's last, smaller batch; None: as `LoaderConfig` does.

    Raises:
        ConfigError: several views of one sample, or a batch without samples.
    """

    model: AlexNetConfig
    train: TrainConfig
    augment: AugmentConfig
    batch_size: int
    order: OrderName = "shuffled"
    drop_last: bool | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, found {self.batch_size}")
        if self.augment.num_views != 1:
            raise ConfigError(f'training takes one view of a sample, crop "{self.augment.crop}" gives several')

    def changed(
        self,
        *,
        model: dict[str, Any] | None = None,
        train: dict[str, Any] | None = None,
        augment: dict[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> Preset:
        """The same recipe with some fields replaced.

        Turning lighting off takes along what only says how it is done, unless that is given too.

        Raises:
            ConfigError: a value that cannot work.
        """
        augment = dict(augment or {})
        if augment.get("lighting") == "none":
            augment = {"lighting_rescale": False, **augment}
        return dataclasses.replace(
            self,
            model=dataclasses.replace(self.model, **(model or {})),
            train=dataclasses.replace(self.train, **(train or {})),
            augment=dataclasses.replace(self.augment, **augment),
            batch_size=self.batch_size if batch_size is None else batch_size,
        )


PRESETS = {
    # The text of the paper, to the letter.
    "paper": Preset(model=AlexNetConfig(), train=TrainConfig(), augment=AugmentConfig.paper(), batch_size=128),
    # A thousand pictures, two CPU cores, a few minutes. On 1,100 photographs of ten kinds of clothing it leaves chance
    # level within four epochs and ends at 67 % top-1 (70 % with ten views); biases of one take ten epochs to begin.
    "small": Preset(
        model=AlexNetConfig(width=0.25, init="lecun", dropout=0.4),
        train=TrainConfig(epochs=40, lr=0.006, schedule="cosine:2"),
        augment=AugmentConfig(lighting="roots"),
        batch_size=32,
    ),
}
