"""`lmdali train`: one training, or a chain of them, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, get_args

import click

from lmdali.model.torchrun import Parallel, torchrun_place
from lmdali.pipeline.dataset_place import Place
from lmdali.tools.chain import print_chain, print_plan, run_chain
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.exit_codes import end_as
from lmdali.tools.loader_options import epoch_options, loader_options
from lmdali.tools.preset_options import RecipeCommand, given_settings, preset_options
from lmdali.tools.recipe import print_recipe, resolve_recipe
from lmdali.tools.report_table import print_json
from lmdali.tools.stages import Stage, load_stages
from lmdali.tools.train_job import TrainJob, train_dataset
from lmdali.tools.train_report import print_report


@click.command("train", cls=RecipeCommand)
@click.argument("train", type=DATASET, required=False)
@click.argument("val", type=DATASET, required=False)
@click.option("--run-dir", type=click.Path(path_type=Path), help="Directory for everything written.  [required]")
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir, if there is one.")
@click.option(
    "--init-from",
    type=click.Path(path_type=Path),
    default=TrainJob.init_from,
    help="Checkpoint, or run directory and its best one, whose layers the network begins with.",
)
@click.option(
    "--init-layers",
    default=TrainJob.init_layers,
    show_default=True,
    help="Which of them: conv, conv1..conv3,fc6, all, all-but-fc8.",
)
@click.option("--device", default=TrainJob.device, show_default=True, help="auto, cpu or cuda:N.")
@click.option(
    "--parallel",
    type=click.Choice(get_args(Parallel)),
    default=TrainJob.parallel,
    show_default=True,
    help="One device; two with a tower each; or one process per device, each with its part of every batch.",
)
@click.option(
    "--devices", default=TrainJob.devices, help="Of the two towers, or of each rank of this machine: cuda:0,cuda:1."
)
@click.option(
    "--rank-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=TrainJob.rank_timeout,
    show_default=True,
    help="Seconds to wait for other ranks.",
)
@loader_options
@epoch_options
@preset_options
@click.option("--print-config", is_flag=True, help="Print every setting and where it comes from, and end.")
@click.option(
    "--stages",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file of trainings that begin with each other's layers, in place of TRAIN and VAL.",
)
@click.option("--dry-run", is_flag=True, help="Print what the stages would do, and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(train: Place | None, val: Place | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Train AlexNet on the dataset TRAIN, validating on VAL: directories, or addresses such as s3://bucket/train.

    SIGINT and SIGTERM finish the step, save a checkpoint, and exit with 130 or 143; --resume continues there, with as
    many devices and processes as it has then.

    Several devices with a copy of the network each:
    torchrun --nproc-per-node 2 -m lmdali.tools train TRAIN VAL --run-dir DIR --parallel ddp
    """
    asked = {name: given.pop(name) for name in ("stages", "dry_run", "print_config")}
    settings = given_settings(click.get_current_context(), given)
    progress = None if quiet else sys.stderr
    if asked["stages"] is not None:
        if train is not None or given["init_from"] is not None:
            raise click.UsageError(
                "--stages names all datasets and beginnings itself: leave TRAIN and --init-from out."
            )
        _train_chain(load_stages(asked["stages"], settings), asked, given, as_json=as_json, progress=progress)
        return
    if asked["dry_run"]:
        raise click.UsageError("--dry-run is for --stages; --print-config shows one training.")
    if not asked["print_config"]:
        _require({"TRAIN": train, "VAL": val, "--run-dir": given["run_dir"]})
    recipe = resolve_recipe(settings, train=train)
    if asked["print_config"]:
        print_json(recipe.to_json()) if as_json else print_recipe(recipe)
        return
    assert train is not None and val is not None
    job = TrainJob(train=train, val=val, preset=recipe.preset, recipe=recipe.to_json(), **recipe.loader, **given)
    report = train_dataset(job, progress)
    if torchrun_place(given["parallel"]).rank == 0:
        print_json(report.to_json()) if as_json else print_report(report)
    end_as(report.result.stopped_by)


def _train_chain(
    stages: Sequence[Stage], asked: Mapping[str, Any], given: dict[str, Any], *, as_json: bool, progress: TextIO | None
) -> None:
    if asked["print_config"] or asked["dry_run"]:
        if as_json:
            print_json({"stages": [stage.to_json() for stage in stages]})
        elif asked["dry_run"]:
            print_plan(stages)
        else:
            for stage in stages:
                print_recipe(stage.recipe, title=stage.name)
        return
    _require({"--run-dir": given["run_dir"]})
    report = run_chain(stages, given, progress=progress)
    if torchrun_place(given["parallel"]).rank == 0:
        print_json(report.to_json()) if as_json else print_chain(report)
    end_as(report.stopped_by)


def _require(values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if value is None:
            raise click.UsageError(f"Missing {name}.")
