"""Everything of a run that must survive it: taken into a checkpoint, and put back from one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmdali.model.checkpoint import Checkpoint, class_difference, content_digest, require_same_run
from lmdali.model.generators import generator_states, restore_generators, seed_generators
from lmdali.model.parallel import Ranks
from lmdali.model.schedule import Plateau, Schedule, continue_as
from lmdali.model.train_config import TrainConfig
from lmdali.model.train_state import TrainState
from lmdali.model.weight_layout import Network, load_layout, velocities_of, weights_of
from lmdali.pipeline.batch import Loader
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.loader_state import merge_states
from lmdali.pipeline.release import lmdali_version


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """The parts of a run, as its rank has them.

    Attributes:
        network: on its devices.
        optimizer: of the network.
        schedule: of the learning rate.
        state: position and sums.
        train_loader: this rank's.
        config: of the training.
        loader_config: how the training images are made, as the caller describes it.
        ranks: all processes of the run.
    """

    network: Network
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    state: TrainState
    train_loader: Loader
    config: TrainConfig
    loader_config: dict[str, Any]
    ranks: Ranks

    def checkpoint(self) -> Checkpoint:
        """The run as it is, between two steps; all ranks call it, and each gets the same."""
        states, generators = zip(
            *self.ranks.gather((self.train_loader.state_dict(), generator_states(self._devices()))), strict=True
        )
        return Checkpoint(
            model=weights_of(self.network),
            velocities=velocities_of(self.network, self.optimizer),
            schedule=self.schedule.state_dict(),
            progress=dataclasses.asdict(self.state),
            train_loader=states[0] if len(states) == 1 else merge_states(states),
            rng=generators,
            model_config=self.network.config.to_json(),
            train_config=self.config.to_json(),
            loader_config=self.loader_config,
            class_names=self.train_loader.class_names,
            manifest_digest=self.train_loader.manifest_digest,
            lmdali_version=lmdali_version(),
        )

    def require_same_everywhere(self, found: tuple[Path, Checkpoint] | None) -> None:
        """Refuse to go on where ranks have found different checkpoints, or only some of them one.

        Raises:
            ConfigError: on every rank; the run directory is not on storage that all machines share.
        """
        facts = {"checkpoint": "none"}
        if found is not None and self.ranks.world_size > 1:
            facts = {"checkpoint": found[0].name, "weights": content_digest(found[1].model)}
        self.ranks.require_same(facts)

    def restore(self, checkpoint: Checkpoint, say: Callable[[str], None]) -> None:
        """Be where the checkpoint was taken, but for the loader and the generators.

        Args:
            checkpoint: of the same network and training set; other settings may differ, and then these are used.
            say: told each of those differences.

        Raises:
            InputError: the checkpoint is of another network, other classes or another training set.
        """
        require_same_run(
            checkpoint,
            model_config=self.network.config.to_json(),
            class_names=self.train_loader.class_names,
            manifest_digest=self.train_loader.manifest_digest,
        )
        load_layout(self.network, self.optimizer, checkpoint.model, checkpoint.velocities)
        then, now = checkpoint.train_config, self.config.to_json()
        if then.get("schedule") == now["schedule"]:
            self.schedule.load_state_dict(checkpoint.schedule)
        else:
            continue_as(self.schedule, checkpoint.schedule, epochs_done=checkpoint.progress["epoch"])
        before, here = _flat(checkpoint.loader_config), _flat(self.loader_config)
        other_set = before.get("validation_set", here.get("validation_set")) != here.get("validation_set")
        # Earlier versions kept less of the loader's settings.
        then, now = {**then, **before}, {**now, **{name: here[name] for name in here if name in before}}
        for name in now:
            if then.get(name) != now[name]:
                say(f"changed on resuming: {name} {then.get(name)} -> {now[name]}")
        if len(checkpoint.rng) != self.ranks.world_size:
            say(f"changed on resuming: ranks {len(checkpoint.rng)} -> {self.ranks.world_size}")
        self.state.restore(checkpoint.progress)
        if other_set:
            say("the lowest validation error begins anew: those so far are of another set")
            self.state.best_top1_error, self.state.best_epoch = math.inf, -1
            if isinstance(self.schedule, Plateau):
                self.schedule.best_error, self.schedule.bad_epochs = math.inf, 0

    def begin_generators(self, resumed: Checkpoint | None) -> None:
        """Seed this rank's generators, or put them back; a rank that the checkpoint lacks gets a stream of its own."""
        rank = self.ranks.rank
        if resumed is not None and rank < len(resumed.rng):
            restore_generators(resumed.rng[rank], self._devices())
        else:
            seed_generators(self.config.seed, rank=rank, step=self.state.step)

    def _devices(self) -> list[torch.device]:
        return list(dict.fromkeys(parameter.device for parameter in self.network.parameters()))


def _flat(loader_config: dict[str, Any]) -> dict[str, Any]:
    """What decides the training images. Not where the set is: that it is the same one, its digest has said."""
    return {
        name: value
        for name, value in {**loader_config, **loader_config.get("augment", {})}.items()
        if name not in ("augment", "dataset")
    }


def require_same_classes(model: Network, train_loader: Loader, val_loader: Loader) -> None:
    """Refuse loaders and a network that mean different things by a label.

    Raises:
        InputError: they do.
    """
    train, val = train_loader.class_names, val_loader.class_names
    require_same_names(train, val)
    if len(train) != model.config.num_classes:
        raise InputError(
            f"the network has {model.config.num_classes} classes, the training set {len(train)}: make one with that "
            "num_classes"
        )


def require_same_names(train: Sequence[str], val: Sequence[str]) -> None:
    """Refuse a training and a validation set whose labels mean different classes.

    Raises:
        InputError: they do.
    """
    if train != val:
        raise InputError(
            f"training and validation set have different classes ({class_difference(train, val)}): convert the "
            "validation set with --classes TRAIN, the training set"
        )
