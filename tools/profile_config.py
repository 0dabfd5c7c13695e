"""`ProfileConfig`: what `lmdali profile` measures, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import DType, Layout
from lmdali.pipeline.cpu_budget import rank_cpus
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader_config import LoaderConfig
from lmdali.pipeline.nvtx_ranges import NvtxRanges, find_nvtx
from lmdali.tools.augment_options import augment_for
from lmdali.tools.loader_options import BACKENDS, EpochOptions
from lmdali.tools.measurement import WindowPlan
from lmdali.tools.what_if import Case

ProfileParallel = Literal["none", "ddp"]
"""One process, or those that torchrun started."""


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(EpochOptions):
    """What to profile: the loader that `EpochOptions` says, in any form.

    Attributes:
        batch_size: samples per step.
        device: "auto", "cpu" or "cuda:N".
        dtype: of the images; for the two half precisions the model runs under autocast.
        layout: of the images; the model takes both.
        width: of the AlexNet; 1 is the paper's.
        seconds: for each of the four or five measurements, not counting warm-up.
        steps: for each measurement, instead of seconds.
        seed: of order and draws.
        parallel: one process, or one per device under torchrun, which average their gradients; `batch_size` is each
            one's, and all of them are in one report.
        what_if: questions to be answered from what was measured, each by itself: cpus=N, gpus=N, disk=NMB/s, raw, or
            several of these with commas, together.
        cold: measure the dataset without its page cache, too, which is dropped for that.
        nvtx: mark the loader's stages and the training steps as NVTX ranges, for Nsight Systems.
    """

    batch_size: int = LoaderConfig.batch_size
    device: str = "auto"
    dtype: DType = LoaderConfig.dtype
    layout: Layout = LoaderConfig.layout
    width: float = 1.0
    seconds: float = 3.0
    steps: int | None = None
    seed: int = 0
    parallel: ProfileParallel = "none"
    cold: bool = False
    nvtx: bool = False
    what_if: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}; found {self.backend!r}")
        self.window_plan()
        for question in self.what_if:
            Case.parse(question)

    @property
    def usable_threads(self) -> int:
        """`num_threads` with its default filled in."""
        return self.num_threads or rank_cpus()

    def ranges(self) -> NvtxRanges | None:
        """What marks stages and steps; None unless that was asked for and can be done here."""
        return find_nvtx() if self.nvtx else None

    def window_plan(self) -> WindowPlan:
        """How long each part is measured."""
        return WindowPlan(seconds=self.seconds, steps=self.steps)

    def loader_config(self, dataset: Path | str, augment: AugmentConfig | None) -> LoaderConfig:
        """The loader to be profiled; `augment` None is the paper's way, and of uint8 pixels only what they allow."""
        return LoaderConfig(
            dataset=dataset,
            batch_size=self.batch_size,
            seed=self.seed,
            augment=augment_for(self.dtype, augment),
            **self.loader_arguments(),
        )
