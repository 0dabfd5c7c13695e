"""`lmdali ablate`: the paper's experiments, one after the other, and a table of them beside its claims."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from lmdali.model.variants import VARIANTS
from lmdali.pipeline.dataset_place import Place
from lmdali.tools.ablation import AblationConfig, run_ablation
from lmdali.tools.ablation_page import save_ablation_page
from lmdali.tools.ablation_table import ablation_json, print_ablation
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.exit_codes import end_as
from lmdali.tools.loader_options import epoch_options, loader_options
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.preset_options import RecipeCommand, given_settings, preset_options
from lmdali.tools.recipe import resolve_recipe
from lmdali.tools.report_table import print_json


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Variants from `no-conv3,no-lrn`."""
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


@click.command("ablate", cls=RecipeCommand)
@click.argument("train", type=DATASET)
@click.argument("val", type=DATASET)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory for all runs; goes on with what is there.",
)
@click.option(
    "--variants",
    callback=_names,
    help=f"Of {', '.join(VARIANTS)}; the baseline is always one.  [default: all that change anything]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=AblationConfig.seeds,
    show_default=True,
    help="Trainings of each: --seed and the numbers after it.",
)
@click.option("--device", default=AblationConfig.device, show_default=True, help="auto, cpu or cuda:N.")
@loader_options
@epoch_options
@preset_options
@click.option("--html", "page", type=OUTPUT_FILE, help="Also write it as one HTML file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    train: Place, val: Place, run_dir: Path, page: Path | None, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Train variants of a recipe on TRAIN, with the same seeds and epochs, and compare them on VAL.

    What has finished is not trained again, and what was interrupted goes on: run the same command once more. A fixed
    schedule does not shrink with --epochs: for a short budget take a cosine or the plateau.
    """
    asked = {name: given.pop(name) for name in ("variants", "seeds", "device")}
    recipe = resolve_recipe(given_settings(click.get_current_context(), given), train=train)
    config = AblationConfig(train=train, val=val, run_dir=run_dir, recipe=recipe, **asked)
    report = run_ablation(config, None if quiet else sys.stderr)
    if page is not None:
        save_ablation_page(report, config, page)
    print_json(ablation_json(report)) if as_json else print_ablation(report)
    if report.stopped_by is not None:
        click.echo(f"what was trained stays in {run_dir}: the same command goes on from there", err=True)
    end_as(report.stopped_by)
