"""One training from two datasets to a trained network, its metrics and its pictures: `TrainJob`, `train_dataset`."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import torch

from lmdali.model.alexnet import AlexNet
from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.device import pick_devices
from lmdali.model.parallel import RANK_TIMEOUT_SECONDS, Ranks, process_group
from lmdali.model.presets import PRESETS, Preset
from lmdali.model.torchrun import Parallel, TorchrunPlace, torchrun_place
from lmdali.model.towers import TowerAlexNet
from lmdali.model.trainer import Trainer
from lmdali.model.weight_layout import Network
from lmdali.pipeline.backend import DType
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.dataset_place import Place, place_directory, place_text
from lmdali.pipeline.eigenbasis import load_moments, save_statistics
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.tools.config_file import ORIGINS
from lmdali.tools.dataset_pair import tell_of_pair
from lmdali.tools.initial_weights import ALL_BUT_THE_HEAD, begin_from
from lmdali.tools.loader_options import EpochOptions
from lmdali.tools.recipe import PRESET_ORIGIN
from lmdali.tools.run_facts import RunFacts, describe_session, save_run_facts
from lmdali.tools.train_report import TrainReport, device_names, finished_report


@dataclass(frozen=True, kw_only=True)
class TrainJob(EpochOptions):
    """Everything that `lmdali train` is told; what `EpochOptions` says is for both loaders.

    The order and the decoded cache are for the training loader alone: validation goes through its set in storage order,
    and a second cache would need as much memory again.

    Attributes:
        train: training set made by `lmdali convert`: directory or address.
        val: validation set of the same classes; it is normalised with the training set's statistics.
        run_dir: gets checkpoints, metrics, the statistics, and the pictures.
        preset: network, training and augmentation; its batch is that of all ranks together.
        resume: continue the run in `run_dir`, if there is one.
        init_from: checkpoint, or run directory and its best one, whose layers the network begins with.
        init_layers: which of them, see `weight_transfer.select_layers`; the others begin at random.
        device: auto, cpu or cuda:N.
        parallel: one device, two with a tower each, or one process per device under torchrun.
        devices: of the towers, or of this machine's ranks, with commas between them; empty leaves it to `device`.
        rank_timeout: seconds that a rank waits for the others before it gives the job up.
        recipe: the settings with their origins, as `Recipe.to_json` has them, to be kept in the run; None without any.
    """

    train: Place
    val: Place
    run_dir: Path
    preset: Preset = PRESETS["paper"]
    resume: bool = False
    init_from: Path | None = None
    init_layers: str = ALL_BUT_THE_HEAD
    device: str = "auto"
    parallel: Parallel = "none"
    devices: str = ""
    rank_timeout: float = RANK_TIMEOUT_SECONDS
    recipe: Mapping[str, Any] | None = None

    def loader_configs(self, place: TorchrunPlace | None = None) -> tuple[LoaderConfig, LoaderConfig]:
        """Of the training and the validation loader of one rank, which has its part of the batch.

        Raises:
            ConfigError: the batch, or the last one of an epoch that was asked for, cannot be divided equally among the
                ranks.
        """
        place = place or TorchrunPlace()
        train = LoaderConfig(
            dataset=self.train,
            batch_size=place.share_of(self.preset.batch_size),
            seed=self.preset.train.seed,
            augment=self.preset.augment,
            # What the network would round them to anyway, before anything else: half the bytes to write, copy and read.
            dtype=cast(DType, self.preset.train.precision),
            layout="NHWC" if self.preset.train.channels_last else "NCHW",
            drop_last=self._drop_last(place.world_size),
            **{"order": self.preset.order, **self.loader_arguments()},
        )
        val = dataclasses.replace(
            train,
            dataset=self.val,
            augment=self.preset.augment.evaluation(),
            order="sequential",
            drop_last=None,
            decoded_cache_bytes=0,
            basis=self.train,
        )
        return train, val

    def _drop_last(self, world_size: int) -> bool | None:
        if world_size == 1 or self.preset.drop_last is not False:
            return self.preset.drop_last
        origins = {} if self.recipe is None else self.recipe[ORIGINS]["loader"]
        if not origins.get("drop_last", "").startswith(PRESET_ORIGIN):
            raise ConfigError("several ranks cannot share an epoch's last, smaller batch: leave it out, --drop-last")
        # A preset's habit of one device (of ImageNet's epoch the last 15 images) and not what somebody asked for.
        return True


def train_dataset(job: TrainJob, progress: TextIO | None = None) -> TrainReport:
    """Train until the end or a signal, and draw the pictures; with several ranks, all of them call this.

    Args:
        job: what to do.
        progress: stream for progress lines, usually stderr; None for silence.

    Returns:
        The same on every rank. Where a signal has stopped several ranks, their processes ignore SIGTERM from then on.

    Raises:
        ConfigError: options that do not go together, or with what torchrun says.
        InputError: a dataset, its classes or the run directory cannot be used.
        IntegrityError: a dataset or all checkpoints are damaged.
        StorageError: the run directory cannot be written.
        MachineError: a device is not there, or another rank is gone.
        LmdaliError: the loss became infinite or NaN.

    Warns:
        SameDatasetWarning, SwappedDatasetsWarning: see `tell_of_pair`.
    """
    place = torchrun_place(job.parallel)
    devices = pick_devices(job.parallel, job.device, job.devices, place)
    configs = job.loader_configs(place)
    with process_group(place, devices[0], timeout_seconds=job.rank_timeout) as ranks:
        return _train(job, devices, configs, ranks, progress if ranks.is_first else None)


@contextmanager
def ranks_of(given: Mapping[str, Any]) -> Iterator[Ranks]:
    """All ranks of several trainings in turn, which meet once for all of them.

    Args:
        given: fields of `TrainJob` that they share; `parallel`, `device`, `devices` and `rank_timeout` matter here.

    Raises:
        ConfigError: options that do not go together, or with what torchrun says.
        MachineError: a device is not there, or another rank is gone.
    """
    parallel, device = given.get("parallel", TrainJob.parallel), given.get("device", TrainJob.device)
    place = torchrun_place(parallel)
    devices = pick_devices(parallel, device, given.get("devices", TrainJob.devices), place)
    timeout_seconds = given.get("rank_timeout", TrainJob.rank_timeout)
    with process_group(place, devices[0], timeout_seconds=timeout_seconds) as ranks:
        yield ranks


def _train(
    job: TrainJob,
    devices: tuple[torch.device, ...],
    configs: tuple[LoaderConfig, LoaderConfig],
    ranks: Ranks,
    progress: TextIO | None,
) -> TrainReport:
    rank = {"rank": ranks.rank, "world_size": ranks.world_size}
    with (
        create_loader(configs[0], device=devices[0], **rank) as train_loader,
        create_loader(configs[1], device=devices[0], **rank) as val_loader,
    ):
        model_config = dataclasses.replace(job.preset.model, num_classes=len(train_loader.class_names))
        trainer = Trainer(
            _network(job, model_config, devices),
            job.preset.train,
            train_loader,
            val_loader,
            run_dir=job.run_dir,
            device=devices[0],
            loader_config=_describe(job, configs[0], val_loader),
            progress=progress,
            ranks=ranks,
        )
        if job.resume:
            trainer.resume_latest()
        trainer.require_vacant()
        if ranks.is_first:
            tell_of_pair(job.train, job.val, (train_loader.identity, val_loader.identity), stacklevel=3)
        if progress is not None:
            print(_opening(job, trainer, train_loader), file=progress, flush=True)
        if job.init_from is not None and not trainer.checkpoints.candidates():
            begun = begin_from(trainer, job.init_from, job.init_layers)
            if progress is not None:
                print(f"begins with {begun}", file=progress, flush=True)
        # Nothing is written before, or it would be over what the run has that may be training there.
        result = trainer.fit(lambda: _save_facts(job, trainer))
        if ranks.world_size > 1 and result.stopped_by is not None:
            # All ranks leave now, and once the first is gone torchrun would end the rest before they can say why.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # The others wait here, so that none of them is gone, and torchrun ends the first, before it is through.
        return ranks.on_first(lambda: finished_report(trainer, result, train_loader.backend_name, progress))


def _save_facts(job: TrainJob, trainer: Trainer) -> None:
    save_run_facts(job.run_dir, _facts(job, trainer))
    if job.preset.augment.needs_basis:
        # Whoever evaluates the run later needs the training set's mean, not the training set.
        save_statistics(job.run_dir, *load_moments(place_directory(job.train, cache_dir=job.cache_dir)))


def _network(job: TrainJob, config: AlexNetConfig, devices: tuple[torch.device, ...]) -> Network:
    if job.parallel == "towers":
        return TowerAlexNet(config, (devices[0], devices[1]), seed=job.preset.train.seed)
    return AlexNet(config, seed=job.preset.train.seed)


def _describe(job: TrainJob, loader: LoaderConfig, val_loader: DatasetLoader) -> dict[str, Any]:
    return {
        "dataset": place_text(job.train),
        "batch_size": job.preset.batch_size,
        "order": loader.order,
        "drop_last": loader.drops_last,
        # The lowest error so far is that of this set.
        "validation_set": val_loader.manifest_digest[:12],
        "augment": dataclasses.asdict(job.preset.augment),
    }


def _facts(job: TrainJob, trainer: Trainer) -> RunFacts:
    session = describe_session(trainer.device, device_names(trainer), trainer.ranks.world_size, trainer.state.step)
    return RunFacts(
        train=place_text(job.train),
        val=place_text(job.val),
        train_digest=trainer.train_loader.manifest_digest,
        val_digest=trainer.val_loader.manifest_digest,
        recipe=job.recipe,
        sessions=(session,),
    )


def _opening(job: TrainJob, trainer: Trainer, loader: DatasetLoader) -> str:
    parameters = sum(p.numel() for p in trainer.model.parameters())
    place = device_names(trainer)
    ranks = f", the first of {trainer.ranks.world_size} ranks" if trainer.ranks.world_size > 1 else ""
    left_out = (
        ", without the last, smaller batch, which ranks cannot share" if ranks and job.preset.drop_last is False else ""
    )
    return (
        f"{loader.num_samples:,} training and {trainer.val_loader.num_samples:,} validation samples of "
        f"{len(loader.class_names)} classes; {parameters:,} parameters on {place}{ranks}; "
        f"loader {loader.backend_name} ({loader.backend_reason}), order {loader.order_text}; "
        f"{len(loader)} steps of {job.preset.batch_size} per epoch{left_out}"
    )
